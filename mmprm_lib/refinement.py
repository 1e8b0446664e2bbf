"""Refined solutions: what a policy makes of the right beginning of a solution and a corrected step (GM-PRM).

Refined Best-of-N (GM-PRM, arXiv:2508.04088) samples N / 2 solutions, has the critic correct the first wrong step of
each, and lets the policy go on from the steps before it and the corrected one; its N candidates are both halves
together (`pools`). Ours, where the paper is silent: every initial solution has one slot, whatever the critic says of
it. One that is not flagged, or whose critique cannot be read, leaves its slot to a fresh sample; one that is flagged
without a usable correction is cut at the wrong step and sampled from there. One round.

The other modes are controls: they fill the same slots, so that they differ in one thing each.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import world
from .answers import extract
from .fingerprints import fingerprint
from .generation import Completion, Generator, Request, Sampling
from .guards import Guarded, is_failure, judged
from .labeling_files import Records, named, resumed, rewrite
from .schema import Critique, Problem, RecordLog, Solution
from .steps import split

FORMAT = 1  # of the records written here: a change of what they mean changes the key of every file
SAMPLING = Sampling()
MODES = {
    "correction": "the critic's correction at the first error that the critic finds (the paper)",
    "masked": "as correction, but a corrected step that states the final answer is not used",
    "resample": "cut at the first error that the critic finds, nothing corrected",
    "random_step": "cut at a step drawn at random, of the solutions that the critic flags; nothing corrected",
    "true_correction": "the true step at the first error that the critic finds (embedded world)",
    "truth": "the true step at the true first error: the ceiling (embedded world)",
    "fresh": "a fresh sample in every slot: plain Best-of-N",
}
NEEDS_TRUTH = ("true_correction", "truth")
NEEDS_CRITIC = tuple(mode for mode in MODES if mode not in ("truth", "fresh"))  # before anything is refined


class Slot(NamedTuple):
    """What one refined solution goes on from.

    `kind`: "corrected" (the last step of `prefix` is the correction), "resampled" (cut, not corrected) or "fresh".
    `place`: the step that was found wrong, counted from 1; 0 for none. `name`: the id of the refined solution. It is
    that of its slot and prefix, so that modes which agree on a slot share its solution.
    """

    name: str
    initial: Solution
    kind: str
    prefix: tuple[str, ...] = ()
    place: int = 0


def slots(
    problems: Iterable[Problem], initial: Sequence[Solution], critiques: Iterable[Critique], mode: str = "correction",
    seed: int = 0,
) -> list[Slot]:  # fmt: skip
    """One slot per initial solution, in their order; names of the i-th one of a problem begin `<problem_id>/r<i>`.

    `critiques` may come in any order; the modes "fresh" and "truth" need none. `seed` draws the places of
    "random_step". KeyError if a problem or a critique is missing; ValueError for an unknown mode, a critique of another
    solution, or a mode that needs the truth where there is none.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}")
    by_id = {p.problem_id: p for p in problems}
    judged_by_id = {c.solution_id: c for c in critiques}
    seen: Counter[str] = Counter()
    found = []
    for solution in initial:
        problem = _of(by_id, solution)
        base = f"{solution.problem_id}/r{seen[solution.problem_id]}"
        seen[solution.problem_id] += 1
        place = _place(problem, solution, judged_by_id, mode)
        step = _correction(problem, solution, judged_by_id, mode, place)
        if mode == "random_step" and place:
            place = random.Random(f"{seed}/{base}").randint(1, len(solution.steps))
        found.append(_slot(base, solution, place, step))
    return found


def _of(problems: Mapping[str, Problem], solution: Solution) -> Problem:
    if solution.problem_id not in problems:
        raise KeyError(f"solution {solution.solution_id!r} names problem {solution.problem_id!r}, which is not given")
    return problems[solution.problem_id]


def _place(problem: Problem, solution: Solution, critiques: Mapping[str, Critique], mode: str) -> int:
    """The step to be refined, counted from 1; 0 if none is found wrong, or the critique could not be read."""
    if mode in NEEDS_TRUTH and problem.scene is None:
        raise ValueError(f"mode {mode!r}: problem {problem.problem_id!r} has no scene, so no truth; use another mode")
    if mode == "fresh":
        return 0
    if mode == "truth":
        wrong = world.first_error(problem, solution.steps)
        return 0 if wrong is None else wrong + 1
    if solution.solution_id not in critiques:
        raise KeyError(f"solution {solution.solution_id!r} has no critique: let the critic judge it first")
    place = critiques[solution.solution_id].first_error or 0
    if place > len(solution.steps):
        name, n = solution.solution_id, len(solution.steps)
        raise ValueError(f"{name!r}: the critique finds step {place} of {n} wrong; it is that of another solution")
    return place


def _correction(
    problem: Problem, solution: Solution, critiques: Mapping[str, Critique], mode: str, place: int
) -> str | None:
    """The step to stand at `place`; None without one that can be used: missing, blank, or the step as it was."""
    if not place or mode in ("resample", "random_step"):
        return None
    if mode in NEEDS_TRUTH:
        step = world.correct_step(problem, solution.steps[: place - 1])
    else:
        step = critiques[solution.solution_id].corrected_step or ""
    if mode == "masked" and extract(step) is not None:
        return None
    return step if step.strip() and step.strip() != solution.steps[place - 1].strip() else None


def _slot(base: str, solution: Solution, place: int, step: str | None) -> Slot:
    if not place:
        return Slot(base, solution, "fresh")
    prefix = (*solution.steps[: place - 1], *([] if step is None else [step]))
    # nothing left of the solution is a fresh sample in all but its kind, and shares that one's name
    name = f"{base}-{fingerprint(prefix)[:8]}" if prefix else base
    return Slot(name, solution, "resampled" if step is None else "corrected", prefix, place)


def refine(
    wanted: Iterable[Slot], problems: Iterable[Problem], generator: Generator, sampling: Sampling = SAMPLING, *,
    max_steps: int = 12, end_at_answer: bool = True, done: Collection[str] = (),
) -> Iterator[Solution]:  # fmt: skip
    """The refined solution of every slot, as they finish, each name once; those in `done` are left out.

    The policy goes on inside the assistant turn, as if it had written the prefix. `steps` are the prefix, unchanged,
    and the continuation, merged so that there are at most `max_steps` (or one more than the prefix); `n_tokens` counts
    the continuation alone. A completion depends on (sampling.seed, name) only.

    end_at_answer: after a correction that states the final answer nothing is generated; False asks the policy to go
    on there, too, where it was trained to end.
    """
    by_id = {p.problem_id: p for p in problems}
    left = {slot.name: slot for slot in wanted if slot.name not in done}
    ended = {n: s for n, s in left.items() if end_at_answer and s.kind == "corrected" and extract(s.prefix[-1])}
    for slot in ended.values():
        nothing = Completion("", 0, "stop")
        yield _assembled(slot, _of(by_id, slot.initial), nothing, generator.name, sampling.seed, max_steps)
    requests = (Request(_of(by_id, s.initial), s.prefix, n) for n, s in left.items() if n not in ended)
    for request, [completion] in generator.sample(requests, 1, sampling):
        yield _assembled(left[request.key], request.problem, completion, generator.name, sampling.seed, max_steps)


def _assembled(slot: Slot, problem: Problem, end: Completion, policy: str, seed: int, max_steps: int) -> Solution:
    label, answer, reason = judged(problem, slot.prefix, end)
    steps = [*slot.prefix, *split(end.text, max(1, max_steps - len(slot.prefix)))]
    if end.finish_reason == "error":
        steps = []  # as of any sample that failed: a prefix alone could score high, and win without an answer
    return Solution(
        solution_id=slot.name, problem_id=problem.problem_id, steps=steps, answer=answer, verdict=label, policy=policy,
        seed=seed, n_tokens=end.n_tokens, finish_reason=end.finish_reason, reason=reason,
    )  # fmt: skip


def unique(refined: Mapping[str, Sequence[Solution]]) -> list[Solution]:
    """The refined solutions of all modes, each once: what the critic has to score."""
    return list({s.solution_id: s for solutions in refined.values() for s in solutions}.values())


# -- files that a kill cannot spoil


def refined_to(
    path: str | Path, problems: Collection[Problem], initial: Sequence[Solution], critiques: Sequence[Critique],
    generator: Generator, sampling: Sampling = SAMPLING, modes: Sequence[str] = ("correction",), *,
    max_steps: int = 12, end_at_answer: bool = True, retry: bool = False, fresh: Sequence[Solution] = (),
) -> dict[str, list[Solution]]:  # fmt: skip
    """Per mode, the refined solution of every initial one, in their order; all in the file at `path`, each once.

    What modes share is drawn once. fresh: samples that exist already, one per initial solution, in their order; a slot
    that wants a fresh sample takes its own, under the slot's name, so that plain Best-of-N draws nothing. A killed run
    goes on where it stopped; a request that fails is a solution without steps, of finish_reason "error", and retry=True
    asks again for these alone. The places of "random_step" come from sampling.seed. ValueError if the file was made of
    other solutions or critiques, by another policy, or otherwise.
    """
    by_mode = {mode: slots(problems, initial, critiques, mode, sampling.seed) for mode in modes}
    wanted = {slot.name: slot for found in by_mode.values() for slot in found}
    given = {s.solution_id: s for found in by_mode.values() for s in _given(found, fresh)}
    involved = {s.problem_id for s in initial}
    marks = [[s.name, s.initial.problem_id, list(s.prefix), s.kind] for s in wanted.values()]
    names = named(p for p in problems if p.problem_id in involved)
    drawn = [[name, s.steps, s.verdict, s.n_tokens] for name, s in given.items()]
    what = ["refined", FORMAT, generator.fingerprint, sampling, max_steps, end_at_answer, names, marks]
    key = fingerprint([*what, drawn] if drawn else what)

    def make(done: set[str]) -> Iterator[Solution]:
        yield from (solution for name, solution in given.items() if name not in done)
        yield from refine(
            wanted.values(), problems, Guarded(generator), sampling, max_steps=max_steps, end_at_answer=end_at_answer,
            done=done | given.keys(),
        )  # fmt: skip

    if retry:
        with RecordLog(path, Solution, key) as log:
            rewrite(log, [s.record_id for s in Records(path, Solution) if not is_failure(s.reason, s.finish_reason)])
    made = {s.solution_id: s for s in resumed(Path(path), Solution, key, list(wanted), make)}
    return {mode: [made[slot.name] for slot in found] for mode, found in by_mode.items()}


def _given(wanted: Sequence[Slot], fresh: Sequence[Solution]) -> Iterator[Solution]:
    """The fresh samples that fill slots without a prefix, under the names of these."""
    if not fresh:
        return
    if [s.problem_id for s in fresh] != [slot.initial.problem_id for slot in wanted]:
        raise ValueError(f"{len(fresh)} fresh samples for {len(wanted)} slots: give one each, of the same problems")
    if taken := {s.solution_id for s in fresh} & {slot.initial.solution_id for slot in wanted}:
        raise ValueError(f"{min(taken)!r} is an initial solution: a fresh sample must be another one")
    for slot, solution in zip(wanted, fresh, strict=True):
        if not slot.prefix:
            yield solution.model_copy(update={"solution_id": slot.name})
