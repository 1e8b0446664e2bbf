"""A training that is killed, by SIGKILL and at different instants, and called again, against one that never was."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmprm_lib import checkpoints, critic_training, critique, data, models, policy, prm, world
from mmprm_lib.schema import Problem, StepLabels, read_records, write_records
from tests.conftest import REPOSITORY

SETTINGS = {"labels": "soft", "epochs": 3.0, "learning_rate": 1.0e-3, "save_steps": 2}
# 12 rows, 2 in an update, or 6 rows of 2 solutions, 1 in an update: 3 epochs of 6 updates

CALL = """
import os, signal, sys
from pathlib import Path
from mmprm_lib import checkpoints, prm
from tests import test_checkpoints as test
folder, out, what, pack, (place, number) = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]), sys.argv[5].split(":")
number, n = int(number), 0

def killing(function, before):
    def wrapped(*args, **options):
        global n
        n += 1
        if before and n == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if n == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

owner, name = {
    "update": (checkpoints._Pace, "on_step_end"),  # after so many updates
    "half": (checkpoints, "save_file"),  # tensors of a checkpoint are written, and nothing else
    "unnamed": (Path, "rename"),  # it is whole, but not called so yet
    "named": (Path, "rename"),  # it is, and the older one still there
    "validated": (prm.KeepBest, "on_epoch_end"),
    "saving": (prm.TrainedPRM, "save"),  # nothing is left to do, and nothing is saved
    "saved": (checkpoints, "clear"),  # the PRM is saved, its checkpoints are there
    "kept": (test.policy, "kept"),
}[place]
setattr(owner, name, killing(getattr(owner, name), place in ("unnamed", "saving", "saved", "kept")))
getattr(test, what)(folder, out, pack)
sys.exit(f"never came to {place} {number}")
"""


def killed(folder, out, place, what="train", pack=1):
    """The names in `out` after a process that trains was killed at a place."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CALL, str(folder), str(out), what, str(pack), place]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return sorted(path.name for path in out.iterdir() if path.name.startswith("checkpoint"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with problems, records and a start: 6 problems, 2 solutions of unequal length each; random weights."""
    path = tmp_path_factory.mktemp("checkpoints")
    problems = data.from_world({"train": 6}, 0, path)
    records = []
    for j, problem in enumerate(problems):
        for i in range(2):
            scores = [(j + i) % 5, (j + 2 * i) % 5][: 1 + (j + i) % 2]
            n = len(scores)
            records += [StepLabels(
                solution_id=f"{problem.problem_id}/s{i}", problem_id=problem.problem_id,
                steps=[f"Bar A is {i + 2}.", f"Sum: {i + 9}."][:n], n_rollouts=[4] * n, n_correct=scores,
                n_unknown=[0] * n, mc_score=[s / 4 for s in scores], strategy="exhaustive", n_generated_tokens=0,
            )]  # fmt: skip
    write_records(path / "problems.jsonl", problems)
    write_records(path / "records.jsonl", records)
    model, processor = models.new_base(0, width=64, layers=2), models.new_processor()
    model.save_pretrained(path / "start")
    processor.save_pretrained(path / "start")
    return path


def problems_of(folder):
    problems = read_records(folder / "problems.jsonl", Problem)
    for problem in problems:
        problem._root = folder
    return problems


def train(folder, out, pack=1, **options):
    problems, records = problems_of(folder), read_records(folder / "records.jsonl", StepLabels)
    settings = {**SETTINGS, "eval_records": records[:4], "batch_size": 2, "pack_size": pack, **options}
    return prm.train("marker", records, problems, *models.load(folder / "start", device="cpu"), out, **settings)


def tune(folder, out, pack=1, **options):
    pairs = [(p, world.solve(p)) for p in problems_of(folder) for _ in range(2)]
    settings = {"learning_rate": 1e-3, "epochs": 3.0, "batch_size": 2, "pack_size": pack, "save_steps": 2, **options}
    return policy.fine_tuned(*models.load(folder / "start", device="cpu"), pairs, out, **settings)


def criticise(folder, out, pack=1, **options):
    records = [
        critique.TeacherCritique(
            solution_id=p.problem_id, problem_id=p.problem_id, steps=["Bar A is 2."], teacher="t",
            critique=critique.Critique(
                solution_id=p.problem_id, first_error=0, corrected_step=None, parse="ok",
                steps=[{"intent": f"It reads bar {i}.", "image": "It is so.", "logic": "Fine.", "verdict": "correct",
                        "p_correct": None}],
            ),
        )
        for i, p in enumerate(problems_of(folder))
    ]  # fmt: skip
    settings = {"learning_rate": 1e-3, "epochs": 4.0, "batch_size": 2, "verdict_weight": 3.0, "save_steps": 2}
    model, processor = models.load(folder / "start", device="cpu")
    return critic_training.train(model, processor, records, problems_of(folder), out, **{**settings, **options})


def same(one, two):
    """Whether two folders hold the same weights, bit by bit."""
    first, second = (load_file(path / "model.safetensors") for path in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def past(path):
    """What a PRM tells of its training, without what hangs on the machine's speed."""
    kept = json.loads((path / "prm.json").read_text())
    kept["history"] = [row for row in kept["history"] if "train_runtime" not in row]
    return {name: value for name, value in kept.items() if name != "key"}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The folder of a PRM whose training was not killed, and made no checkpoint."""
    path = tmp_path_factory.mktemp("whole")
    train(folder, path, save_steps=0)
    assert not list(path.glob("checkpoint*"))
    return path


def test_a_training_killed_twice_ends_in_the_same_weights(folder, whole, tmp_path):
    out = tmp_path
    assert killed(folder, out, "half:4") == ["checkpoint-6", "checkpoint-8.part"]  # epoch 1 is over, and validated
    assert killed(folder, out, "update:8") == ["checkpoint-12"]  # 6 + 8 = 14 updates, the last not saved yet
    files = {path.name for path in (out / "checkpoint-12").iterdir()}
    assert files == {"trainer_state.json", "rank-0.safetensors"}
    assert json.loads((out / "checkpoint-12" / "trainer_state.json").read_text())["global_step"] == 12
    train(folder, out)
    assert same(whole, out) and past(whole) == past(out)
    assert not list(out.glob("checkpoint*")) and not [p for p in out.rglob("*") if p.suffix in (".pt", ".pth", ".bin")]


PLACES = ["update:1", "update:3", "half:1", "unnamed:2", "named:3", "validated:1", "validated:2"]


@pytest.mark.slow
@pytest.mark.parametrize("place", [*PLACES, "update:11", "validated:3", "saving:1", "saved:1"])
def test_wherever_it_is_killed_it_ends_in_the_same_weights(folder, whole, tmp_path, place):
    killed(folder, tmp_path, place)
    train(folder, tmp_path)
    assert same(whole, tmp_path) and past(whole) == past(tmp_path)
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.slow
def test_a_training_in_packed_rows_killed_again_and_again_ends_in_the_same_weights(folder, tmp_path):
    train(folder, tmp_path / "whole", 2, save_steps=0)
    for place in PLACES:
        killed(folder, tmp_path / "killed", place, pack=2)
    train(folder, tmp_path / "killed", 2)
    assert same(tmp_path / "whole", tmp_path / "killed") and past(tmp_path / "whole") == past(tmp_path / "killed")


@pytest.mark.slow
def test_lora_and_accumulation_go_on_too(folder, tmp_path, monkeypatch):
    options = {"lora_rank": 2, "gradient_accumulation": 2, "gradient_checkpointing": True}
    train(folder, tmp_path / "whole", save_steps=0, **options)
    save = checkpoints.ResumingTrainer._save_checkpoint

    def failing(self, model, trial=None):
        save(self, model, trial)
        raise KeyboardInterrupt

    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(checkpoints.ResumingTrainer, "_save_checkpoint", failing)
            train(folder, tmp_path / "cut", **options)
    assert [p.name for p in checkpoints.whole(tmp_path / "cut")] == ["checkpoint-6"]
    train(folder, tmp_path / "cut", **options)
    assert same(tmp_path / "whole", tmp_path / "cut") and past(tmp_path / "whole") == past(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize(("call", "pack"), [(tune, 1), (tune, 2), (criticise, 1)])
def test_policies_and_critics_go_on_as_well(folder, tmp_path, call, pack):
    _, history = call(folder, tmp_path / "whole", pack, save_steps=0)
    for place in ("update:3", "unnamed:2", "kept:1"):
        killed(folder, tmp_path / "killed", place, call.__name__, pack)
    _, again = call(folder, tmp_path / "killed", pack)
    assert same(tmp_path / "whole", tmp_path / "killed") and again == history
    assert not list((tmp_path / "killed").glob("checkpoint*"))


def stopped(monkeypatch, folder, out, **options):
    """Nothing; a training of which one checkpoint is left, that of update 2."""
    save = checkpoints.ResumingTrainer._save_checkpoint

    def failing(self, model, trial=None):
        save(self, model, trial)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.ResumingTrainer, "_save_checkpoint", failing)
        train(folder, out, **options)
    assert [path.name for path in checkpoints.whole(out)] == ["checkpoint-2"]


def test_a_checkpoint_of_another_training_is_never_gone_on_from_and_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "epochs", 0.5)
    stopped(monkeypatch, folder, tmp_path / "out")
    fresh = train(folder, tmp_path / "fresh", learning_rate=2e-3, save_steps=0)
    with pytest.warns(UserWarning, match="checkpoint-2 is of another training"):
        other = train(folder, tmp_path / "out", learning_rate=2e-3)
    assert same(tmp_path / "out", tmp_path / "fresh") and other.history[:-1] == fresh.history[:-1]


class Evil:
    """What makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return open, (self.canary, "w")


def test_nothing_that_is_pickled_in_a_checkpoint_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "epochs", 0.5)
    whole = train(folder, tmp_path / "whole")
    stopped(monkeypatch, folder, tmp_path / "out")
    names = ["pytorch_model.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth",
             "training_args.bin", "adapter_model.bin", "rng_state_0.pth"]  # fmt: skip
    for place in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        for name in names:
            torch.save(Evil(tmp_path / "ran"), place / name)
    again = train(folder, tmp_path / "out")
    assert same(tmp_path / "whole", tmp_path / "out") and again.history[:-1] == whole.history[:-1]
    index = {"weight_map": {"vlm.x": "pytorch_model.bin"}}  # beside a PRM that is finished, and is taken as it is
    (tmp_path / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json names 'pytorch_model.bin': only .safetensors files"):
        train(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_read_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "epochs", 0.5)
    stopped(monkeypatch, folder, tmp_path)
    for raw in (b"", pickle.dumps(Evil(tmp_path / "ran")), b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "checkpoint-2" / "rank-0.safetensors").write_bytes(raw)
        with pytest.raises(ValueError, match="checkpoint-2 cannot be read .*: delete it, and training begins anew"):
            train(folder, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_key_of_a_training_covers_what_shapes_it_and_nothing_else(folder, tmp_path, monkeypatch):
    keys = {}

    def key(name, call=train, **options):
        def found(self, key):
            keys[name] = key
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(checkpoints.ResumingTrainer, "train_from", found)
            call(folder, tmp_path / "another folder" if name == "moved" else tmp_path, **options)

    key("plain")
    key("moved", save_steps=1)
    assert len(set(keys.values())) == 1
    records = read_records(folder / "records.jsonl", StepLabels)
    for name, options in {
        "seed": {"seed": 1}, "rate": {"learning_rate": 2e-3}, "epochs": {"epochs": 2.0}, "batch": {"batch_size": 1},
        "accumulation": {"gradient_accumulation": 2}, "labels": {"labels": "hard"}, "pack": {"pack": 2},
        "lora": {"lora_rank": 2}, "vision": {"freeze_vision": False}, "marker": {"marker_init": " True?"},
        "balance": {"balance": 0.5}, "validation": {"eval_records": records[4:8]}, "warmup": {"warmup_share": 0.1},
    }.items():  # fmt: skip
        key(name, **options)
    changed = problems_of(folder)
    changed[0].image, changed[0].image_sha256 = changed[1].image, changed[1].image_sha256
    monkeypatch.setattr(sys.modules[__name__], "problems_of", lambda folder: changed)
    key("image")
    assert len(set(keys.values())) == len(keys) - 1 == 15


def test_a_finished_training_is_taken_as_it_is(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "epochs", 0.5)
    made = train(folder, tmp_path)
    (tmp_path / "checkpoint-2").mkdir()  # as a training leaves it that is killed after it has saved its PRM
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ResumingTrainer, "train_from", None)
        again = train(folder, tmp_path)
    assert not list(tmp_path.glob("checkpoint*"))
    assert again.key == made.key != "" and again.history == made.history and again.form == made.form
    assert again.scorer().fingerprint == made.scorer().fingerprint
    assert train(folder, tmp_path, seed=1).key != made.key


def test_chance_goes_on_where_it_was_also_through_json():
    state = checkpoints.chance()
    drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), np.random.randn(3).tolist()]
    checkpoints.set_chance(state[0], json.loads(json.dumps(state[1])))
    assert drawn == [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), np.random.randn(3).tolist()]


def test_the_last_whole_checkpoint_is_found_and_all_of_them_go(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.part", "checkpoint-8.gone", "checkpoint-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    assert [path.name for path in checkpoints.whole(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    checkpoints.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-x"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.last(tmp_path, "key") is None
