"""A fleet: one engine per worker of a Ray cluster, for sampling and scoring. Ray places the workers and restarts them.

`machines` says which cluster that is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

from .asking import Finished, More, Request, follows, nothing_more
from .decoding import Sampling
from .machines import START_S, join
from .schema import Problem, Scores

IN_FLIGHT = 2  # tasks of a worker: one that it works on, and the next
RETRIES = 3  # of a task whose worker died: a request that kills whoever takes it must not do so for ever
AWAY = 1000  # the load of a worker that died, until it is back
CLOSE_S = 30  # for what a worker is at, and for its engine to end
SEQUENCES = 1024  # of a task: two of an engine's batches, so that its end, where the batch runs empty, costs little


class _Worker:
    """What runs in a worker's process: an engine, and what it is asked."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    @cached_property
    def engine(self) -> Any:
        # not in __init__, where Ray would start a worker again for ever whose engine cannot be made
        return self.make()

    def names(self) -> tuple[str, str]:
        return self.engine.name, self.engine.fingerprint

    def sample(self, requests: list[Request], n: int, sampling: Sampling) -> tuple[list[Finished], int]:
        before = self.engine.n_generated_tokens
        found = [(request, list(completions)) for request, completions in self.engine.sample(requests, n, sampling)]
        return found, self.engine.n_generated_tokens - before

    def score(self, problems: list[Problem], solutions: list[Any]) -> list[Scores]:
        return list(self.engine.score_records(problems, solutions))

    def close(self) -> None:
        if "engine" in self.__dict__:  # vLLM's is a process of its own, which would outlive this one
            self.engine.close()


class Fleet:
    """`n_workers` processes of a Ray cluster that each hold what `make` makes; a context manager, or call `close`.

    `make` takes no arguments and can be sent to another machine (a `functools.partial` of a library function). Every
    worker has a GPU of its own where the cluster has any, and an even share of a machine's cores. A worker that dies,
    as when its machine is lost, is started again where a place is free, and the others are asked meanwhile what it had
    been asked. ValueError if the cluster cannot hold so many, or their engines differ; TimeoutError if others hold one
    of its places for too long, or none of the workers comes back.
    """

    def __init__(self, make: Callable[[], Any], n_workers: int) -> None:
        ray = self._ray = join()
        self.n_workers = n_workers
        self._lost = ray.exceptions.RayActorError, ray.exceptions.ObjectLostError
        n_cores, n_gpus = share_of([n["Resources"] for n in ray.nodes() if n["Alive"]], n_workers)
        options = {"num_cpus": n_cores, "num_gpus": n_gpus, "max_restarts": -1}
        environment = {"env_vars": {"OMP_NUM_THREADS": str(n_cores)}}
        worker = ray.remote(**options, runtime_env=environment)(_Worker)
        self.workers = [worker.remote(make) for _ in range(n_workers)]
        try:
            names = ray.get([self._ready(place, RETRIES) for place in range(n_workers)], timeout=START_S)
            if len(set(names)) > 1:
                raise ValueError(f"the machines hold different models: {names}")
            self.name, self.fingerprint = names[0]
        except Exception as error:  # whatever it is, no worker is left behind
            self.close()
            if isinstance(error, ray.exceptions.GetTimeoutError):
                why = f"not all of {n_workers} workers are there after {START_S} s"
                raise TimeoutError(f"{why}: `ray status` shows who holds the places") from None
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing; ends the workers, which frees their memory. A second call changes nothing."""
        closing = [worker.close.remote() for worker in self.workers]
        if closing:  # one that has no place, or is lost, is not waited for longer
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for worker in self.workers:
            self._ray.kill(worker)
        self.workers = []

    def _ready(self, place: int, retries: int) -> Any:
        """What Ray gives the worker's names for, as soon as it is there and has loaded its model, again or at first.

        Ray takes it for a retry, too, when it has looked for a while for a worker that is away: -1 is without an end.
        """
        return self.workers[place].names.options(max_task_retries=retries).remote()

    def spread(self, method: str, next_job: Callable[[], tuple | None]) -> Iterator[tuple[int, Any]]:
        """(number of the job, what the workers' method made of it), as they finish; a job is a tuple of arguments.

        Jobs are asked for as workers have room for them; where there is none now (None), there may be one after the
        next that is done. What a method raises is raised here; what died with its worker goes to the next with room.
        """
        if not self.workers:
            raise ValueError(f"the fleet of {self.name!r} is closed: make a new one")
        # by Ray's reference: (worker, its load by this, (number, job, retries left)), or no task but a worker's return
        flying, load, due, n_begun = dict[Any, tuple](), [0] * self.n_workers, deque[tuple](), 0
        while True:
            while min(load) < IN_FLIGHT and (due or (job := next_job())):
                if not due:
                    due.append((n_begun, job, RETRIES))
                    n_begun += 1
                place, task = load.index(min(load)), due.popleft()
                flying[getattr(self.workers[place], method).remote(*task[1])] = place, 1, task
                load[place] += 1
            if not due and not any(task for _, _, task in flying.values()):
                return
            all_away = min(load) >= AWAY
            landed, _ = self._ray.wait(list(flying), num_returns=1, timeout=START_S if all_away else None)
            if not landed:
                raise TimeoutError(f"no worker of {self.n_workers} came back within {START_S} s: run this again")
            [done] = landed
            place, weight, task = flying.pop(done)
            load[place] -= weight
            try:
                found = self._ray.get(done)
            except self._lost:
                if not task or not task[2]:
                    raise
                due.append((*task[:2], task[2] - 1))
                if load[place] < AWAY:
                    flying[self._ready(place, -1)] = place, AWAY, None
                    load[place] += AWAY
                continue
            if task:
                yield task[0], found


def share_of(nodes: Sequence[dict[str, float]], n_workers: int) -> tuple[int, int]:
    """(cores, GPUs) of each worker, the machines' resources given as Ray names them ("CPU", "GPU").

    Machines without a GPU take no worker where others have one. ValueError naming what is missing.
    """
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    n_cores = int(sum(node.get("CPU", 0) for node in nodes))
    if n_workers < 1 or n_workers > (n_gpus or n_cores):
        there = f"{n_gpus} GPUs" if n_gpus else f"{n_cores} cores"
        raise ValueError(f"n_workers is {n_workers}: the Ray cluster has {there}, and a worker takes one")
    hosts = [node for node in nodes if node.get("GPU" if n_gpus else "CPU", 0)]
    each = [node.get("CPU", 0) / (node["GPU"] if n_gpus else -(-n_workers // len(hosts))) for node in hosts]
    return max(1, int(min(each))), int(n_gpus > 0)


class FleetGenerator(Fleet):
    """Samples with the generators of a fleet. What is drawn hangs on seed and key, never on the worker.

    With transformers the records are those of one process. With vLLM they are so up to what other requests of a batch
    change in a logit's last digits, as in one process, too. Files go on in either.
    """

    n_generated_tokens = 0

    def sample(
        self, requests: Iterable[Request], n: int, sampling: Sampling, more: More | None = None
    ) -> Iterator[Finished]:
        """Each request with its n completions, as they finish; `more` as of TransformersGenerator.

        What goes on comes before new requests, so that few texts are open at once.
        """
        new, waiting, follow = self._parts(requests, n), deque[Request](), more or nothing_more

        def next_job() -> tuple | None:
            if not waiting:
                return (part, n, sampling) if (part := next(new, None)) else None
            size = min(SEQUENCES, -(-len(waiting) // self.n_workers))
            return [waiting.popleft() for _ in range(size)], 1, sampling

        for _, (found, n_tokens) in self.spread("sample", next_job):
            self.n_generated_tokens += n_tokens
            for request, completions in found:
                yield request, completions
                waiting.extend(follows(request, completions, follow))

    def _parts(self, requests: Iterable[Request], n: int) -> Iterator[list[Request]]:
        """The requests in tasks; few requests are dealt out evenly."""
        requests, most = iter(requests), max(1, SEQUENCES // max(n, 1))
        while window := list(islice(requests, most * self.n_workers)):
            size = -(-len(window) // self.n_workers)
            yield from (window[start : start + size] for start in range(0, len(window), size))


class FleetScorer(Fleet):
    """Scores with the scorers of a fleet, as `scoring.Scorer` does."""

    def score_records(self, problems: Iterable[Problem], solutions: Sequence, chunk: int = 1024) -> Iterator[Scores]:
        """`Scores` records in the order of `solutions`; at most `chunk` solutions are a task."""
        known = {p.problem_id: p for p in problems}
        size = max(1, min(chunk, -(-len(solutions) // (IN_FLIGHT * self.n_workers))))
        parts = (solutions[start : start + size] for start in range(0, len(solutions), size))
        jobs = (([known[name] for name in {s.problem_id: 0 for s in part} if name in known], part) for part in parts)
        ready, due = dict[int, list[Scores]](), 0
        for number, records in self.spread("score", partial(next, jobs, None)):
            ready[number] = records
            while due in ready:
                yield from ready.pop(due)
                due += 1
