"""A fleet of Ray workers, really started: the same records as one process, also where a worker is killed on the way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

from mmprm_lib import data, evaluation, fleet
from mmprm_lib.asking import Request
from mmprm_lib.decoding import Sampling
from mmprm_lib.engines import load_fleet, load_generator
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.run import Run
from tests.servers import free_port

FREE = Sampling(max_new_tokens=64, seed=3)


ray = pytest.importorskip("ray", reason="no Ray here: make test-vllm runs these tests in an environment that has it")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return data.from_world({"test": 12}, 0, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone():
    return load_generator("embedded")


@pytest.fixture(scope="module")
def workers():
    ray.init(num_cpus=2, logging_level=logging.ERROR, log_to_driver=False)
    yield load_fleet(2, "embedded")
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr(fleet, "SEQUENCES", 4)  # several tasks of these few requests


def texts(generator, requests, n=1, more=None):
    found = [(r.key, [c.text for c in done]) for r, done in generator.sample(requests, n, FREE, more)]
    assert len(dict(found)) == len(found), "a request came back twice"
    return dict(found)


def keyed(problems):
    return [Request(p, (), f"k{i}") for i, p in enumerate(problems)]


def test_a_fleet_goes_by_its_engines_name_so_that_files_go_on_in_either(alone, workers):
    assert (workers.name, workers.fingerprint) == (alone.name, alone.fingerprint)


def test_a_fleet_draws_what_one_process_draws(alone, workers, problems):
    before = workers.n_generated_tokens, alone.n_generated_tokens
    assert texts(workers, keyed(problems), 3) == texts(alone, keyed(problems), 3)
    assert workers.n_generated_tokens - before[0] == alone.n_generated_tokens - before[1] > 0


def test_what_goes_on_goes_on_in_a_fleet_too(alone, workers, problems):
    def more(request, sample, completion):
        return None if request.prefix else Request(request.problem, (completion.text[:9],), f"{request.key}+{sample}")

    ours = texts(workers, keyed(problems[:3]), 2, more)
    assert ours == texts(alone, keyed(problems[:3]), 2, more) and len(ours) == 3 + 6


def test_what_goes_on_comes_before_new_requests(workers, problems):
    """Of an endless iterable, too; else a search would hold everything open."""

    def more(request, sample, completion):
        steps = (*request.prefix, "So 4.")
        return Request(request.problem, steps, f"{request.key}+") if len(steps) < 3 else None

    endless = (Request(problems[i % 12], (), f"e{i}") for i in count())
    stream, found = workers.sample(endless, 1, FREE, more), []
    while not found or not found[-1].endswith("++"):
        found.append(next(stream)[0].key)
    # two tasks of 4 requests for each of 2 workers are out, and as many again may be taken before the second one ends
    assert len(found) <= 32 and f"{found[-1]}".removesuffix("++") in found


def test_an_endless_iterable_is_read_as_there_is_room(workers, problems):
    read = []

    def endless():
        for i in count():
            read.append(i)
            yield Request(problems[i % 12], (), f"e{i}")

    stream = workers.sample(endless(), 1, FREE)
    for _ in range(5):
        next(stream)
    # 4 sequences a task, a window of one task for each of 2 workers; each has at most 2 tasks, and 2 came back
    assert len(read) <= 8 * (2 * fleet.IN_FLIGHT // 2 + 2)


def test_a_bad_image_costs_its_own_request_alone(workers, tmp_path):
    made = data.from_world({"test": 3}, 1, tmp_path)
    (tmp_path / made[1].image).write_bytes(b"no image")
    found = {r.key: done for r, done in workers.sample(keyed(made), 2, FREE)}
    assert {key: done[0].finish_reason == "error" for key, done in found.items()} == {"k0": 0, "k1": 1, "k2": 0}


def written(folder, generator, problems):
    """The bytes of solutions and labels, by file."""
    solutions = solutions_to(folder / "s.jsonl", problems, generator, 2, FREE)
    labels_to(folder / "l.jsonl", solutions, problems, generator, Options(n_rollouts=2), FREE)
    return {name: (folder / name).read_bytes() for name in ("s.jsonl", "l.jsonl")}


def test_a_killed_worker_is_replaced_and_the_records_are_those_of_one_process(alone, workers, problems, tmp_path):
    for name in ("alone", "fleet"):
        (tmp_path / name).mkdir()
    expected, pids, killed = written(tmp_path / "alone", alone, problems), _pids(workers), []

    class Killing(fleet.FleetGenerator):
        """The fleet; its second worker is killed once, in the middle of its work."""

        def __init__(self):
            self.__dict__.update(workers.__dict__)

        def spread(self, method, jobs):
            for i, found in enumerate(super().spread(method, jobs)):
                if i == 1 and not killed:
                    os.kill(pids[1], signal.SIGKILL)
                    killed.append(pids[1])
                yield found

    assert written(tmp_path / "fleet", Killing(), problems) == expected and killed
    until = time.monotonic() + 60
    while (now := _pids(workers)) == pids:
        assert time.monotonic() < until
    assert now[0] == pids[0] and now[1] != pids[1], "the dead worker alone has a new process"


def _pids(workers):
    """The workers' processes; a remote function sees the process that it runs in."""
    asked = [w.__ray_call__.options(max_task_retries=-1).remote(lambda self: os.getpid()) for w in workers.workers]
    return ray.get(asked)


def test_where_no_place_is_free_the_wait_has_an_end(workers, monkeypatch):
    monkeypatch.setattr(fleet, "START_S", 3)
    with pytest.raises(TimeoutError, match="no worker after 3 s"):
        load_fleet(1, "embedded")


# -- the fleet of the tests above is closed from here on


def test_closing_frees_the_places_and_an_engine_that_cannot_be_made_says_why(workers):
    workers.close()
    workers.close()
    with pytest.raises(Exception, match="write transformers, vllm, or the http"):
        load_fleet(1, "embedded", "vlm")


def test_scores_of_a_fleet_are_those_of_one_scorer_in_order(alone, problems, tmp_path, monkeypatch):
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path))
    run = Run("05_visualprocessbench", {"run_name": "x", "seed": 0})
    solutions = solutions_to(tmp_path / "s.jsonl", problems, alone, 2, FREE)
    one = evaluation.load_scorer(run, "judge", "embedded")
    with evaluation.load_scorer(run, "judge", "embedded", n_workers=1) as many:
        assert (many.name, many.fingerprint) == (one.name, one.fingerprint)
        ours = list(many.score_records(problems, solutions, chunk=5))
    theirs = list(one.score_records(problems, solutions))
    assert [r.solution_id for r in ours] == [s.solution_id for s in solutions]
    for our, their in zip(ours, theirs, strict=True):
        assert our.step_scores == pytest.approx(their.step_scores, abs=1e-6)
    with pytest.raises(ValueError, match="is closed"):
        list(many.score_records(problems, solutions))


def test_a_cluster_that_the_user_started_is_used(problems, alone, tmp_path):
    """`ray start` as in the recipes; last in this file, for it leaves the cluster of the others."""
    ray.shutdown()
    command, port = [str(Path(sys.executable).with_name("ray"))], free_port()
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    start = ["start", "--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    subprocess.run([*command, *start], check=True, capture_output=True, env=quiet)
    try:
        script = (
            "import ray; from mmprm_lib.engines import load_fleet\n"
            "with load_fleet(1, 'embedded') as found: print(found.fingerprint, len(ray.nodes()), "
            "ray.cluster_resources()['CPU'])"
        )
        environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert done.stdout.split() == [alone.fingerprint, "1", "1.0"], done.stdout + done.stderr
    finally:
        subprocess.run([*command, "stop", "--force"], check=False, capture_output=True)


