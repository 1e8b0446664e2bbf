"""Choosing one of N sampled solutions: Best-of-N under every aggregator, and what it must be compared with.

A `Group` is one problem with its candidates in sampling order. Every method gives one outcome per problem, 1.0 correct
and 0.0 wrong or unknown (an expected accuracy where it draws at random), so that two methods can be compared pair by
pair. A smaller N means the first N candidates, for every method: all of them choose from the same solutions. Ties go to
the candidate that was sampled first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from . import stats
from .schema import Solution

StepScores = Mapping[str, Sequence[float]]  # solution_id -> one score in [0, 1] per step

# Scores of 0 and 1 stand for 1e-7 and 1 - 1e-7 (float32 saturates there), so that logs and odds are finite and still
# grow with every score. MM-PRM's code puts -9999 for log 0 and 9999 for the odds of 1, which ranks p = 1 below
# p = 0.99995, and crashes at log(0 / 1).
_EPS = 1e-7


def _inside(p: np.ndarray) -> np.ndarray:
    return np.clip(p, _EPS, 1 - _EPS)


def _first_error(p: np.ndarray) -> float:
    wrong = np.flatnonzero(p < 0.5)
    return float(wrong[0]) / len(p) if len(wrong) else 1.0


# Step scores (n_steps,) of a solution with at least one step -> its score; higher is better.
# The first eight are those of MM-PRM's code (their names there: average, mean_odd); `first`, `geometric_mean` and
# `first_error` (the share of steps before the first one under 0.5) are among those that VisualPRM left untested.
AGGREGATORS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda p: float(p.mean()),
    "min": lambda p: float(p.min()),
    "last": lambda p: float(p[-1]),
    "product": lambda p: float(p.prod()),
    "max": lambda p: float(p.max()),
    "sum_logprob": lambda p: float(np.log(_inside(p)).sum()),
    "sum_logit": lambda p: float((np.log(_inside(p)) - np.log1p(-_inside(p))).sum()),
    "mean_odds": lambda p: float((_inside(p) / (1 - _inside(p))).mean()),
    "geometric_mean": lambda p: float(np.exp(np.log(_inside(p)).mean())),
    "first": lambda p: float(p[0]),
    "first_error": _first_error,
}

# A vote adds scores up. Where a score can be negative, agreement would count against an answer.
VOTING_AGGREGATORS = tuple(name for name in AGGREGATORS if name not in ("sum_logprob", "sum_logit"))


class Group(NamedTuple):
    """One problem: its candidates in sampling order, and the greedy solution if there is one.

    `answers` holds a canonical key of each candidate's answer (answers.normal_form), None where there is no answer.
    """

    problem_id: str
    candidates: Sequence[Solution]
    answers: Sequence[str | None]
    greedy: Solution | None = None


def solution_scores(step_scores: Sequence[ArrayLike], aggregator: str) -> np.ndarray:
    """One score per solution, shape (n_solutions,), from the step scores of each.

    A solution without steps scores -inf, so it wins only where all are empty (in MM-PRM's code it scores 0 and wins
    under sum_logprob). ValueError on an unknown aggregator, or a step score outside [0, 1] or nan.
    """
    if aggregator not in AGGREGATORS:
        raise ValueError(f"aggregator {aggregator!r} is not known; use one of {', '.join(AGGREGATORS)}")
    arrays = [np.asarray(scores, dtype=float) for scores in step_scores]
    for i, p in enumerate(arrays):
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"solution {i} has step scores {p.tolist()}; each must lie in [0, 1]")
    return np.array([AGGREGATORS[aggregator](p) if p.size else -np.inf for p in arrays])


def group_scores(group: Group, scores: StepScores, aggregator: str) -> np.ndarray:
    """The score of each candidate, shape (n_candidates,). ValueError if one has no scores or the wrong number."""
    for solution in group.candidates:
        if solution.solution_id not in scores:
            raise ValueError(f"solution {solution.solution_id!r} has no scores: score every candidate before selecting")
        # an ORM gives one score for the whole solution
        if len(scores[solution.solution_id]) not in (len(solution.steps), min(len(solution.steps), 1)):
            n = len(scores[solution.solution_id])
            raise ValueError(f"solution {solution.solution_id!r} has {n} scores for {len(solution.steps)} steps")
    return solution_scores([scores[solution.solution_id] for solution in group.candidates], aggregator)


def correct(solution: Solution) -> float:
    """1.0 if the verdict is correct, else 0.0: an answer that could not be judged earns nothing."""
    return float(solution.verdict == "correct")


def first_n(group: Group, n: int) -> Sequence[Solution]:
    """The first n candidates. ValueError if there are fewer: a smaller set under the name of N would mislead."""
    name, n_candidates = group.problem_id, len(group.candidates)
    if not 1 <= n <= n_candidates:
        raise ValueError(f"problem {name!r} has {n_candidates} candidates, N = {n} needs more: sample more or lower N")
    if len(group.answers) != n_candidates:
        raise ValueError(f"problem {name!r}: {len(group.answers)} answers for {n_candidates} candidates")
    return group.candidates[:n]


def best_of_n(candidates: Sequence[Solution], scores: StepScores, n: int, aggregator: str = "mean") -> Solution:
    """The solution with the highest score among the first n candidates of one problem."""
    group = Group(candidates[0].problem_id if candidates else "?", candidates, [s.answer for s in candidates])
    first_n(group, n)
    return candidates[int(np.argmax(group_scores(group, scores, aggregator)[:n]))]


def _winner(answers: Sequence[str | None], weights: ArrayLike) -> int:
    """The index of the first candidate whose answer has the highest total weight. None does not vote; all None: 0."""
    totals: dict[str, float] = {}
    for answer, weight in zip(answers, np.asarray(weights, dtype=float), strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + float(weight)
    # max keeps the first of equals, and a dict the order of first appearance
    return list(answers).index(max(totals, key=totals.__getitem__)) if totals else 0


# Per problem: the outcome under each method, from a group, N, and the scores of all its candidates.


def pick_best(group: Group, n: int, scores: np.ndarray) -> float:
    """Best-of-N: the outcome of the highest score."""
    return correct(first_n(group, n)[int(np.argmax(scores[:n]))])


def weighted_vote(group: Group, n: int, scores: np.ndarray) -> float:
    """The outcome of the answer with the highest sum of solution scores; an empty solution adds nothing.

    ValueError on a negative score, which would turn agreement against an answer.
    """
    weights = np.where(np.isneginf(scores[:n]), 0.0, scores[:n])
    if (weights < 0).any():
        raise ValueError(f"a vote cannot add negative scores up; use one of {', '.join(VOTING_AGGREGATORS)}")
    return correct(first_n(group, n)[_winner(group.answers[:n], weights)])


def majority_vote(group: Group, n: int) -> float:
    """The outcome of the most frequent answer (self-consistency, Wang et al. 2022)."""
    return correct(first_n(group, n)[_winner(group.answers[:n], np.ones(n))])


def random_choice(group: Group, n: int) -> float:
    """The expected accuracy of drawing one of the first n: their mean, which is pass@1 estimated on n samples."""
    return float(np.mean([correct(solution) for solution in first_n(group, n)]))


def pass_at_n(group: Group, n: int) -> float:
    """1.0 if any of the first n is correct: the ceiling of every method that selects one of them."""
    return max(correct(solution) for solution in first_n(group, n))


def greedy(group: Group) -> float:
    """The outcome of the greedy solution. ValueError if the group has none."""
    if group.greedy is None:
        raise ValueError(f"problem {group.problem_id!r} has no greedy solution: decode one at temperature 0 first")
    return correct(group.greedy)


UNSCORED = {"random": random_choice, "majority_vote": majority_vote, "pass_at_n": pass_at_n}
SCORED = {"best_of_n": pick_best, "weighted_vote": weighted_vote}


def outcomes(
    groups: Sequence[Group], method: str, n: int, scores: StepScores | None = None, aggregator: str = "mean"
) -> np.ndarray:
    """The outcome of each problem, shape (n_groups,), for paired tests between any two methods.

    `method`: random, majority_vote, pass_at_n, greedy (n is not used), or, with the step scores of a scorer, best_of_n
    or weighted_vote.
    """
    if method == "greedy":
        return np.array([greedy(group) for group in groups])
    if method in UNSCORED:
        return np.array([UNSCORED[method](group, n) for group in groups])
    if method not in SCORED:
        raise ValueError(f"method {method!r} is not known; use greedy, {', '.join(UNSCORED)} or {', '.join(SCORED)}")
    if scores is None:
        raise ValueError(f"{method} needs the step scores of a scorer")
    return np.array([SCORED[method](group, n, group_scores(group, scores, aggregator)) for group in groups])


def selection_table(
    groups: Sequence[Group],
    scorers: Mapping[str, StepScores],
    ns: Sequence[int] = (1, 2, 4, 8, 16),
    aggregators: Sequence[str] | Mapping[str, Sequence[str]] = tuple(AGGREGATORS),
    seed: int = 0,
) -> pd.DataFrame:
    """One row per method, scorer, aggregator and N: the accuracy with its bootstrap interval over problems.

    Columns: method, scorer, aggregator ("" where none), N, value, n, low, high. All rows share their resamples.
    `aggregators` is one list for all scorers, or one per scorer (an ORM gives one score a solution: ["last"] says it
    all). Weighted votes leave out the aggregators that can be negative.
    """
    rows: list[tuple[str, str, str, int]] = []
    columns: list[np.ndarray] = []

    def add(row: tuple[str, str, str, int], column: Sequence[float]) -> None:
        rows.append(row)
        columns.append(np.asarray(column, dtype=float))

    if groups and all(group.greedy is not None for group in groups):
        add(("greedy", "", "", 1), [greedy(group) for group in groups])
    for method, function in UNSCORED.items():
        for n in ns:
            add((method, "", "", n), [function(group, n) for group in groups])
    for scorer, scores in scorers.items():
        for aggregator in aggregators[scorer] if isinstance(aggregators, Mapping) else aggregators:
            scored = [(group, group_scores(group, scores, aggregator)) for group in groups]
            for method, function in SCORED.items():
                if method == "weighted_vote" and aggregator not in VOTING_AGGREGATORS:
                    continue
                for n in ns:
                    add((method, scorer, aggregator, n), [function(group, n, each) for group, each in scored])
    found = stats.column_means(np.stack(columns, axis=1), seed=seed)
    table = pd.DataFrame(rows, columns=["method", "scorer", "aggregator", "N"])
    return pd.concat([table, pd.DataFrame(found, columns=list(stats.Estimate._fields))], axis=1)


def candidate_table(
    groups: Sequence[Group], scorers: Mapping[str, StepScores], aggregators: Sequence[str] = ("mean",)
) -> pd.DataFrame:
    """One row per candidate, scorer and aggregator, so that a score can be plotted against length and verdict.

    Columns: problem_id, solution_id, index (from 0), n_steps, n_tokens, verdict, scorer, aggregator, score.
    """
    rows = [
        (group.problem_id, s.solution_id, index, len(s.steps), s.n_tokens, s.verdict, scorer, aggregator, score)
        for scorer, scores in scorers.items()
        for aggregator in aggregators
        for group in groups
        for index, (s, score) in enumerate(zip(group.candidates, group_scores(group, scores, aggregator), strict=True))
    ]
    names = ["problem_id", "solution_id", "index", "n_steps", "n_tokens", "verdict", "scorer", "aggregator", "score"]
    return pd.DataFrame(rows, columns=names)
