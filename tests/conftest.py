"""What several test files share: the folders of the repository, and a small project in a temporary folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# the tests of one process must not fight over two cores, and must find nothing but what is in the repository
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.modules.setdefault("rfc3987_syntax", None)  # else nbformat's jsonschema compiles its grammars for 2 seconds
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has a core: more threads of torch would stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that one worker has it while the other does the rest."""
    items.sort(key=lambda item: item.path.stem != "test_pipeline")


FIRST = [
    (
        "parameters",
        'run_name: str = "tiny"\nseed: int = 0  # [0, 100] of the draw\nn: int = 3  # [1, 50] lines, count\n'
        'scale: float = 1.0e-1  # [0, 1] factor, no unit\nmode: str = "plain"  # {plain, fail, quit} how it ends',
    ),
    (
        "",
        "from mmprm_lib.run import Run, check_parameters, progress\n\n"
        'params = check_parameters("01_first", globals())\nrun = Run("01_first", params)',
    ),
    (
        "",
        'path = run.output("lines.txt")\n'
        'lines = [f"{i * params[\'scale\']:.3f}\\n" for i in progress(range(params["n"]), desc="lines")]\n'
        'path.write_text("".join(lines))\n'
        'if params["mode"] == "fail":\n    raise ValueError("the chart has no bars")',
    ),
    ("", 'run.metric("n_lines", n, n=n)\nif mode != "quit":\n    run.finish()'),
]
SECOND = [
    ("parameters", 'run_name: str = "tiny"\nseed: int = 0  # [0, 100] unused draw'),
    (
        "",
        "from mmprm_lib.run import Run, check_parameters\n\n"
        'params = check_parameters("02_second", globals())\nrun = Run("02_second", params)',
    ),
    (
        "",
        'values = [float(x) for x in run.input("01_first/lines.txt").read_text().split()]\n'
        'run.metric("mean", sum(values) / len(values), n=len(values), low=min(values), high=max(values))\nrun.finish()',
    ),
]


def write_notebook(path: Path, cells: list[tuple[str, str]]) -> None:
    """Nothing; writes a notebook of code cells, each a (tag, source)."""
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    for position, (tag, source) in enumerate(cells):
        cell = nbformat.v4.new_code_cell(source, id=f"c{position}", metadata={"tags": [tag]} if tag else {})
        notebook.cells.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a project of two notebooks, 01_first and 02_second, with params/tiny; the run layer works in it."""
    root = tmp_path / "project"
    write_notebook(root / "notebooks" / "01_first.ipynb", FIRST)
    write_notebook(root / "notebooks" / "02_second.ipynb", SECOND)
    (root / "params" / "tiny").mkdir(parents=True)
    (root / "params" / "tiny" / "01_first.yaml").write_text("n: 4\nscale: 1\n")
    (root / "params" / "tiny" / "02_second.yaml").write_text("")
    (root / "requirements.lock").write_text("numpy==1\n")
    monkeypatch.setenv("MMPRM_ROOT", str(root))
    monkeypatch.delenv("MMPRM_RESULTS", raising=False)
    return root
