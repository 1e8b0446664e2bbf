"""Training in two processes, really started by torchrun, against one: whole copies and shards; and what errors say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mmprm_lib import critique, data, launch, machines, models, world
from mmprm_lib.schema import StepLabels, write_records
from tests.conftest import REPOSITORY

SETTINGS = {"labels": "soft", "epochs": 10.0, "learning_rate": 1.0e-3, "batch_size": 4, "pack_size": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
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


def apart(one, two):
    """The largest distance between two models' weights."""
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max()) for k in first if first[k].is_floating_point())


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """The PRM of one process, which has moved far."""
    problems, records, start = made
    folder = tmp_path_factory.mktemp("alone")
    one = launch.train(
        "marker", records, problems, start, folder, gradient_accumulation=2, eval_records=records[:4], **SETTINGS
    )
    before, after = models.load(start)[0].state_dict(), one.model.state_dict()
    moved = max(float((after[k] - w).abs().max()) for k, w in before.items() if after[k].shape == w.shape)
    assert moved > 5e-4 and len(losses(one)) == 2 and losses(one)[1] < losses(one)[0]
    return one


@pytest.mark.parametrize("options", [{}, {"fsdp": True, "gradient_checkpointing": True}], ids=["copies", "shards"])
def test_two_processes_learn_what_one_learns(made, alone, tmp_path, options):
    problems, records, start = made
    # 8 rows of 2 solutions; an update takes 4 rows: 2 forward passes of one process, or 1 of each of two
    two = launch.train(
        "marker", records, problems, start, tmp_path, n_processes=2, eval_records=records[:4], **SETTINGS, **options
    )
    assert losses(two) == pytest.approx(losses(alone), rel=1e-4)
    assert (two.best_epoch, two.n_train, two.dropped) == (alone.best_epoch, 16, alone.dropped)
    assert apart(alone.model, two.model) < 1e-5
    ours, theirs = (np.concatenate(found.scorer().score(problems, records)) for found in (alone, two))
    assert theirs == pytest.approx(ours, abs=1e-4)


def kept_types(folder):
    """The types of the weights in a checkpoint's files."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.skipif(not models.has_bf16(torch.device("cpu")), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize(
    ("weights", "lora_rank"),
    [("bfloat16", 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("float32", 0), ("bfloat16", 4)))],
)
def test_shards_in_bf16_learn_what_one_process_learns_and_keep_the_type(made, tmp_path, weights, lora_rank):
    problems, records, start = made
    settings = {**SETTINGS, "bf16": True, "lora_rank": lora_rank, "start_options": {"dtype": weights}}
    # one process that keeps what learns in float32, as FSDP and LoRA do whatever `weights` is
    plain = {**settings, "gradient_accumulation": 2, "start_options": {"dtype": "float32"}}
    one = launch.train("marker", records, problems, start, tmp_path / "1", **plain)
    two = launch.train("marker", records, problems, start, tmp_path / "2", n_processes=2, fsdp=True, **settings)
    assert kept_types(tmp_path / "1") == {"F32"}
    assert kept_types(tmp_path / "2") == {"F32" if weights == "float32" else "BF16"}
    assert losses(two) == pytest.approx(losses(one), rel=5e-3)  # which fall from 0.67 to 0.60
    ours, theirs = (np.concatenate(found.scorer().score(problems, records)) for found in (one, two))
    assert theirs == pytest.approx(ours, abs=1e-2)


def test_what_one_process_saves_has_the_type_of_its_start(made, tmp_path):
    problems, records, start = made
    settings = {**SETTINGS, "epochs": 1.0, "start_options": {"dtype": "bfloat16"}}
    launch.train("marker", records, problems, start, tmp_path, **settings)
    assert kept_types(tmp_path) == {"BF16"}


def test_before_processes_start_the_gpu_is_free_and_what_killed_runs_left_is_gone(made, tmp_path, monkeypatch):
    problems, records, start = made
    left, others = tmp_path / ".train_abcd_123.marker", tmp_path / ".train_abcd_123.marker_hard"
    left.mkdir(), others.mkdir()
    (left / "job.json").write_text("{}")
    done = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))

    def started(*arguments):
        done.append([path for path in tmp_path.iterdir() if path != others])
        raise RuntimeError("killed")

    monkeypatch.setattr(launch.machines, "torchrun_on", started)
    with pytest.raises(RuntimeError, match="killed"):
        launch.train("marker", records, problems, start, tmp_path / "marker", n_machines=2, **SETTINGS)
    assert done[0] == "emptied" and others.exists() and not left.exists()
    [folder] = done[1]
    assert folder.name.startswith(".train_") and folder.suffix == ".marker" and not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fsdp": True}], ids=["copies", "shards"])
def test_lora_in_two_processes_is_lora_in_one(made, tmp_path, options):
    problems, records, start = made
    settings = {**SETTINGS, "lora_rank": 4, "epochs": 3.0}
    one = launch.train("marker", records, problems, start, tmp_path / "1", gradient_accumulation=2, **settings)
    two = launch.train("marker", records, problems, start, tmp_path / "2", n_processes=2, **settings, **options)
    assert apart(one.model, two.model) < 1e-6
    assert not any("lora" in name for name in two.model.state_dict())  # merged


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fsdp": True}, {"fsdp": True, "lora_rank": 4}], ids=str)
def test_a_policy_of_two_processes_is_that_of_one(made, tmp_path, options):
    problems, _, start = made
    pairs = [(p, world.solve(p)) for p in problems]
    settings = {"learning_rate": 1e-3, "epochs": 3.0, "batch_size": 2, "lora_rank": options.get("lora_rank", 0)}
    one, _, history = launch.tune_policy(pairs, start, tmp_path / "1", gradient_accumulation=2, **settings)
    two, _, ours = launch.tune_policy(pairs, start, tmp_path / "2", n_processes=2, **{**settings, **options})
    assert apart(one, two) < 1e-5
    assert ours[-1] == history[-1] == {"n_train": 8, "n_dropped": 0} and len(ours) == len(history) == 7
    assert [r["loss"] for r in ours[:-1]] == pytest.approx([r["loss"] for r in history[:-1]], rel=1e-4)
    # what is there is taken: no update is made again
    before = (tmp_path / "2" / "model.safetensors").stat().st_mtime_ns
    launch.tune_policy(pairs, start, tmp_path / "2", n_processes=2, **{**settings, **options})
    assert (tmp_path / "2" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_critic_of_two_processes_is_that_of_one(made, tmp_path):
    problems, _, start = made
    records = [
        critique.TeacherCritique(
            solution_id=p.problem_id, problem_id=p.problem_id, steps=["Bar A is 2."], teacher="t",
            critique=critique.Critique(
                solution_id=p.problem_id, first_error=0, corrected_step=None, parse="ok",
                steps=[{"intent": "It reads bar A.", "image": "It is so.", "logic": "Fine.", "verdict": "correct",
                        "p_correct": None}],
            ),
        )
        for p in problems
    ]  # fmt: skip
    settings = {"learning_rate": 1e-3, "epochs": 2.0, "batch_size": 2, "verdict_weight": 3.0, "word_init": True}
    one, _, _ = launch.train_critic(records, problems, start, tmp_path / "1", gradient_accumulation=2, **settings)
    two, _, _ = launch.train_critic(records, problems, start, tmp_path / "2", n_processes=2, **settings)
    assert apart(one, two) < 1e-5
    assert (tmp_path / "2" / "critic.json").read_text() == (tmp_path / "1" / "critic.json").read_text()


CALL = """
import sys
from pathlib import Path
from mmprm_lib import launch
from mmprm_lib.schema import Problem, StepLabels, read_records
folder, out, fsdp = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
problems = read_records(folder / "problems.jsonl", Problem)
for problem in problems:
    problem._root = folder
records = read_records(folder / "records.jsonl", StepLabels)
launch.train("marker", records, problems, folder / "start", out, n_processes=2, save_steps=3, fsdp=fsdp,
             eval_records=records[:4], labels="soft", epochs=10.0, learning_rate=1e-3, batch_size=4, pack_size=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["copies", "shards"])
def test_two_processes_whose_caller_is_killed_end_and_go_on_when_called_again(made, alone, tmp_path, fsdp):
    problems, records, start = made
    write_records(start.parent / "problems.jsonl", problems)
    write_records(start.parent / "records.jsonl", records)
    command = [sys.executable, "-c", CALL, str(start.parent), str(tmp_path), str(fsdp)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment) as process:
        while not list(tmp_path.glob("checkpoint-??")):  # after more than two epochs
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    time.sleep(3)  # its processes end by themselves
    (left,) = [p.name for p in tmp_path.iterdir() if p.suffix != ".part"]
    time.sleep(3)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".part"] == [left] and left != "checkpoint-20"
    subprocess.run(command, env=environment, check=True)
    assert not list(tmp_path.glob("checkpoint-*"))
    assert apart(alone.model, launch.prm.load_prm(tmp_path).model) < 1e-5


def test_what_fails_in_a_process_is_told(made, tmp_path):
    problems, records, start = made
    with pytest.raises(RuntimeError, match=r"(?s)training in 2 processes failed.*warmup_share is 1.5"):
        launch.train("marker", records, problems, start, tmp_path, n_processes=2, warmup_share=1.5, **SETTINGS)


def test_no_process_is_refused_and_so_are_shards_in_one(made, tmp_path):
    problems, records, start = made
    with pytest.raises(ValueError, match="n_processes is 0"):
        launch.train("marker", records, problems, start, tmp_path, n_processes=0, **SETTINGS)
    with pytest.raises(ValueError, match="set n_processes to 2 or more"):
        launch.train("marker", records, problems, start, tmp_path, fsdp=True, **SETTINGS)


class Cluster:
    """Ray, as far as the check of the machines asks it; `resources` of each machine."""

    def __init__(self, *resources):
        self.resources = resources

    def nodes(self):
        return [{"Alive": True, "Resources": each} for each in self.resources]


@pytest.mark.parametrize(
    ("resources", "n_machines", "words"),
    [
        ({"CPU": 2.0, "GPU": 4.0}, 1, "n_machines is 1: 0 in the Ray cluster have 4 CPUs and 4 GPUs or more"),
        ({"CPU": 8.0, "GPU": 2.0}, 1, "n_machines is 1: 0 in the Ray cluster have 4 CPUs and 4 GPUs or more"),
        ({"CPU": 8.0}, 2, "n_machines is 2: 1 in the Ray cluster have 4 CPUs or more"),
    ],
)
def test_machines_that_cannot_hold_the_processes_are_refused_and_never_waited_for(
    monkeypatch, resources, n_machines, words
):
    monkeypatch.setattr(machines, "join", lambda: Cluster(resources))
    with pytest.raises(ValueError, match=words):
        machines.torchrun_on(n_machines, 4)


def test_another_port_is_taken_if_one_is_not_free_any_more(monkeypatch):
    said = ["code: -98, name: EADDRINUSE, message: address already in use", ""]

    def together(*asked):
        if said and (words := said.pop(0)):
            raise RuntimeError(f"training in 1 processes failed:\n{words}")

    monkeypatch.setattr(machines, "join", lambda: Cluster({"CPU": 1.0}))
    monkeypatch.setattr(machines, "_together", together)
    machines.torchrun_on(1, 1)
    assert said == []
    said += ["EADDRINUSE"] * 9
    with pytest.raises(RuntimeError, match="EADDRINUSE"):
        machines.torchrun_on(1, 1)
    assert len(said) == 6  # three tries
    said[0] = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        machines.torchrun_on(1, 1)
    assert len(said) == 5
