"""Numbers with their n and 95 % interval, and paired tests. The unit of resampling is the problem, not the step.

Steps of one solution and solutions of one problem share their errors, so an interval that draws them one by one is too
narrow. Every bootstrap here draws whole problems ("clusters"). Most metrics of the field are functions of sums over
problems (a mean, an F1), so a resample is a row of draw counts and all resamples together are one matrix product;
scipy.stats.bootstrap, which would gather every resample, gives the same interval (tested) and costs far more time and
memory on clusters. Every function is seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

Method = Literal["percentile", "bca"]
Statistic = Callable[[np.ndarray], np.ndarray]  # totals (..., n_columns) -> values (...)
_CHUNK = 4_000_000  # draws held in memory at once: 32 MB of counts


class Estimate(NamedTuple):
    """A value, its n and its 95 % interval (None where none applies): run.metric(key, **estimate._asdict())."""

    value: float
    n: int
    low: float | None
    high: float | None


EMPTY = Estimate(float("nan"), 0, None, None)


def cluster_index(clusters: Sequence[Hashable]) -> np.ndarray:
    """An integer array, shape (len(clusters),): equal names share a number; 0, 1, ... in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in clusters], dtype=np.int64)


def cluster_sums(rows: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """The sums of each cluster's rows: (n_rows, n_columns) -> (n_clusters, n_columns). None: each row is its own."""
    rows = np.asarray(rows, dtype=float)
    if clusters is None:
        return rows
    if len(clusters) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(clusters)} cluster names; give the problem id of every row")
    index = cluster_index(clusters)
    sums = np.zeros((int(index.max()) + 1 if len(index) else 0, rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums


def resamples(n_clusters: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (n_chunk, n_clusters) of how often each cluster is drawn in a resample; every row sums to n_clusters."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(n_clusters, 1))
    for start in range(0, n_resamples, size):
        n = min(size, n_resamples - start)
        draws = rng.integers(0, n_clusters, size=(n, n_clusters)) + n_clusters * np.arange(n)[:, None]
        yield np.bincount(draws.ravel(), minlength=n * n_clusters).reshape(n, n_clusters).astype(float)


def bootstrap_each(
    sums: ArrayLike, statistics: Mapping[str, tuple[Statistic, int]], *, method: Method = "percentile",
    n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0,
) -> dict[str, Estimate]:  # fmt: skip
    """Each statistic of the column totals with its bootstrap interval over clusters; all share their resamples.

    `sums` (n_clusters, n_columns) holds what each problem adds to the totals; `statistics[name]` is a function from
    totals (..., n_columns) to values (...), and the n to report. Resamples where it is undefined (nan) are left out.
    `bca` corrects bias and skew (Efron 1987; jackknife over clusters) and falls back to percentiles where the resamples
    do not vary. Fewer than two clusters give no interval.
    """
    sums = np.asarray(sums, dtype=float)
    if method not in get_args(Method):
        raise ValueError(f"method {method!r} is not known; use one of {', '.join(get_args(Method))}")
    if len(sums) == 0:
        return {name: EMPTY for name in statistics}
    ends = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    draws = resamples(len(sums), n_resamples, seed) if len(sums) > 1 else ()
    totals = np.concatenate([np.zeros((0, sums.shape[1])), *(weights @ sums for weights in draws)])
    found = {}
    for name, (statistic, n) in statistics.items():
        value = float(statistic(sums.sum(axis=0)))
        drawn = statistic(totals)
        drawn = drawn[np.isfinite(drawn)]
        low = high = None
        if len(drawn) and np.isfinite(value):
            bca = method == "bca"
            at = _bca_ends(ends, value, drawn, statistic(sums.sum(axis=0) - sums)) if bca else ends
            low, high = (float(end) for end in np.quantile(drawn, at))
        found[name] = Estimate(value, int(n), low, high)
    return found


def bootstrap(sums: ArrayLike, statistic: Statistic, n: int, **options: Any) -> Estimate:
    """One statistic with its bootstrap interval; the options are those of `bootstrap_each`."""
    return bootstrap_each(sums, {"value": (statistic, n)}, **options)["value"]


def _bca_ends(ends: np.ndarray, value: float, drawn: np.ndarray, jackknife: np.ndarray) -> np.ndarray:
    """The two quantiles of the resamples that BCa takes as ends (Efron & Tibshirani 1993, eq. 14.9 to 14.15)."""
    # ties count half: with few distinct values the plain share below would be biased
    share = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    spread = np.nanmean(jackknife) - jackknife[np.isfinite(jackknife)]
    if not 0 < share < 1 or not np.any(np.abs(spread) > 1e-12):
        return ends
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    bias, z = ndtri(share), ndtri(ends)
    return ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))


def _ratio(totals: np.ndarray) -> np.ndarray:
    # a resample always draws something, so the second column, a number of rows, is never 0
    return totals[..., 0] / totals[..., 1]


def mean(values: ArrayLike, clusters: Sequence[Hashable] | None = None, **options: Any) -> Estimate:
    """The mean of values with its interval over clusters (None: each value is its own).

    The options are those of `bootstrap_each`. ValueError on a nan: the caller must say what a missing value counts as.
    """
    values = _clean(values)
    sums = cluster_sums(np.stack([values, np.ones_like(values)], axis=1), clusters)
    return bootstrap(sums, _ratio, len(values), **options)


def share(outcomes: ArrayLike, clusters: Sequence[Hashable] | None = None, **options: Any) -> Estimate:
    """The share of outcomes, 0 or 1, that are 1: as `mean`. ValueError on other values.

    Where all are alike no resample differs, which is no certainty: then Wilson's interval, a trial for each cluster.
    """
    outcomes = _clean(outcomes)
    if not np.isin(outcomes, (0.0, 1.0)).all():
        raise ValueError("a share needs outcomes 0 or 1; for other values use mean")
    found = mean(outcomes, clusters, **options)
    n_clusters = len(outcomes) if clusters is None else len(set(clusters))
    if n_clusters < 2 or len(set(outcomes)) > 1:
        return found
    alike = wilson(n_clusters * int(outcomes[0]), n_clusters)
    return found._replace(low=alike.low, high=alike.high)


def column_means(matrix: ArrayLike, *, n_resamples: int = 2000, seed: int = 0) -> list[Estimate]:
    """The mean of each column (n_problems, n_columns), all on the same resamples; each equals `mean` of its column."""
    matrix = np.asarray(matrix, dtype=float)
    n = len(matrix)
    statistics = {str(j): (lambda totals, j=j: totals[..., j] / n, n) for j in range(matrix.shape[1])}
    return list(bootstrap_each(matrix, statistics, n_resamples=n_resamples, seed=seed).values())


def rates(
    table: pd.DataFrame, by: str | list[str], column: str, cluster: str = "problem_id", **options: Any
) -> pd.DataFrame:
    """The mean of `column` in each group of rows, with its interval over clusters: columns `by`, value, n, low, high.

    Rows where `column` is missing are left out; n counts the rest. Groups are sorted. No rows, no groups.
    """
    keys, known = [by] if isinstance(by, str) else list(by), table[table[column].notna()]
    rows = [
        (*names, *mean(part[column].astype(float), part[cluster].tolist(), **options))
        for names, part in known.groupby(keys)
    ]
    found = pd.DataFrame(rows, columns=[*keys, *Estimate._fields])
    return found.astype({"value": float, "low": float, "high": float})


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None = None, **options: Any
) -> Estimate:
    """The mean of a - b over problems, both drawn together, with a BCa interval; the options: see `bootstrap_each`.

    Row i of a and row i of b must be the same problem. ValueError on unequal lengths.
    """
    a, b = _clean(a), _clean(b)
    _same_length(a, b)
    return mean(a - b, clusters, **{"method": "bca", **options})


def mcnemar(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The exact two-sided p-value of "a and b are equally often right", from 0/1 outcomes per problem; n counts pairs.

    A binomial test on the problems where they differ (statsmodels, exact=True), so there is no interval. ValueError on
    outcomes other than 0 and 1: for an expected accuracy use paired_difference.
    """
    a, b = _clean(a), _clean(b)
    _same_length(a, b)
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError("McNemar's test needs outcomes 0 or 1; for expected accuracies use paired_difference")
    if len(a) == 0:
        return EMPTY
    table = [[np.sum((a == i) & (b == j)) for j in (1, 0)] for i in (1, 0)]
    return Estimate(float(_mcnemar(table, exact=True).pvalue), len(a), None, None)


def holm(p_values: ArrayLike) -> np.ndarray:
    """The p-values of one family of tests, adjusted by Holm's step-down rule (statsmodels); nan stays nan, uncounted.

    At most 5 % of such families hold an adjusted p below 0.05 where nothing differs, however the tests depend.
    """
    p = np.asarray(p_values, dtype=float)
    known, found = ~np.isnan(p), np.full(p.shape, np.nan)
    if known.any():
        found[known] = multipletests(p[known], method="holm")[1]
    return found


def problems_needed(a: ArrayLike, b: ArrayLike, power: float = 0.8, alpha: float = 0.05) -> float:
    """How many problems would settle it: with so many, a paired difference as large and as noisy as that of a and b is
    found (two-sided test at `alpha`) with the chance `power`. inf where a and b have equal means, nan without data.

    ((z_(1 - alpha / 2) + z_power) sd / difference)^2, the normal approximation. What it is computed from is itself an
    estimate: after a small study, read it as an order of magnitude.
    """
    a, b = _clean(a), _clean(b)
    _same_length(a, b)
    difference = a - b
    if not len(difference):
        return float("nan")
    if (gap := abs(difference.mean())) == 0:
        return float("inf")
    return max(2.0, float(np.ceil(((ndtri(1 - alpha / 2) + ndtri(power)) * difference.std() / gap) ** 2)))


def wilson(n_correct: int, n: int, confidence: float = 0.95) -> Estimate:
    """The rate n_correct / n with Wilson's score interval (statsmodels): independent trials only, one per problem."""
    if not 0 <= n_correct <= n:
        raise ValueError(f"{n_correct} correct of {n} is impossible")
    if n == 0:
        return EMPTY
    low, high = proportion_confint(n_correct, n, alpha=1 - confidence, method="wilson")
    return Estimate(n_correct / n, int(n), float(low), float(high))


def pass_at_k_each(n_correct: ArrayLike, n_samples: ArrayLike, k: int) -> np.ndarray:
    """Per problem the unbiased pass@k, 1 - C(n - c, k) / C(n, k), shape (n_problems,) (Chen et al. 2021, eq. 1).

    The chance that k of the n samples, drawn without replacement, hold at least one of the c correct ones.
    ValueError if n < k.
    """
    correct = np.asarray(n_correct, dtype=np.int64)
    samples = np.broadcast_to(np.asarray(n_samples, dtype=np.int64), correct.shape)
    if k < 1 or (samples < k).any():
        raise ValueError(f"pass@{k} needs k >= 1 and at least {k} samples of every problem; sample more or lower k")
    if (correct < 0).any() or (correct > samples).any():
        raise ValueError("the number of correct samples must lie between 0 and the number of samples")
    # C(n - c, k) / C(n, k) = product over i < k of (n - c - i) / (n - i): no large factorials, and 0 once n - c < k
    i = np.arange(k)
    misses = np.maximum(samples[..., None] - correct[..., None] - i, 0) / (samples[..., None] - i)
    return 1.0 - misses.prod(axis=-1)


def pass_at_k(n_correct: ArrayLike, n_samples: ArrayLike, k: int, **options: Any) -> Estimate:
    """The mean unbiased pass@k with its interval over problems, which n counts; options as in `bootstrap_each`."""
    return mean(pass_at_k_each(n_correct, n_samples, k), **options)


def auroc(
    positive: ArrayLike, scores: ArrayLike, clusters: Sequence[Hashable] | None = None, *, n_resamples: int = 500,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """The chance that a positive outscores a negative, ties half (sklearn), with a percentile interval over clusters.

    nan where a class is missing, as then nothing can be ranked; resamples without one of the classes are left out.
    """
    positive, scores = np.asarray(positive, dtype=bool), _clean(scores)
    _same_length(positive, scores)
    if len(scores) == 0:
        return EMPTY
    if positive.all() or not positive.any():
        return Estimate(float("nan"), len(scores), None, None)
    value = float(roc_auc_score(positive, scores))
    index = cluster_index(clusters) if clusters is not None else np.arange(len(scores))
    _same_length(index, scores)
    if index.max() == 0:
        return Estimate(value, len(scores), None, None)
    # each resample re-weights the steps, sorted once by score; steps of equal score are one group
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    chunks = resamples(int(index.max()) + 1, n_resamples, seed)
    drawn = np.concatenate([_weighted_auroc(rows, index[order], positive[order], starts) for rows in chunks])
    drawn = drawn[np.isfinite(drawn)]
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975])) if len(drawn) else (None, None)
    return Estimate(value, len(scores), low, high)


def _weighted_auroc(rows: np.ndarray, index: np.ndarray, positive: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The AUROC of each resample (a row of draw counts), nan where it lacks a class. Steps are sorted by score."""
    values = np.full(len(rows), np.nan)
    for b, row in enumerate(rows):  # one resample at a time keeps memory at a few vectors of n_steps
        weights = row[index]
        ups = np.add.reduceat(weights * positive, starts)
        downs = np.add.reduceat(weights * ~positive, starts)
        below = np.cumsum(downs) - downs
        total = ups.sum() * downs.sum()
        if total > 0:
            values[b] = (ups * (below + downs / 2)).sum() / total
    return values


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """F1 of the correct and of the incorrect class, shape (..., 2), from counts (..., 4) = (tp, fn, fp, tn).

    Positive is "correct"; F1 = 2 TP / (2 TP + FP + FN). Both are nan where the labels hold only one class: half of a
    macro F1 cannot be measured there (sklearn would put 0 or 1).
    """
    counts = np.asarray(counts, dtype=float)
    tp, fn, fp, tn = np.moveaxis(counts, -1, 0)
    measurable = (tp + fn > 0) & (tn + fp > 0)
    # the guard against 0 / 0 matters only where the result is nan anyway
    correct = 2 * tp / np.maximum(2 * tp + fp + fn, 1e-12)
    incorrect = 2 * tn / np.maximum(2 * tn + fp + fn, 1e-12)
    return np.where(measurable[..., None], np.stack([correct, incorrect], axis=-1), np.nan)


def macro_f1(
    correct: ArrayLike, predicted: ArrayLike, clusters: Sequence[Hashable] | None = None, **options: Any
) -> Estimate:
    """The mean of F1_correct and F1_incorrect of boolean labels and predictions, with its interval over clusters.

    The options are those of `bootstrap_each`.
    """
    y, p = np.asarray(correct, dtype=bool), np.asarray(predicted, dtype=bool)
    _same_length(y, p)
    sums = cluster_sums(np.stack([y & p, y & ~p, ~y & p, ~y & ~p], axis=1), clusters)
    return bootstrap(sums, lambda totals: f1_scores(totals).mean(axis=-1), len(y), **options)


def _clean(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any():
        n_missing = int(np.isnan(values).sum())
        raise ValueError(f"{n_missing} of {values.size} values are nan; decide first what a missing value counts as")
    return values


def _same_length(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired; give both for the same rows")
