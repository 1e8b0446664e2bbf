"""VisualPRM's files: raw rows with counts of rollouts, and the conversations of "+" and "-" that a PRM is trained on.

What each becomes, and what is lost, stands in the table of `interchange`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .foreign import (
    OWN,
    Bad,
    Group,
    Labelled,
    after_first_zero,
    beside,
    hard_labels,
    labelled,
    paths_of,
    rate,
    read_rows,
    take,
    turns_of,
    write_rows,
)  # fmt: skip
from .images import Rejected
from .steps import CHAT_SYSTEM, join

IMAGE = "<image>\n"
PROMPT = "prompt"  # the key of `more` for a question as a model was sent it, where that is not IMAGE + question
HEAD, BODY = "### Question:\n", "\n\n### Solution Process:\n"


def read_visualprm_raw(
    path: str | Path, *, early_stopped: bool = False, strict: bool = False, bad: Bad = None
) -> Iterator[Labelled]:
    """The solutions of a VisualPRM400K-v1.1-Raw file, with their counts.

    num_mc_total 0 is "not sampled" (None), whatever the score; so InternVL's early stop writes it. `early_stopped`: in
    rows without counts, a score 0 after the first 0 is not sampled either.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        entries, images = take(row, "steps_with_score", list), paths_of(row.get("image"), "image")
        found = [_raw_step(entry, f"steps_with_score[{t}]") for t, entry in enumerate(entries)]
        steps, scores, counts = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
        if early_stopped:
            scores = after_first_zero(scores, [count is not None for count in counts])
        prompt = take(row, "question", str)
        question = take(row, "question_orig", str, _bare(prompt, images))
        known = {"image", "question", "question_orig", "answer", "response", "steps_with_score", OWN}
        more = {key: value for key, value in row.items() if key not in known} | _sent(prompt, question, images)
        if row.get("response", join(steps)) != join(steps):
            more["response"] = row["response"]
        yield labelled(
            row, name, question, steps, strategy="visualprm_raw", mc_score=scores, counts=counts, images=images,
            answer=row.get("answer"), more=more,
        )  # fmt: skip

    return read_rows(path, parse, strict, bad)


def _raw_step(entry: Any, what: str) -> tuple[str, float | None, tuple[int, int, int] | None]:
    if not isinstance(entry, dict):
        raise Rejected("bad_steps", f"{what} is {str(entry)[:100]!r}, wanted an object")
    text, score = take(entry, "step", str), rate(entry.get("score"), f"{what}.score")
    if entry.get("num_mc_total") is None and entry.get("num_mc_correct") is None:
        return text, score, None
    known, right = take(entry, "num_mc_total", int), take(entry, "num_mc_correct", int)
    unknown = take(entry, "num_mc_unknown", int, 0)
    if known == 0 and (right or score):
        raise Rejected("bad_labels", f"{what} has score {score} and {right} correct of 0 rollouts")
    count = (known + unknown, right, unknown)
    return text, score if known else None, count if known + unknown else None


def write_visualprm_raw(path: str | Path, examples: Iterable[Labelled], *, strict: bool = True, bad: Bad = None) -> int:
    """How many solutions were written.

    num_mc_total counts the rollouts with a verdict, so that score = num_mc_correct / num_mc_total; the others follow
    in num_mc_unknown. A step that was not sampled has score null (InternVL writes 0.0, which its own next stage takes
    for "-") and num_mc_total 0; one that has a rate alone, null counts.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        labels = example.labels
        columns = zip(labels.n_rollouts, labels.n_correct, labels.n_unknown, labels.mc_score, strict=True)
        entries = [{"step": s} | _raw_label(*label) for s, label in zip(labels.steps, columns, strict=True)]
        sampled = [entry["num_mc_total"] + entry.get("num_mc_unknown", 0) for entry in entries if entry["num_mc_total"]]
        extra = {"num_mc_sequences": max(sampled, default=0)} | example.more
        return {k: v for k, v in extra.items() if k != PROMPT} | {
            "image": _image_field(example.images), "question": _prompt(example), "question_orig": example.question,
            "answer": example.answer, "response": example.more.get("response", join(example.steps)),
            "steps_with_score": entries, OWN: beside(example, {"answer", "images"}),
        }  # fmt: skip

    return write_rows(path, ([example] for example in examples), row, strict=strict, bad=bad)


def _raw_label(n: int | None, k: int | None, unknown: int | None, score: float | None) -> dict[str, Any]:
    if n is None or unknown is None:
        count = 0 if score is None else None
        return {"score": score, "num_mc_correct": count, "num_mc_total": count}
    extra = {"num_mc_unknown": unknown} if unknown else {}
    return {"score": score, "num_mc_correct": k, "num_mc_total": n - unknown} | extra


def _image_field(images: list[str]) -> str | list[str] | None:
    return images if len(images) > 1 else images[0] if images else None


def _bare(prompt: str, images: list[str]) -> str:
    return prompt.removeprefix(IMAGE * len(images))


def _sent(prompt: str, question: str, images: list[str]) -> dict[str, str]:
    return {} if prompt == IMAGE * len(images) + question else {PROMPT: prompt}


def _prompt(example: Labelled) -> str:
    return example.more.get(PROMPT, IMAGE * len(example.images) + example.question)


def read_visualprm(
    path: str | Path, *, early_stopped: bool = False, strict: bool = False, bad: Bad = None
) -> Iterator[Labelled]:
    """The solutions of a VisualPRM400K file: conversations in which "+" or "-" answers each step.

    `early_stopped`: a "-" after the first one was never sampled (None). A row of an ORM, all steps in one turn, cannot
    be told from a solution of one step.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        turns, images = turns_of(row), paths_of(row.get("image"), "image")
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
        asked, answers = turns[::2], turns[1::2]
        kinds = [kind for kind, _ in turns]
        if not turns or kinds != ["human", "gpt"] * len(answers):
            raise Rejected("bad_steps", f"conversations go {kinds[:6]}, wanted human and gpt in turn")
        if wrong := [text for _, text in answers if text not in ("+", "-")]:
            raise Rejected("bad_labels", f"an answer is {wrong[0][:100]!r}, wanted '+' or '-'")
        prompt, mark, first = asked[0][1].removeprefix(HEAD).partition(BODY)
        if not mark or not asked[0][1].startswith(HEAD):
            raise Rejected("bad_steps", f"the first human turn is not {HEAD!r}, the question, {BODY!r}, the first step")
        scores: list[float | None] = [float(text == "+") for _, text in answers]
        if early_stopped:
            scores = after_first_zero(scores, [False] * len(scores))
        question = _bare(prompt, images)
        more = {k: v for k, v in row.items() if k not in ("image", "conversations", OWN)} | {"system": system}
        more |= _sent(prompt, question, images)
        steps = [first, *(text for _, text in asked[1:])]
        yield labelled(row, name, question, steps, strategy="visualprm", mc_score=scores, images=images, more=more)

    return read_rows(path, parse, strict, bad)


def write_visualprm(
    path: str | Path, examples: Iterable[Labelled], *, threshold: float = 0.0, system: str = CHAT_SYSTEM,
    strict: bool = True, bad: Bad = None,
) -> int:  # fmt: skip
    """How many solutions were written; "+" where mc_score > `threshold`. `system`: the system turn, "" for none.

    A row that was read keeps its own system turn. Refused: a step without an mc_score, no step at all, a question that
    holds the line that ends it.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        signs, prompt = hard_labels(example, threshold), _prompt(example)
        if (prompt + BODY).find(BODY) < len(prompt):
            raise Rejected("invalid_record", f"the question holds {BODY!r}, where it ends in this format; reword it")
        turns = [{"from": "system", "value": told}] if (told := example.more.get("system", system)) else []
        for step, sign in zip([HEAD + prompt + BODY + example.steps[0], *example.steps[1:]], signs, strict=True):
            turns += [{"from": "human", "value": step}, {"from": "gpt", "value": sign}]
        extra = {k: v for k, v in example.more.items() if k not in ("system", PROMPT)}
        image = _image_field(example.images)
        return {"id": -1} | extra | {"image": image, "conversations": turns, OWN: beside(example, {"images"})}

    return write_rows(path, ([example] for example in examples), row, strict=strict, bad=bad)
