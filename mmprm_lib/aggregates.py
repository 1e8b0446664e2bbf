"""The number that a published benchmark itself reports, from one verdict per problem, with what is unknown kept apart.

An unknown answer earns nothing (`value`), as in the published scripts; `most` is what the value would be if every
unknown one were right. The benchmark and the groups of its problems stand in `Problem.grading`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import registry, stats
from .schema import Problem

COLUMNS = ["metric", "value", "n", "low", "high", "n_unknown", "most", "n_left_out"]


def benchmark_of(problems: Sequence[Problem]) -> str:
    """The name of the benchmark that all the problems come from, "" where none or several do."""
    names = {p.grading["benchmark"] if p.grading and "benchmark" in p.grading else "" for p in problems}
    return names.pop() if len(names) == 1 else ""


def named(problems: Sequence[Problem]) -> str:
    """The benchmark, and whether the problems are all of it or a part, by bad rows or a smaller run; "" for none.

    A part is no number that could be put beside a published one.
    """
    if not (name := benchmark_of(problems)):
        return ""
    n, n_all = len({p.problem_id for p in problems}), registry.benchmark(name).n
    return f"{name}, all {n:,} questions" if n == n_all else f"{name}, A PART: {n:,} of its {n_all:,} questions"


def table(problems: Sequence[Problem], labels: Mapping[str, Sequence[str]], seed: int = 0) -> pd.DataFrame:
    """The benchmark's own aggregates of each method, a row each: method, then COLUMNS; no rows outside a benchmark.

    labels: method -> "correct", "wrong" or "unknown" of each problem. n counts problems, or groups where a group earns
    the points; groups that lack a variant are left out (`n_left_out`). Intervals: bootstrap over groups.
    """
    name, tables = benchmark_of(problems), []
    for method, each in labels.items() if name else ():
        if len(each) != len(problems):
            raise ValueError(f"{method}: {len(each)} verdicts for {len(problems)} problems")
        found = AGGREGATES[registry.benchmark(name).aggregate](problems, list(each), seed)
        tables.append(pd.DataFrame(found, columns=COLUMNS).assign(method=method))
    columns = ["method", *COLUMNS]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _row(
    metric: str, values: np.ndarray, most: np.ndarray, n_unknown: int, seed: int,
    clusters: Sequence[str] | None = None, left_out: int = 0,
) -> tuple:  # fmt: skip
    """One row of COLUMNS: values and most are what each problem or group earns, unknown as not right and as right."""
    if not len(values):
        return (metric, np.nan, 0, np.nan, np.nan, n_unknown, np.nan, left_out)
    estimate = stats.mean(values, clusters, seed=seed)
    return (metric, estimate.value, estimate.n, estimate.low, estimate.high, n_unknown, float(np.mean(most)), left_out)


def _right(labels: Sequence[str], unknown: bool) -> np.ndarray:
    return np.array([label == "correct" or (unknown and label == "unknown") for label in labels], dtype=float)


def _accuracy(problems: Sequence[Problem], labels: list[str], seed: int) -> list[tuple]:
    """The share of problems that are right, over all and within each variant (source, version, subject, skill)."""
    groups = [p.grading.get("group", p.problem_id) for p in problems]
    variants = [p.grading.get("variant", "") for p in problems]
    rows = []
    for variant in ["", *sorted(set(variants) - {""})]:
        inside = [i for i, value in enumerate(variants) if not variant or value == variant]
        found = [labels[i] for i in inside]
        name = f"accuracy__{re.sub('[^A-Za-z0-9.=-]+', '_', variant).strip('_')}" if variant else "accuracy"
        rows.append(_row(name, _right(found, False), _right(found, True), found.count("unknown"), seed,
                         [groups[i] for i in inside]))  # fmt: skip
    return rows


def _groups(problems: Sequence[Problem], labels: list[str]) -> dict[str, dict[str, str]]:
    """group -> variant -> label."""
    found: dict[str, dict[str, str]] = {}
    for problem, label in zip(problems, labels, strict=True):
        found.setdefault(problem.grading["group"], {})[problem.grading["variant"]] = label
    return found


def _worst_case(problems: Sequence[Problem], labels: list[str], seed: int) -> list[tuple]:
    """DynaMath: the average over all variants, and the share of questions of which every variant is right."""
    size = registry.benchmark(problems[0].grading["benchmark"]).group_size
    groups = _groups(problems, labels)
    whole = [list(group.values()) for group in groups.values() if len(group) == size]
    worst, most = (np.array([_right(group, unknown).min() for group in whole]) for unknown in (False, True))
    unknown = sum("unknown" in group for group in whole)
    average = _row("average_accuracy", _right(labels, False), _right(labels, True), labels.count("unknown"), seed,
                   [p.grading["group"] for p in problems])  # fmt: skip
    return [average, _row("worst_case_accuracy", worst, most, unknown, seed, left_out=len(groups) - len(whole))]


def _we_math(problems: Sequence[Problem], labels: list[str], seed: int) -> list[tuple]:
    """We-Math: accuracy of single steps and of whole problems, the four kinds of outcome, and the two scores.

    Of a problem with its k steps asked alone: insufficient knowledge (IK), the whole wrong and a step wrong; inadequate
    generalisation (IG), the whole wrong and every step right; rote memorisation (RM), the whole right and, strictly, a
    step wrong (loosely, all steps wrong); complete mastery (CM), the rest. A score is the mean of 1 for CM, 0.5 for IG,
    0 for RM and IK; RM is reported as a share of CM and RM, the others of all. An unknown answer counts as wrong in the
    kinds. (paper, section 2.3; the authors' four_dimensional_metrics.py as VLMEvalKit carries it)
    """
    groups = _groups(problems, labels)
    whole = [group for name, group in groups.items() if len(group) == int(name[0]) + 1]  # 2steps-17
    left_out, rows = len(groups) - len(whole), []
    for metric, end in (("one_step", ""), ("two_steps", "2steps_multi"), ("three_steps", "3steps_multi")):
        found = [label for group in whole for variant, label in group.items()
                 if (variant == end if end else not variant.endswith("multi"))]  # fmt: skip
        counted = _right(found, False), _right(found, True), found.count("unknown")
        rows.append(_row(f"accuracy__{metric}", *counted, seed, left_out=left_out))
    for mode in ("strict", "loose"):
        low, high = ([_outcome(group, mode, unknown) for group in whole] for unknown in (False, True))
        n_unknown = sum("unknown" in group.values() for group in whole)
        earned = [np.array([{"CM": 1.0, "IG": 0.5}.get(kind, 0.0) for kind in kinds]) for kinds in (low, high)]
        rows.append(_row(f"score_{mode}", *earned, n_unknown, seed, left_out=left_out))
        for kind in ("IK", "IG", "CM", "RM"):
            base = [each for each in low if kind != "RM" or each in ("CM", "RM")]
            share = np.array([float(each == kind) for each in base])
            row = _row(f"{kind}_{mode}", share, np.array([np.nan]), n_unknown, seed, left_out=left_out)
            rows.append(row)
    return rows


def _outcome(group: Mapping[str, str], mode: str, unknown: bool) -> str:
    """IK, IG, CM or RM of one problem."""
    steps = _right([label for variant, label in group.items() if not variant.endswith("multi")], unknown)
    whole = _right([label for variant, label in group.items() if variant.endswith("multi")], unknown)[0]
    if not whole:
        return "IG" if steps.all() else "IK"
    return "CM" if (steps.all() if mode == "strict" else steps.any()) else "RM"


AGGREGATES = {"accuracy": _accuracy, "worst_case": _worst_case, "we_math": _we_math}
