"""What came of every request of a labeling run: judged, counted, and, where one failed, kept, to redo it alone.

Labels hold counts only, and rollouts that failed cannot be told there from those without an answer. So a file beside
the labels says of each problem why rollouts are unknown; if one of them failed, it keeps what came of all requests of
the problem, and labels are made anew from it, whatever the strategy, with the failed requests asked again.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .answers import Verdict
from .generation import Completion, Generator, Request, Sampling
from .guards import Finished, Guarded, is_failure, judged
from .labeling_files import Records, read_one, resumed, rewrite
from .rollouts import Judged
from .schema import Count, Id, Problem, Record, RecordLog, Solution, StepLabels, write_bytes, write_records

FORMAT = 1  # of the file of what is unknown
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
Labeler = Callable[[Iterator[Solution], Generator], Iterator[StepLabels]]


class Outcome(NamedTuple):
    """What a rollout came to. `failed`: nothing is known because a request or the checker failed, so ask again.

    `text` is kept only for strategies that read it.
    """

    n_tokens: int
    label: str
    reason: str = ""
    failed: bool = False
    text: str = ""


class ProblemOutcomes(Record):
    """Why rollouts of a problem are unknown; where one failed, all that came of its requests, by key.

    entry: `<n>/<problem_id>`; the last entry of a problem counts. n_failed: rollouts of failed requests or checks.
    failed_solutions: solutions as they were labelled, whose own sampling or verdict had failed.
    """

    entry: Id
    problem_id: Id
    reasons: dict[str, Count]
    n_failed: Count
    failed_solutions: list[Solution]
    outcomes: dict[str, list[tuple[int, str, str, bool, str]]]


def open_log(path: Path) -> RecordLog[ProblemOutcomes]:
    """The file of what is unknown, to be entered. What it belongs to is known by the labels beside it."""
    return RecordLog(path, ProblemOutcomes, f"outcomes {FORMAT}")


def remove(path: Path) -> None:
    """Nothing; the file and its key are gone."""
    path.unlink(missing_ok=True)
    path.with_suffix(".key").unlink(missing_ok=True)


def latest(places: Mapping[str, int]) -> dict[str, int]:
    """problem_id -> where its last entry begins."""
    return {entry.split("/", 1)[1]: place for entry, place in places.items()}


def read_entries(path: Path) -> Iterator[ProblemOutcomes]:
    """The last entry of each problem; none if there is no such file."""
    if path.exists():
        entries = Records(path, ProblemOutcomes)
        last = {entry.problem_id: i for i, entry in enumerate(entries)}
        yield from (entry for i, entry in enumerate(entries) if last[entry.problem_id] == i)


@dataclass
class _Known:
    """What came of a problem's requests: in an earlier attempt, and in this one."""

    before: dict[str, list[Outcome]]
    now: dict[str, list[Outcome]] = field(default_factory=dict)


class Outcomes:
    """A generator whose completions come judged, and a file of what could not be judged, and why, by problem.

    A request of a problem that is in the file is answered from there, failures included, so that a run that goes on
    agrees with what it has written; `retry` asks again for what failed, and for nothing else. `keep_text`: strategies
    that read what rollouts say get it also from the file. Call `close` when a problem is done, before its records are
    written. `fresh` starts a new file.
    """

    def __init__(
        self, path: Path, generator: Generator, retry: bool = False, keep_text: bool = False, fresh: bool = False
    ) -> None:
        if fresh:
            remove(path)
        self.inner, self.name, self.fingerprint = Guarded(generator), generator.name, generator.fingerprint
        self.path, self.retry, self.keep_text = path, retry, keep_text
        self.log = open_log(path)
        self.open: dict[str, _Known] = {}

    def __enter__(self) -> Outcomes:
        self.log.__enter__()
        self.places = latest(self.log.offsets)
        return self

    def __exit__(self, *error: object) -> None:
        self.log.__exit__(*error)

    @property
    def n_generated_tokens(self) -> int:
        """Tokens of the generator itself; what is answered from the file costs none."""
        return self.inner.n_generated_tokens

    def sample(self, requests: Iterable[Request], n: int, sampling: Sampling) -> Iterator[Finished]:
        """Each request with its n completions, each with its verdict."""
        ready: deque[Finished] = deque()

        def feed() -> Iterator[Request]:
            for request in requests:
                if (known := self._remembered(request, n)) is None:
                    yield request
                else:
                    ready.append((request, known))

        for request, completions in self.inner.sample(feed(), n, sampling):
            while ready:
                yield ready.popleft()
            yield request, self._judged(request, completions)
        while ready:
            yield ready.popleft()

    def _known(self, problem: Problem) -> _Known:
        name = problem.problem_id
        if name not in self.open:
            place = self.places.get(name)
            entry = None if place is None else read_one(self.path, ProblemOutcomes, place)
            rows = entry.outcomes.items() if entry else ()
            self.open[name] = _Known({key: [Outcome(*row) for row in value] for key, value in rows})
        return self.open[name]

    def _remembered(self, request: Request, n: int) -> list[Completion] | None:
        known = self._known(request.problem)
        outcomes = known.before.get(request.seed_key, [])[:n]
        if len(outcomes) < n or (self.retry and any(o.failed for o in outcomes)):
            return None
        known.now[request.seed_key] = outcomes
        return [_completion(o) for o in outcomes]

    def _judged(self, request: Request, completions: list[Completion]) -> list[Completion]:
        known = self._known(request.problem)
        before = known.before.get(request.seed_key, [])
        outcomes, given = [], []
        for i, completion in enumerate(completions):
            if i < len(before) and not before[i].failed:  # only its neighbours failed
                outcomes.append(before[i])
                given.append(_completion(before[i]))
                continue
            found = judged(request.problem, request.prefix, completion)
            text, failed = completion.text * self.keep_text, is_failure(found.reason, completion.finish_reason)
            outcomes.append(Outcome(completion.n_tokens, found.label, found.reason, failed, text))
            given.append(Judged(**vars(completion), verdict=found))
        known.now[request.seed_key] = outcomes
        return given

    def close(self, problem_id: str, failed_solutions: Sequence[Solution] = ()) -> None:
        """Nothing; what is unknown of a problem that is done is in the file, and the rest forgotten."""
        known = self.open.pop(problem_id, _Known({}))
        flat = [o for outcomes in known.now.values() for o in outcomes if o.label == "unknown"]
        reasons = Counter(QUOTED.sub("'...'", o.reason) for o in flat)
        if not reasons and not failed_solutions and problem_id not in self.places:
            return
        n_failed = sum(o.failed for o in flat)
        kept = known.now if n_failed or failed_solutions else {}
        entry = ProblemOutcomes(
            entry=f"{len(self.log.done)}/{problem_id}", problem_id=problem_id, reasons=dict(sorted(reasons.items())),
            n_failed=n_failed, failed_solutions=sorted(failed_solutions, key=lambda s: s.solution_id),
            outcomes={key: [tuple(o) for o in kept[key]] for key in sorted(kept)},
        )  # fmt: skip
        self.log.append(entry)
        self.places[problem_id] = self.log.offsets[entry.entry]

    def tidy(self, order: Iterable[str]) -> None:
        """Nothing; the file holds one entry per problem with something unknown, in order; gone if there is none."""

        def entries() -> Iterator[ProblemOutcomes]:
            for name in order:
                if (place := self.places.get(name)) is not None:
                    entry = read_one(self.path, ProblemOutcomes, place)
                    if entry.reasons or entry.failed_solutions:
                        yield entry.model_copy(update={"entry": f"0/{name}"})

        if next(entries(), None) is None:
            remove(self.path)
        else:
            write_records(self.path, entries())


def _completion(outcome: Outcome) -> Judged:
    found = Verdict(outcome.label, None, outcome.reason)
    reason = "error" if outcome.failed else "stop"
    error = outcome.reason if outcome.failed else ""
    return Judged(outcome.text, outcome.n_tokens, reason, error=error, verdict=found)


# -- labels and what is unknown of them, in two files that agree


def beside(path: Path) -> Path:
    """Where the reasons of unknown rollouts are kept, next to the labels."""
    return path.with_suffix(".unknown.jsonl")


def reasons(path: Path) -> dict[str, int]:
    """Why rollouts of the labels at `path` are unknown: reason -> how many rollouts, the most frequent first."""
    counts = Counter[str]()
    for entry in read_entries(beside(path)):
        counts.update(entry.reasons)
    return dict(counts.most_common())


def written(
    path: Path, key: str, solutions: Sequence[Solution], labeler: Labeler, generator: Generator, *, keep: bool,
    keep_text: bool, retry: bool,
) -> Sequence[StepLabels]:  # fmt: skip
    """The labels of all solutions, in their order, also in the file at `path`; options as in `resumed` and `Outcomes`.

    A problem's records are written together, after what is unknown of it: which solution bears the tokens of a shared
    prefix, and what is known of a failure, must not depend on when a run was killed.
    """
    groups: dict[str, list[int]] = {}
    failed: dict[str, list[Solution]] = {}
    order: list[str] = []
    for i, solution in enumerate(solutions):
        groups.setdefault(solution.problem_id, []).append(i)
        order.append(solution.solution_id)
        if is_failure(solution.reason, solution.finish_reason):
            failed.setdefault(solution.problem_id, []).append(solution)

    def make(done: set[str]) -> Iterator[StepLabels]:
        waiting: dict[str, list[StepLabels]] = {}
        open_ones = (places for places in groups.values() if any(order[i] not in done for i in places))
        left = (solutions[i] for places in open_ones for i in places)
        with Outcomes(beside(path), generator, retry, keep_text, fresh=not done and not retry) as outcomes:
            for name in failed.keys() - outcomes.places.keys():  # before any label: the key of the labels is of these
                outcomes.close(name, failed[name])
            for record in labeler(left, outcomes):
                name = record.problem_id
                waiting.setdefault(name, []).append(record)
                if len(waiting[name]) == len(groups[name]):
                    outcomes.close(name, failed.get(name, ()))
                    yield from (r for r in waiting.pop(name) if r.solution_id not in done)
            outcomes.tidy(groups)

    return resumed(path, StepLabels, key, order, make, keep)


def drop_failed(path: Path, key: Callable[[Iterable[Solution]], str], solutions: Sequence[Solution]) -> None:
    """Nothing; the file holds no labels of problems in which something failed, and is ready to be gone on with.

    The key of the labels was made of the solutions of that time; those that had failed may have changed since. First
    the labels go, then the key changes, so that a kill in between mixes nothing.
    """
    if not beside(path).exists():
        return
    with open_log(beside(path)):
        failed = [e for e in read_entries(beside(path)) if e.n_failed or e.failed_solutions]
        old = {s.solution_id: s for entry in failed for s in entry.failed_solutions}
        new_key, old_key = key(solutions), key(old.get(s.solution_id, s) for s in solutions)
        key_path = path.with_suffix(".key")
        found = key_path.read_text().strip() if key_path.exists() else ""
        with RecordLog(path, StepLabels, old_key if found == old_key else new_key) as log:
            if not log.done:  # what lies beside no labels may be of any settings
                remove(beside(path))
            problems = {entry.problem_id for entry in failed}
            spoilt = {s.solution_id for s in solutions if s.problem_id in problems}
            rewrite(log, [name for name in log.done if name not in spoilt])
            write_bytes(key_path, [new_key.encode() + b"\n"])
