"""A Ray cluster of two machines, each with a network and processes of its own, at all that it does; one is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprm_lib import data, launch, models, prm
from mmprm_lib.decoding import Sampling
from mmprm_lib.engines import load_generator
from mmprm_lib.evaluation import load_scorer
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.run import Run
from mmprm_lib.schema import Solution, read_records, write_records
from tests.conftest import REPOSITORY
from tests.machines import missing, two_machines, until
from tests.test_launch import SETTINGS, apart, losses, made  # noqa: F401

pytest.importorskip("ray", reason="no Ray here: make test-vllm runs these tests in an environment that has it")
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"two machines on one: {missing()}")

N_PROBLEMS, FREE = 8, Sampling(max_new_tokens=64, seed=3)
TUNING = {"batch_size": 2, "learning_rate": 1e-3, "epochs": 3.0}
RAY = str(Path(sys.executable).with_name("ray"))
# what the first machine runs; with `lose` it waits, once three tasks are done, until the second machine is cut off:
# that one has been given two tasks, and what it has made of them and not handed over is lost with it
DRIVER = """
import json, sys, time
from pathlib import Path
import ray
from mmprm_lib import fleet
from mmprm_lib.engines import load_fleet
from mmprm_lib.evaluation import load_scorer
from mmprm_lib.run import Run
from mmprm_lib.schema import Solution, read_records, write_records
from tests.test_machines import N_PROBLEMS, problems_in, scores_to, written

folder, lose = Path(sys.argv[1]), sys.argv[2] == "lose"
fleet.SEQUENCES = 2  # several tasks of these few requests


def addresses(workers):
    asked = [w.__ray_call__.remote(lambda self: ray.util.get_node_ip_address()) for w in workers.workers]
    return sorted(ray.get(asked))


class Losing(fleet.FleetGenerator):
    def spread(self, method, jobs):
        for i, found in enumerate(super().spread(method, jobs)):
            if i == 2 and lose and not (folder / "cut").exists():
                (folder / "due").touch()
                while not (folder / "cut").exists():
                    time.sleep(0.1)
            yield found


problems = problems_in(folder / "data")
with load_fleet(2, "embedded") as workers:
    said = {"sampled_on": addresses(workers)}
    workers.__class__ = Losing
    written(folder, workers, problems)
    said["alive"] = sum(node["Alive"] for node in ray.nodes())
if not lose:
    run = Run("05_visualprocessbench", {"run_name": "x", "seed": 0})
    with load_scorer(run, "judge", "embedded", n_workers=2) as scorer:
        said["scored_on"] = addresses(scorer)
        scores_to(folder, scorer, problems)
(folder / "said.json").write_text(json.dumps(said))
"""


# what the first machine runs to train on both
TRAIN = """
import sys
from pathlib import Path
from mmprm_lib import launch
from mmprm_lib.schema import Problem, StepLabels, read_records
from tests.test_machines import SETTINGS, TUNING

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
problems = read_records(folder / "problems.jsonl", Problem)
for problem in problems:
    problem._root = folder
records = read_records(folder / "records.jsonl", StepLabels)
launch.train("marker", records, problems, folder / "start", out / "shards", n_machines=2, fsdp=True,
             gradient_checkpointing=True, eval_records=records[:4], **SETTINGS)
pairs = [(p, ["Bar A is 3."]) for p in problems]
launch.tune_policy(pairs, folder / "start", out / "copies", n_machines=2, **TUNING)
try:
    launch.train_critic(records, problems, folder / "start", out / "critic", n_machines=3)
except ValueError as error:
    (out / "said").write_text(str(error))
"""


def problems_in(folder):
    return data.from_world({"test": N_PROBLEMS}, 0, folder)


def written(folder, generator, problems):
    """Nothing; solutions and labels are in the folder."""
    solutions = solutions_to(folder / "s.jsonl", problems, generator, 2, FREE)
    labels_to(folder / "l.jsonl", solutions, problems, generator, Options(n_rollouts=2), FREE)


def scores_to(folder, scorer, problems):
    """Nothing; the scores of the folder's solutions are in it, as they come."""
    solutions = read_records(folder / "s.jsonl", Solution)
    write_records(folder / "scores.jsonl", list(scorer.score_records(problems, solutions, chunk=4)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process' records."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPRM_RESULTS", str(folder))
        problems = problems_in(folder / "data")
        written(folder, load_generator("embedded"), problems)
        run = Run("05_visualprocessbench", {"run_name": "x", "seed": 0})
        scores_to(folder, load_scorer(run, "judge", "embedded"), problems)
    return folder


def environment(folder):
    """That of the machines; as in docs/cluster.md, Ray asks each of them for the token that one of them has made."""
    kept = {**os.environ, "HOME": str(folder), "MMPRM_RESULTS": str(folder), "PYTHONPATH": str(REPOSITORY)}
    ours = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # a machine is lost after seconds; by default Ray takes a minute to say so
    soon = {"RAY_health_check_timeout_ms": "8000", "RAY_health_check_period_ms": "1000"}
    return kept | ours | soon | {"RAY_health_check_failure_threshold": "4"}


def join(machine, options, environment):
    """Nothing; the machine is part of the cluster. Ray gives up where its own processes take 15 s to start."""
    common = [f"--node-ip-address={machine.address}", "--num-cpus=1", "--object-store-memory=100000000"]
    for left in (2, 1, 0):
        try:
            machine.run(RAY, "start", *options, *common, env=environment)
            return
        except (AssertionError, subprocess.TimeoutExpired):
            if not left:
                raise
            machine.run(RAY, "stop", "--force", env=environment)  # of this machine's processes alone


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(first machine, second machine, environment): a cluster of both, with a core each."""
    with two_machines() as (first, second):
        there = environment(tmp_path_factory.mktemp("home"))
        first.run(RAY, "get-auth-token", "--generate", env=there)
        join(first, ["--head", "--port=6379", "--include-dashboard=false"], there)
        join(second, [f"--address={first.address}:6379"], there)
        yield first, second, there | {"RAY_ADDRESS": f"{first.address}:6379"}


def same(name, one, other):
    assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_two_machines_write_what_one_process_writes(alone, cluster, tmp_path):
    first, second, there = cluster
    first.run(sys.executable, "-c", DRIVER, str(tmp_path), "keep", env=there, seconds=900)
    both = [first.address, second.address]
    assert json.loads((tmp_path / "said.json").read_text()) == {"sampled_on": both, "alive": 2, "scored_on": both}
    for name in ("s.jsonl", "l.jsonl", "scores.jsonl"):
        same(name, alone, tmp_path)


def test_two_machines_learn_what_one_process_learns(made, cluster, tmp_path):  # noqa: F811
    problems, records, start = made
    write_records(start.parent / "problems.jsonl", problems)
    write_records(start.parent / "records.jsonl", records)
    first, _, there = cluster
    (tmp_path / "two").mkdir()
    first.run(sys.executable, "-c", TRAIN, str(start.parent), str(tmp_path / "two"), env=there, seconds=900)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["copies", "said", "shards"]
    evaluated = {"gradient_accumulation": 2, "eval_records": records[:4]}
    one = launch.train("marker", records, problems, start, tmp_path / "1", **evaluated, **SETTINGS)
    two = prm.load_prm(tmp_path / "two" / "shards")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4) and len(losses(one)) == 2
    assert apart(one.model, two.model) < 1e-5
    pairs = [(p, ["Bar A is 3."]) for p in problems]
    policy, _, curve = launch.tune_policy(pairs, start, tmp_path / "2", gradient_accumulation=2, **TUNING)
    assert apart(policy, models.load(tmp_path / "two" / "copies")[0]) < 1e-5
    ours = json.loads((tmp_path / "two" / "copies" / "training.json").read_text())["history"]
    assert [r["loss"] for r in ours[:-1]] == pytest.approx([r["loss"] for r in curve[:-1]], rel=1e-4)
    assert len(ours) == len(curve) > 1
    said = (tmp_path / "two" / "said").read_text()
    assert said == "n_machines is 3: 2 in the Ray cluster have 1 CPUs or more"


def test_a_machine_that_is_cut_off_costs_no_record(alone, cluster, tmp_path):
    """Its worker finds no other place: what it was asked is asked of the one that is left. Last in this file."""
    first, second, there = cluster
    with first.start(sys.executable, "-c", DRIVER, str(tmp_path), "lose", env=there) as driver:
        until(lambda: (tmp_path / "due").exists() or driver.poll() is not None, 600)
        assert not (tmp_path / "l.jsonl").exists(), "it is over before the machine is lost"
        second.run("ip", "link", "set", "eth0", "down")
        (tmp_path / "cut").touch()
        assert driver.wait(900) == 0
    both = [first.address, second.address]
    assert json.loads((tmp_path / "said.json").read_text()) == {"sampled_on": both, "alive": 1}
    for name in ("s.jsonl", "l.jsonl"):
        same(name, alone, tmp_path)
