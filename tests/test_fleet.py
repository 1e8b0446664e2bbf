"""A fleet of Ray workers, really started: the same records as one process, also where a worker is killed on the way."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mmprm_lib import benchmark, data, evaluation, fleet
from mmprm_lib.asking import Request
from mmprm_lib.decoding import Sampling
from mmprm_lib.engines import load_fleet, load_generator
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.run import Run
from tests.conftest import REPOSITORY
from tests.servers import free_port

FREE = Sampling(max_new_tokens=64, seed=3)
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else an engine takes nearly all memory of a CPU


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


def soon(monkeypatch, start_s):
    """Nothing; what does not happen is waited for so many seconds, where it is half an hour."""
    monkeypatch.setattr(fleet, "START_S", start_s)
    monkeypatch.setattr(fleet, "CLOSE_S", 1)


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
    # two tasks of 4 requests for each of 2 workers are out, and a fast worker may take more while the other one is slow
    assert len(found) <= 64 and f"{found[-1]}".removesuffix("++") in found


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
    soon(monkeypatch, 3)
    with pytest.raises(TimeoutError, match="not all of 1 workers are there after 3 s"):
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


def scoring_cells():
    """(notebook, its code where it loads scorers in a loop), of those that score with several PRMs."""
    for name in ("05_visualprocessbench", "06_best_of_n"):
        cells = json.loads((REPOSITORY / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        [source] = ["".join(c["source"]) for c in cells if "in prms.items():\n" in (text := "".join(c["source"]))
                    and "load_scorer" in text]  # fmt: skip
        yield name, source


@pytest.mark.parametrize(("name", "source"), list(scoring_cells()), ids=lambda value: value[:2])
def test_a_notebooks_prms_have_all_cores_one_after_the_other(name, source, problems, alone, tmp_path, monkeypatch):
    """On a cluster of CPUs a worker has all cores, so that one who is not ended keeps the next one waiting."""
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path))
    soon(monkeypatch, 300)
    run = Run(name, {"run_name": "x", "seed": 0})
    candidates = solutions_to(tmp_path / "s.jsonl", problems[:2], alone, 2, FREE)
    bench = benchmark.Benchmark(problems[:2], candidates, [[1] * len(s.steps) for s in candidates], [], [])
    names = {"prms": {"judge": "embedded", "marker": "embedded"}, "formats": {}, "options": {"n_workers": 1}}
    names |= {"run": run, "evaluation": evaluation, "problems": problems[:2], "candidates": candidates, "bench": bench}
    exec(source, names)  # noqa: S102 - the notebook's own cell
    ids = {s.solution_id for s in candidates}
    assert {prm: set(scores) for prm, scores in names["scores"].items()} == {"judge": ids, "marker": ids}


def test_a_fleet_begins_with_all_its_workers_or_not_at_all(monkeypatch):
    """Else tasks would be given to one that has no place, and waited for."""
    holder = ray.remote(num_cpus=1)(SimpleNamespace).remote()
    ray.get(holder.__ray_ready__.remote())
    soon(monkeypatch, 20)
    try:
        with pytest.raises(TimeoutError, match="not all of 2 workers are there after 20 s: `ray status`"):
            load_fleet(2, "embedded")
    finally:
        ray.kill(holder)


def test_workers_that_hold_different_models_are_refused():
    def make():
        return SimpleNamespace(name="m", fingerprint=f"{os.getpid()}", close=lambda: None)

    with pytest.raises(ValueError, match="the machines hold different models"):
        fleet.FleetGenerator(make, 2)


def test_a_fleet_whose_workers_are_all_lost_ends_with_an_error(problems, tmp_path, monkeypatch):
    def make():  # the second time it takes for ever, as where the places of the dead have gone to others
        if (tmp_path / "begun").exists():
            time.sleep(600)
        (tmp_path / "begun").touch()
        return load_generator("embedded")

    with fleet.FleetGenerator(make, 1) as workers:
        [pid] = _pids(workers)
        soon(monkeypatch, 5)
        stream = workers.sample(keyed(problems), 1, FREE)
        next(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TimeoutError, match="no worker of 1 came back within 5 s"):
            list(stream)


def _engines(workers):
    """The processes that the workers have started."""
    return [p for pid in _pids(workers) for p in psutil.Process(pid).children(recursive=True)]


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here")
def test_vllm_in_a_worker_is_replaced_with_it_and_leaves_no_process_behind(problems):
    """What docs/cluster.md has first; an engine that is left would keep the memory of its GPU."""
    with load_fleet(1, "embedded", "vllm", batch_size=16) as workers:
        expected = texts(workers, keyed(problems), 2)
        [pid], first = _pids(workers), _engines(workers)
        assert len(expected) == 12 and any("VLLM" in " ".join(p.cmdline()) for p in first)
        stream = workers.sample(keyed(problems), 2, FREE)
        found = [next(stream)]
        os.kill(pid, signal.SIGKILL)
        found += stream
        assert {r.key: [c.text for c in done] for r, done in found} == expected
        assert not psutil.wait_procs(first, timeout=30)[1], "the engine of the dead worker is still there"
        second = _engines(workers)
        assert any("VLLM" in " ".join(p.cmdline()) for p in second)
    assert not psutil.wait_procs(second, timeout=30)[1], "an engine is still there"


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


