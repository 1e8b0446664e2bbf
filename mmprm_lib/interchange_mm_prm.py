"""MM-PRM's files: rows and conversations that its PRM is trained on, candidates to be scored; and OmegaPRM's trees.

What each becomes, and what is lost, stands in the table of `interchange`. MM-PRM's own trees are read by `trees`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from .foreign import (
    OWN,
    VERDICTS,
    Bad,
    Group,
    Labelled,
    beside,
    labelled,
    paths_of,
    rate,
    read_rows,
    take,
    texts,
    turns_of,
    write_rows,
)  # fmt: skip
from .images import Rejected
from .steps import MARKER, STEP_SEPARATOR, join

QUESTION, PROCESS = "Question: ", "\nProcess: "
QUESTIONS = ("question", "query", "query_cot")  # what the benchmarks of MM-PRM call the question
IMAGES = ("image_path", "image", *(f"image_{i}" for i in range(1, 6)))  # and the images


# -- MM-PRM


def read_mm_prm(path: str | Path, *, strict: bool = False, bad: Bad = None) -> Iterator[Labelled]:
    """The solutions of MM-PRM's training file (conversations) or of the rows before it (process and labels).

    A step here is what stands between two markers, which in MM-PRM may be several steps of the policy.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        if "conversations" in row:
            turns, key = turns_of(row), "image"
            if [kind for kind, _ in turns] != ["human", "gpt"] or not turns[0][1].startswith(QUESTION):
                raise Rejected("bad_steps", f"conversations are not a human turn {QUESTION!r}... and gpt's labels")
            question, mark, process = turns[0][1].removeprefix(QUESTION).partition(PROCESS)
            labels = turns[1][1]
            if not mark:
                raise Rejected("bad_steps", f"the human turn has no {PROCESS!r} after its question")
        else:
            question, process, labels = take(row, "question", str), take(row, "process", str), row.get("labels")
            key = "image_path"
        *steps, rest = process.split(MARKER)
        if rest.strip():
            raise Rejected("bad_steps", f"the process ends in {rest[:100]!r}, wanted {MARKER} after every step")
        if not isinstance(labels, list) or len(labels) != len(steps):
            raise Rejected("length_mismatch", f"labels are {str(labels)[:100]}, wanted {len(steps)}, one per {MARKER}")
        known = {"conversations", "image", "image_path", "question", "process", "labels", "answer", OWN}
        yield labelled(
            row, name, question, steps[:1] + [step.removeprefix(STEP_SEPARATOR) for step in steps[1:]],
            strategy="mm_prm", mc_score=[rate(value, f"label {i}") for i, value in enumerate(labels)],
            images=paths_of(row.get(key), key), answer=row.get("answer"),
            more={k: v for k, v in row.items() if k not in known},
        )  # fmt: skip

    return read_rows(path, parse, strict, bad)


def _process(example: Labelled, spans: bool) -> tuple[str, list[float | None]]:
    """MM-PRM's text with a marker after each step or span, and the labels."""
    if any(MARKER in step for step in example.steps):
        raise Rejected("bad_steps", f"a step holds {MARKER}, which ends a step in this format; use another format")
    parts, labels, waiting = list[str](), list[float | None](), list[str]()
    for step, score in zip(example.steps, example.labels.mc_score, strict=True):
        waiting.append(step)
        if score is not None or not spans:
            parts.append(join(waiting) + MARKER)
            labels.append(score)
            waiting = []
    return STEP_SEPARATOR.join(parts), labels


def write_mm_prm(
    path: str | Path, examples: Iterable[Labelled], *, spans: bool = False, strict: bool = True, bad: Bad = None
) -> int:
    """How many solutions were written, as MM-PRM's training file.

    A step without an mc_score has the label null, at which MM-PRM stops; with `spans` it is joined to the next one that
    has a label, as in MM-PRM's own rows (what follows the last label is left out). Refused: texts that hold what
    divides them, and more than one image.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        process, labels = _process(example, spans)
        if (example.question + PROCESS).find(PROCESS) < len(example.question):
            raise Rejected("invalid_record", f"the question holds {PROCESS!r}, where it ends in this format; reword it")
        human = {"from": "human", "value": QUESTION + example.question + PROCESS + process}
        turns = [human, {"from": "gpt", "value": labels}]
        own = {"image": _one_image(example), "conversations": turns, OWN: beside(example, {"images"})}
        return {"id": number} | example.more | own

    return write_rows(path, ([example] for example in examples), row, strict=strict, bad=bad)


def write_mm_prm_rows(
    path: str | Path, examples: Iterable[Labelled], *, spans: bool = False, strict: bool = True, bad: Bad = None
) -> int:
    """As `write_mm_prm`, as the JSON array from which MM-PRM makes its training file."""

    def row(group: Group, number: int) -> dict[str, Any]:
        (example,) = group
        process, labels = _process(example, spans)
        given = {"question": example.question, "answer": example.answer, "image_path": _one_image(example)}
        return example.more | given | {"process": process, "labels": labels, OWN: beside(example, {"answer", "images"})}

    return write_rows(path, ([example] for example in examples), row, array=True, strict=strict, bad=bad)


def _one_image(example: Labelled) -> str | None:
    if len(example.images) > 1:
        raise Rejected("several_images", f"{len(example.images)} images, this format has one")
    return example.images[0] if example.images else None


def read_mm_prm_evaluation(path: str | Path, *, strict: bool = False, bad: Bad = None) -> Iterator[Labelled]:
    """The candidates of MM-PRM's evaluation file, one after the other: steps, verdict, and the scores of its PRM.

    No step has a label. prm_scores are None where the file has none. A row whose lists are of unequal length is
    refused: MM-PRM's empty candidate shifts the scores of all that follow it.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        candidates, scores = take(row, "solutions_splits", list), row.get("prm_scores")
        labels = row.get("labels", [None] * len(candidates))
        key = next((key for key in QUESTIONS if key in row), QUESTIONS[0])
        question, own = take(row, key, str), take(row, OWN, list, [{}] * len(candidates))
        images = [image for key in IMAGES for image in paths_of(row.get(key), key)]
        lists = {"labels": labels, "prm_scores": [None] * len(candidates) if scores is None else scores, OWN: own}
        for what, values in lists.items():
            if not isinstance(values, list) or len(values) != len(candidates):
                raise Rejected("length_mismatch", f"{what} is {str(values)[:60]}: {len(candidates)} candidates")
        known = {key, *IMAGES, "answer", "solutions_splits", "prm_scores", "labels", OWN}
        more = {k: v for k, v in row.items() if k not in known}
        for i, (steps, label, found, ours) in enumerate(zip(candidates, *lists.values(), strict=True)):
            yield labelled(
                {OWN: ours}, f"{name}/s{i}", question, texts(steps, f"solutions_splits[{i}]"), strategy="none",
                verdict=_verdict(label, f"labels[{i}]"), scores=_scores(found, len(steps), f"prm_scores[{i}]"),
                images=images, answer=row.get("answer"), more=more,
            )  # fmt: skip

    return read_rows(path, parse, strict, bad)


def _verdict(value: Any, what: str) -> str:
    # True == 1 in Python; some files have it, and it says the same
    if value not in (0, 1, None) or isinstance(value, float):
        raise Rejected("bad_labels", f"{what} is {str(value)[:100]!r}, wanted 0, 1 or null")
    return VERDICTS[value]


def _scores(values: Any, n_steps: int, what: str) -> list[float | None] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n_steps:
        raise Rejected("length_mismatch", f"{what} is {str(values)[:60]}, wanted a score for each of {n_steps} steps")
    return [rate(value, what) for value in values]


def write_mm_prm_evaluation(
    path: str | Path, examples: Iterable[Labelled], *, strict: bool = True, bad: Bad = None
) -> int:
    """How many questions were written, each with the neighbouring solutions of one problem as its candidates.

    An unknown verdict is null. prm_scores are written where all candidates of the question have scores.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        first, scores = _of_one_question(group), [example.scores for example in group]
        if None in scores and any(scores):
            raise Rejected("length_mismatch", "some candidates have scores and others not; score all or none")
        numbers = {verdict: None if right is None else int(right) for right, verdict in VERDICTS.items()}
        names = ["image_path"] if len(first.images) < 2 else [f"image_{i + 1}" for i in range(len(first.images))]
        images = dict(zip(names, first.images or [None], strict=True))
        return first.more | {"question": first.question, "answer": first.answer} | images | {
            "solutions_splits": [example.steps for example in group],
            "labels": [numbers[example.verdict] for example in group],
            OWN: [beside(example, {"answer", "images", "verdict"}) for example in group],
        } | ({} if None in scores else {"prm_scores": scores})  # fmt: skip

    return write_rows(path, by_problem(examples), row, array=True, strict=strict, bad=bad)


def by_problem(examples: Iterable[Labelled]) -> Iterator[list[Labelled]]:
    """The runs of neighbouring solutions of one problem."""
    return (list(group) for _, group in groupby(examples, key=lambda example: example.labels.problem_id))


def _of_one_question(group: Group) -> Labelled:
    """The first of the group, whose fields stand for all; Rejected if the solutions are not to one question."""
    names = ("question", "answer", "images")
    if other := [one.record_id for one in group if any(getattr(one, n) != getattr(group[0], n) for n in names)]:
        what = f"the problem {group[0].labels.problem_id!r} of {group[0].record_id!r} has another question or answer"
        raise Rejected("invalid_record", f"{what} in {other[0]!r}; give it an id of its own")
    return group[0]


# -- OmegaPRM


def read_omegaprm(path: str | Path, *, strict: bool = False, bad: Bad = None) -> Iterator[Labelled]:
    """The ways from the root to each leaf of trees in OmegaPRM's published form; the texts of nodes are the steps.

    `reasoning_steps` is a tree {text, mc_value, children}, or a list of {solution_prefix, mc_value}, whose longest
    prefixes are cut where a shorter one of them ends (white space at the cuts is dropped). A prefix that was estimated
    again there is a way of its own; the longer ones go on from its highest mc_value, because a search does not go on
    from 0. The root is the question; its own mc_value is kept in `more`.
    """

    def parse(row: dict[str, Any], name: str) -> Iterator[Labelled]:
        question, tree = take(row, "question", str), row.get("reasoning_steps")
        if isinstance(tree, dict):
            root, ways = rate(tree.get("mc_value"), "the root's mc_value"), _tree_ways(tree)
        else:
            root, ways = _prefix_ways(take(row, "reasoning_steps", list), question)
        more = {k: v for k, v in row.items() if k not in ("question", "final_answer", "reasoning_steps")}
        common = {"strategy": "omegaprm", "answer": row.get("final_answer"), "more": more | {"mc_value": root}}
        for i, (own, steps, scores) in enumerate(ways):
            yield labelled(own, f"{name}/p{i}", question, steps, mc_score=scores, **common)

    return read_rows(path, parse, strict, bad)


Way = tuple[dict[str, Any], list[str], list[float | None]]


def _tree_ways(tree: dict[str, Any]) -> Iterator[Way]:
    """(the leaf, steps, labels) of each way, depth first."""
    stack: list[Way] = [(tree, [], [])]
    while stack:
        node, steps, scores = stack.pop()
        children = take(node, "children", list, [])
        if steps and not children:
            yield node, steps, scores
        for child in reversed(children):
            if not isinstance(child, dict):
                raise Rejected("bad_steps", f"a child is {str(child)[:100]!r}, wanted an object")
            label = rate(child.get("mc_value"), "mc_value")
            stack.append((child, [*steps, take(child, "text", str)], [*scores, label]))


def _prefix_ways(entries: list[Any], question: str) -> tuple[float | None, Iterator[Way]]:
    """The label of the question itself, and the ways to the prefixes that no longer one begins with."""
    found: dict[str, list[float | None]] = {}
    for i, entry in enumerate(entries):
        prefix = entry.get("solution_prefix") if isinstance(entry, dict) else None
        if not isinstance(prefix, str) or not prefix.startswith(question):
            raise Rejected("bad_steps", f"reasoning_steps[{i}].solution_prefix does not begin with the question")
        text = prefix.removeprefix(question).rstrip()
        found.setdefault(text, []).append(rate(entry.get("mc_value"), f"reasoning_steps[{i}].mc_value"))
    root, ways, above = found.pop("", [None])[0], list[Way](), list[str]()
    for values in found.values():
        values.sort(key=lambda value: -1.0 if value is None else value)
    # in the order of the alphabet a text is followed by all that begin with it
    order = sorted(found)
    for text, after in zip(order, [*order[1:], ""], strict=False):
        above = [*(one for one in above if text.startswith(one)), text]
        steps = [one[len(before) :].strip() for before, one in zip(["", *above], above, strict=False)]
        scores = [found[one][-1] for one in above[:-1]]
        ends = found[text][:-1] if after.startswith(text) else found[text]
        ways += [({}, steps, [*scores, end]) for end in ends]
    return root, iter(ways)


def write_omegaprm(path: str | Path, examples: Iterable[Labelled], *, strict: bool = True, bad: Bad = None) -> int:
    """How many trees were written: one of all neighbouring solutions of a problem.

    A solution shares the nodes of the one before it as far as steps and labels agree, but for a leaf of its own: a tree
    in which two nodes have the same text is read to the same ways. Refused: a solution without a step.
    """

    def row(group: Group, number: int) -> dict[str, Any]:
        first = _of_one_question(group)
        above: list[dict[str, Any]] = [{"text": first.question, "mc_value": first.more.get("mc_value"), "children": []}]
        root = above[0]
        for example in group:
            if not example.steps:
                raise Rejected("bad_steps", f"{example.record_id!r} has no step, and a tree no way to it; leave it out")
            pairs = list(zip(example.steps, example.labels.mc_score, strict=True))
            before = [(node["text"], node["mc_value"]) for node in above[1:]]
            most = min(len(pairs), len(before)) - 1
            same = next((t for t in range(max(most, 0)) if pairs[t] != before[t]), max(most, 0))
            above = above[: same + 1]
            for text, score in pairs[same:]:
                above.append({"text": text, "mc_value": score, "children": []})
                above[-2]["children"].append(above[-1])
            above[-1][OWN] = beside(example, {"answer"})
        tree = {"question": first.question, "final_answer": first.answer, "reasoning_steps": root}
        return {k: v for k, v in first.more.items() if k != "mc_value"} | tree

    return write_rows(path, by_problem(examples), row, strict=strict, bad=bad)
