"""Trees of rollouts: the record that OmegaPRM's search leaves behind, MM-PRM's JSON of it, and the labels it gives.

A node is a prefix of solutions: the spans (one step or several) from the root to it, one after the other. A row is a
path from the root to a node, with a label at the end of each span; it is what MM-PRM trains on (its `traverse.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from . import world
from .generation import Completion
from .guards import judged
from .schema import Count, Id, Problem, Rate, Record, Solution, StepLabels
from .steps import MARKER, STEP_SEPARATOR, join

Truth = Callable[[Problem, list[str]], list[int]]
STRATEGY = "omegaprm"


class Node(Record):
    """A prefix of solutions and what is known of it; the first field is the parent's place in the tree, None: the root.

    `estimated` nodes were rolled out; their distinct rollouts (continuations, as steps) are kept, those without a
    verdict are only counted. The others are ends of solutions, with the verdict as the one rollout (n_rollouts 1).
    mc_value = n_correct / (n_rollouts - n_unknown). Counts are None where a file kept the ratio alone.
    """

    parent: Count | None
    span: list[str]
    estimated: bool
    mc_value: Rate | None
    n_rollouts: Count | None = None
    n_correct: Count | None = None
    n_unknown: Count | None = None
    visit_count: Count = 0
    correct_rollouts: list[list[str]] = []
    incorrect_rollouts: list[list[str]] = []


class Tree(Record):
    """The tree of one problem, `nodes[0]` its root; `n_rollouts` and `n_generated_tokens` count all that was drawn."""

    problem_id: Id
    nodes: list[Node]
    n_searches: Count
    n_rollouts: Count | None = None
    n_generated_tokens: Count | None = None

    @model_validator(mode="after")
    def _parents_come_first(self) -> Tree:
        if not self.nodes or self.nodes[0].parent is not None:
            raise ValueError(f"the tree of {self.problem_id!r} needs a first node without a parent, its root")
        for place, node in enumerate(self.nodes[1:], start=1):
            if node.parent is None or node.parent >= place:
                raise ValueError(f"node {place} of {self.problem_id!r} has parent {node.parent}: give an earlier node")
        return self

    @property
    def children(self) -> list[list[int]]:
        """The places of every node's children, in the order in which they were made."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes[1:], start=1):
            found[node.parent or 0].append(place)
        return found


# -- MM-PRM's own files


def to_mm_prm(tree: Tree, problem: Problem) -> dict[str, Any]:
    """The tree as MM-PRM's JSON object (`outputs/<md5>.json` of its `data_pipeline`).

    The counts have no place there. `image_path` is the problem's image as its record names it, where MM-PRM writes an
    absolute path; an mc_value that is unknown is null, which MM-PRM never writes.
    """
    head = {"question": problem.question, "answer": problem.answer, "image_path": problem.image}
    made: list[dict[str, Any]] = []
    for node in tree.nodes:
        entry: dict[str, Any] = {**head, "id": tree.problem_id} if not made else {"partial_solution": list(node.span)}
        entry |= {"mc_value": node.mc_value, "visit_count": node.visit_count}
        entry |= {name: [list(r) for r in getattr(node, name)] for name in ("correct_rollouts", "incorrect_rollouts")}
        made.append(entry | {"children": []})
        if node.parent is not None:
            made[node.parent]["children"].append(made[-1])
    return made[0]


def from_mm_prm(entry: dict[str, Any], problem_id: str) -> Tree:
    """The tree in an object of MM-PRM's JSON, nodes in the order of a depth-first walk, counts None.

    Keys that MM-PRM's judge adds to nodes are left out. ValueError that names the node and what is wrong with it.
    """
    nodes: list[Node] = []
    stack: list[tuple[int | None, dict[str, Any]]] = [(None, entry)]
    while stack:
        parent, found = stack.pop()
        try:
            right, wrong = found["correct_rollouts"], found["incorrect_rollouts"]
            mc, span = found["mc_value"], [] if parent is None else found["partial_solution"]
            visits, children = found["visit_count"], found["children"]
            nodes.append(Node(
                parent=parent, span=span, estimated=parent is None or bool(right or wrong),
                mc_value=None if mc is None else float(mc), visit_count=visits,
                correct_rollouts=right, incorrect_rollouts=wrong,
            ))  # fmt: skip
            stack += [(len(nodes) - 1, child) for child in reversed(children)]
        except (KeyError, TypeError, ValueError) as error:
            why = f"has no {error}" if isinstance(error, KeyError) else f"is of another kind: {str(error)[:200]!r}"
            raise ValueError(f"{problem_id}: node {len(nodes)} {why}; is this a tree of MM-PRM?") from None
    return Tree(problem_id=problem_id, nodes=nodes, n_searches=sum(node.visit_count for node in nodes))


# -- rows


@dataclass(frozen=True)
class Row:
    """A path from the root's child to where a row ends; `positive` says that its last label is above the threshold."""

    nodes: tuple[Node, ...]
    positive: bool

    @property
    def spans(self) -> list[list[str]]:
        """The steps between two labels."""
        return [node.span for node in self.nodes]

    @property
    def labels(self) -> list[float]:
        """The mc_value at the end of each span."""
        return [node.mc_value for node in self.nodes if node.mc_value is not None]

    @property
    def steps(self) -> list[str]:
        """All steps, span after span."""
        return [step for node in self.nodes for step in node.span]

    @property
    def process(self) -> str:
        """MM-PRM's training text: the spans, a marker after each."""
        return STEP_SEPARATOR.join(join(span) + MARKER for span in self.spans)


def paths(
    tree: Tree, *, threshold: float = 0.0, min_words: int = 11, skip_settled: bool = True, balance: bool = True,
    seed: int | None = 0,
) -> list[Row]:  # fmt: skip
    """The rows of a tree, in the order of a depth-first walk (MM-PRM, `traverse.py`; its numbers are the defaults).

    A node with mc_value <= `threshold` ends a negative row, a leaf above it a positive one; a node whose mc_value is
    unknown ends none. `skip_settled`: no rows where the root has mc_value 0 or 1 (or unknown). `min_words`: shorter
    texts are dropped, words being what single spaces divide (a row of the embedded world, or one in Chinese, has few:
    give 0 there). The same text is kept once among negatives and once among positives. `balance`: as many positives as
    negatives, drawn by `seed` and the problem's id (None: by chance, as MM-PRM does), or all where there are fewer.
    """
    if skip_settled and tree.nodes[0].mc_value in (None, 0.0, 1.0):
        return []
    rows: dict[tuple[bool, str], Row] = {}
    for row in _walk(tree, threshold):
        if len(row.process.split(" ")) >= min_words:
            rows.setdefault((row.positive, row.process), row)
    positives = [name for name in rows if name[0]]
    n_negative = len(rows) - len(positives)
    if balance and n_negative <= len(positives):
        rng = random.Random(None if seed is None else f"{seed}|{tree.problem_id}")
        kept = set(rng.sample(positives, n_negative))
        return [row for name, row in rows.items() if not name[0] or name in kept]
    return list(rows.values())


def _walk(tree: Tree, threshold: float) -> list[Row]:
    """All rows, before any is dropped."""
    rows, children = [], tree.children
    stack: list[tuple[int, tuple[Node, ...]]] = [(place, ()) for place in reversed(children[0])]
    while stack:
        place, above = stack.pop()
        node = tree.nodes[place]
        path = (*above, node)
        if node.mc_value is None:
            continue
        if node.mc_value <= threshold or not children[place]:
            rows.append(Row(path, node.mc_value > threshold))
        else:
            stack += [(child, path) for child in reversed(children[place])]
    return rows


# -- rows as records


def labels_of(
    tree: Tree, problem: Problem, rows: list[Row] | None = None, *, spans: bool = False,
    truth: Truth | None = world.truth,
) -> list[StepLabels]:  # fmt: skip
    """The rows (default: `paths(tree)`) as step labels, named `<problem_id>/o<i>`.

    One entry per step, None where no node of the path ends; with `spans` one entry per span, as MM-PRM trains. The
    truth of a span is -1 if a step of it is wrong, else 1 if one is right. The first record carries the tokens of the
    whole tree, the others 0, so that the sum over records is right; a tree without rows has cost its tokens, too, and
    only `tree.n_generated_tokens` knows of them.
    """
    rows, records = paths(tree) if rows is None else rows, []
    for i, row in enumerate(rows):
        known = truth is not None and problem.scene is not None
        columns = _columns(row, spans, truth(problem, row.steps) if known and truth else None)
        cost = (tree.n_generated_tokens or 0) if i == 0 else 0
        records.append(
            StepLabels(
                solution_id=f"{problem.problem_id}/o{i}", problem_id=problem.problem_id, strategy=STRATEGY,
                n_generated_tokens=cost, **columns,
            )
        )  # fmt: skip
    return records


def _columns(row: Row, spans: bool, truths: list[int] | None) -> dict[str, list | None]:
    """The lists of a StepLabels record."""
    columns: dict[str, list] = {name: [] for name in ("steps", "n_rollouts", "n_correct", "n_unknown", "mc_score")}
    span_truths = []
    for node in row.nodes:
        gap = 0 if spans else len(node.span) - 1
        columns["steps"] += [join(node.span)] if spans else node.span
        columns["mc_score"] += [None] * gap + [node.mc_value]
        for name in ("n_rollouts", "n_correct", "n_unknown"):
            columns[name] += [None] * gap + [getattr(node, name)]
        if truths is not None:
            own, truths = truths[: len(node.span)], truths[len(node.span) :]
            span_truths += [min(own, key=(-1, 1, 0).index)] if spans else own
    return {**columns, "truth": None if truths is None else span_truths}


def solutions_of(
    tree: Tree, problem: Problem, rows: list[Row] | None = None, *, policy: str = "", seed: int = 0
) -> list[Solution]:
    """The rows (default: `paths(tree)`) as solutions, of the same names and steps as `labels_of` gives.

    A row that ends with a solution has its verdict; one that ends before has none (unknown, with the reason). What a
    single rollout cost is not kept: n_tokens is 0.
    """
    return [
        _solution(row, problem, f"{problem.problem_id}/o{i}", policy, seed)
        for i, row in enumerate(paths(tree) if rows is None else rows)
    ]


def _solution(row: Row, problem: Problem, name: str, policy: str, seed: int) -> Solution:
    whole = not row.nodes[-1].estimated
    answer = judged(problem, (), Completion(join(row.steps), 0, "stop")).answer if whole else None
    reason = "" if whole else f"a prefix, left where its mc_score is {row.labels[-1]:g}"
    verdict = ("correct" if row.labels[-1] > 0 else "wrong") if whole else "unknown"
    return Solution(
        solution_id=name, problem_id=problem.problem_id, steps=row.steps, answer=answer, verdict=verdict,
        policy=policy, seed=seed, n_tokens=0, finish_reason="stop" if whole else "length", reason=reason,
    )  # fmt: skip


def pairs_of(
    tree: Tree, problem: Problem, *, spans: bool = False, policy: str = "", seed: int = 0, **rows: Any
) -> list[tuple[Solution, StepLabels]]:
    """What a PRM is trained on: each row as a solution and its labels, of the same steps.

    With `spans` a step of both is what stands between two labels, as MM-PRM trains; else steps inside have no label.
    rows: options of `paths` (threshold, min_words, skip_settled, balance), whose draw is by `seed`.
    """
    kept = paths(tree, seed=seed, **rows)
    labels = labels_of(tree, problem, kept, spans=spans)
    solutions = solutions_of(tree, problem, kept, policy=policy, seed=seed)
    return [(s.model_copy(update={"steps": r.steps}), r) for s, r in zip(solutions, labels, strict=True)]
