"""Solutions of a policy, and Monte Carlo labels of their steps: how often it still gets the answer right from there.

VisualPRM (2503.10291, its eq. 1 and 2): 4 solutions per problem, up to 12 steps, 16 continuations from every step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from . import adaptive, world
from .fingerprints import fingerprint, fingerprint_of_many
from .generation import Completion, Generator, Request, Sampling
from .guards import Guarded, is_failure, judged
from .labeling_files import Records, named, resumed, rewrite
from .outcomes import drop_failed, reasons, written
from .rollouts import Ask, Job, judge, mc_score, run_jobs
from .schema import Problem, RecordLog, Solution, StepLabels
from .stats import wilson
from .steps import split

FORMAT = 2  # of the records written here: a change of what they mean changes the key of every file
STRATEGIES = ("exhaustive", "adaptive")
MAX_STEPS = 1000  # of a solution; rollouts grow with their number, the text of their prefixes with its square
BLOCK = 256  # most solutions that are looked at together to share prefixes
SAMPLING = Sampling()  # temperature 1, as VisualPRM samples solutions and rollouts
_named, _resumed = named, resumed
Truth = Callable[[Problem, list[str]], list[int]]


# -- solutions


def sample_solutions(
    problems: Iterable[Problem], generator: Generator, n: int = 4, sampling: Sampling = SAMPLING, *,
    max_steps: int = 12, done: Collection[str] = (),
) -> Iterator[Solution]:  # fmt: skip
    """n solutions per problem, as they finish; solution_id is `<problem_id>/s<i>`.

    done: ids that need not come again (a problem is drawn again if any of its n is missing).
    """
    missing = (p for p in problems if any(_name(p, i) not in done for i in range(n)))
    requests = (Request(p, key=p.problem_id) for p in missing)
    for request, completions in generator.sample(requests, n, sampling):
        for i, completion in enumerate(completions):
            if (name := _name(request.problem, i)) not in done:
                yield _solution(name, request.problem, completion, generator.name, sampling.seed, max_steps)


def _name(problem: Problem, sample: int) -> str:
    return f"{problem.problem_id}/s{sample}"


def _solution(name: str, problem: Problem, sample: Completion, policy: str, seed: int, max_steps: int) -> Solution:
    label, answer, reason = judged(problem, (), sample)
    return Solution(
        solution_id=name, problem_id=problem.problem_id, steps=split(sample.text, max_steps), answer=answer,
        verdict=label, policy=policy, seed=seed, n_tokens=sample.n_tokens, finish_reason=sample.finish_reason,
        reason=reason,
    )  # fmt: skip


# -- labels


@dataclass(frozen=True)
class Options:
    """How labels are made.

    strategy: "exhaustive", by the options named here, or "adaptive", by those in `adaptive` and no other.
    n_rollouts: continuations per step (VisualPRM: 16). last_step: "verdict" takes the solution's own verdict as the one
    rollout of its last step if the solution ended by itself, which costs no tokens; "rollout" continues it as VisualPRM
    does. early_stop: the steps after the first with mc_score 0 are not sampled (None, never 0; the paper labels all).
    share_prefixes: solutions of one problem that begin alike share the rollouts from there, because a label belongs to
    the prefix; the first of them bears the tokens. False samples them anew for each solution, as VisualPRM does.
    """

    strategy: str = "exhaustive"
    n_rollouts: int = 16
    last_step: str = "verdict"
    early_stop: bool = False
    share_prefixes: bool = True
    adaptive: adaptive.Options = adaptive.Options()

    def shaping(self) -> dict[str, Any]:
        """The options that shape the labels of this strategy, as plain values; they are in the key of a file."""
        values = asdict(self)
        theirs = values.pop("adaptive")
        return values if self.strategy == "exhaustive" else {"strategy": self.strategy, "adaptive": theirs}

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy {self.strategy!r} is unknown: choose one of {', '.join(STRATEGIES)}")
        if self.n_rollouts < 1 or self.last_step not in ("verdict", "rollout"):
            raise ValueError(f"{self}: wanted n_rollouts >= 1 and last_step 'verdict' or 'rollout'")


OPTIONS = Options()


@dataclass
class _Open:
    """A solution on its way; `counts[t]` is (rollouts, correct, unknown) of step t, None where not sampled yet."""

    solution: Solution
    problem: Problem
    counts: list[tuple[int, int, int] | None]
    n_tokens: int = 0
    waiting: set[int] = field(default_factory=set)

    def hopeless(self, t: int) -> bool:
        """Whether a step before step t has mc_score 0."""
        return any(c is not None and mc_score(*c) == 0.0 for c in self.counts[:t])


def label(
    solutions: Iterable[Solution], problems: Iterable[Problem], generator: Generator, options: Options = OPTIONS,
    sampling: Sampling = SAMPLING, truth: Truth | None = world.truth,
) -> Iterator[StepLabels]:  # fmt: skip
    """Step labels of every solution, as they finish.

    All rollouts of all steps of all solutions are one stream of requests, so that the generator's batch stays full.
    Solutions are read as the generator asks for them; only those in flight are held, and no completion is kept.
    Solutions of one problem that stand side by side share what the options let them share.
    `truth` fills the column of that name for problems of the embedded world. KeyError if a solution's problem is not
    among `problems`; ValueError if a solution has more than MAX_STEPS.
    """
    solutions = _bounded(solutions)
    if options.strategy == "adaptive":
        yield from adaptive.label(solutions, problems, generator, options.adaptive, sampling, truth)
        return
    by_id = {p.problem_id: p for p in problems}
    opened = (_opened(s, by_id, options) for s in solutions)
    if options.early_stop:
        records = run_jobs((_stepwise(record, options) for record in opened), generator, sampling)
    else:
        records = _in_one_stream(opened, generator, options, sampling)
    for record in records:
        known = truth is not None and record.problem.scene is not None
        yield _labels(record, options, truth(record.problem, record.solution.steps) if known else None)


def _bounded(solutions: Iterable[Solution]) -> Iterator[Solution]:
    for solution in solutions:
        if (n := len(solution.steps)) > MAX_STEPS:
            why = f"{n} steps, and rollouts go on from each of {MAX_STEPS} at most"
            raise ValueError(f"solution {solution.solution_id!r} has {why}: merge them (steps.split, max_steps=12)")
        yield solution


def _opened(solution: Solution, problems: dict[str, Problem], options: Options) -> _Open:
    """The solution with the steps that need rollouts; the last one may be settled by its own verdict."""
    if solution.problem_id not in problems:
        raise KeyError(f"solution {solution.solution_id!r} names problem {solution.problem_id!r}, which is not given")
    last = len(solution.steps) - 1
    record = _Open(solution, problems[solution.problem_id], [None] * (last + 1), waiting=set(range(last + 1)))
    if last >= 0 and options.last_step == "verdict" and solution.finish_reason == "stop":
        record.counts[last] = (1, int(solution.verdict == "correct"), int(solution.verdict == "unknown"))
        record.waiting.discard(last)
    return record


def _request(record: _Open, t: int, share: bool = False) -> Request:
    prefix = tuple(record.solution.steps[: t + 1])
    name = f"{record.problem.problem_id}/{fingerprint(prefix)}" if share else f"{record.solution.solution_id}/t{t}"
    return Request(record.problem, prefix, name)


def _count(records: list[_Open], request: Request, completions: list[Completion]) -> None:
    """Nothing; the rollouts from the request's last step count for all `records`, their tokens for the first."""
    t = len(request.prefix) - 1
    labels = [judge(request.problem, request.prefix, c).label for c in completions]
    records[0].n_tokens += sum(c.n_tokens for c in completions)
    for record in records:
        record.counts[t] = (len(labels), labels.count("correct"), labels.count("unknown"))
        record.waiting.discard(t)


def _siblings(records: Iterable[_Open]) -> Iterator[list[_Open]]:
    """Solutions of one problem that stand side by side, at most BLOCK at a time: what can share a prefix."""
    for _, group in groupby(records, key=lambda record: record.problem.problem_id):
        while block := list(islice(group, BLOCK)):
            yield block


def _in_one_stream(
    records: Iterable[_Open], generator: Generator, options: Options, sampling: Sampling
) -> Iterator[_Open]:
    flying: dict[str, list[_Open]] = {}
    settled: list[_Open] = []  # nothing to sample: no step, or only one that has its verdict

    def requests() -> Iterator[Request]:
        for group in _siblings(records):
            new: dict[str, Request] = {}
            for record in group:
                if not record.waiting:
                    settled.append(record)
                for t in sorted(record.waiting):
                    request = _request(record, t, options.share_prefixes)
                    new[request.key] = request
                    flying.setdefault(request.key, []).append(record)
            yield from new.values()

    for request, completions in generator.sample(requests(), options.n_rollouts, sampling):
        sharing = flying.pop(request.key)
        _count(sharing, request, completions)
        yield from (record for record in sharing if not record.waiting)
        while settled:
            yield settled.pop()
    yield from settled


def _stepwise(record: _Open, options: Options) -> Job[_Open]:
    """A job that asks step by step, because whether a step is sampled depends on those before it."""
    for t in sorted(record.waiting):
        if record.hopeless(t):
            break
        request = _request(record, t)
        answers = yield [Ask(request, options.n_rollouts)]
        _count([record], request, answers[request.key])
    # a last step that its verdict had settled is dropped, too, when it follows a hopeless one
    record.counts = [None if record.hopeless(t) else c for t, c in enumerate(record.counts)]
    return record


def _labels(record: _Open, options: Options, truth: list[int] | None) -> StepLabels:
    columns = [[None if c is None else c[i] for c in record.counts] for i in range(3)]
    return StepLabels(
        solution_id=record.solution.solution_id, problem_id=record.problem.problem_id, steps=record.solution.steps,
        n_rollouts=columns[0], n_correct=columns[1], n_unknown=columns[2],
        mc_score=[None if c is None else mc_score(*c) for c in record.counts],
        strategy=options.strategy, n_generated_tokens=record.n_tokens, truth=truth,
    )  # fmt: skip


def mc_label(record: StepLabels, kind: str = "soft", threshold: float = 0.0) -> list[float | None]:
    """One label per step: its mc_score ("soft", MM-PRM), or 1 if above `threshold` else 0 ("hard", VisualPRM: 0)."""
    if kind not in ("soft", "hard"):
        raise ValueError(f"kind is {kind!r}: choose 'soft' or 'hard'")
    return [s if s is None or kind == "soft" else float(s > threshold) for s in record.mc_score]


def intervals(record: StepLabels, confidence: float = 0.95) -> list[tuple[float, float] | None]:
    """Wilson's interval of every mc_score, None where nothing is known. Rollouts of one prefix are independent."""
    found: list[tuple[float, float] | None] = []
    for n, k, unknown in zip(record.n_rollouts, record.n_correct, record.n_unknown, strict=True):
        known = 0 if n is None else n - unknown
        estimate = wilson(k, known, confidence) if known else None
        found.append(estimate and (max(0.0, estimate.low), min(1.0, estimate.high)))
    return found


# -- files that a kill cannot spoil


def solutions_to(
    path: str | Path, problems: Collection[Problem], generator: Generator, n: int = 4, sampling: Sampling = SAMPLING,
    max_steps: int = 12, *, keep: bool = True,
) -> Sequence[Solution]:  # fmt: skip
    """n solutions per problem, in their order, also in the file at `path`; a killed run goes on where it stopped.

    A request that fails is a solution without steps and finish_reason "error"; `resample` asks again for these alone.
    keep=False returns `labeling_files.Records`, which stay in the file; only ids are held in memory.
    """

    def make(done: set[str]) -> Iterator[Solution]:
        return sample_solutions(problems, Guarded(generator), n, sampling, max_steps=max_steps, done=done)

    key = _solutions_key(problems, generator, n, sampling, max_steps)
    return resumed(Path(path), Solution, key, [_name(p, i) for p in problems for i in range(n)], make, keep)


def resample(
    path: str | Path, problems: Collection[Problem], generator: Generator, n: int = 4, sampling: Sampling = SAMPLING,
    max_steps: int = 12, *, keep: bool = True,
) -> Sequence[Solution]:  # fmt: skip
    """As `solutions_to`, after those solutions are dropped from the file whose request or check had failed.

    Once nothing fails any more, the file is that of a run in which nothing ever failed.
    """
    with RecordLog(path, Solution, _solutions_key(problems, generator, n, sampling, max_steps)) as log:
        rewrite(log, [s.record_id for s in Records(path, Solution) if not is_failure(s.reason, s.finish_reason)])
    return solutions_to(path, problems, generator, n, sampling, max_steps, keep=keep)


def _solutions_key(problems: Iterable[Problem], generator: Generator, n: int, sampling: Sampling, most: int) -> str:
    return fingerprint(["solutions", FORMAT, generator.fingerprint, sampling, n, most, named(problems)])


def labels_to(
    path: str | Path, solutions: Sequence[Solution], problems: Collection[Problem], generator: Generator,
    options: Options = OPTIONS, sampling: Sampling = SAMPLING, truth: Truth | None = world.truth, *, keep: bool = True,
) -> Sequence[StepLabels]:  # fmt: skip
    """Labels of all solutions, in their order, also in the file at `path`; a killed run goes on where it stopped.

    A request that fails costs its own rollouts, which are unknown. Why rollouts are unknown is kept beside the labels
    (`unknown_reasons`), and `relabel` asks again for those that failed. keep=False returns `labeling_files.Records`,
    which stay in the file; `solutions` may be such a sequence, too. The records of a problem are written together.
    """
    return _written(path, solutions, problems, generator, options, sampling, truth, keep, retry=False)


def relabel(
    path: str | Path, solutions: Sequence[Solution], problems: Collection[Problem], generator: Generator,
    options: Options = OPTIONS, sampling: Sampling = SAMPLING, truth: Truth | None = world.truth, *, keep: bool = True,
) -> Sequence[StepLabels]:  # fmt: skip
    """As `labels_to`, but what failed is asked again: those requests alone, with the keys and seeds that they had.

    `solutions` may come from `resample`: labels of problems with a solution that had failed are made anew, where they
    need it. Once nothing fails any more, the file is that of a run in which nothing ever failed. A kill on the way
    leaves an unfinished file: run this again. ValueError if anything else changed.
    """
    return _written(path, solutions, problems, generator, options, sampling, truth, keep, retry=True)


def _written(
    path: str | Path, solutions: Sequence[Solution], problems: Collection[Problem], generator: Generator,
    options: Options, sampling: Sampling, truth: Truth | None, keep: bool, retry: bool,
) -> Sequence[StepLabels]:  # fmt: skip
    wanted = {s.problem_id for s in _bounded(solutions)}  # before anything is drawn
    names = named(p for p in problems if p.problem_id in wanted)

    def key(solutions: Iterable[Solution]) -> str:
        marks = ([s.solution_id, s.problem_id, s.steps, s.verdict, s.finish_reason] for s in solutions)
        before = ["labels", FORMAT, generator.fingerprint, sampling, options.shaping()]
        return fingerprint_of_many(marks, before, [names, truth is not None])

    def labeler(left: Iterator[Solution], outcomes: Generator) -> Iterator[StepLabels]:
        return label(left, problems, outcomes, options, sampling, truth)

    if retry:
        drop_failed(Path(path), key, solutions)
    keep_text = options.strategy == "adaptive"  # which reads what rollouts say, where the others count verdicts
    return written(
        Path(path), key(solutions), solutions, labeler, generator, keep=keep, keep_text=keep_text, retry=retry
    )


def unknown_reasons(path: str | Path) -> dict[str, int]:
    """Why rollouts behind the labels at `path` are unknown: reason -> how many rollouts, the most frequent first.

    A rollout that several solutions share counts once. What a reason quotes is left out.
    """
    return reasons(Path(path))
