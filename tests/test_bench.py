"""Every script of benchmarks/, really run on next to nothing: the rows that it writes, and what each must have."""

import json
import runpy
import sys

import pytest

from mmprm_lib import critic_training, models, readme
from tests.conftest import REPOSITORY

SMALL = {  # script: its arguments, and the rows that it writes, with the key of the speed
    "generation": ("--problems 2 --n 2 --rounds 2 --max-new-tokens 8 --sizes 2 4", {"generate_vs_raw": "tokens_per_s"}),
    "labeling": (
        "--problems 2 --n 1 --rollouts 2 --rounds 1 --max-new-tokens 8 --solutions 80",
        {"label_vs_generate": "labels_tokens_per_s", "label_bookkeeping": ""},
    ),
    "manners": (
        "--problems 2 --n 1 --few 2 --rollouts 2 --rounds 1 --max-new-tokens 64",
        {"labels_vs_mm_prm": "steps_per_s", "labels_vs_visualprm": "steps_per_s"},
    ),
    "scoring": (
        "--problems 1 --n 2 --rounds 1 --width 64 --layers 1",
        {"scoring_vs_alone": "scores_per_s", "scoring_vs_per_step": "scores_per_s"},
    ),
    "training": (
        "--problems 2 --n 2 --rounds 1",
        dict.fromkeys(["training_packed", "training_packed_by_length", "training_packed_wide"], "steps_per_s"),
    ),
    "critic": ("--problems 2 --rounds 1 --batch-size 8", {"critic_vs_anew": "scores_per_s"}),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_script_writes_its_rows_with_their_speed_and_machine(name, tmp_path, monkeypatch):
    arguments, rows = SMALL[name]
    out, more = tmp_path / "new.json", []
    if name == "critic":
        critic_training.train(*models.load(), [], [], tmp_path / "critic")  # nothing to learn: it stays the base
        more = ["--critic", str(tmp_path / "critic")]
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["bench", *arguments.split(), *more, "--out", str(out)])
    runpy.run_path(str(REPOSITORY / "benchmarks" / f"bench_{name}.py"), run_name="__main__")
    found = json.loads(out.read_text())
    assert set(found) == set(rows)
    for key, row in found.items():
        assert row["low"] <= row["value"] <= row["high"] and row["baseline"] and row["n"] >= 1, (key, row)
        assert "threads" in row["machine"] and row["versions"].startswith("torch "), (key, row)
        assert {speed for speed in readme.UNITS if speed in row} == {rows[key]} - {""}, (key, row)
        assert row.get(rows[key], 1) > 0
    assert all(f"| `{key}` |" in readme.bench(out) for key in rows)
    if name == "scoring":
        assert found["scoring_vs_alone"]["largest_difference"] < 1e-4  # the fast way gives what the plain ones give
