"""The whole chain on params/smoke through papermill; then again, skipping all; then nbval over prepared copies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import papermill
import pytest

from mmprm_lib import models, objective, prm, stages, validation
from mmprm_lib.encoding import Encoder
from mmprm_lib.schema import Problem, Solution, StepLabels, read_records
from mmprm_lib.steps import FORMATS
from mmprm_lib.trees import Tree
from tests.conftest import REPOSITORY, write_notebook

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
SANITIZE = Path(__file__).parent / "nbval_sanitize.cfg"
every_notebook = pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])


def call(*arguments: object, results: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The finished process of `python ...` in the repository, its output as one text.

    One thread for all: two run at once below, and weights trained by another number of threads differ in rounding.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)  # kernels show figures in the notebook
    if results is not None:
        environment["MMPRM_RESULTS"] = str(results)
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, check=False, **pipes)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results root after one run of the smoke profile; the tests fail with the runner's words if it failed."""
    root = tmp_path_factory.mktemp("results")
    done = call("-m", "mmprm_lib.runner", "--profile", "smoke", results=root)
    assert done.returncode == 0, done.stdout
    return root


@pytest.fixture(scope="session")
def reasons(results: Path) -> dict[str, str]:
    """Why each stage would have to run, by name; empty texts where its manifest vouches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPRM_RESULTS", str(results))
        return {stage.name: stages.why_run(stage) for stage in stages.plan("smoke")[0]}


@every_notebook
def test_a_notebook_runs_and_its_manifest_vouches(name, results, reasons):
    assert reasons[name] == ""
    folder = results / "smoke" / name
    text = (folder / f"{name}.ipynb").read_text(encoding="utf-8")
    assert str(REPOSITORY) not in text and str(results) not in text
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    noise = ["".join(output["text"])[:300] for output in outputs if output.get("name") == "stderr"]
    assert noise == [], "the notebook prints warnings; repair what they are about, or silence them where they arise"
    assert list(folder.glob("figure_*.png")), "a notebook saves at least one figure"
    assert any("image/png" in output.get("data", {}) for output in outputs), "a notebook shows at least one figure"


@every_notebook
def test_each_metric_has_its_count_and_its_interval(name, results):
    metrics = json.loads((results / "smoke" / name / "metrics.json").read_text(encoding="utf-8"))
    assert metrics, "no metric was recorded"
    for key, entry in metrics.items():
        assert list(entry) == ["value", "n", "low", "high"], key
        assert all(value is None or isinstance(value, int | float) for value in entry.values()), key
        assert (entry["low"] is None) == (entry["high"] is None), key


@every_notebook
def test_a_notebook_says_what_it_waits_for(name, results):
    metadata = json.loads((REPOSITORY / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["metadata"]
    manifest = json.loads((results / "smoke" / name / "manifest.json").read_text(encoding="utf-8"))
    assert {Path(path).parts[0] for path in manifest["inputs"]} == set(metadata["mmprm"]["after"])


def test_a_second_run_skips_everything(results):
    done = call("-m", "mmprm_lib.runner", "--profile", "smoke", results=results)
    assert done.returncode == 0, done.stdout
    assert f"0 of {len(NOTEBOOKS)} notebooks to run" in done.stdout
    assert done.stdout.count("up to date") == len(NOTEBOOKS)


def nbval(folder: Path, results: Path) -> subprocess.CompletedProcess[str]:
    """nbval over the notebooks of a folder: every cell runs, those that begin with NBVAL_CHECK_OUTPUT are compared."""
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", f"--nbval-sanitize-with={SANITIZE}"]
    plain = ["-p", "no:cacheprovider", "-q", "-W", "ignore", f"--rootdir={folder}", "-c", os.devnull]
    return call("-m", "pytest", *options, *plain, *sorted(folder.glob("*.ipynb")), results=results)


def prepared(planned: list[stages.Stage], path: Path) -> None:
    """Nothing; writes prepared copies of notebooks one behind the other, as one, which imports the libraries once.

    The runner has given each a kernel of its own; here nothing is left of the names of the one before.
    """
    cells = []
    for stage in planned:
        papermill.execute_notebook(stage.source, path, stage.given, prepare_only=True)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells += [{**cell, "id": f"{stage.name[:2]}-{cell['id']}"} for cell in notebook["cells"]]
        forget = {"cell_type": "code", "source": "%reset -f in\n%reset -f", "execution_count": None, "outputs": []}
        cells.append({**forget, "id": f"{stage.name[:2]}-forget", "metadata": {}})
    path.write_text(json.dumps({**notebook, "cells": cells}), encoding="utf-8")


def test_the_checked_cells_print_what_is_committed(results, tmp_path):
    # on copies, because this runs again in place, and other tests look at the results; it is a resume as well
    planned = stages.plan("smoke")[0]

    def again(part: int) -> tuple[Path, subprocess.CompletedProcess[str]]:
        shutil.copytree(results, tmp_path / f"results{part}")
        build = tmp_path / f"notebooks{part}"
        build.mkdir()
        prepared(planned[part::2], build / "all.ipynb")
        return build, nbval(build, tmp_path / f"results{part}")

    with ThreadPoolExecutor(2) as pool:
        for build, done in pool.map(again, range(2)):
            assert done.returncode == 0, done.stdout
            cells = [cell for path in build.glob("*") for cell in json.loads(path.read_text())["cells"]]
            n_cells = sum(cell["cell_type"] == "code" for cell in cells)
            assert re.search(rf"\b{n_cells} passed", done.stdout), done.stdout
    for part in range(2):
        for stage in planned[part::2]:
            place = Path("smoke") / stage.name / "metrics.json"
            first, second = ((root / place).read_bytes() for root in (results, tmp_path / f"results{part}"))
            assert first == second, f"{stage.name} states other numbers when it runs again"


def test_nbval_really_compares(tmp_path):
    path = tmp_path / "build" / "01_check.ipynb"
    write_notebook(path, [("keep_output", "# NBVAL_CHECK_OUTPUT\nprint(2 + 2)")] * 2)
    notebook = json.loads(path.read_text())
    for cell, printed in zip(notebook["cells"], ("4\n", "5\n"), strict=True):
        cell["execution_count"] = 1
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": printed}]
    path.write_text(json.dumps(notebook))
    done = nbval(path.parent, tmp_path)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout
    assert len(failed) == 1 and "01_check.ipynb::Cell 1" in failed[0], done.stdout  # a CI's lines are longer


def test_a_sweep_runs_on_what_the_notebooks_wrote(results):
    done = call("-m", "mmprm_lib.sweep", "smoke", results=results)
    assert done.returncode == 0, done.stdout
    folders = list((results / "sweeps" / "smoke").glob("*/point_prm"))
    assert len(folders) == 2
    for folder in folders:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert {"macro_f1_pooled", "auroc", "best_of_n_mean"} <= set(metrics)
        assert (folder / "table_problems.csv").exists()
    again = call("-m", "mmprm_lib.sweep", "smoke", results=results)
    assert "0 of 2 points to run" in again.stdout


TREES = {
    "n_label_problems": 12, "n_label_dev": 6, "strategy": "omegaprm", "n_rollouts": 4, "max_new_tokens": 48,
    "generation_batch": 64, "n_shown": 1, "search": {"max_searches": 3, "max_rollouts": 24, "length_scale": 50},
    "paths": {"min_words": 0},
}  # fmt: skip


def test_labels_of_a_tree_search_can_be_learnt_from(results, tmp_path, monkeypatch):
    folder = tmp_path / "project" / "params" / "trees"
    folder.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "project" / "notebooks")
    shutil.copyfile(REPOSITORY / "requirements.lock", tmp_path / "project" / "requirements.lock")
    for name in ("01_data", "02_policy"):
        shutil.copytree(results / "smoke" / name, tmp_path / "results" / "trees" / name)
    (folder / "03_mc_labeling.yaml").write_text(json.dumps(TREES))  # JSON is YAML
    monkeypatch.setenv("MMPRM_ROOT", str(tmp_path / "project"))
    done = call("-m", "mmprm_lib.runner", "--profile", "trees", results=tmp_path / "results")
    assert done.returncode == 0, done.stdout
    made = tmp_path / "results" / "trees" / "03_mc_labeling"
    trees, labels = read_records(made / "trees.jsonl", Tree), read_records(made / "labels.jsonl", StepLabels)
    assert len(trees) == 18 and {r.strategy for r in labels} == {"omegaprm"}
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["generated_tokens"] == sum(tree.n_generated_tokens for tree in trees)
    # what 04 makes of them: a step of a path that was never rolled out is left out of the loss, and is no 0
    problems = read_records(made.parent / "01_data" / "problems.jsonl", Problem)
    assert validation.label_summary(labels, problems)["n_unlabelled"].sum() > 0
    soft = objective.examples(FORMATS["marker"], labels, problems, "soft", 0.0)
    assert [example.labels for example in soft] == [record.mc_score for record in labels]
    model, processor = models.load("embedded")
    prm.add_marker(model, processor)
    rows, dropped = prm.training_rows(Encoder(FORMATS["marker"], processor, 4096), soft)
    assert len(rows) == len(labels) and dropped == {"too_long": 0, "unlabelled": 0}
    whole = objective.examples(FORMATS["orm"], read_records(made / "solutions.jsonl", Solution), problems, "soft", 0.0)
    ends = {record.solution_id: record.mc_score[-1] if record.n_rollouts[-1] == 1 else None for record in labels}
    assert {example.name: example.labels for example in whole} == {name: [end] for name, end in ends.items()}
