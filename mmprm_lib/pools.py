"""Refined Best-of-N: pools of initial and refined solutions, what is chosen from them, and what made the difference.

A pool is a `selection.Group` whose candidates are initial 0, refined 0, initial 1, refined 1, ..., so that its first N
are N / 2 of each, and every unscored method of `selection` holds for it. Source: GM-PRM (arXiv:2508.04088); the ties,
the accounts of tokens and the tables are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from . import stats
from .comparison import groups_of, paired_tests
from .critique import FORMATS, Format, opening, render, score
from .refinement import NEEDS_CRITIC
from .schema import Critique, Problem, Solution
from .selection import UNSCORED, Group, correct, first_n, majority_vote

Pools = Mapping[str, Sequence[Group]]  # mode -> the pools of the same problems
SolutionScores = Mapping[str, float]  # solution_id -> score, higher is better; -inf for what has none
NS = (2, 4, 8, 16)


def pools_of(problems: Sequence[Problem], initial: Sequence[Solution], refined: Sequence[Solution]) -> list[Group]:
    """One pool per problem. `refined[j]` fills the slot of `initial[j]`; ValueError if it is of another problem."""
    if len(initial) != len(refined):
        raise ValueError(f"{len(initial)} initial and {len(refined)} refined solutions: every initial one has one slot")
    for one, other in zip(initial, refined, strict=True):
        if one.problem_id != other.problem_id:
            raise ValueError(f"{other.solution_id!r} does not fill the slot of {one.solution_id!r}; keep their order")
    return groups_of(problems, [s for pair in zip(initial, refined, strict=True) for s in pair])


def critique_scores(
    solutions: Sequence[Solution], critiques: Sequence[Critique], how: str = "mean"
) -> dict[str, float]:
    """solution_id -> its score by its critique, -inf for one that could not be read.

    `how` is one of `critique.SCORES`; "mean" is the paper's. KeyError if a solution was not judged.
    """
    by_id = {c.solution_id: c for c in critiques}
    for solution in solutions:
        if solution.solution_id not in by_id:
            raise KeyError(f"solution {solution.solution_id!r} has no critique: score every candidate afresh first")
    return {s.solution_id: score(by_id[s.solution_id], len(s.steps), how) for s in solutions}


def pick(group: Group, n: int, scores: SolutionScores, decimals: int | None = None) -> int:
    """The index of the candidate that Refined Best-of-N takes among the first n.

    The highest score; of equals the one whose answer more candidates of the pool share; of equals the earliest, the
    initial ones before the refined. decimals: scores are rounded first, as a critic's lie close to 0 and 1 and ties
    would be decided by noise; None: as they are. ValueError if n is odd, too large, or a score is missing or nan.
    """
    if n % 2:
        raise ValueError(f"N is {n}: a pool holds as many refined solutions as initial ones, so take an even N")
    candidates, answers = first_n(group, n), list(group.answers[:n])
    if missing := next((s.solution_id for s in candidates if np.isnan(scores.get(s.solution_id, np.nan))), None):
        raise ValueError(f"solution {missing!r} has no score: score every candidate before selecting")

    def rank(i: int) -> tuple[float, int, int, int]:
        value = scores[candidates[i].solution_id]
        votes = 0 if answers[i] is None else answers.count(answers[i])
        return (value if decimals is None else round(value, decimals), votes, -(i % 2), -(i // 2))

    return max(range(n), key=rank)


def refined_best_of_n(
    groups: Sequence[Group], scores: SolutionScores, n: int, decimals: int | None = None
) -> np.ndarray:
    """The outcome of each problem, shape (n_groups,): 1.0 if the solution that `pick` takes is correct, else 0.0."""
    return np.array([correct(group.candidates[pick(group, n, scores, decimals)]) for group in groups])


def distinct_answers(group: Group, n: int) -> int:
    """How many different answers the first n candidates give; no answer is none."""
    return len({answer for answer in group.answers[:n] if answer is not None})


# -- tokens


def critique_tokens(
    critiques: Sequence[Critique], count: Callable[[str], int], form: Format = FORMATS["critique"]
) -> dict[str, int]:
    """solution_id -> the tokens that its critique took to write, by `count`, which counts the tokens of a text.

    The text is written out again, without how it was begun, and one token ends it. One that could not be read has left
    no text, and counts as the mean of the others. Critiques that the critic reused count in full: an account of a
    critic that judges every solution by itself.
    """
    begun = count(opening(1, form))
    known = {c.solution_id: count(render(c, form)) - begun + 1 for c in critiques if c.parse == "ok"}
    other = round(fmean(known.values())) if known else 0
    return {c.solution_id: known.get(c.solution_id, other) for c in critiques}


def token_account(
    groups: Sequence[Group], n: int, tokens: Mapping[str, int], mode: str, chosen: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Generated tokens of each problem, of the policy and of the critic, two arrays of shape (n_groups,).

    `tokens` are those of critiques. The critic judges the initial half before it is refined, if the mode needs that,
    and all N if a solution is `chosen` by its score; nothing is judged twice.
    """
    policy, critic = [], []
    for group in groups:
        candidates = first_n(group, n)
        policy.append(sum(s.n_tokens for s in candidates))
        read = candidates if chosen else candidates[::2] if mode in NEEDS_CRITIC else []
        critic.append(sum(tokens[s.solution_id] for s in read))
    return np.array(policy, dtype=float), np.array(critic, dtype=float)


class EqualTokens(NamedTuple):
    """A majority vote over plain samples that cost as much: an entry per problem in every array.

    `short`: the samples ran out before the budget did.
    """

    outcomes: np.ndarray
    n_samples: np.ndarray
    n_tokens: np.ndarray
    short: np.ndarray


def vote_at_equal_tokens(samples: Sequence[Group], budgets: ArrayLike) -> EqualTokens:
    """A majority vote over the fewest first samples of each problem whose tokens reach its budget (at least one).

    So the vote never gets less than what it is compared with, as long as the samples last.
    """
    budgets = np.asarray(budgets, dtype=float)
    if len(budgets) != len(samples):
        raise ValueError(f"{len(budgets)} budgets for {len(samples)} problems; give one each, in the same order")
    spent = [np.cumsum([s.n_tokens for s in group.candidates]) for group in samples]
    enough = [int(np.searchsorted(each, budget)) for each, budget in zip(spent, budgets, strict=True)]
    n = [min(place + 1, len(each)) for place, each in zip(enough, spent, strict=True)]
    return EqualTokens(
        np.array([majority_vote(group, k) for group, k in zip(samples, n, strict=True)]),
        np.array(n),
        np.array([float(each[k - 1]) for each, k in zip(spent, n, strict=True)]),
        np.array([place >= len(each) for place, each in zip(enough, spent, strict=True)]),
    )


# -- tables


def pool_table(
    pools: Pools, scores: SolutionScores, tokens: Mapping[str, int], ns: Sequence[int] = NS,
    decimals: int | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """One row per mode, method and N, with intervals over problems, all on the same resamples.

    Columns: mode, method, N, n_policy_tokens, n_critic_tokens (means per problem), value, n, low, high. Methods:
    best_of_n, majority_vote, pass_at_n and random are accuracies; distinct_answers counts those in the pool.
    """
    rows, columns = [], []
    for mode, groups in _same_problems(pools).items():
        for n in ns:
            found = {"best_of_n": refined_best_of_n(groups, scores, n, decimals), **_unscored(groups, n)}
            for method, column in found.items():
                policy, critic = token_account(groups, n, tokens, mode, chosen=method == "best_of_n")
                rows.append((mode, method, n, policy.mean(), critic.mean()))
                columns.append(column)
    return _estimated(rows, columns, seed)


def score_table(
    pools: Pools, by_score: Mapping[str, SolutionScores], ns: Sequence[int] = NS, decimals: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Refined Best-of-N under several kinds of score: one row per mode, score and N, all on the same resamples.

    `by_score`: the name of a score -> the scores of all candidates. Columns: mode, score, N, value, n, low, high.
    """
    rows, columns = [], []
    for mode, groups in _same_problems(pools).items():
        for how, scores in by_score.items():
            for n in ns:
                rows.append((mode, how, n))
                columns.append(refined_best_of_n(groups, scores, n, decimals))
    return _estimated(rows, columns, seed, ["mode", "score", "N"])


def sample_table(samples: Sequence[Group], ns: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """As `pool_table`, of the first N plain samples without a critic: rows of mode "samples" for the same figures."""
    rows, columns = [], []
    for n in ns:
        policy = np.mean([sum(s.n_tokens for s in first_n(group, n)) for group in samples])
        for method, column in _unscored(samples, n).items():
            rows.append(("samples", method, n, policy, 0.0))
            columns.append(column)
    return _estimated(rows, columns, seed)


def _unscored(groups: Sequence[Group], n: int) -> dict[str, np.ndarray]:
    functions = {**UNSCORED, "distinct_answers": distinct_answers}
    return {name: np.array([f(group, n) for group in groups], dtype=float) for name, f in functions.items()}


COLUMNS = ("mode", "method", "N", "n_policy_tokens", "n_critic_tokens")


def _estimated(
    rows: list[tuple], columns: list[np.ndarray], seed: int, names: Sequence[str] = COLUMNS
) -> pd.DataFrame:  # fmt: skip
    estimates = stats.column_means(np.stack(columns, axis=1), seed=seed)
    table = pd.DataFrame(rows, columns=list(names))
    return pd.concat([table, pd.DataFrame(estimates, columns=list(stats.Estimate._fields))], axis=1)


def equal_token_table(
    pools: Pools, samples: Sequence[Group], scores: SolutionScores, tokens: Mapping[str, int], ns: Sequence[int] = NS,
    decimals: int | None = None, seed: int = 0, main: str = "correction",
) -> pd.DataFrame:  # fmt: skip
    """Refined Best-of-N of `main` against a majority vote over plain samples of equal cost, by both accounts.

    Columns: N, account ("policy": tokens of the policy; "policy and critic": all), n_samples and n_tokens (means of the
    vote), share_short (samples ran out), refined, vote (accuracies), value (their difference), n, low, high, mcnemar_p.
    """
    rows = []
    groups = _same_problems({main: pools[main], "plain samples": samples})[main]
    for n in ns:
        policy, critic = token_account(groups, n, tokens, main)
        ours = refined_best_of_n(groups, scores, n, decimals)
        for account, budgets in (("policy", policy), ("policy and critic", policy + critic)):
            vote = vote_at_equal_tokens(samples, budgets)
            means = [float(np.mean(x)) for x in (vote.n_samples, vote.n_tokens, vote.short, ours, vote.outcomes)]
            difference = stats.paired_difference(ours, vote.outcomes, seed=seed)
            rows.append((n, account, *means, *difference, stats.mcnemar(ours, vote.outcomes).value))
    names = ["N", "account", "n_samples", "n_tokens", "share_short", "refined", "vote"]
    return pd.DataFrame(rows, columns=[*names, *stats.Estimate._fields, "mcnemar_p"])


def paired_table(
    pools: Pools, scores: SolutionScores, ns: Sequence[int] = NS, main: str = "correction",
    methods: Sequence[str] = ("best_of_n", "pass_at_n"), decimals: int | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """`main` against every other mode on the same problems, at every N.

    Columns: method, N, mode, other, value (difference), n, low, high, mcnemar_p, holm_p (adjusted for all rows of the
    table), problems_needed.
    """
    pools, parts = _same_problems(pools), []
    for method in methods:
        for n in ns:
            found = {
                mode: refined_best_of_n(groups, scores, n, decimals)
                if method == "best_of_n"
                else np.array([UNSCORED[method](group, n) for group in groups])
                for mode, groups in pools.items()
            }
            tests = paired_tests(found, main, list(found), seed=seed).rename(columns={"method": "mode"})
            parts.append(tests.assign(method=method, N=n))
    found = pd.concat(parts, ignore_index=True)
    found["holm_p"] = stats.holm(found["mcnemar_p"])
    return found[["method", "N", "mode", "other", *stats.Estimate._fields, "mcnemar_p", "holm_p", "problems_needed"]]


def _same_problems(pools: Pools) -> Pools:
    orders = {mode: [group.problem_id for group in groups] for mode, groups in pools.items()}
    first = next(iter(orders))
    for mode, order in orders.items():
        if order != orders[first]:
            raise ValueError(f"{mode!r} and {first!r} hold other problems or another order; they are compared by pairs")
    return pools
