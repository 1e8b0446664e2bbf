"""The run layer: parameters are checked before anything runs, and what a manifest vouches for is not run again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mmprm_lib import parameters, provenance, runner, stages, verify
from mmprm_lib.cleaning import clean
from mmprm_lib.run import Run, check_parameters, progress, read_manifest
from tests.conftest import FIRST, write_notebook

CELL = """\
run_name: str = "tiny"
learning_rate: float = 1.0e-3  # [1e-6, 1e-1] peak, AdamW (paper: 4e-6)
k: int = 16  # [1, 64] rollouts per step
mode: str = "soft"  # {soft, hard} labels
early: bool = False  # stop at the first error
rates: list = [1.0e-3, 1.0e-4]  # [1e-6, 1e-1] one run each
columns: dict = {"question": "q"}  # name here: name there
"""
DECLARED = parameters.declared_in(CELL)


def test_a_declaration_is_read_from_the_cell():
    assert list(DECLARED) == ["run_name", "learning_rate", "k", "mode", "early", "rates", "columns"]
    rate = DECLARED["learning_rate"]
    assert (rate.kind, rate.default, rate.bounds) == (float, 0.001, (1e-6, 0.1))
    assert rate.comment == "[1e-6, 1e-1] peak, AdamW (paper: 4e-6)"
    assert DECLARED["mode"].members == ("soft", "hard")
    assert DECLARED["run_name"].bounds is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k = 4", "is no declaration"),
        ("k: int", "is no declaration"),
        ("k: int = 4 if True else 5", "k is derived"),
        ("out: str = f'results/{k}'", "out is derived"),
        ("k: int | None = None", "type int | None"),
        ("k: str = None", "k is None"),
        ("k: int = 4.0", "k must be int, got float 4.0"),
        ("k: int = 4  # [5, 9] too small", "k is 4, outside"),
        ("k: int = 4  # [5] wrong", r"write \[low, high\]"),
        ("mode: str = 'a'  # [1, 2] no number", "on numbers only"),
        ("mode: str = 'a'  # {b, c} wrong", "mode is 'a', not one of 'b', 'c'"),
        ("k: int = 1\nk: int = 2", "declared twice"),
    ],
)
def test_a_declaration_that_is_not_plain_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        parameters.declared_in(line)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeed": 3}, "seeed is unknown; declared are: run_name, learning_rate"),
        ({"learning_rate": "1e-5"}, "must be float, got str '1e-5': YAML reads 1e-5 as text, write 1.0e-5"),
        ({"learning_rate": "4E-6"}, "write 4.0e-6"),
        ({"learning_rate": 0.5}, r"learning_rate is 0.5, outside \[1e-06, 0.1\]"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"k": True}, "k must be int, got bool True"),
        ({"k": 16.0}, "k must be int, got float"),
        ({"k": 65}, "k is 65, outside"),
        ({"k": 0}, "k is 0, outside"),
        ({"mode": "fuzzy"}, "mode is 'fuzzy', not one of 'soft', 'hard'"),
        ({"mode": False}, "mode must be str, got bool False: put it in quotes"),
        ({"early": 1}, "early must be bool, got int 1"),
        ({"rates": ["1e-5"]}, "an entry of rates must be float, got str '1e-5'.*write 1.0e-5"),
        ({"rates": [0.01, 0.5]}, "rates is 0.5, outside"),
        ({"rates": 0.01}, "rates must be list"),
        ({"columns": []}, "columns must be dict"),
    ],
)
def test_a_wrong_value_is_one_clear_error(given, message):
    with pytest.raises(ValueError, match=message):
        parameters.resolve(DECLARED, given, "x")


def test_everything_wrong_is_said_at_once():
    with pytest.raises(ValueError) as error:
        parameters.resolve(DECLARED, {"seeed": 3, "k": 0, "mode": "x"}, "03_x")
    assert str(error.value).count("\n  - ") == 3 and str(error.value).startswith("parameters of 03_x:")


def test_values_come_in_declaration_order_as_copies_and_an_int_becomes_the_float_that_it_stands_for():
    found = parameters.resolve(parameters.declared_in("a: float = 1.0\nb: list = [1]"), {"b": [2], "a": 3}, "x")
    assert list(found.items()) == [("a", 3.0), ("b", [2])] and isinstance(found["a"], float)
    default = parameters.resolve(DECLARED, {}, "x")
    default["rates"].append(9)
    assert DECLARED["rates"].default == [1.0e-3, 1.0e-4]


def kernel(**changes):
    """The namespace of a kernel after the parameters cell of 01_first ran."""
    values = {"run_name": "tiny", "seed": 0, "n": 3, "scale": 0.1, "mode": "plain", "In": [""], "other": object()}
    return {**values, **changes}


def test_check_parameters_returns_the_declared_names_alone(project):
    expected = {"run_name": "tiny", "seed": 0, "n": 5, "scale": 0.1, "mode": "plain"}
    assert check_parameters("01_first", kernel(n=5)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 51}, "n is 51, outside"),
        ({"scale": "1e-5"}, "write 1.0e-5"),
        ({"In": ["", "x = 1", "# Parameters\nn = 3\nseeed = 7\n"]}, "seeed is unknown"),
        ({"In": ["", "# Parameters\nn = 7\n"]}, "n was given as 7 but is 3"),
    ],
)
def test_check_parameters_finds_in_the_kernel(project, changes, message):
    with pytest.raises(ValueError, match=message):
        check_parameters("01_first", kernel(**changes))


def test_check_parameters_finds_a_missing_name_and_a_missing_tag(project):
    with pytest.raises(ValueError, match="seed is missing: run the parameters cell first"):
        check_parameters("01_first", {k: v for k, v in kernel().items() if k != "seed"})
    write_notebook(project / "notebooks" / "01_first.ipynb", [("", FIRST[0][1])])
    with pytest.raises(ValueError, match="has 0 cells tagged `parameters`"):
        check_parameters("01_first", kernel())
    with pytest.raises(FileNotFoundError, match="03_none.ipynb is missing"):
        check_parameters("03_none", kernel())


def first_run(**params):
    return Run("01_first", {**{k: v for k, v in kernel().items() if k not in ("In", "other")}, **params})


def test_a_manifest_is_written_last_and_the_old_one_is_deleted_first(project):
    run = first_run()
    run.output("records.jsonl").write_text("{}\n")
    run.metric("pass_at_1", 0.5, n=100, low=0.4, high=0.6)
    run.metric("undefined", float("nan"))
    run.count(generated_tokens=40)
    run.count(generated_tokens=2)
    run.speed("lines_per_second", 12.3456)
    run.model("policy", "abcd", revision="r1")
    run.data("bars", "ef01")
    assert not (run.folder / "manifest.json").exists()
    run.finish()
    folder = project / "results" / "tiny" / "01_first"
    manifest = read_manifest(folder)
    assert manifest["params"]["n"] == 3 and manifest["seeds"] == {"seed": 0} and manifest["generated_tokens"] == 42
    assert manifest["speeds"] == {"lines_per_second": 12.35}
    assert "lines_per_second" not in (run.folder / "metrics.json").read_text()  # they repeat to the last digit
    assert manifest["models"] == {"policy": {"fingerprint": "abcd", "revision": "r1"}}
    assert manifest["data"]["bars"]["fingerprint"] == "ef01"
    # sha256 of "{}\n"
    assert manifest["outputs"]["records.jsonl"]["sha256"].startswith("ca3d163bab055381827226140568f3be")
    assert manifest["outputs"]["records.jsonl"]["bytes"] == 3
    assert {"commit", "dirty", "packages", "machine", "seconds", "code", "inputs"} <= manifest.keys()
    assert json.loads((folder / "metrics.json").read_text()) == {
        "pass_at_1": {"value": 0.5, "n": 100, "low": 0.4, "high": 0.6},
        "undefined": {"value": None, "n": None, "low": None, "high": None},
    }
    first_run()
    assert read_manifest(folder) is None and (folder / "records.jsonl").exists()


def test_an_input_must_come_from_a_finished_run_and_be_unchanged(project):
    second = Run("02_second", {"run_name": "tiny"})
    with pytest.raises(FileNotFoundError, match=r"lines.txt is missing: run notebooks/01_first.ipynb first"):
        second.input("01_first/lines.txt")
    first = first_run()
    first.output("lines.txt").write_text("1\n")
    (first.output("model") / "sub").mkdir(parents=True)
    (first.folder / "model" / "sub" / "weights").write_bytes(b"w")
    (first.folder / "stray.txt").write_text("left over")
    with pytest.raises(FileNotFoundError, match="01_first did not finish"):
        second.input("01_first/lines.txt")
    first.finish()
    assert second.input("01_first/lines.txt").read_text() == "1\n"
    assert second.input("01_first/model").is_dir() and second.input("01_first/model/sub/weights").is_file()
    with pytest.raises(FileNotFoundError, match="did not write it in its last run"):
        second.input("01_first/stray.txt")
    second.finish()
    assert list(read_manifest(second.folder)["inputs"]) == [
        "01_first/lines.txt",
        "01_first/model",
        "01_first/model/sub/weights",
    ]
    (first.folder / "lines.txt").write_text("2\n")
    with pytest.raises(ValueError, match="was changed after 01_first wrote it"):
        second.input("01_first/lines.txt")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "01_first/../../x"])
def test_no_path_leaves_the_run(project, name):
    run = first_run()
    for method in (run.input, run.output):
        with pytest.raises(ValueError, match="leads out of"):
            method(name)


@pytest.mark.parametrize("name", ["../x", "", "a//b", "/a", "a/../b", "a/", ".hidden", "a b"])
def test_a_run_name_is_plain_words(project, name):
    with pytest.raises(ValueError, match="run_name"):
        first_run(run_name=name)


def test_an_ablation_reads_what_another_run_made(project):
    first = Run("01_first", {"run_name": "tiny"})
    first.output("rows.txt").write_text("made by tiny")
    first.finish()
    ablation = Run("02_second", {"run_name": "ablations", "reads": "tiny"})
    assert ablation.input("01_first/rows.txt").read_text() == "made by tiny"
    assert ablation.folder.parent.name == "ablations"
    with pytest.raises(FileNotFoundError, match="run_name: other"):
        Run("02_second", {"run_name": "ablations", "reads": "other"}).input("01_first/rows.txt")
    with pytest.raises(ValueError, match="use letters"):
        Run("02_second", {"run_name": "ablations", "reads": "../tiny"})


def test_finish_misses_a_promised_output_and_drops_the_figures_of_an_older_run(project):
    run = first_run()
    run.output("records.jsonl")
    with pytest.raises(FileNotFoundError, match="promised records.jsonl"):
        run.finish()
    assert read_manifest(run.folder) is None
    with pytest.raises(ValueError, match="is written by the run layer"):
        run.output("manifest.json")
    run = first_run()
    (run.folder / "figure_old.png").write_bytes(b"")
    (run.folder / "records.jsonl").write_text("{}")
    run.finish()
    assert not (run.folder / "figure_old.png").exists() and (run.folder / "records.jsonl").exists()


def test_metrics_are_numbers_with_ordered_intervals(project):
    run = first_run()
    for bad in ({"value": float("inf")}, {"value": 0.5, "low": 0.6, "high": 0.4}):
        with pytest.raises(ValueError):
            run.metric("m", **bad)
    with pytest.raises(ValueError, match="metric 'a b'"):
        run.metric("a b", 1.0)


def test_tables_and_figures_are_identical_when_made_again(project):
    run = first_run()
    frame = pd.DataFrame({"family": ["bars", "table"], "pass_at_1": [0.5, 1 / 3]})
    assert run.table(frame, "by_family") is frame
    assert (run.folder / "table_by_family.csv").read_text().splitlines()[1] == "bars,0.5"
    run.table(frame.set_index("family"), "indexed")
    assert (run.folder / "table_indexed.csv").read_text() == (run.folder / "table_by_family.csv").read_text()
    made = []
    for _ in range(2):
        figure, axes = plt.subplots(figsize=(2, 2))
        axes.plot([0, 1], [0, 1])
        run.figure(figure, "line")
        assert plt.fignum_exists(figure.number)
        plt.close(figure)
        made.append([(run.folder / f"figure_line.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert made[0] == made[1] and made[0][0].startswith(b"\x89PNG") and made[0][1].startswith(b"%PDF")


def test_external_files_are_recorded_as_they_were_named(project):
    (project / "mine").mkdir()
    (project / "mine" / "a.json").write_text("[]")
    run = first_run()
    assert run.external("mine/a.json").read_text() == "[]"
    assert run.external("mine").is_dir()
    with pytest.raises(FileNotFoundError, match="correct the path 'mine/b.json'"):
        run.external("mine/b.json")
    run.finish()
    assert list(read_manifest(run.folder)["external"]) == ["mine/a.json", "mine"]


def test_progress_yields_all_and_refreshes_rarely_when_nobody_watches(capsys):
    assert list(progress(range(2000), desc="rollouts")) == list(range(2000))
    out = capsys.readouterr().out
    assert "rollouts" in out and out.count("\r") <= 3


def test_a_hash_of_code_ignores_comments_and_layout_but_no_change_of_meaning():
    base = provenance.code_hash('def f(x):\n    """Doc."""\n    return x + 1\n')
    assert base == provenance.code_hash('# why\ndef f( x ):\n    """Other words."""\n\n    return (x + 1)  # so\n')
    assert base != provenance.code_hash('def f(x):\n    """Doc."""\n    return x + 2\n')
    assert provenance.code_hash("%matplotlib inline") != provenance.code_hash("%matplotlib widget")


def test_the_library_hash_follows_imports_and_assets(tmp_path):
    package = tmp_path / "lib"
    files = {
        "__init__.py": "",
        "a.py": "from lib import b\n",
        "b.py": "def f():\n    from .sub.deep import g\n",
        "c.py": "X = 1\n",
        "sub/__init__.py": "from . import other\n",
        "sub/deep.py": "from ..d import Y\n",
        "sub/other.py": "",
        "d.py": "FOLDER = 'assets'\n",
        "assets/w.bin": "w",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    found = provenance.library_hashes("from lib.a import thing", package)
    needed = ["__init__.py", "a.py", "assets", "b.py", "d.py", "sub/__init__.py", "sub/deep.py", "sub/other.py"]
    assert list(found) == needed
    (package / "assets" / "w.bin").write_text("v")
    assert provenance.library_hashes("from lib.a import thing", package) != found
    assert list(provenance.library_hashes("import lib.c as c\nimport json", package)) == ["__init__.py", "c.py"]


def mtimes(project: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (project / "results").rglob("manifest.json")}


def test_the_runner_runs_in_order_then_skips_then_reruns_what_changed(project, capfd, monkeypatch):
    assert runner.main(["--profile", "tiny"]) == 0
    out = capfd.readouterr().out
    assert "profile tiny: 2 of 2 notebooks to run" in out and "02_second: done in" in out
    first, second = (project / "results" / "tiny" / name for name in ("01_first", "02_second"))
    assert (first / "lines.txt").read_text() == "0.000\n1.000\n2.000\n3.000\n"  # n: 4, scale: 1
    # mean of 0, 1, 2, 3
    assert json.loads((second / "metrics.json").read_text())["mean"] == {"value": 1.5, "n": 4, "low": 0.0, "high": 3.0}
    text = (first / "01_first.ipynb").read_text()
    assert str(project) not in text and "papermill" not in text and "lines: 100%" in text

    def reasons():
        return [stages.why_run(stage) for stage in stages.plan("tiny")[0]]

    assert reasons() == ["", ""]
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert runner.main(["--profile", "tiny"]) == 0
    out = capfd.readouterr().out
    assert "0 of 2 notebooks to run" in out and out.count("up to date") == 2
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before

    (project / "requirements.lock").write_text("numpy==2\n")
    assert reasons() == ["code changed: lock", "code changed: lock"]
    (project / "requirements.lock").write_text("numpy==1\n")
    (project / "params" / "tiny" / "01_first.yaml").write_text("n: 5\nscale: 1\n")
    assert reasons() == ["parameters changed: n", ""]
    (project / "params" / "tiny" / "01_first.yaml").write_text("n: 4\nscale: 1\n")
    (first / "lines.txt").write_text("0.000\n1.000\n2.000\n3.001\n")
    assert reasons() == ["outputs missing or changed: lines.txt", "inputs changed: lines.txt"]
    (first / "lines.txt").unlink()
    assert runner.main(["--profile", "tiny"]) == 0
    out = capfd.readouterr().out
    # made again with the same hash, so that the second need not run, although its input was missing at first
    assert "01_first: done in" in out and "02_second: up to date" in out and reasons() == ["", ""]
    # byte-identical, in spite of times and random ids
    assert (first / "01_first.ipynb").read_bytes() == before[first / "01_first.ipynb"]
    write_notebook(project / "notebooks" / "01_first.ipynb", [*FIRST[:2], ("", FIRST[2][1] + "  # why"), FIRST[3]])
    assert reasons() == ["", ""]
    write_notebook(project / "notebooks" / "01_first.ipynb", [*FIRST, ("", "print(1)")])
    assert reasons()[0] == "code changed: notebook"
    known = provenance.library_hashes("from mmprm_lib.run import Run")
    monkeypatch.setattr(provenance, "library_hashes", lambda source: {**known, "run.py": "edited"})
    assert reasons()[1] == "code changed: run.py"


def test_a_failing_notebook_stops_the_run_and_says_why(project, capfd):
    (project / "params" / "tiny" / "01_first.yaml").write_text("mode: fail\n")
    assert runner.main([]) == 1
    error = capfd.readouterr().err
    assert "01_first failed after" in error and "raised ValueError: the chart has no bars" in error
    assert "01_first.ipynb" in error and not list((project / "results").rglob("manifest.json"))
    assert not (project / "results" / "tiny" / "02_second").exists()
    (project / "params" / "tiny" / "01_first.yaml").write_text("mode: quit\n")
    assert runner.main(["--only", "01", "--run-name", "other"]) == 1
    assert "ended without run.finish()" in capfd.readouterr().err
    assert (project / "results" / "other" / "01_first" / "lines.txt").exists()


def stage(name: str, after: tuple[str, ...] | None = None, beside: bool = False) -> stages.Stage:
    return stages.Stage(name, Path(f"{name}.ipynb"), {}, {"run_name": "tiny"}, after, beside)


def test_what_may_start_and_what_has_to_wait():
    one, two, three = stage("01"), stage("02"), stage("03", ("01",), beside=True)
    four, five = stage("04", ("03",), beside=True), stage("05", (), beside=True)
    assert runner.startable([one, two], [], 2) is one
    assert runner.startable([two], [one], 2) is None  # says nothing, so it comes after all before it
    assert runner.startable([three, four, five], [one], 2) is None  # one bears none beside it
    assert runner.startable([two, three], [], 2) is two
    assert runner.startable([four, five], [three], 2) is five  # four waits for three
    assert runner.startable([four, five], [three], 1) is None
    assert runner.startable([four], [five, three], 2) is None
    assert runner.startable([four], [five], 2) is four
    assert runner.startable([two], [five], 2) is None  # bears none beside it


def test_how_many_run_at_once_hangs_on_the_machine_and_a_stage_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    assert runner.at_once({"cores": 2, "memory_gb": 24}) == 2
    assert runner.at_once({"cores": 1, "memory_gb": 24}) == 1 and runner.at_once({"cores": 8, "memory_gb": 8}) == 1
    monkeypatch.setattr(provenance, "machine", lambda: {"cores": 8, "memory_gb": 8.0})
    assert runner.threads_of(stage("01")) is None and runner.threads_of(stage("02", (), beside=True)) == 4
    monkeypatch.setattr(runner, "has_gpu", lambda: True)
    assert runner.at_once({"cores": 16, "memory_gb": 128}) == 1
    assert runner.threads_of(stage("02", (), beside=True)) is None


BARRIER = """
import os, time
from pathlib import Path
from mmprm_lib.run import Run, check_parameters
params = check_parameters("{name}", globals())
run = Run("{name}", params)
folder = run.folder.parent
(folder / "{name}.there").touch()
until = time.monotonic() + 60
while not (folder / "{other}.there").exists():
    assert time.monotonic() < until, "{other} never came"
    time.sleep(0.05)
run.metric("threads", int(os.environ["OMP_NUM_THREADS"]), n=1)
{last}
"""


def side_by_side(project: Path, last: str = "run.finish()") -> None:
    """Nothing; adds two notebooks that wait for each other, the second ending in `last`."""
    for name, other, end in (("03_left", "04_right", "run.finish()"), ("04_right", "03_left", last)):
        path = project / "notebooks" / f"{name}.ipynb"
        cells = [("parameters", 'run_name: str = "tiny"'), ("", BARRIER.format(name=name, other=other, last=end))]
        write_notebook(path, cells)
        notebook = json.loads(path.read_text())
        notebook["metadata"]["mmprm"] = {"after": ["01_first"], "beside": True}
        path.write_text(json.dumps(notebook))
        (project / "params" / "tiny" / f"{name}.yaml").write_text("")


def test_notebooks_that_say_so_run_side_by_side_with_their_share_of_the_cores(project, capfd, monkeypatch):
    monkeypatch.setattr(runner, "at_once", lambda machine: 2)
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    side_by_side(project)
    assert runner.main(["--only", "03", "04"]) == 0
    share = max(1, provenance.machine()["cores"] // 2)
    for name in ("03_left", "04_right"):
        metrics = json.loads((project / "results" / "tiny" / name / "metrics.json").read_text())
        assert metrics["threads"]["value"] == share
    assert runner.main(["--only", "03", "04"]) == 0 and capfd.readouterr().out.count("up to date") == 2


def test_what_runs_beside_a_failing_notebook_is_finished_and_kept(project, capfd, monkeypatch):
    monkeypatch.setattr(runner, "at_once", lambda machine: 2)
    side_by_side(project, "raise ValueError('no luck')")
    assert runner.main(["--only", "03", "04"]) == 1
    assert "04_right failed after" in capfd.readouterr().err
    assert [reason != "" for reason in map(stages.why_run, stages.plan("tiny", ["03", "04"])[0])] == [False, True]


def test_a_killed_runner_leaves_no_process_behind(project):
    cells = [("parameters", 'run_name: str = "tiny"'), ("", "import os\nfrom pathlib import Path\n"
             "Path(os.environ['MMPRM_ROOT'], 'pids').write_text(f'{os.getppid()} {os.getpid()}')\n"
             "import time\ntime.sleep(120)")]  # fmt: skip
    write_notebook(project / "notebooks" / "01_first.ipynb", cells)
    (project / "params" / "tiny" / "01_first.yaml").write_text("")
    started = subprocess.Popen([sys.executable, "-m", "mmprm_lib.runner"], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (pids := project / "pids").exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    started.kill()
    started.wait()
    child, kernel = map(int, pids.read_text().split())
    while any(Path(f"/proc/{pid}").exists() for pid in (child, kernel)):
        assert time.monotonic() < until, "a process works on unseen"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("yaml", "arguments", "message"),
    [
        ("seeed: 3", [], "seeed is unknown"),
        ("scale: 1e-5", [], "write 1.0e-5"),
        ("n: 51", [], r"n is 51, outside"),
        ("- 1", [], "must be `name: value` lines"),
        ("n: [", [], "no YAML"),
        ("run_name: ../x", [], "leads out of"),
        ("", ["--profile", "none"], "profile 'none' has no folder"),
        ("", ["--profile", "../notebooks"], "leads out of"),
        ("", ["--only", "09"], "--only 09 fits none of: 01_first, 02_second"),
    ],
)
def test_wrong_parameters_are_found_before_anything_runs(project, capsys, yaml, arguments, message):
    (project / "params" / "tiny" / "01_first.yaml").write_text(yaml)
    assert runner.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "running" not in captured.out
    assert not list((project / "results").rglob("*.ipynb"))


def test_a_notebook_without_parameters_file_is_named_and_left_out(project, capsys):
    (project / "params" / "tiny" / "02_second.yaml").unlink()
    found, left_out = stages.plan("tiny")
    assert [stage.name for stage in found] == ["01_first"] and left_out == ["02_second"]


def test_results_go_where_the_environment_says_and_durations_come_from_the_reference_run(
    project, monkeypatch, tmp_path
):
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path / "elsewhere"))
    stage = stages.plan("tiny", ["01"])[0][0]
    assert stage.executed == tmp_path / "elsewhere" / "tiny" / "01_first" / "01_first.ipynb"
    assert stages.expected_seconds(stage) is None
    reference = project / "results" / "tiny" / "01_first"
    reference.mkdir(parents=True)
    (reference / "manifest.json").write_text('{"seconds": 90.0}')
    assert stages.expected_seconds(stage) == 90.0 and stages.minutes(90.0) == "2 min" and stages.minutes(42) == "42 s"


def test_clean_changes_texts_and_no_image(project, tmp_path):
    path = tmp_path / "x.ipynb"
    home = str(Path.home())
    outputs = [
        {
            "output_type": "stream",
            "name": "stdout",
            "text": [f"{home}/a\n", "b:  0%| | 0/9\r", "b: 9/9 [00:01<00:00, 7it/s]\n"],
        },
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"image/png": f"AA{home}/BB", "text/plain": ["<Figure>"]},
        },
    ]
    cell = {"cell_type": "code", "id": "1", "metadata": {"papermill": {}, "tags": []}, "source": "", "outputs": outputs}
    path.write_text(
        json.dumps({"cells": [cell], "metadata": {"papermill": {"x": 1}}, "nbformat": 4, "nbformat_minor": 5})
    )
    clean(path)
    found = json.loads(path.read_text())
    assert found["cells"][0]["outputs"][0]["text"] == "~/a\nb: 9/9\n"
    assert found["cells"][0]["outputs"][1]["data"]["image/png"] == f"AA{home}/BB"
    assert "papermill" not in path.read_text() and found["metadata"]["kernelspec"]["name"] == "python3"


def test_the_kernel_is_this_python_and_the_environment_is_left_as_it_was(project, monkeypatch):
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    from jupyter_client.kernelspec import KernelSpecManager

    with runner.kernel_of_this_python():
        assert os.environ["MMPRM_BATCH"] == "1"
        assert "mmprm_kernel_" in KernelSpecManager().get_kernel_spec("python3").resource_dir
    assert "JUPYTER_PATH" not in os.environ and "MMPRM_BATCH" not in os.environ


def test_an_outdated_stage_loses_its_records_and_a_killed_one_keeps_them(tmp_path):
    def stage(name: str, finished: bool) -> Path:
        folder = tmp_path / name
        (folder / "policy" / "checkpoint-2").mkdir(parents=True)
        for file in ("labels.jsonl", "labels.key", "mine.txt", "policy/weights", "policy/training.json"):
            (folder / file).write_text("x")
        if finished:
            outputs = {"labels.jsonl": {}, "policy": {}}
            (folder / "manifest.json").write_text(json.dumps({"outputs": outputs}))
        return folder

    def left(folder: Path) -> set[str]:
        return {p.name for p in folder.iterdir()} - {"manifest.json"}

    finished, killed, forced = stage("finished", True), stage("killed", False), stage("forced", False)
    runner.discard(finished, force=False)
    runner.discard(killed, force=False)
    runner.discard(forced, force=True)
    assert left(finished) == {"mine.txt"}
    assert left(killed) == {"labels.jsonl", "labels.key", "mine.txt", "policy"}
    assert left(forced) == {"mine.txt", "policy"}
    assert left(killed / "policy") == {"weights", "training.json", "checkpoint-2"}
    assert left(forced / "policy") == {"weights"}  # nothing to go on from, nothing to be taken as it is


def test_a_child_killed_in_the_middle_of_its_bar_does_not_stop_ours():
    script = (
        "import os, signal\nfrom mmprm_lib.run import progress\n"
        "list(progress([0]))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    progress([1]).get_lock().acquire()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.waitpid(child, 0)\n"
        "print(list(progress([1, 2])))\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.endswith("[1, 2]\n")


def test_verify_runs_a_notebook_again_and_finds_what_differs(project, capfd):
    assert verify.main(["--only", "02"]) == 2
    assert "holds no finished run: make run ONLY=02" in capfd.readouterr().err
    assert runner.main([]) == 0
    before = {path: path.read_bytes() for path in (project / "results").rglob("*") if path.is_file()}
    assert verify.main([]) == 0
    out = capfd.readouterr().out
    assert "01_first: the same, 1 metrics" in out and "02_second: the same, 1 metrics" in out
    assert {path: path.read_bytes() for path in (project / "results").rglob("*") if path.is_file()} == before

    drawn = [*FIRST[:3], ("", "import random\n\nrun.metric('n_lines', random.random(), n=n)\nrun.finish()")]
    write_notebook(project / "notebooks" / "01_first.ipynb", drawn)
    assert verify.main(["--only", "01"]) == 2  # the results are those of another notebook
    assert "is out of date (code changed: notebook)" in capfd.readouterr().err
    assert runner.main(["--only", "01"]) == 0
    assert verify.main(["--only", "01"]) == 1
    assert "01_first: 1 differences\n      n_lines: {" in capfd.readouterr().out
    assert (project / "results" / "tiny-verify" / "01_first" / "metrics.json").is_file()  # stays to be looked at
