"""Critiques as text: what a generative PRM is asked, what it writes, and what may be read out of it.

GM-PRM (arXiv:2508.04088) names, for each step up to the first wrong one, its intent, its agreement with the image and
its logic, then a verdict; the first wrong step is written anew. The paper's syntax is not published: the tagged lines
here are ours. They are text and not JSON, because `json.loads` turns "\\frac" into a form feed and "rac".

    Step 1: Bar A is 7
    Intent: Read bar A
    Image: Bar A is 4
    Logic: Bar A is 4
    Step: Bar A is 7
    Judgement: Incorrect

    Correct Step: Bar A is 4

Every further line of a field is indented by two spaces, so that no text inside a field can pass for a tag. The step
itself is never the critic's to write: it is put there, one step after the other, before what is said of it (GenPRM
shows its paragraphs one by one, too) and once more right before the verdict, so that nothing can be miscounted or
misquoted: a small critic that has just read a 4 in the figure would write that the step says 4, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import model_validator

from .schema import Count, Critique, CritiqueStep, Id, Record

INSTRUCTION = "\nJudge each Step."  # of the words that are one token each for the embedded model
BLOCK_SEPARATOR = "\n\n"
FIELDS = ("intent", "image", "logic")
CUES = {"intent": "Intent:", "image": "Image:", "logic": "Logic:"}
STEP_CUE = "Step:"  # where the step is put once more
VERDICT_CUE = "Judgement:"
VERDICTS = (" Correct", " Incorrect")  # the text right after VERDICT_CUE; their first tokens are what is compared
CORRECTION_CUE = "Correct Step:"
INDENT = "  "  # before every further line of a field


@dataclass(frozen=True)
class Format:
    """What a critic writes before each verdict: some of `FIELDS`, in that order, or nothing (the control)."""

    fields: tuple[str, ...] = FIELDS

    def __post_init__(self) -> None:
        if tuple(name for name in FIELDS if name in self.fields) != self.fields:
            raise ValueError(f"fields {self.fields!r}: choose some of {FIELDS}, in this order")


FORMATS = {"critique": Format(), "verdict_only": Format(())}


class TeacherCritique(Record):
    """A teacher's critique of a solution: what a critic is trained on. `n_tokens`: what the teacher generated."""

    solution_id: Id
    problem_id: Id
    steps: list[str]
    critique: Critique
    teacher: str
    n_tokens: Count = 0

    @model_validator(mode="after")
    def _belongs(self) -> TeacherCritique:
        if self.critique.solution_id != self.solution_id:
            raise ValueError(f"the critique is of solution {self.critique.solution_id!r}, not of {self.solution_id!r}")
        if len(self.critique.steps) > len(self.steps):
            raise ValueError(f"{len(self.critique.steps)} steps are judged of {len(self.steps)}")
        return self


# -- writing


def numbered(steps: Sequence[str]) -> list[str]:
    """The lines "Step 1: ...", "Step 2: ..."; further lines are indented and cannot pass for a step."""
    return [f"Step {k}: {_indented(step)}" for k, step in enumerate(steps, start=1)]


def header(k: int, text: str = "") -> str:
    """The first line of the block of step k (counted from 1), with the step's own text if it is given."""
    return f"Step {k}: {_indented(text)}" if text else f"Step {k}"


def opening(k: int, form: Format = FORMATS["critique"], text: str = "") -> str:
    """How the block of step k (counted from 1) begins, up to where a critic goes on by itself."""
    return f"{header(k, text)}\n{CUES[form.fields[0]] if form.fields else VERDICT_CUE}"


def block(k: int, step: CritiqueStep, form: Format = FORMATS["critique"], text: str = "") -> str:
    """What is written of step k (counted from 1), up to and with VERDICT_CUE; the verdict comes next.

    text: of the step itself. ValueError if a field of the form is empty.
    """
    lines = [header(k, text)]
    for name in form.fields:
        said = getattr(step, name).strip()
        if not said:
            raise ValueError(f"step {k} has no {name}: a critique of this form needs {', '.join(form.fields)}")
        lines.append(f"{CUES[name]} {_indented(said)}")
    return "\n".join([*lines, closing(form, text)])


def closing(form: Format = FORMATS["critique"], text: str = "") -> str:
    """How a block ends: the step's own text once more, if words stand between it and the verdict, and VERDICT_CUE."""
    return f"{STEP_CUE} {_indented(text)}\n{VERDICT_CUE}" if form.fields and text else VERDICT_CUE


def render(critique: Critique, form: Format = FORMATS["critique"], steps: Sequence[str] = ()) -> str:
    """The assistant turn of a critique; `parse` reads it back. ValueError for a critique that breaks the format.

    steps: of the solution; with them each block begins with its step, as a critic sees it.
    """
    if (fault := fault_of(critique)) is not None:
        raise ValueError(f"critique of {critique.solution_id!r}: {fault}")
    spoken = {"correct": VERDICTS[0], "incorrect": VERDICTS[1]}
    texts = [*steps, *[""] * len(critique.steps)]
    judged = enumerate(zip(critique.steps, texts, strict=False), start=1)
    blocks = [block(k, step, form, text) + spoken[step.verdict] for k, (step, text) in judged]
    if critique.corrected_step is not None:
        blocks.append(f"{CORRECTION_CUE} {_indented(critique.corrected_step.strip())}")
    return BLOCK_SEPARATOR.join(blocks)


def fault_of(critique: Critique, n_steps: int | None = None) -> str | None:
    """Why a critique breaks the format, None if it does not: one "incorrect" at most, last, and then a correction.

    n_steps: of the solution, if known; all of them must be judged, or those up to the first error.
    """
    if critique.parse != "ok":
        return critique.parse
    verdicts = [step.verdict for step in critique.steps]
    wrong = [k for k, verdict in enumerate(verdicts, start=1) if verdict == "incorrect"]
    if "unknown" in verdicts:
        return f"step {verdicts.index('unknown') + 1} has no verdict"
    if wrong and wrong[0] != len(verdicts):
        return f"step {wrong[0] + 1} is judged after the first error"
    if critique.first_error != (wrong[0] if wrong else 0):
        return f"first_error is {critique.first_error}, the verdicts say {wrong[0] if wrong else 0}"
    if bool(wrong) != bool((critique.corrected_step or "").strip()):
        return "the wrong step is not corrected" if wrong else "a step is corrected, and none is wrong"
    if n_steps is not None and len(verdicts) > n_steps:
        return f"step {n_steps + 1} is judged, of {n_steps}"
    if n_steps is not None and not wrong and len(verdicts) != n_steps:
        return f"{len(verdicts)} of {n_steps} steps are judged"
    return None


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + INDENT)


def verdict_ids(tokenizer: Any) -> tuple[int, int]:
    """The first tokens of the two verdicts, (Correct, Incorrect), as they follow VERDICT_CUE.

    ValueError if the tokenizer does not keep the verdict apart from the cue, or begins both verdicts alike: then no
    one token decides.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first = []
    for before in (VERDICT_CUE, f"Step 1\n{CUES['logic']} 1 = 1\n{VERDICT_CUE}"):
        for verdict in VERDICTS:
            cue, whole = ids(before), ids(before + verdict + BLOCK_SEPARATOR + CORRECTION_CUE)
            if whole[: len(cue)] != cue or whole[len(cue)] != ids(verdict)[0]:
                raise ValueError(f"this tokenizer joins {before + verdict!r} across the cue: write another VERDICT_CUE")
            first.append(whole[len(cue)])
    if first[:2] != first[2:] or first[0] == first[1]:
        raise ValueError(f"the verdicts {VERDICTS} begin with tokens {first[:2]}: choose words that begin differently")
    return first[0], first[1]


# -- reading

_HEADER = re.compile(r"[#-]* ?\**step (\d+)(?:[*:. ]*|\**:\**? .*)", re.IGNORECASE)
_FIELD = re.compile(r"[#-]* ?\**(intent|image|logic|step|judge?ment|correct(?:ed)? step)\**:\** ?(.*)", re.IGNORECASE)
_VERDICT = re.compile(r"[*\s]*(correct|incorrect)[*.\s]*", re.IGNORECASE)
_NAMES = {"judgment": "judgement", "corrected step": "correct step", "step": "once more"}


class _Malformed(ValueError):
    """Why a text is no critique."""


def parse(solution_id: str, text: str, n_steps: int, form: Format = FORMATS["critique"]) -> Critique:
    """The critique in a text, or one without steps whose `parse` says why the text is none: such a one has no score.

    Tolerant where nothing can be mistaken: case, bold or listed tags, "Judgment", "Corrected step", blank lines, the
    order of fields, further lines without indentation that begin with no tag. A field that is missing, empty or given
    twice, a verdict of other words, text outside of fields, a gap in the numbers, steps after the first error, and an
    error without correction are failures; nothing is filled in.
    """
    try:
        steps, corrected = _read(_items(text), form)
    except _Malformed as why:
        return _failed(solution_id, str(why))
    wrong = bool(steps) and steps[-1].verdict == "incorrect"
    critique = Critique(
        solution_id=solution_id, steps=steps, first_error=len(steps) if wrong else 0, corrected_step=corrected,
        parse="ok",
    )  # fmt: skip
    fault = fault_of(critique, n_steps)
    return critique if fault is None else _failed(solution_id, fault)


def _failed(solution_id: str, why: str) -> Critique:
    return Critique(solution_id=solution_id, steps=[], first_error=None, corrected_step=None, parse=f"failed: {why}")


def _items(text: str) -> list[tuple[str, str]]:
    """The (tag, text) of a critique in order; tag "step" has the number as its text."""
    items: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        if header := _HEADER.fullmatch(line):
            items.append(("step", [header[1]]))
        elif not line.startswith(INDENT) and (found := _FIELD.fullmatch(line)):
            name = found[1].lower()
            items.append((_NAMES.get(name, name), [found[2]]))
        elif items and items[-1][0] in (*FIELDS, "correct step"):
            items[-1][1].append(line.removeprefix(INDENT))
        elif items and items[-1][0] in ("step", "once more") and line.startswith(INDENT):
            continue  # of the step itself
        elif line.strip():
            where = f"after {items[-1][0]} {items[-1][1][0]}" if items else "before the first step"
            raise _Malformed(f"text {where[:40]!r} that is in no field: {line[:40]!r}")
    return [(name, "\n".join(lines).strip()) for name, lines in items]


def _read(items: list[tuple[str, str]], form: Format) -> tuple[list[CritiqueStep], str | None]:
    """The steps and the correction in the items of a critique; _Malformed if they are not in order."""
    steps: list[CritiqueStep] = []
    fields: dict[str, str] | None = None  # of the step that has no verdict yet
    corrected: str | None = None
    for name, text in items:
        if corrected is not None:
            raise _Malformed(f"{name} follows the corrected step")
        if name == "step":
            if fields is not None or text != str(len(steps) + 1):
                raise _Malformed(f"step {text} follows step {len(steps)}" + " without a verdict" * (fields is not None))
            fields = {}
        elif name == "correct step":
            if fields is not None or not text:
                raise _Malformed("the corrected step is empty" if not text else f"step {len(steps) + 1} has no verdict")
            corrected = text
        elif fields is None:
            raise _Malformed(f"{name} stands outside of a step, after step {len(steps)}")
        elif name == "once more":
            continue
        elif name == "judgement":
            steps.append(_step(len(steps) + 1, fields, text, form))
            fields = None
        elif name in fields or name not in form.fields or not text:
            fault = "twice" if name in fields else "empty" if name in form.fields else "not of this form"
            raise _Malformed(f"step {len(steps) + 1}: {name} is {fault}")
        else:
            fields[name] = text
    if fields is not None:
        raise _Malformed(f"step {len(steps) + 1} has no verdict")
    return steps, corrected


def _step(k: int, fields: dict[str, str], verdict: str, form: Format) -> CritiqueStep:
    missing = [name for name in form.fields if name not in fields]
    said = _VERDICT.fullmatch(verdict)
    if missing or not said:
        raise _Malformed(f"step {k}: " + (f"no {missing[0]}" if missing else f"the verdict is {verdict[:40]!r}"))
    texts = {name: fields.get(name, "") for name in FIELDS}
    return CritiqueStep(**texts, verdict="correct" if said[1].lower() == "correct" else "incorrect")


# -- scores

# Probabilities of "Correct" of the judged steps, (t,), the number of all steps, and whether one is wrong -> a score.
SCORES: dict[str, Callable[[np.ndarray, int, bool], float]] = {
    "mean": lambda p, n, wrong: float(p.mean()),
    "padded": lambda p, n, wrong: float(p.sum() / n),
    "min": lambda p, n, wrong: float(p.min()),
    "product": lambda p, n, wrong: float(p.prod()),
    "lexicographic": lambda p, n, wrong: (0.0 if wrong else 1.0) + float(p.mean()) / 2,
}


def solution_score(p_correct: Sequence[float], n_steps: int, how: str = "mean", wrong: bool | None = None) -> float:
    """The score of a solution, finite, higher is better, from the probability of "Correct" of its judged steps.

    "mean" is the paper's (its judged steps end with the first error, so that a late error costs little); "padded"
    counts the steps that were not judged as 0; "lexicographic" puts solutions without an error, in [1, 1.5], before
    all others, in [0, 0.5]. All but "lexicographic" lie in [0, 1].

    wrong: whether the last judged step was found wrong; by default, whether its probability is under 0.5.
    ValueError without a judged step (a critique that could not be read has no score), or for probabilities
    outside [0, 1].
    """
    if how not in SCORES:
        raise ValueError(f"score {how!r} is not known; use one of {', '.join(SCORES)}")
    p = np.asarray(p_correct, dtype=float)
    if not 1 <= len(p) <= n_steps:
        raise ValueError(f"{len(p)} judged steps of {n_steps}: a score needs one at least, and no more than there are")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_correct {p_correct!r} is outside [0, 1]")
    return SCORES[how](p, n_steps, bool(p[-1] < 0.5) if wrong is None else wrong)


def score(critique: Critique, n_steps: int, how: str = "mean") -> float:
    """As `solution_score`, of a critique with p_correct in every step; -inf if it could not be read.

    So that it never wins by default; -inf is never averaged: count the failures and leave them out.
    """
    p = [step.p_correct for step in critique.steps]
    if critique.parse != "ok" or not p or None in p:
        return -math.inf
    return solution_score(p, n_steps, how, wrong=critique.first_error != 0)
