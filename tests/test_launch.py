"""Training in two processes, really started by torchrun, against one; and what its errors say."""

from __future__ import annotations

import numpy as np
import pytest

from mmprm_lib import data, launch, models
from mmprm_lib.schema import StepLabels

SETTINGS = {"labels": "soft", "epochs": 10.0, "learning_rate": 1.0e-3, "batch_size": 4, "pack_size": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(problems, records, folder of a checkpoint): 8 problems, 2 solutions each; random weights."""
    folder = tmp_path_factory.mktemp("launch")
    problems = data.from_world({"train": 8}, 0, folder)
    records = [
        StepLabels(
            solution_id=f"{p.problem_id}/s{i}", problem_id=p.problem_id, steps=[f"Bar A is {i + 2}.", f"Sum: {i + 9}."],
            n_rollouts=[4, 4], n_correct=[(j + i) % 5, (j + 2 * i) % 5], n_unknown=[0, 0],
            mc_score=[(j + i) % 5 / 4, (j + 2 * i) % 5 / 4], strategy="exhaustive", n_generated_tokens=0,
        )
        for j, p in enumerate(problems) for i in range(2)
    ]  # fmt: skip
    model, processor = models.new_base(0, width=64, layers=2), models.new_processor()
    model.save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    return problems, records, folder / "start"


def losses(prm):
    return [row["loss"] for row in prm.history if "loss" in row]


def test_two_processes_learn_what_one_learns(world, tmp_path):
    problems, records, start = world
    # 8 rows of 2 solutions; an update takes 4 rows: 2 forward passes of one process, or 1 of each of two
    one, two = (
        launch.train(
            n, "marker", records, problems, start, tmp_path / str(n), gradient_accumulation=2 // n,
            eval_records=records[:4], **SETTINGS,
        )
        for n in (1, 2)
    )  # fmt: skip
    assert len(losses(one)) == 2 and losses(one)[1] < losses(one)[0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert (two.best_epoch, two.n_train, two.dropped) == (one.best_epoch, 16, one.dropped)
    first, second = one.model.state_dict(), two.model.state_dict()
    assert first.keys() == second.keys()
    apart = max(float((first[k] - second[k]).abs().max()) for k in first if first[k].is_floating_point())
    assert apart < 1e-4, f"weights are {apart:.1e} apart"
    before = models.load(start)[0].state_dict()
    moved = max(float((first[k] - w).abs().max()) for k, w in before.items() if first[k].shape == w.shape)
    assert moved > 100 * apart, "nothing was learnt"
    ours, theirs = (np.concatenate(found.scorer().score(problems, records)) for found in (one, two))
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_what_fails_in_a_process_is_told(world, tmp_path):
    problems, records, start = world
    with pytest.raises(RuntimeError, match=r"(?s)training in 2 processes failed.*warmup_share is 1.5"):
        launch.train(2, "marker", records, problems, start, tmp_path, warmup_share=1.5, **SETTINGS)


def test_no_process_is_refused(world, tmp_path):
    problems, records, start = world
    with pytest.raises(ValueError, match="n_processes is 0"):
        launch.train(0, "marker", records, problems, start, tmp_path, **SETTINGS)
