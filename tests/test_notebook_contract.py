"""What every notebook must keep to; static, nothing is run."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from mmprm_lib import parameters, registry, stages, sweep
from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SWEEPS = sorted((REPOSITORY / "params" / "sweeps").glob("*.yaml"))
PROFILES = sorted(set((REPOSITORY / "params").glob("*/*.yaml")) - set(SWEEPS))
KNOWN_PACKAGES = {
    "mmprm_lib",
    "IPython",
    "matplotlib",
    "numpy",
    "pandas",
    "PIL",
    "scipy",
    "seaborn",
    "sklearn",
    "torch",
}
MACHINE_PATH = re.compile(r"(/home/|/root/|/Users/|/tmp/|/work/|/mnt/|[A-Z]:\\\\)\w")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# the others are points of a sweep
every_numbered_notebook = pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem[0].isdigit()], ids=lambda path: path.stem
)


def load(path: Path) -> list[dict]:
    """The cells of a notebook, their sources joined."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        cell["tags"] = cell["metadata"].get("tags", [])
    return cells


def code(path: Path) -> list[dict]:
    """The code cells of a notebook."""
    return [cell for cell in load(path) if cell["cell_type"] == "code"]


def parse(cell: dict) -> ast.Module:
    """The syntax tree of a code cell; any magic but `%matplotlib inline`, and any shell line, is a syntax error."""
    return ast.parse(re.sub(r"^%matplotlib inline$", "", cell["source"], flags=re.M))


def lines_of(cells: list[dict]) -> int:
    """Lines of code: neither blank nor comment."""
    lines = [line.strip() for cell in cells for line in cell["source"].splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


@every_notebook
def test_name_kernel_and_format(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert re.fullmatch(r"(\d\d|point)_[a-z0-9_]+", path.stem)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)), "two cells share an id"


@every_notebook
def test_sizes(path):
    cells, codes = load(path), code(path)
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    headings = [line for text in texts for line in text.splitlines() if re.match(r"#{1,4} ", line)]
    definitions = [n for c in codes for n in ast.walk(parse(c)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert 16 <= len(cells) <= 38, f"{len(cells)} cells, the aim is 20 to 35"
    assert lines_of(codes) <= 220, f"{lines_of(codes)} lines of code, the aim is 200"
    assert 0.35 <= len(texts) / len(cells) <= 0.65, "about half of the cells are markdown"
    assert 5 <= len(headings) <= 14, f"{len(headings)} headings, the aim is 6 to 12"
    assert len(definitions) <= 2, "at most two short functions; more belongs in the library"
    for cell in codes:
        assert len(cell["source"].splitlines()) <= 25, f"a cell of over 25 lines: {cell['source'][:80]!r}"
        assert max(map(len, cell["source"].splitlines()), default=0) <= 120, (
            f"a line is too long: {cell['source'][:80]!r}"
        )


@every_notebook
def test_opens_with_its_claim_and_closes_with_what_it_shows(path):
    cells = load(path)
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"].startswith("# ")
    opening = "\n".join(cell["source"] for cell in cells[:3] if cell["cell_type"] == "markdown")
    missing = [word for word in ("Reads", "Writes", "Needs", "Source") if f"**{word}" not in opening]
    assert not missing, f"the opening does not say {missing}"
    assert cells[-1]["cell_type"] == "markdown", (
        "the last cell says what this shows, what it does not, and what is next"
    )
    codes = code(path)
    assert "run.finish()" in codes[-1]["source"]
    assert any(re.search(r"^\s*assert ", cell["source"], re.M) for cell in codes[-3:]), "no closing assertions"
    name, text = re.escape(path.stem), "\n".join(cell["source"] for cell in codes)
    assert re.search(rf'params = check_parameters\("{name}", globals\(\)\)', text)
    assert re.search(rf'run = Run\("{name}", params\)', text)


@every_notebook
def test_parameters_are_declared_once_and_each_is_used(path):
    declared = parameters.declared(path)
    assert declared["run_name"].default == "tiny" and declared["seed"].default == 0
    codes = code(path)
    position = next(i for i, cell in enumerate(codes) if "parameters" in cell["tags"])
    assert position == 0, "the parameters cell is the first code cell"
    nodes = [node for cell in codes[1:] for node in ast.walk(parse(cell))]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    used |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert set(declared) - used - {"run_name", "reads"} == set(), "declared and never used"  # Run reads these two
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert stored & set(declared) == set(), "a parameter is assigned again; the manifest would be wrong"
    for parameter in declared.values():
        assert parameter.comment or parameter.name in ("run_name", "seed"), f"{parameter.name} says not what it is"


@every_notebook
def test_nothing_is_kept_but_the_checked_outputs(path):
    checked = [cell for cell in code(path) if cell["source"].startswith("# NBVAL_CHECK_OUTPUT")]
    assert len(checked) >= 2, "at least two cells are compared by nbval"
    for cell in code(path):
        if cell not in checked:
            assert cell["outputs"] == [], f"strip the outputs of {cell['source'][:60]!r}"
            assert "keep_output" not in cell["tags"]
            continue
        assert "keep_output" in cell["tags"] and cell["execution_count"] is not None
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert kinds and kinds <= {"stream", "execute_result"}, f"{kinds}: a checked cell prints text"
        assert not any("image/png" in output.get("data", {}) for output in cell["outputs"])


@every_notebook
def test_sources_are_portable(path):
    for cell in load(path):
        text = json.dumps({key: cell.get(key) for key in ("source", "outputs")})
        assert not MACHINE_PATH.search(text), f"a path of one machine: {MACHINE_PATH.search(text)}"
        if cell["cell_type"] == "code":
            tree = parse(cell)
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    top = name.split(".")[0]
                    assert top in KNOWN_PACKAGES or top in sys.stdlib_module_names, f"imports {top}"
                assert not (isinstance(node, ast.alias) and node.name == "*"), "star import"


@every_notebook
def test_every_model_is_loaded_in_the_type_that_the_parameters_name(path):
    if "weights" not in parameters.declared(path) or parameters.declared(path)["weights"].default != "float32":
        return
    nodes = [node for cell in code(path) for node in ast.walk(parse(cell)) if isinstance(node, ast.Call)]
    calls = [node for node in nodes if ast.unparse(node.func) == "models.load"]
    assert calls
    for call in calls:
        given = [ast.unparse(word.value) for word in call.keywords if word.arg in ("dtype", None)]
        assert given in (["weights"], ["options"]), ast.unparse(call)


@every_notebook
def test_no_profile_takes_another_path(path):
    for cell in code(path):
        assert not re.search(r"\b(smoke|paper)\b", cell["source"].split("#")[0]), "only the parameters differ"


@every_numbered_notebook
@pytest.mark.parametrize("profile", ["tiny", "smoke"])
def test_each_profile_has_its_parameters(path, profile):
    file = REPOSITORY / "params" / profile / f"{path.stem}.yaml"
    given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    declared = parameters.declared(path)
    values = parameters.resolve(declared, {"run_name": profile, **given}, file.name)
    assert values["run_name"] == profile
    if profile == "tiny":
        assert {name: values[name] for name in given} == {name: declared[name].default for name in given}


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_parameters_file_fits_its_notebook(file):
    notebook = REPOSITORY / "notebooks" / f"{file.stem.split('__')[0]}.ipynb"
    given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    parameters.resolve(parameters.declared(notebook), given, f"{file.parent.name}/{file.name}")
    assert not MACHINE_PATH.search(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_sweep_fits_its_notebook(file):
    assert len(sweep.points(file.stem)) > 1
    assert not MACHINE_PATH.search(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_file_that_says_as_another_is_so_but_for_what_it_names(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    if not head.startswith("As params/"):
        return
    found = re.match(r"As params/(\w+)/(\d\d)(?: but for ((?:`\w+`(?:, )?)+))?", head)
    assert found, f"{head[:80]!r}: write `As params/PROFILE/NN`, and ` but for ` and the names in backticks"
    [other] = (REPOSITORY / "params" / found[1]).glob(f"{found[2]}_*.yaml")
    named = {"run_name", *re.findall(r"`(\w+)`", found[3] or "")}
    notebook = parameters.declared(REPOSITORY / "notebooks" / f"{file.stem}.ipynb")
    mine, theirs = (parameters.resolve(notebook, parameters.read_yaml(f), f.name) for f in (file, other))
    assert {name for name in mine if mine[name] != theirs[name]} == named


FOURS = [file for file in PROFILES if file.stem == "04_prm_training"]


@pytest.mark.parametrize("file", FOURS, ids=lambda file: file.parent.name)
def test_a_marker_starts_as_a_word_of_the_embedded_base_there_alone(file):
    notebook = parameters.declared(REPOSITORY / "notebooks" / f"{file.stem}.ipynb")
    params = parameters.resolve(notebook, parameters.read_yaml(file), file.name)
    learns = any(name.startswith("marker") for name in params["prms"])
    assert params["model"] == "embedded" or not learns or params["marker_init"] == "mean"


def test_the_papers_benchmarks_are_read_by_the_sweeps_that_choose_on_them():
    made = {point.stage.params["run_name"]: point.stage for point in sweep.points("paper_benchmarks")}
    names = {stage.params["benchmark"] for stage in made.values()}
    assert names <= set(registry.registry().benchmarks) and len(names) == len(made) == 9
    for name, n in {"mm_prm_best_of_n": 4, "visualprm_best_of_n": 7, "gm_prm_refined": 5}.items():
        read = [point.stage.params["reads"] for point in sweep.points(name)]
        assert len(set(read)) == len(read) == n and set(read) <= set(made)
        assert all(p.stage.stages == made[p.stage.params["reads"]].folder.parent for p in sweep.points(name))
    [stage] = stages.plan("paper_contamination")[0]
    against = dict(stage.params["against"])
    assert against.pop("visualprocessbench").endswith("test.jsonl")
    assert against == {
        stage.params["benchmark"]: f"results/{run_name}/01_data/problems.jsonl" for run_name, stage in made.items()
    }
