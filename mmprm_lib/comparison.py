"""Methods of choosing among candidates, side by side: groups from records, curves, paired tests, where each helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from . import stats
from .answers import extract, normal_form
from .extraction import has_options
from .schema import Problem, Solution
from .selection import Group, StepScores, group_scores, majority_vote, pass_at_n, pick_best
from .stats import Estimate
from .steps import join

BY_PROBLEM = ["pass_at_n", "majority_vote", "best_of_n", "n_answers", "n_paths"]


def groups_of(
    problems: Sequence[Problem], candidates: Sequence[Solution], greedy: Sequence[Solution] = ()
) -> list[Group]:
    """One Group per problem: its candidates in the order given, their answers as voting keys, and the greedy one."""
    drawn, alone = {}, {s.problem_id: s for s in greedy}
    for solution in candidates:
        drawn.setdefault(solution.problem_id, []).append(solution)
    return [
        Group(p.problem_id, drawn[p.problem_id], [_key(s, p) for s in drawn[p.problem_id]], alone.get(p.problem_id))
        for p in problems
    ]


def _key(solution: Solution, problem: Problem) -> str | None:
    answer = solution.answer if solution.answer is not None else extract(join(solution.steps), has_options(problem))
    return None if answer is None else normal_form(answer, problem)


def by_trait(problems: Sequence[Problem], outcomes: Mapping[str, np.ndarray], seed: int = 0) -> pd.DataFrame:
    """The accuracy of each method within each trait of the problems: trait, group, method, value, n, low, high.

    Traits: family (the source outside the world), form of the answer, and wording (tricky or plain, in the world only).
    """
    rows = []
    for trait, values in _traits(problems):
        for group in dict.fromkeys(sorted(values)):
            inside = np.array([value == group for value in values])
            rows += [(trait, group, name, *stats.mean(each[inside], seed=seed)) for name, each in outcomes.items()]
    return pd.DataFrame(rows, columns=["trait", "group", "method", *Estimate._fields])


def _traits(problems: Sequence[Problem]) -> Iterator[tuple[str, list[str]]]:
    yield "family", [p.scene["family"] if p.scene else p.source for p in problems]
    yield "form", ["multiple choice" if p.choices or p.answer_type == "choice" else "fill-in" for p in problems]
    if all(p.scene for p in problems):
        yield "wording", ["tricky" if p.scene["tricky"] else "plain" for p in problems]


def majority_pick(group: Group, n: int) -> int:
    """The index of the candidate that a majority vote over the first n picks: the first with the commonest answer."""
    answers = list(group.answers[:n])
    votes = Counter(answer for answer in answers if answer is not None)
    return answers.index(votes.most_common(1)[0][0]) if votes else 0


def curves(table: pd.DataFrame, aggregators: Mapping[str, str], main: str) -> pd.DataFrame:
    """The rows of `selection.selection_table` that make its figure: method (a legend text), N, value, n, low, high.

    Each scorer with its aggregator in `aggregators`, the weighted vote of the scorer `main` alone; the greedy answer is
    drawn at every N.
    """
    names = {"pass_at_n": "pass@N", "random": "random", "majority_vote": "majority vote", "greedy": "greedy"}
    parts = []
    for (method, scorer, aggregator), part in table.groupby(["method", "scorer", "aggregator"], sort=False):
        if scorer and (aggregators.get(scorer) != aggregator or (method == "weighted_vote" and scorer != main)):
            continue
        label = names.get(method) or (f"best by {scorer}" if method == "best_of_n" else f"vote weighted by {scorer}")
        if method == "greedy":
            part = pd.concat([part.assign(N=n) for n in sorted(table["N"].unique())])
        parts.append(part.assign(method=label))
    found = pd.concat(parts, ignore_index=True)[["method", "N", *Estimate._fields]]
    order = ["pass@N", *(name for name in found["method"].unique() if name.startswith(("best by", "vote")))]
    order += ["majority vote", "greedy", "random"]
    return found.sort_values("method", key=lambda c: c.map(order.index), kind="stable").reset_index(drop=True)


def paired_tests(outcomes: Mapping[str, np.ndarray], main: str, others: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """`main` against each of the others on the same problems, a row each.

    Columns: method, other, value (the difference of accuracies), n, low, high, mcnemar_p, holm_p (adjusted for all:
    `stats.holm`), problems_needed (to settle this difference: `stats.problems_needed`).
    McNemar's p needs outcomes 0 and 1; against an expected accuracy (pass@1) it is nan.
    """
    rows = []
    for other in others:
        if other == main:
            continue
        a, b = outcomes[main], outcomes[other]
        p = stats.mcnemar(a, b).value if np.isin(np.concatenate([a, b]), (0.0, 1.0)).all() else np.nan
        rows.append((main, other, *stats.paired_difference(a, b, seed=seed), p, stats.problems_needed(a, b)))
    found = pd.DataFrame(rows, columns=["method", "other", *Estimate._fields, "mcnemar_p", "problems_needed"])
    found.insert(len(found.columns) - 1, "holm_p", stats.holm(found["mcnemar_p"]))
    return found


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation in [-1, 1]; nan where one side does not vary, as then nothing can go with it."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def by_problem(groups: Sequence[Group], ns: Sequence[int], scores: StepScores, aggregator: str) -> pd.DataFrame:
    """What each problem brings at each N, a row per problem and N, for paired tests between any two runs.

    Columns: problem_id, N, the outcomes pass_at_n, majority_vote and best_of_n, and how different the first N
    candidates are: n_answers and n_paths, the distinct answers and the distinct solutions.
    """
    totals = [group_scores(group, scores, aggregator) for group in groups]
    rows = [
        (group.problem_id, n, pass_at_n(group, n), majority_vote(group, n), pick_best(group, n, each),
         len(set(group.answers[:n]) - {None}), len({tuple(s.steps) for s in group.candidates[:n]}))
        for group, each in zip(groups, totals, strict=True)
        for n in ns
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["problem_id", "N", *BY_PROBLEM])


def pick_labels(
    groups: Sequence[Group], method: str, n: int, scores: StepScores | None = None, aggregator: str = "mean"
) -> list[str]:
    """The verdict ("correct", "wrong", "unknown") of what a method picks for each problem, so that unknown stays apart.

    method: "greedy", "first" (one blind draw), "majority_vote", or "best_of_n" with the step scores of a scorer.
    """
    if method == "greedy":
        return [group.greedy.verdict for group in groups]
    if method == "first":
        return [group.candidates[0].verdict for group in groups]
    if method == "majority_vote":
        return [group.candidates[majority_pick(group, n)].verdict for group in groups]
    if method != "best_of_n" or scores is None:
        raise ValueError(f"method {method!r}: use greedy, first, majority_vote, or best_of_n with step scores")
    picks = [int(np.argmax(group_scores(group, scores, aggregator)[:n])) for group in groups]
    return [group.candidates[pick].verdict for group, pick in zip(groups, picks, strict=True)]
