"""The README says what the results say, and nothing in it points nowhere."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from mmprm_lib import data, models, parameters, prm, readme, world
from mmprm_lib.run import write_json
from mmprm_lib.steps import FORMATS
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- begin: ([a-z_]+) -->\n(.*?)<!-- end: \1 -->", re.DOTALL)
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCES = [(match[1], match[2]) for match in FENCE.finditer(TEXT)]
PROSE = FENCE.sub("", BLOCK.sub("", TEXT))
REPOSITORY_PARTS = ("notebooks/", "params/", "mmprm_lib/", "tests/", "benchmarks/", ".ci/")


def fenced(language: str) -> list[str]:
    """The code blocks of a language."""
    return [code for name, code in FENCES if name == language]


def results_changed_here() -> bool:
    """Whether this checkout has results that are not committed; False where there is no git."""
    command = ["git", "-C", str(REPOSITORY), "status", "--porcelain", "--", "results", "mmprm_lib/assets"]
    try:
        return bool(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return False


# ---- the README of this repository


def test_every_block_is_what_the_results_say():
    stated = {match[1]: match[2].strip() for match in BLOCK.finditer(TEXT)}
    found = {name: text.strip() for name, text in readme.blocks(REPOSITORY).items()}
    if stated != found and results_changed_here():
        pytest.skip("results were made anew in this checkout: `python -m mmprm_lib.readme` brings README.md up to date")
    assert stated == found, "README.md is out of date: run `python -m mmprm_lib.readme`"


def test_every_make_target_exists():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    code = "\n".join([*(c for name, c in FENCES if name in ("sh", "text")), *re.findall(r"`([^`]+)`", PROSE)])
    named = set(re.findall(r"\bmake ([a-z-]+)", code))
    assert {"run", "test", "lab", "base", "bench"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for name in re.findall(r"make run.* ([A-Z_]+)=", code):
        assert f"$({name})" in makefile or f'"$({name})"' in makefile, f"make knows no {name}"


def test_every_profile_exists():
    named = set(re.findall(r"PROFILE=([a-z_0-9]+)", TEXT)) - {"mine"}
    assert named == {"smoke", "paper"} and all((REPOSITORY / "params" / name).is_dir() for name in named)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)\)", FENCE.sub("", TEXT))
    local = [link for link in links if "://" not in link]
    assert "LICENSE" in local and [link for link in local if not (REPOSITORY / link).exists()] == []


def test_an_image_is_shown_or_its_absence_is_said():
    block = dict(BLOCK.findall(TEXT))["figure"]
    image = re.search(r"!\[[^\]]+\]\(([^)]+)\)", block)
    assert (REPOSITORY / image[1]).is_file() if image else "has not been run" in block or "drew no figure" in block


def test_every_path_exists():
    spans = [span for span in re.findall(r"`([^`\n]+)`", PROSE) if span.startswith(REPOSITORY_PARTS)]
    assert spans and [span for span in spans if not (REPOSITORY / span).exists()] == []


def layout() -> list[str]:
    """The paths of the layout, their braces written out."""
    (tree,) = fenced("text")
    paths = []
    for pattern in (line.split()[0] for line in tree.splitlines()):
        group = re.search(r"\{(.*)\}", pattern)
        paths += [pattern.replace(group[0], name) for name in group[1].split(",")] if group else [pattern]
    return paths


def test_the_layout_is_the_one_on_disk():
    paths = [path for path in layout() if not path.startswith("results/")]  # which a run makes
    assert [path for path in paths if not list(REPOSITORY.glob(path))] == []


def test_every_module_stands_in_the_layout():
    listed = {path for pattern in layout() for path in REPOSITORY.glob(pattern)}
    modules = set((REPOSITORY / "mmprm_lib").glob("*.py")) - {REPOSITORY / "mmprm_lib" / "__init__.py"}
    assert sorted(path.name for path in modules - listed) == []


def test_prose_states_no_measured_number():
    text = re.sub(r"`[^`]*`", "", PROSE)
    assert re.findall(r"\d[\d.,]* ?(?:%|points?\b|minutes?\b|min\b|hours?\b|seconds?\b|s\b|[MG]B\b)", text) == []


def test_it_is_short_and_its_lines_are_too():
    lines = BLOCK.sub("", TEXT).splitlines()
    assert len(lines) <= 210 and max(map(len, lines)) <= 120


# ---- its examples


def test_the_example_profile_is_accepted():
    (text,) = fenced("yaml")
    files = re.split(r"^# params/mine/(\w+)\.yaml\n", text, flags=re.MULTILINE)[1:]
    assert files[::2] == ["01_data", "03_mc_labeling", "04_prm_training", "06_best_of_n"]
    for name, values in zip(files[::2], files[1::2], strict=True):
        declared = parameters.declared(REPOSITORY / "notebooks" / f"{name}.ipynb")
        parameters.resolve(declared, yaml.safe_load(values), name)  # an unknown name or a wrong type is an error


def test_the_example_in_python_scores_solutions(tmp_path, monkeypatch, capsys):
    (row,), (code,) = fenced("json"), fenced("python")
    (problem, image), *_ = world.draw(1, 0, "test", families=("bars",), choice_share=0.0)
    folder = tmp_path / "my_data"
    folder.mkdir()
    image.save(folder / json.loads(row)["image_path"])
    (folder / "questions.jsonl").write_text(row, encoding="utf-8")
    model, processor = models.new_base(width=32, layers=1), models.new_processor()
    prm.add_marker(model, processor)
    torch.manual_seed(0)
    prm.TrainedPRM(FORMATS["marker"], model, processor).save(tmp_path / "results/tiny/04_prm_training/marker")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    assert [len(scores) for scores in names["step_scores"]] == [4, 3] and names["bad_rows"] == []
    assert names["best"] in names["candidates"] and "Answer: " in capsys.readouterr().out
    assert names["problem"].answer == "9" and data.open_image(names["problem"]).size == (112, 112)


# ---- the generator


PARAMS = {"headline_n": 4, "aggregator": "min"}
FOUND = {"value": 0.61234, "n": 1500, "low": 0.59, "high": 0.63}
GAP = {"value": 0.0321, "n": 1500, "low": -0.001, "high": 0.065}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A project whose reference run has finished 06 with N = 4 and `min`, and nothing else."""
    write_json(tmp_path / "notebooks/06_best_of_n.ipynb", {"cells": [{"source": ["# 06 Best-of-N: who | chooses?\n"]}]})
    write_json(tmp_path / "notebooks/07_later.ipynb", {"cells": [{"source": "# 07 Later"}]})
    stage = tmp_path / "results/tiny/06_best_of_n"
    keys = ["pass_at_1", "majority_at_4", "weighted_at_4", "orm_at_4", "prm_min_at_4", "pass_at_4"]
    gaps = ["prm_min_at_4_minus_pass_at_1", "prm_min_at_4_minus_majority_at_4"]
    write_json(stage / "metrics.json", dict.fromkeys(keys, FOUND) | dict.fromkeys(gaps, GAP))
    machine = {"cores": 2, "memory_gb": 23.6, "peak_memory_gb": 3.21, "gpus": []}
    outputs = {"a.jsonl": {"bytes": 41_000_000}, "images": {"bytes": 500_000}}
    manifest = {"notebook": "06_best_of_n", "params": PARAMS, "machine": machine, "outputs": outputs}
    write_json(stage / "manifest.json", manifest | {"seconds": 190, "wall_seconds": 200, "generated_tokens": 1234567})
    return tmp_path


def test_the_result_has_value_interval_and_n_of_the_run_s_own_parameters(finished):
    table = readme.result(finished / "results/tiny")
    lines = table.splitlines()
    assert lines[0] == "| notebook | measure | value | 95 % interval | n |"
    assert "| 06 | majority vote of 4 | 0.612 | 0.590 to 0.630 | 1,500 problems |" in lines
    best = "**Best-of-4 by the soft-label marker PRM, min of steps**"
    assert f"| 06 | {best} | 0.612 | 0.590 to 0.630 | 1,500 problems |" in lines
    assert "| 06 | PRM minus pass@1, paired | +0.032 | -0.001 to +0.065 | 1,500 problems |" in lines
    assert readme.not_run("05_visualprocessbench") in lines and readme.not_run("03_mc_labeling") in lines


def test_a_finished_notebook_without_a_metric_is_an_error(finished):
    write_json(finished / "results/tiny/06_best_of_n/metrics.json", {"pass_at_1": FOUND})
    with pytest.raises(ValueError, match="has no 'majority_at_4': run the notebook again"):
        readme.result(finished / "results/tiny")


def test_metrics_without_a_manifest_are_no_result(finished):
    (finished / "results/tiny/06_best_of_n/manifest.json").unlink()
    assert "|" not in readme.result(finished / "results/tiny")
    assert readme.figure(finished / "results/tiny") == readme.not_run("06_best_of_n")
    assert readme.cost(finished / "results/tiny").startswith("The reference run has not been run")


def test_the_figure_is_the_curve_or_else_the_first(finished):
    stage = finished / "results/tiny/06_best_of_n"
    assert readme.figure(finished / "results/tiny") == "Notebook 06_best_of_n drew no figure."
    for name in ("aggregators", "candidates", "best_of_n"):
        (stage / f"figure_{name}.png").write_bytes(b"")
        shown = "best_of_n" if name == "best_of_n" else "aggregators"
        assert f"(results/tiny/06_best_of_n/figure_{shown}.png)" in readme.figure(finished / "results/tiny")


def test_cost_and_table_are_of_the_manifests(finished):
    cost = readme.cost(finished / "results/tiny")
    # 200 s are 3.3 minutes; 41.5 MB
    assert cost == (
        "Notebooks 06 of the reference run took 3 min on 2 cores with 24 GB (no GPU), 3.2 GB of memory at most, "
        "42 MB of results on disk, and 1,234,567 generated tokens."
    )
    (finished / "results/tiny/06_best_of_n/06_best_of_n.ipynb").write_text("{}")
    assert readme.notebooks(finished).splitlines()[2:] == [
        r"| [06_best_of_n](notebooks/06_best_of_n.ipynb) | who \| chooses? | 3 min | 3.2 GB | 42 MB | "
        "[executed](results/tiny/06_best_of_n/06_best_of_n.ipynb) |",
        "| [07_later](notebooks/07_later.ipynb) | 07 Later | not run yet |  |  |  |",
    ]


def test_an_unknown_value_is_a_dash():
    nothing = {"value": None, "n": None, "low": None, "high": None}
    assert readme.estimate(nothing) == ("-", "-", "-")
    assert readme.estimate({"value": 0.5, "n": 3, "low": None, "high": None}) == ("0.500", "-", "3")


def test_the_base_s_skills_and_cost(tmp_path):
    path = tmp_path / "skills.json"
    assert "have not been measured" in readme.base(path)
    facts = {"seconds": 5400, "threads": 1, "updates": 4000, "batch": 64, "parameters": 2356608, "seed": 0, "n": 512}
    write_json(path, facts | {"skills": {"reading": 0.98765, "judging_auroc": 0.95}})
    text = readme.base(path)
    assert "Trained in 1.5 h on 1 CPU thread(s), 4,000 batches of 64, 2,356,608 parameters, seed 0." in text
    assert "n = 512" in text and "| reading | 0.988 |\n| judging auroc | 0.950 |" in text


def test_throughput_ratios(tmp_path):
    path = tmp_path / "bench.json"
    assert readme.bench(path) == "`make bench` has no committed result yet."
    row = {"value": 1.234, "baseline": "generate, batch 256", "low": 1.1, "high": 1.3}
    here = {"machine": "a CPU, 2 threads", "versions": "torch 2.13.0"}
    chip = {"value": 0.4, "baseline": "products", "low": 0.3, "high": 0.4, "of_peak": 0.3456, "tokens_per_s": 12345.6}
    slow = row | {"scores_per_s": 21.26}
    write_json(path, {"b": row | here, "a": slow | here})
    assert readme.bench(path).splitlines() == [
        "| ratio | value | range over the rounds | against | our speed |",
        "| --- | --- | --- | --- | --- |",
        "| `a` | 1.23 | 1.10 to 1.30 | generate, batch 256 | 21.3 step scores/s |",
        "| `b` | 1.23 | 1.10 to 1.30 | generate, batch 256 | - |",
        "",
        "On a CPU, 2 threads; torch 2.13.0.",
    ]
    write_json(path, {"a": row | here, "b": chip | here | {"machine": "a GPU"}, "c": row})
    assert readme.bench(path).splitlines()[2:] == [
        "| `a` | 1.23 | 1.10 to 1.30 | generate, batch 256 | - | 1 |",
        "| `b` | 0.40 | 0.30 to 0.40 | products | 12,346 tokens/s, 34.6% of the chip's peak | 2 |",
        "| `c` | 1.23 | 1.10 to 1.30 | generate, batch 256 | - | 3 |",
        "",
        "1. a CPU, 2 threads; torch 2.13.0",
        "2. a GPU; torch 2.13.0",
        "3. a machine that is not told; versions not told",
    ]


def test_make_bench_fills_a_new_file_and_moves_it_over_the_old_one_last():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^bench:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1].splitlines()
    assert set(re.findall(r"--out (\S+)", "\n".join(recipe))) == {"$(BENCH)", "$(BENCH);"}
    assert recipe[1] == "\t@rm -f $(BENCH)" and recipe[-2] == "\t@mv $(BENCH) results/bench/bench.json"
    scripts = {path.name for path in (REPOSITORY / "benchmarks").glob("bench_*.py")}
    assert set(re.findall(r"benchmarks/(bench_\w+\.py)", "\n".join(recipe))) == scripts


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    assert readme.duration(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(340_000, "0.3 MB"), (41_200_000, "41 MB"), (1_250_000_000, "1.2 GB")])
def test_sizes(n, text):
    assert readme.size(n) == text


def test_filling_changes_blocks_only_and_twice_is_once():
    text = "a\n<!-- begin: one -->\nold\n<!-- end: one -->\nb <!-- begin: two --><!-- end: two --> c\n"
    new = readme.fill(text, {"one": "1", "two": "2"})
    assert new == "a\n<!-- begin: one -->\n1\n<!-- end: one -->\nb <!-- begin: two -->\n2\n<!-- end: two --> c\n"
    assert readme.fill(new, {"one": "1", "two": "2"}) == new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin: one -->", "put one `<!-- end: one -->`"),
        ("<!-- begin: one --><!-- end: two -->", "put one `<!-- end: one -->`"),
        ("<!-- end: one --><!-- begin: one -->", "put one `<!-- end: one -->`"),
        ("<!-- begin: three --><!-- end: three -->", "'three' is unknown"),
        ("<!-- begin: one --><!-- end: one -->" * 2, "stands twice"),
        ("no block", "no block one"),
    ],
)
def test_a_broken_readme_is_one_clear_error(text, message):
    with pytest.raises(ValueError, match=message):
        readme.fill(text, {"one": "1"})


def test_the_command_rewrites_the_readme(finished, monkeypatch, capsys):
    markers = "".join(f"<!-- begin: {name} --><!-- end: {name} -->" for name in readme.blocks(finished))
    (finished / "README.md").write_text(f"# Title\n{markers}\n")
    monkeypatch.setenv("MMPRM_ROOT", str(finished))
    assert readme.main() == 0 and "majority vote of 4" in (finished / "README.md").read_text()
    assert readme.main() == 0
    assert capsys.readouterr().out == "README.md rewritten\nREADME.md is up to date\n"
