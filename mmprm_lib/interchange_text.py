"""Formats of labelled solutions to questions without an image: PRM800K, Math-Shepherd, ProcessBench.

What each becomes, and what is lost, stands in the table of `interchange`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .foreign import (
    OWN,
    VERDICTS,
    Bad,
    Group,
    Labelled,
    Mark,
    beside,
    hard_labels,
    labelled,
    marks_of,
    rate,
    read_rows,
    take,
    texts,
    write_rows,
)  # fmt: skip
from .images import Rejected

TAG = "ки"  # Math-Shepherd's marker: a token that its base model's tokenizer knows and its texts do not use


# -- PRM800K


def read_prm800k(
    path: str | Path, *, alternatives: bool = False, strict: bool = False, bad: Bad = None
) -> Iterator[Labelled]:
    """The solutions of a PRM800K file, as the labelers went through them, with their ratings as marks.

    A step is the chosen completion, or what the labeler wrote instead (rating null: None). Where neither is there, the
    first completion is the last step: the model's own, with which labeling ended. `alternatives`: every other rated
    completion follows as the last step of a solution of its own, `<id>/t<step>c<completion>`, counted from 0.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        question, label = take(row, "question", dict), take(row, "label", dict)
        reason = label.get("finish_reason")
        more = {key: value for key, value in row.items() if key not in ("question", "label", OWN)}
        more["question"] = {k: v for k, v in question.items() if k not in ("problem", "ground_truth_answer")}
        more["label"] = {k: v for k, v in label.items() if k != "steps"}
        gold = question.get("ground_truth_answer")
        common = {"question": take(question, "problem", str), "answer": gold, "strategy": "prm800k"}
        trail, others = _trail(take(label, "steps", list), alternatives)
        verdict = "correct" if reason == "solution" else "unknown"
        whole = _marked(row, name, trail, more=more, verdict=verdict, **common)
        yield whole
        for place, steps in others.items():
            one = _marked({}, f"{whole.record_id}/{place}", steps, more={}, **common)
            same = one.labels.model_copy(update={"problem_id": whole.labels.problem_id})
            yield one.model_copy(update={"labels": same})

    return read_rows(path, parse, strict, bad)


Step = tuple[str, Mark | None]


def _marked(row: dict[str, Any], name: str, steps: list[Step], **fields: Any) -> Labelled:
    return labelled(row, name, steps=[text for text, _ in steps], marks=[mark for _, mark in steps], **fields)


def _trail(steps: list[Any], alternatives: bool) -> tuple[list[Step], dict[str, list[Step]]]:
    """The steps that were taken, and, by place, the solutions that end in another completion."""
    trail: list[Step] = []
    others: dict[str, list[Step]] = {}
    for t, step in enumerate(steps):
        if not isinstance(step, dict):
            raise Rejected("bad_steps", f"label.steps[{t}] is {str(step)[:100]!r}, wanted an object")
        what, offered = f"label.steps[{t}]", step.get("completions")
        offered = [] if offered is None else take(step, "completions", list)
        found = [_completion(c, f"{what}.completions[{i}]") for i, c in enumerate(offered)]
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(found)):
            raise Rejected("bad_steps", f"{what}.chosen_completion is {chosen!r} of {len(found)}")
        own = None if chosen is not None or human is None else _completion(human, f"{what}.human_completion")
        taken = 0 if chosen is None and own is None else chosen
        if alternatives:
            others |= {f"t{t}c{i}": [*trail, c] for i, c in enumerate(found) if i != taken and c[1] is not None}
        if own is None and not found:
            break
        trail.append(found[taken] if own is None else own)
        if chosen is None and own is None:
            break
    return trail, others


def _completion(value: Any, what: str) -> Step:
    if not isinstance(value, dict):
        raise Rejected("bad_steps", f"{what} is {str(value)[:100]!r}, wanted an object")
    return take(value, "text", str), mark(value.get("rating"), what)


def mark(value: Any, what: str) -> Mark | None:
    """The rating -1, 0, 1 or None; Rejected if it is none of them."""
    if value is not None and (type(value) is not int or value not in (-1, 0, 1)):
        raise Rejected("bad_labels", f"{what} is rated {str(value)[:100]!r}, wanted -1, 0, 1 or null")
    return value


def write_prm800k(path: str | Path, examples: Iterable[Labelled], *, strict: bool = True, bad: Bad = None) -> int:
    """How many solutions were written: one completion per step, rated with the marks (or the truth).

    A last step rated -1 is not chosen, and the reason to finish is found_error, as in the authors' phase 2.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        marks = marks_of(example)
        steps = [
            {"completions": [{"text": text, "rating": one, "flagged": None}], "human_completion": None,
             "chosen_completion": 0}
            for text, one in zip(example.steps, marks, strict=True)
        ]  # fmt: skip
        wrong = marks[-1:] == [-1]
        if wrong:
            steps[-1]["chosen_completion"] = None
        reason = "found_error" if wrong else "solution" if example.verdict == "correct" else "give_up"
        more = {"labeler": "", "timestamp": "", "generation": None} | example.more
        more = {"is_quality_control_question": False, "is_initial_screening_question": False} | more
        question = {"problem": example.question, "ground_truth_answer": example.answer}
        return more | {
            "question": question | more.get("question", {}),
            "label": {"steps": steps, "total_time": None, "finish_reason": reason} | more.get("label", {}),
            OWN: beside(example, {"answer"}) | {"verdict": example.verdict},
        }

    return write_rows(path, ([example] for example in examples), row, strict=strict, bad=bad)


# -- Math-Shepherd


def read_math_shepherd(path: str | Path, *, strict: bool = False, bad: Bad = None) -> Iterator[Labelled]:
    """The solutions of a Math-Shepherd file with hard labels: mc_score 1 for "+", 0 for "-", no counts.

    `input` is the question and the steps, TAG after each; `label` is the same text with + or - for each tag, or (as
    in OpenRLHF's copies) a list with an entry per tag: "+", "-", a number from 0 to 1, or null. "Step 1: " divides the
    question from the steps; these names of steps are taken off.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        pieces = take(row, "input", str).split(TAG)
        question, mark, first = pieces[0].partition(" Step 1: ")
        if not mark or len(pieces) < 2 or pieces[-1].strip():
            raise Rejected("bad_steps", f"input is no question, ' Step 1: ' and steps that end in {TAG!r}")
        found = [first, *(piece.removeprefix("\n") for piece in pieces[1:-1])]
        steps = [text.removesuffix(" ").removeprefix(f"Step {i}: " * (i > 1)) for i, text in enumerate(found, start=1)]
        more = {key: value for key, value in row.items() if key not in ("input", "label", OWN)}
        scores = _shepherd_labels(row.get("label"), pieces)
        yield labelled(row, name, question, steps, strategy="math_shepherd", mc_score=scores, more=more)

    return read_rows(path, parse, strict, bad)


def _shepherd_labels(label: Any, pieces: list[str]) -> list[float | None]:
    """The labels between the pieces of the input."""
    if isinstance(label, list):
        if len(label) != len(pieces) - 1:
            raise Rejected("length_mismatch", f"label has {len(label)} entries for {len(pieces) - 1} steps")
        values = [{"+": 1.0, "-": 0.0}.get(v, v) if isinstance(v, str) else v for v in label]
        return [rate(value, f"label[{i}]") for i, value in enumerate(values)]
    if not isinstance(label, str):
        raise Rejected("missing_column", f"label is {str(label)[:100]!r}, wanted a text or a list")
    scores, place, wanted = [], len(pieces[0]), f"label is not the text of input with + or - for each {TAG!r}"
    same = label.startswith(pieces[0])
    for i, piece in enumerate(pieces[1:]):
        sign, place = label[place : place + 1], place + 1
        if not same or sign not in ("+", "-"):
            raise Rejected("bad_labels", f"{wanted}: see step {i + 1}")
        scores.append(float(sign == "+"))
        same, place = label.startswith(piece, place), place + len(piece)
    if not same or place != len(label):
        raise Rejected("bad_labels", f"{wanted}: see its end")
    return scores


def write_math_shepherd(
    path: str | Path, examples: Iterable[Labelled], *, threshold: float = 0.0, strict: bool = True, bad: Bad = None
) -> int:
    """How many solutions were written; "+" where mc_score > `threshold`.

    Refused: a step without an mc_score, no step at all, and texts that would not come back: with TAG in them (a
    syllable of Russian), or a question with " Step 1: ".
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        if any(TAG in text for text in (example.question, *example.steps)):
            raise Rejected("bad_steps", f"a text holds {TAG!r}, which ends a step in this format; use another format")
        signs = hard_labels(example, threshold)
        head = example.question + " Step 1: "
        if head.find(" Step 1: ") < len(example.question):
            raise Rejected("invalid_record", "the question holds ' Step 1: ', where it ends in this format; reword it")
        names = [head, *(f"Step {i}: " for i in range(2, len(signs) + 1))]
        texts = [name + step for name, step in zip(names, example.steps, strict=True)]
        return example.more | {
            "input": "\n".join(f"{text} {TAG}" for text in texts),
            "label": "\n".join(f"{text} {sign}" for text, sign in zip(texts, signs, strict=True)),
            OWN: beside(example),
        }

    return write_rows(path, ([example] for example in examples), row, strict=strict, bad=bad)


# -- ProcessBench


def read_processbench(path: str | Path, *, strict: bool = False, bad: Bad = None) -> Iterator[Labelled]:
    """The solutions of a ProcessBench file: marks 1 before the first error, -1 at it, None after it.

    `label` counts from 0; -1: no error, every step 1. The verdict is `final_answer_correct`, the policy `generator`.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        steps, first = texts(row.get("steps"), "steps"), take(row, "label", int)
        if not -1 <= first < len(steps):
            raise Rejected("bad_labels", f"label is {first}, wanted -1 or the place of one of {len(steps)} steps")
        marks: list[Mark | None] = [1] * len(steps)
        if first >= 0:
            marks[first:] = [-1, *([None] * (len(steps) - first - 1))]
        verdict = None if row.get("final_answer_correct") is None else take(row, "final_answer_correct", bool)
        known = {"id", "generator", "problem", "steps", "final_answer_correct", "label", "reference_final_answer", OWN}
        more = {key: value for key, value in row.items() if key not in known}
        yield labelled(
            row, take(row, "id", str, name), take(row, "problem", str), steps, strategy="processbench", marks=marks,
            verdict=VERDICTS[verdict], policy=take(row, "generator", str, "unknown"), more=more,
            answer=row.get("reference_final_answer"),
        )  # fmt: skip

    return read_rows(path, parse, strict, bad)


def write_processbench(path: str | Path, examples: Iterable[Labelled], *, strict: bool = True, bad: Bad = None) -> int:
    """How many solutions were written. Refused where a step before the first error is not judged.

    A neutral step counts as right. What is known of steps after the first error is lost.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        marks = marks_of(example)
        first = marks.index(-1) if -1 in marks else -1
        if None in (marks if first < 0 else marks[:first]):
            at = f"step {marks.index(None) + 1} is not judged"
            raise Rejected("bad_labels", f"{at}, so that the first error is not known; judge it, or leave the row out")
        return example.more | {
            "id": example.record_id, "generator": example.policy, "problem": example.question, "steps": example.steps,
            "final_answer_correct": {v: k for k, v in VERDICTS.items()}[example.verdict], "label": first,
            "reference_final_answer": example.answer, OWN: beside(example, {"policy", "verdict", "answer"}),
        }  # fmt: skip

    return write_rows(path, ([example] for example in examples), row, strict=strict, bad=bad)
