"""Teachers, who write critiques for a critic to learn from, and the filters that decide which of them are believed.

GM-PRM (arXiv:2508.04088, section 3) asks GPT-4o about solutions of VisualPRM400K and keeps those on which its verdicts
and the Monte Carlo labels agree: 19,614, of which 46 % are wrong. Its prompt is not published, this one is ours. So is
the last filter: labels say where the first error is, and nothing of its correction, so that is tried by rollouts.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from .answers import extract
from .critique import TeacherCritique, fault_of, numbered, parse
from .decoding import Sampling
from .endpoint import GREEDY, Chat, Endpoint, Reply, replies_to
from .generation import Completion, Generator, Request
from .labeling import mc_label
from .rollouts import judge
from .schema import Critique, CritiqueStep, Problem, Solution, StepLabels, fingerprint
from .steps import question_text
from .world import first_error
from .world.explain import correction, explain

WRONG_SHARE = 9061 / 19614  # of GM-PRM's training set
LONGEST = 3  # times the length of the original step, for a correction
SAMPLING = Sampling()
LEAK = re.compile(r"\breference\b|\bexpected answer\b", re.IGNORECASE)  # GenPRM's two phrases
Filtered = tuple[list[TeacherCritique], Counter[str]]  # what is kept, and how many were dropped for which reason


def _pairs(solutions: Iterable[Solution], problems: Iterable[Problem]) -> Iterator[tuple[Solution, Problem]]:
    by_id = {p.problem_id: p for p in problems}
    for solution in solutions:
        if solution.problem_id not in by_id:
            raise KeyError(
                f"solution {solution.solution_id!r} names problem {solution.problem_id!r}, which is not given"
            )
        yield solution, by_id[solution.problem_id]


# -- the world as a teacher


def world_teacher(
    solutions: Iterable[Solution], problems: Iterable[Problem], seed: int = 0, noise: float = 0.0
) -> Iterator[TeacherCritique]:
    """A critique of every solution, in their order, from the world's truth; what a solution gets depends on its id.

    noise: chance, in [0, 1], that a solution gets a critique with one mistake (`MISTAKES`). ValueError for problems
    outside the embedded world, KeyError if a solution's problem is not among `problems`.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is {noise}: give a chance in [0, 1]")
    for solution, problem in _pairs(solutions, problems):
        rng = random.Random(f"{seed}/{solution.solution_id}")
        critique = world_critique(problem, solution.steps, rng, noise, solution.solution_id)
        yield _record(solution, critique, "world" if noise == 0 else f"world, noise {noise:g}")


def world_critique(
    problem: Problem, steps: list[str], rng: random.Random, noise: float = 0.0, solution_id: str = "solution"
) -> Critique:
    """One critique, by the truth of the embedded world; neutral steps are correct. See `world_teacher`."""
    if problem.scene is None:
        raise ValueError(f"problem {problem.problem_id!r} is not of the embedded world: ask an endpoint_teacher")
    if not steps:
        return _failed(solution_id, "the solution has no step")
    first = first_error(problem, steps)
    mistaken = rng.random() < noise
    critique = _told(problem, steps, first, rng, solution_id)
    return MISTAKES[rng.choice(list(MISTAKES))](problem, steps, critique, rng) if mistaken else critique


def _told(problem: Problem, steps: list[str], first: int | None, rng: random.Random, name: str) -> Critique:
    """The critique that puts the first error at place `first` (from 0; None: nowhere), whatever the truth is."""
    told: list[CritiqueStep] = []
    for i, step in enumerate(steps if first is None else steps[: first + 1]):
        said = explain(problem, steps[:i], step, rng)
        told.append(CritiqueStep(**said._asdict(), verdict="incorrect" if i == first else "correct"))
    corrected = None
    if first is not None:
        corrected = correction(problem, steps[:first], steps[first])
        if corrected == steps[first].strip():  # a right step that is called wrong
            corrected = _misstated(corrected, rng)
    return Critique(solution_id=name, steps=told, first_error=0 if first is None else first + 1,
                    corrected_step=corrected, parse="ok")  # fmt: skip


def _flipped(problem: Problem, steps: list[str], critique: Critique, rng: random.Random) -> Critique:
    """A right step is called wrong, or the first wrong one passes, and all that rests on it."""
    at = rng.randrange(len(critique.steps))
    first = None if at + 1 == critique.first_error else at
    return _told(problem, steps, first, rng, critique.solution_id)


def _misplaced(problem: Problem, steps: list[str], critique: Critique, rng: random.Random) -> Critique:
    """The first error is put at another step; where there is none, or no other step, as `_flipped`."""
    others = [i for i in range(len(steps)) if i + 1 != critique.first_error]
    if not critique.first_error or not others:
        return _flipped(problem, steps, critique, rng)
    return _told(problem, steps, rng.choice(others), rng, critique.solution_id)


def _misread(problem: Problem, steps: list[str], critique: Critique, rng: random.Random) -> Critique:
    """A number in one of the image sentences is another; the verdicts stay, so that labels cannot tell."""
    places = [i for i, step in enumerate(critique.steps) if re.search(r"\d", step.image)]
    if not places:
        return _flipped(problem, steps, critique, rng)
    at = rng.choice(places)
    new = [s.model_copy(update={"image": _misstated(s.image, rng)}) if i == at else s
           for i, s in enumerate(critique.steps)]  # fmt: skip
    return critique.model_copy(update={"steps": new})


def _miscorrected(problem: Problem, steps: list[str], critique: Critique, rng: random.Random) -> Critique:
    """The corrected step holds a wrong number or letter; as `_misread` where nothing is corrected."""
    if critique.corrected_step is None:
        return _misread(problem, steps, critique, rng)
    return critique.model_copy(update={"corrected_step": _misstated(critique.corrected_step, rng)})


# How a noisy teacher errs, all alike often. Labels can show the first two, rollouts the last, nothing shows a misread.
MISTAKES: dict[str, Callable[[Problem, list[str], Critique, random.Random], Critique]] = {
    "flipped": _flipped,
    "misplaced": _misplaced,
    "misread": _misread,
    "miscorrected": _miscorrected,
}


def _misstated(text: str, rng: random.Random) -> str:
    """The text with its last number, or the letter that it answers with, replaced by another one near it."""
    if found := list(re.finditer(r"\d+", text)):
        last, value = found[-1], int(found[-1][0])
        new = rng.choice([n for d in (-10, -2, -1, 1, 2, 10) if (n := value + d) >= 0])
        return f"{text[: last.start()]}{new}{text[last.end() :]}"
    head, letter = text[:-1], text[-1:]
    return head + rng.choice([k for k in "ABCD" if k != letter])


def _record(solution: Solution, critique: Critique, teacher: str, n_tokens: int = 0) -> TeacherCritique:
    return TeacherCritique(
        solution_id=solution.solution_id, problem_id=solution.problem_id, steps=solution.steps, critique=critique,
        teacher=teacher, n_tokens=n_tokens,
    )  # fmt: skip


def _failed(solution_id: str, why: str) -> Critique:
    return Critique(solution_id=solution_id, steps=[], first_error=None, corrected_step=None, parse=f"failed: {why}")


# -- a chat endpoint as a teacher

TEACHER_ROLE = "You check a pupil's solution of a problem about an image, one step at a time, as a strict teacher does."
TEACHER_TASK = """Go through the steps in order. For each of them write exactly these lines, without any markup:

Step <its number>
Intent: <what the step tries to do, and whether the problem needs it>
Image: <what the image shows of the things that the step speaks of; look at the image first, then at the claim>
Logic: <whether the step follows from the steps before it; do its arithmetic again>
Judgement: <one word: Correct or Incorrect>

Put an empty line between two steps, and two spaces before any further line of a field. At the first step that is
Incorrect, write one more line, and then stop:

Correct Step: <a replacement for this one step>

The replacement agrees with the steps before it, goes no further than the one step, and states the final answer only if
that step is the final one."""
TEACHER_ANSWER = """

For your eyes only, the answer to the problem: {answer}
Judge the steps by the image and by their logic; never mention that you know the answer, nor the words "reference" or
"expected answer"."""
TEACHER_AGAIN = "\n\nAn earlier reply could not be read: {why}. Keep to the lines that are asked for."


def teacher_chat(
    solution: Solution, problem: Problem, show_answer: bool = True, attempt: int = 1, why: str = ""
) -> Chat:
    """What a teacher behind an endpoint is asked of a solution; `why`: the fault of its last attempt."""
    steps = "\n".join(numbered(solution.steps))
    text = f"Problem: {question_text(problem)}\n\nSolution of the pupil:\n{steps}\n\n{TEACHER_TASK}"
    text += TEACHER_ANSWER.format(answer=problem.answer) if show_answer else ""
    text += TEACHER_AGAIN.format(why=why) if why else ""
    messages = [{"role": "system", "content": TEACHER_ROLE}, {"role": "user", "content": text}]
    return Chat(f"{solution.solution_id}#{attempt}", messages, problem)


def endpoint_teacher(
    solutions: Collection[Solution], problems: Iterable[Problem], endpoint: Endpoint, path: str | Path, *,
    sampling: Sampling = GREEDY, n_attempts: int = 2, show_answer: bool = True,
) -> list[TeacherCritique]:  # fmt: skip
    """A critique of every solution, in their order, from a model that sees the image; replies are kept at `path`.

    What cannot be read is asked again with the fault told, `n_attempts` times in all (replies of attempt i at `path`
    with _i); then its `parse` says why. A request that fails is no attempt: run this again, and it alone is asked
    again. n_tokens are the completion tokens of all attempts as the server counts them; `endpoint.usage` and
    `endpoint.cost` are the sums of what this object asked, `endpoint.usage_of` those of stored replies.
    show_answer: the teacher, never the critic, is told the answer; `consensus` drops critiques that let it show.
    """
    path, pairs = Path(path), list(_pairs(solutions, problems))
    read: dict[str, Critique] = {s.solution_id: _failed(s.solution_id, "the solution has no step") for s, _ in pairs}
    n_tokens: Counter[str] = Counter()
    left = [pair for pair in pairs if pair[0].steps]
    for attempt in range(1, n_attempts + 1):
        faults = [read[s.solution_id].parse if attempt > 1 else "" for s, _ in left]
        chats = [teacher_chat(s, p, show_answer, attempt, why) for (s, p), why in zip(left, faults, strict=True)]
        file = path if attempt == 1 else path.with_name(f"{path.stem}_{attempt}{path.suffix}")
        replies = replies_to(file, chats, endpoint, sampling) if chats else []
        again = []
        for (solution, problem), reply in zip(left, replies, strict=True):
            read[solution.solution_id] = critique = _critique_of(solution, reply)
            n_tokens[solution.solution_id] += reply.n_completion_tokens or 0
            if critique.parse != "ok" and not reply.error:
                again.append((solution, problem))
        left = again
    return [_record(s, read[s.solution_id], endpoint.model, n_tokens[s.solution_id]) for s, _ in pairs]


def _critique_of(solution: Solution, reply: Reply) -> Critique:
    if reply.error:
        return _failed(solution.solution_id, f"no reply: {' '.join(reply.error.split())}")
    if reply.finish_reason == "length":
        return _failed(solution.solution_id, "cut at max_new_tokens")
    return parse(solution.solution_id, reply.text.strip(), len(solution.steps))


# -- filters


def consensus(critiques: Iterable[TeacherCritique], labels: Iterable[StepLabels], threshold: float = 0.0) -> Filtered:
    """The critiques whose first error is the first step with mc_score <= threshold, and why the others were dropped.

    GM-PRM's filter (hard labels: threshold 0), by the place of the error and not only by whether there is one. The
    format must hold; a correction must differ from the step and be at most LONGEST times as long; an answer that the
    teacher was told must not show. Where a step that matters has no label, nothing can be said ("unlabelled").
    ValueError if labels are of other steps than the critique.
    """
    by_id = {record.solution_id: record for record in labels}
    kept, dropped = [], Counter[str]()
    for record in critiques:
        why = _objection(record, by_id, threshold)
        if why:
            dropped[why] += 1
        else:
            kept.append(record)
    return kept, dropped


def _objection(record: TeacherCritique, labels: Mapping[str, StepLabels], threshold: float) -> str:
    """Why the filter drops a critique, "" if it does not."""
    critique, label = record.critique, labels.get(record.solution_id)
    if label is not None and label.steps != record.steps:
        raise ValueError(f"the labels of {record.solution_id!r} are of other steps than its critique: label it again")
    if fault_of(critique, len(record.steps)) is not None:
        return "unreadable"
    said = [s.intent + "\n" + s.image + "\n" + s.logic for s in critique.steps] + [critique.corrected_step or ""]
    if LEAK.search("\n".join(said)):
        return "shows the answer"
    hard = [None] * len(record.steps) if label is None else mc_label(label, "hard", threshold)
    wrong = next((k for k, value in enumerate(hard, start=1) if value != 1), 0)
    if wrong and hard[wrong - 1] is None:
        return "unlabelled"
    if critique.first_error != wrong:
        return "another step" if critique.first_error and wrong else "error missed" if wrong else "error imagined"
    return _bad_correction(critique.corrected_step, record.steps[wrong - 1]) if wrong else ""


def _bad_correction(corrected: str | None, step: str) -> str:
    new = (corrected or "").strip()
    if new == step.strip():
        return "correction changes nothing"
    return "correction too long" if len(new) > LONGEST * len(step.strip()) else ""


def validate_corrections(
    critiques: Iterable[TeacherCritique], problems: Iterable[Problem], generator: Generator, n: int = 4,
    sampling: Sampling = SAMPLING,
) -> Filtered:  # fmt: skip
    """The critiques without an error, and those from whose corrected step at least one of n rollouts gets the answer.

    A rollout goes on from the steps before the error and the correction, in the assistant turn; solutions of a problem
    that come to the same prefix share their rollouts. A correction that states the final answer is judged as it is.
    Dropped are "correction fails", and "correction unknown" where no rollout could be judged.
    """
    kept, dropped = [], Counter[str]()
    for record, why in tried_corrections(critiques, problems, generator, n, sampling):
        if why:
            dropped[why] += 1
        else:
            kept.append(record)
    return kept, dropped


def tried_corrections(
    critiques: Iterable[TeacherCritique], problems: Iterable[Problem], generator: Generator, n: int = 4,
    sampling: Sampling = SAMPLING,
) -> list[tuple[TeacherCritique, str]]:  # fmt: skip
    """Every critique, in their order, with why `validate_corrections` drops it, "" if it does not; n 0 tries none."""
    by_id, critiques = {p.problem_id: p for p in problems}, list(critiques)
    if n == 0:
        return [(record, "") for record in critiques]
    requests, verdicts = {}, {}
    for record in critiques:
        if record.critique.first_error and record.problem_id in by_id:
            request = _from_correction(record, by_id[record.problem_id])
            if extract(request.prefix[-1]) is None:
                requests[request.key] = request
            else:
                verdicts[request.key] = {judge(request.problem, request.prefix, Completion("", 0, "stop")).label}
        elif record.critique.first_error:
            raise KeyError(f"{record.solution_id!r} names problem {record.problem_id!r}, which is not given")
    for request, completions in generator.sample(requests.values(), n, sampling) if requests else ():
        verdicts[request.key] = {judge(request.problem, request.prefix, c).label for c in completions}
    tried = []
    for record in critiques:
        wrong = record.critique.first_error
        labels = verdicts[_from_correction(record, by_id[record.problem_id]).key] if wrong else {"correct"}
        why = "correction fails" if "wrong" in labels else "correction unknown"
        tried.append((record, "" if "correct" in labels else why))
    return tried


def _from_correction(record: TeacherCritique, problem: Problem) -> Request:
    prefix = (*record.steps[: record.critique.first_error - 1], record.critique.corrected_step)
    return Request(problem, prefix, f"{problem.problem_id}/c{fingerprint(prefix)}")


def balance(critiques: Iterable[TeacherCritique], share: float = WRONG_SHARE, seed: int = 0) -> list[TeacherCritique]:
    """As many critiques as can be kept, in their order, so that `share` of them, in (0, 1), find an error.

    ValueError if there are none with, or none without an error: no number of them has that share.
    """
    critiques = list(critiques)
    places = {found: [i for i, r in enumerate(critiques) if bool(r.critique.first_error) is found]
              for found in (True, False)}  # fmt: skip
    if not 0 < share < 1 or not all(places.values()):
        counts = f"{len(places[True])} with and {len(places[False])} without an error"
        raise ValueError(f"{counts} cannot be balanced to a share of {share}: it takes some of both, and 0 < share < 1")
    scale = min(len(places[True]) / share, len(places[False]) / (1 - share))
    rng = random.Random(seed)
    n_wrong, n_right = round(scale * share), round(scale * (1 - share))
    taken = {*rng.sample(places[True], n_wrong), *rng.sample(places[False], n_right)}
    return [record for i, record in enumerate(critiques) if i in taken]
