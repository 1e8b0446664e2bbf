"""Rollouts: what one continuation is worth, and many searches that advance together on one generator.

A search (of a tree, of a first error) must wait for its rollouts before it knows what to ask next. Run one at a time,
as MM-PRM does, it leaves the generator nearly empty. Here a search is a Python generator, a `Job`, that yields what it
asks and is sent what came of it; `run_jobs` keeps hundreds of them going, so that the generator's batch stays full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator as Coroutine
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .answers import Verdict, extract
from .generation import Completion, Generator, Request, Sampling
from .grading import verdict
from .schema import Problem
from .steps import prefix_text

T = TypeVar("T")
AT_ONCE = 512  # jobs in flight


@dataclass(frozen=True)
class Judged(Completion):
    """A completion whose verdict is known already; `text` may be gone."""

    verdict: Verdict = Verdict("unknown", None)


def judge(problem: Problem, prefix: Iterable[str], completion: Completion) -> Verdict:
    """The verdict on prefix and completion as one text.

    unknown, with a reason, where there is nothing to judge: a failed request, no answer, a checker that fails, or a
    text cut at max_new_tokens before its answer was surely complete. VisualPRM counts all of these as wrong.
    """
    if isinstance(completion, Judged):
        return completion.verdict
    if completion.finish_reason == "error":
        return Verdict("unknown", None, completion.error or "the request failed")
    if completion.finish_reason == "length":
        answer = extract(completion.text)
        if answer is None or completion.text.rstrip().endswith(answer):
            return Verdict("unknown", None, "cut at max_new_tokens before the answer was complete")
    return verdict(prefix_text(list(prefix)) + completion.text, problem)


def mc_score(n_rollouts: int, n_correct: int, n_unknown: int = 0) -> float | None:
    """n_correct / (n_rollouts - n_unknown), in [0, 1]; None if nothing is known (VisualPRM, eq. 1, has no unknowns)."""
    known = n_rollouts - n_unknown
    return n_correct / known if known else None


class Ask(NamedTuple):
    """A request of a job, and how many completions it wants; keys are unique among all jobs that run together."""

    request: Request
    n: int


Answers = dict[str, list[Completion]]  # request key -> its completions
Job = Coroutine[list[Ask], Answers, T]  # yields what it asks, is sent the answers to all of it, returns its result


@dataclass
class _Running:
    """A job, how many answers it waits for, and those that have come."""

    job: Job
    n_open: int = 0
    answers: Answers = field(default_factory=dict)


class _Pool:
    """The jobs in flight and the requests that wait for the generator, by the number of completions they want."""

    def __init__(self) -> None:
        self.running: dict[str, _Running] = {}  # request key -> the job that waits for it
        self.queues: dict[int, deque[Request]] = {}
        self.results: deque = deque()
        self.n_jobs = 0

    def begin(self, job: Job) -> None:
        """Nothing; the job has asked its first questions, or has ended."""
        self.n_jobs += 1
        self._advance(_Running(job), None)

    def _advance(self, running: _Running, answers: Answers | None) -> None:
        try:
            asks = running.job.send(answers)
            while not asks:
                asks = running.job.send({})
        except StopIteration as end:
            self.n_jobs -= 1
            self.results.append(end.value)
            return
        running.n_open, running.answers = len(asks), {}
        for request, n in asks:
            if not request.key or request.key in self.running:
                raise ValueError(f"request key {request.key!r} is empty or asked for twice: give each request its own")
            self.running[request.key] = running
            self.queues.setdefault(n, deque()).append(request)

    def next_requests(self) -> tuple[Iterator[Request], int]:
        """The longest queue, emptied as it is read, requests that join it meanwhile included; and its n."""
        n = max(self.queues, key=lambda n: n * len(self.queues[n]))
        queue = self.queues[n]
        return (queue.popleft() for _ in iter(lambda: bool(queue), False)), n

    def answer(self, request: Request, completions: list[Completion]) -> None:
        """Nothing; the job that asked goes on once it has all its answers."""
        running = self.running.pop(request.key)
        running.answers[request.key] = completions
        running.n_open -= 1
        if not running.n_open:
            self._advance(running, running.answers)


def run_jobs(jobs: Iterable[Job[T]], generator: Generator, sampling: Sampling, at_once: int = AT_ONCE) -> Iterator[T]:
    """The results of the jobs, as they finish; at most `at_once` are begun and not done.

    What one job asks runs side by side with what the others ask. Completions depend on the seed and the request's key
    alone, so a result does not depend on the other jobs. ValueError on a key that is empty or in use; RuntimeError if
    the generator leaves a request without an answer.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}: let at least 1 job run")
    jobs, pool = iter(jobs), _Pool()

    def fill() -> None:
        # what waits to be fetched counts, too: jobs that ask nothing may come without end
        while pool.n_jobs + len(pool.results) < at_once and (job := next(jobs, None)) is not None:
            pool.begin(job)

    fill()
    while pool.n_jobs or pool.results:
        if any(pool.queues.values()):
            requests, n = pool.next_requests()
            for request, completions in generator.sample(requests, n, sampling):
                pool.answer(request, completions)
                fill()
                while pool.results:
                    yield pool.results.popleft()
        elif not pool.results:
            raise RuntimeError(f"the generator gave no answer to request {next(iter(pool.running))!r}; run this again")
        while pool.results:
            yield pool.results.popleft()
        fill()
