"""A grid of parameters: every point a run of its own, what fails costs itself alone, nothing runs twice."""

import json

import pytest

from mmprm_lib import sweep


def write(project, text: str) -> None:
    folder = project / "params" / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.yaml").write_text(text)


def test_a_line_is_a_point_and_a_list_one_for_each_of_its_values(project):
    write(project, "notebook: 01_first\nbase: {scale: 1}\npoints:\n  - {n: [2, 3], seed: [0, 1]}\n  - {n: 4}\n")
    found = sweep.points("grid")
    assert [p.name for p in found] == ["n-2_seed-0", "n-2_seed-1", "n-3_seed-0", "n-3_seed-1", "n-4"]
    assert found[1].varied == {"n": 2, "seed": 1} and found[1].stage.params["scale"] == 1.0
    assert [p.stage.folder.relative_to(project).as_posix() for p in found[:1]] == [
        "results/sweeps/grid/n-2_seed-0/01_first"
    ]


def test_names_of_points_are_folders_and_differ():
    names = [sweep.point_name(v) for v in ({"a": "x/y"}, {"a": "x y"}, {"a": {"b": 1}}, {"a": [1, 2]}, {"a": "z" * 90})]
    assert len(set(names)) == 5 and all(len(n) < 80 and "/" not in n and " " not in n for n in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: 09_none\npoints: [{n: 1}]", "there is no notebook"),
        ("notebook: 01_first\npoints: [{m: 1}]", "m is unknown"),
        ("notebook: 01_first\npoints: [{n: 51}]", "n is 51, outside"),
        ("notebook: 01_first\npoints: [{n: [1, 2]}, {n: 2}]", "stands there twice"),
        ("notebook: 01_first\n", "write `notebook:`"),
        ("notebook: [", "no YAML"),
        ("notebook: 01_first\npoints: [n]", "point 'n' is no"),
        ("notebook: 01_first\nfoo: 1\npoints: [{n: 1}]", "write `notebook:`"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(project, capsys, text, message):
    write(project, text)
    assert sweep.main(["grid"]) == 2
    assert message in capsys.readouterr().err and not (project / "results").exists()


def test_an_unknown_sweep_names_the_known(project, capsys):
    write(project, "notebook: 01_first\npoints: [{n: 1}]")
    assert sweep.main(["other"]) == 2 and "there are: grid" in capsys.readouterr().err
    assert sweep.main(["../tiny/01_first"]) == 2 and "leads out of" in capsys.readouterr().err


def test_a_failed_point_costs_itself_alone_and_the_next_call_runs_it_alone(project, capfd):
    write(project, "notebook: 01_first\nbase: {scale: 1}\npoints:\n  - {n: [2, 3]}\n  - {n: 5, mode: fail}\n")
    assert sweep.main(["grid", "--jobs", "2"]) == 1
    out = capfd.readouterr().out
    assert "3 of 3 points to run, 2 at once" in out and "the chart has no bars" in out
    assert "1 of 3 points failed: n-5_mode-fail" in out
    found = sweep.table("grid")
    assert found[["n", "metric", "value"]].values.tolist() == [[2, "n_lines", 2], [3, "n_lines", 3]]
    before = {p: p.read_bytes() for p in (project / "results").rglob("metrics.json")}
    write(project, "notebook: 01_first\nbase: {scale: 1}\npoints:\n  - {n: [2, 3, 4]}\n")  # a point more
    assert sweep.main(["grid"]) == 0
    assert "1 of 3 points to run" in capfd.readouterr().out
    assert len(sweep.table("grid")) == 3 and all(path.read_bytes() == text for path, text in before.items())
    manifest = json.loads((project / "results" / "sweeps" / "grid" / "n-4" / "01_first" / "manifest.json").read_text())
    assert manifest["params"]["n"] == 4


def test_as_many_points_at_once_as_cores_and_memory_bear():
    assert [sweep.jobs_of(2, 24), sweep.jobs_of(8, 24), sweep.jobs_of(4, 4)] == [2, 3, 1]


def test_what_finished_points_wrote_is_read_together(project, monkeypatch, tmp_path):
    write(project, "notebook: 01_first\nbase: {scale: 1}\npoints:\n  - {n: [2, 3]}\n")
    assert sweep.table("grid").empty and sweep.tables("grid", "lines").empty and sweep.files("grid") == []
    assert sweep.main(["grid", "--jobs", "1"]) == 0
    write(project, "notebook: 01_first\nbase: {scale: 1}\npoints:\n  - {n: [2, 3, 4]}\n")
    grid = sweep.grid("grid")
    assert grid[["n", "done"]].values.tolist() == [[2, True], [3, True], [4, False]]
    assert sweep.files("grid") == [f"results/sweeps/grid/n-{n}/01_first/manifest.json" for n in (2, 3)]
    # and where this machine has no point of its own, that of the reference run
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path / "elsewhere"))
    assert sweep.grid("grid")["done"].tolist() == [True, True, False] and len(sweep.table("grid")) == 2
