"""What many points of a sweep say together.

Two things make two points differ by chance: which problems they are judged on, and the seed of the training. Both are
told apart here: an interval over problems (the seeds as they are, every problem paired with itself), and one over seeds
(the problems as they are, every seed paired with itself).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from . import benchmark, stats

CONFUSION = ["tp", "fn", "fp", "tn"]
FIRSTS = ["erroneous", "found", "error_free", "passed"]


def _f1(counts: np.ndarray) -> np.ndarray:
    return stats.f1_scores(counts).mean(axis=-1)


def _share(totals: np.ndarray) -> np.ndarray:
    return totals[..., 0] / np.maximum(totals[..., 1], 1)


MEASURES: dict[str, tuple[list[str], Callable[[np.ndarray], np.ndarray]]] = {
    "macro_f1": (CONFUSION, _f1),
    "first_error_f1": (FIRSTS, benchmark.first_error_f1),
    "best_of_n_mean": (["best_of_n_mean", "one"], _share),
    "best_of_n_min": (["best_of_n_min", "one"], _share),
    "best_of_n_last": (["best_of_n_last", "one"], _share),
}  # measure -> the columns of a table of problems, and what their totals (..., column) give


def _cube(table: pd.DataFrame, measure: str) -> tuple[np.ndarray, list[int]]:
    """What each problem adds in each seed, (problem, seed, column), and the seeds; ValueError if a seed lacks some."""
    columns, _ = MEASURES[measure]
    part = table.assign(one=1).dropna(subset=columns).sort_values(["seed", "problem_id"])
    seeds = sorted(part["seed"].unique())
    blocks = [part[part["seed"] == s] for s in seeds]
    if any(list(b["problem_id"]) != list(blocks[0]["problem_id"]) for b in blocks):
        raise ValueError(f"{measure}: the seeds {seeds} were judged on different problems; run their points again")
    return np.stack([b[columns].to_numpy(float) for b in blocks], axis=1), seeds


COMPARED = ["measure", "value", "n", "low", "high", "n_seeds", "seed_sd", "seed_low", "seed_high", "p_seeds"]


def level(table: pd.DataFrame, measure: str, seed: int = 0) -> dict[str, Any]:
    """A measure of one setting, the mean over its seeds, as COMPARED: n problems with the interval over them, and what
    the seeds differ by (sd, the t interval of their mean).
    """
    cube, _ = _cube(table, measure)
    return _summary(cube, MEASURES[measure][1], measure, seed)


def difference(a: pd.DataFrame, b: pd.DataFrame, measure: str, seed: int = 0) -> dict[str, Any]:
    """A measure of `a` minus that of `b`, as COMPARED: the same problems and the same seeds on both sides.

    ValueError if the seeds or the problems differ. p_seeds: Student's t on the seeds' differences.
    """
    (one, seeds), (two, others) = _cube(a, measure), _cube(b, measure)
    if seeds != others or one.shape != two.shape:
        raise ValueError(f"{measure}: seeds {seeds} against {others}, {len(one)} problems against {len(two)}: no pairs")
    statistic, width = MEASURES[measure][1], one.shape[2]
    both = np.concatenate([one, two], axis=2)
    return _summary(both, lambda t: statistic(t[..., :width]) - statistic(t[..., width:]), measure, seed)


def _summary(
    cube: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], measure: str, seed: int
) -> dict[str, Any]:
    """COMPARED of a statistic of totals (..., column) in a cube (problem, seed, column); `seed` is the bootstrap's."""
    n_problems, n_seeds, width = cube.shape

    def over_seeds(totals: np.ndarray) -> np.ndarray:
        return statistic(totals.reshape(*totals.shape[:-1], n_seeds, width)).mean(axis=-1)

    value, n, low, high = stats.bootstrap(cube.reshape(n_problems, -1), over_seeds, n_problems, method="bca", seed=seed)
    each = statistic(cube.sum(axis=0))
    return dict(zip(COMPARED, (measure, value, n, low, high, n_seeds, *of_seeds(each)), strict=True))


def of_seeds(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(sd, low, high, p) of the seeds' mean: the t interval and the two-sided p of its being 0; nan for one seed.

    Seeds that agree but for rounding, as counts of a few problems may, tell nothing of their spread: no interval, and p
    is nan unless the mean is 0.
    """
    each = np.asarray(values, dtype=float)
    if len(each) < 2:
        return (float("nan"),) * 4
    sd, error = float(each.std(ddof=1)), float(each.std(ddof=1)) / np.sqrt(len(each))
    if sd < 1e-12:
        return 0.0, float("nan"), float("nan"), 1.0 if abs(each.mean()) < 1e-12 else float("nan")
    half = student.ppf(0.975, len(each) - 1) * error
    p = 2 * student.sf(abs(each.mean()) / error, len(each) - 1)
    return sd, float(each.mean() - half), float(each.mean() + half), float(p)


def compared(
    table: pd.DataFrame, by: str, base: str, measures: Sequence[str], keep: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """`difference` of every setting in the column `by` to `base`, a row per setting and measure, with `holm`: p_seeds
    corrected for all rows. `keep` are columns with one value each, for the rows of a larger table.
    """
    settings = [name for name in table[by].unique() if name != base]
    against = table[table[by] == base]
    rows = [
        {by: name, **(keep or {}), **difference(table[table[by] == name], against, measure, seed)}
        for measure in measures
        for name in settings
    ]
    found = pd.DataFrame(rows, columns=[by, *(keep or {}), *COMPARED])
    return found.assign(holm=stats.holm(found["p_seeds"]) if found["p_seeds"].notna().all() else np.nan)


def levels(table: pd.DataFrame, by: Sequence[str], measures: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """`level` of every setting (a combination of the columns `by`) in every measure."""
    rows = []
    for names, part in table.groupby(list(by), sort=False):
        setting = dict(zip(by, names, strict=True))
        rows += [{**setting, **level(part, measure, seed)} for measure in measures]
    return pd.DataFrame(rows, columns=[*by, *COMPARED])


def shares(table: pd.DataFrame, by: Sequence[str], measures: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """As `levels`, of columns that hold a value of each problem, where no seed was varied: only problems are drawn."""
    rows = []
    for names, part in table.groupby(list(by), sort=False):
        for measure in measures:
            tail = (measure, *stats.mean(part[measure], seed=seed), 1, *of_seeds([]))
            rows.append({**dict(zip(by, names, strict=True)), **dict(zip(COMPARED, tail, strict=True))})
    return pd.DataFrame(rows, columns=[*by, *COMPARED])


def share_differences(
    table: pd.DataFrame, by: str, base: Any, measures: Sequence[str], within: Sequence[str] = (), seed: int = 0
) -> pd.DataFrame:
    """Every setting in `by` minus `base`, problem by problem, within each combination of the columns `within`.

    Columns: `within`, `by`, measure, value, n, low, high (BCa over problems), p (McNemar's, nan where it has none), and
    `holm`, p corrected for all rows. ValueError if a setting was judged on other problems than `base`.
    """
    rows = []
    for names, part in table.groupby(list(within), sort=False) if within else [((), table)]:
        wide = part.pivot(index="problem_id", columns=by, values=list(measures))
        if wide.isna().any(axis=None):
            raise ValueError(f"the settings of {by} were judged on different problems; run their points again")
        for measure, name in itertools.product(measures, [n for n in part[by].unique() if n != base]):
            a, b = wide[measure][name], wide[measure][base]
            binary = set(np.unique([a, b])) <= {0.0, 1.0}
            p = stats.mcnemar(a, b).value if binary else np.nan
            rows.append((*names, name, measure, *stats.paired_difference(a, b, seed=seed), p))
    found = pd.DataFrame(rows, columns=[*within, by, "measure", "value", "n", "low", "high", "p"])
    known = found["p"].notna()
    found.loc[known, "holm"] = stats.holm(found.loc[known, "p"])
    return found


def seeds_of(metrics: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """As `levels`, of a metric that is no sum over problems (AUROC): only what the seeds differ by is known of it."""
    rows = []
    for names, part in metrics[metrics["metric"] == metric].groupby(list(by), sort=False):
        setting, values = dict(zip(by, names, strict=True)), part["value"].astype(float)
        tail = (metric, values.mean(), int(part["n"].min()), np.nan, np.nan, len(part), *of_seeds(values))
        rows.append({**setting, **dict(zip(COMPARED, tail, strict=True))})
    return pd.DataFrame(rows, columns=[*by, *COMPARED])


def seed_differences(metrics: pd.DataFrame, by: str, base: str, metric: str) -> pd.DataFrame:
    """As `compared`, of a metric that is no sum over problems: every seed minus the same seed of `base`.

    ValueError if a setting and `base` have no seed in common.
    """
    wide = metrics[metrics["metric"] == metric].pivot(index="seed", columns=by, values="value")
    rows = []
    for name in [n for n in metrics[by].unique() if n != base]:
        each = (wide[name] - wide[base]).dropna()
        if each.empty:
            raise ValueError(f"{name!r} and {base!r} have no seed in common: run their points")
        n = int(metrics[(metrics["metric"] == metric) & (metrics[by] == name)]["n"].min())
        tail = (metric, each.mean(), n, np.nan, np.nan, len(each), *of_seeds(each))
        rows.append({by: name, **dict(zip(COMPARED, tail, strict=True))})
    found = pd.DataFrame(rows, columns=[by, *COMPARED])
    return found.assign(holm=stats.holm(found["p_seeds"]))


def each_seed(
    problems: pd.DataFrame, metrics: pd.DataFrame, by: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Every seed by itself: a row per setting, seed and measure (`by`, seed, measure, value), as dots for a figure.

    A measure that is no sum over problems is taken from `metrics`.
    """
    rows = []
    for names, part in problems.groupby([*by, "seed"], sort=False):
        setting = dict(zip([*by, "seed"], names, strict=True))
        for measure in (m for m in measures if m in MEASURES):
            cube, _ = _cube(part, measure)
            rows.append({**setting, "measure": measure, "value": float(MEASURES[measure][1](cube.sum(axis=(0, 1))))})
    rest = metrics[metrics["metric"].isin(set(measures) - set(MEASURES))].rename(columns={"metric": "measure"})
    return pd.concat([pd.DataFrame(rows), rest[[*by, "seed", "measure", "value"]]], ignore_index=True)


def target_names(points: pd.DataFrame) -> pd.Series:
    """What each point was taught, in words: "soft", "hard > 0", "hard > 1/16", "counts", "advantage"."""
    thresholds = points["threshold"].fillna(0.0) if "threshold" in points else pd.Series(0.0, points.index)
    names = [
        f"hard > {Fraction(threshold).limit_denominator(1024)}" if target == "hard" else target
        for target, threshold in zip(points["target"], thresholds, strict=True)
    ]
    return pd.Series(names, index=points.index)


def counted(grid: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """How many points of every setting are finished: the columns `by`, n_points, and `finished`."""
    counted = grid.groupby(list(by), sort=False, dropna=False)["done"].agg(["size", "sum"]).reset_index()
    return counted.rename(columns={"size": "n_points", "sum": "finished"})
