"""One PRM at one point of a sweep: the labels it is given, its training, and its quality, problem by problem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import benchmark, evaluation, labeling_cost, models, prm, selection, stats
from .ablation import CONFUSION, FIRSTS
from .benchmark import Benchmark
from .schema import Problem, StepLabels
from .scoring import Scorer
from .selection import Group

FORMS = {True: "multiple choice", False: "fill-in"}


def training_labels(
    labels: Sequence[StepLabels], problems: Sequence[Problem], *, n_problems: int, n_solutions: int, k: int, seed: int
) -> list[StepLabels]:
    """Labels of the first `n_problems` train problems, the first `n_solutions` of each, `k` of each step's rollouts.

    `k` 0 takes all rollouts; which k is drawn by `seed`. ValueError if the labels do not have so many of any of these.
    """
    train = {p.problem_id for p in problems if p.split == "train"}
    by_problem: dict[str, list[StepLabels]] = {}
    for record in labels:
        if record.problem_id in train and record.steps:
            by_problem.setdefault(record.problem_id, []).append(record)
    if len(by_problem) < n_problems:
        raise ValueError(f"n_problems is {n_problems}: {len(by_problem)} train problems are labelled")
    if n_solutions > (most := max(map(len, by_problem.values()), default=0)):
        raise ValueError(f"n_solutions is {n_solutions}: {most} solutions of a problem are labelled")
    kept = [record for part in list(by_problem.values())[:n_problems] for record in part[:n_solutions]]
    return labeling_cost.thinned(kept, k, seed) if k else kept


def trained(
    records: Sequence[StepLabels], problems: Sequence[Problem], start: str | Path, folder: Path, *, labels: str,
    n_updates: int, batch_size: int, gradient_accumulation: int, pack_size: int, **options: Any,
) -> tuple[Scorer, list[dict]]:  # fmt: skip
    """(scorer, history) of a marker PRM trained from the checkpoint `start`, for `n_updates`.

    An update takes `batch_size * gradient_accumulation` solutions. The last is kept: no dev part chooses, so that
    points differ in what they are given and in nothing else.
    """
    vlm, processor = models.load(start)
    epochs = n_updates * batch_size * gradient_accumulation / len(records)
    found = prm.train(
        "marker", records, problems, vlm, processor, folder, labels=labels, epochs=epochs, batch_size=batch_size,
        gradient_accumulation=gradient_accumulation, pack_size=pack_size,
        marker_init=" True?" if start == "embedded" else "mean", **options,
    )  # fmt: skip
    return found.scorer(name=folder.name), found.history


class Judged(NamedTuple):
    """A scorer's quality: metric -> Estimate, and what each problem adds to it, a row per problem."""

    metrics: dict[str, stats.Estimate]
    problems: pd.DataFrame


def on_benchmark(scorer: Scorer, bench: Benchmark, dev_share: float, seed: int) -> Judged:
    """Every metric of `benchmark.report` at the threshold of the dev part, in all and by the form of the answer.

    problems: problem_id, form, CONFUSION (steps), FIRSTS (solutions); those of the dev part are left out.
    """
    scores = {r.solution_id: r.step_scores for r in scorer.score_records(bench.problems, bench.solutions)}
    dev, reported = evaluation.divide(bench, dev_share, seed)
    threshold = evaluation.thresholds(dev, {"prm": scores})["prm"]
    forms = {p.problem_id: FORMS[bool(p.choices)] for p in reported.problems}
    places, each = [s.problem_id for s in reported.solutions], evaluation.aligned(reported, scores)
    found = benchmark.report(reported.labels, each, [forms[p] for p in places], threshold, places, 0, 1000)
    flat, n = benchmark.flatten(reported.labels, each), len(places)
    counts = [benchmark.confusion(flat, n, threshold), benchmark.first_errors(flat, n, threshold)]
    rows = stats.cluster_sums(np.concatenate(counts, axis=1), places)
    table = pd.DataFrame(rows, columns=[*CONFUSION, *FIRSTS]).astype(int)
    names = list(dict.fromkeys(places))
    table = table.assign(problem_id=names, form=[forms[name] for name in names])
    return Judged(found | {"threshold": stats.Estimate(threshold, len(dev.solutions), None, None)}, table)


def in_choosing(
    scorer: Scorer, problems: Sequence[Problem], groups: Sequence[Group], n: int, aggregators: Sequence[str]
) -> Judged:
    """Best-of-n by the mean score and the other aggregators: metrics `best_of_n_<aggregator>`, in all and by form.

    problems: problem_id, form, and a column of 0 and 1 for each of the metrics.
    """
    candidates = [s for group in groups for s in group.candidates]
    scores = {r.solution_id: r.step_scores for r in scorer.score_records(problems, candidates)}
    table = pd.DataFrame({"problem_id": [p.problem_id for p in problems]})
    table["form"] = [FORMS[bool(p.choices)] for p in problems]
    found = {}
    for name in aggregators:
        key = f"best_of_n_{name}"
        table[key] = selection.outcomes(groups, "best_of_n", n, scores, name).astype(int)
        found[key] = stats.mean(table[key])
        for form, part in table.groupby("form", sort=False):
            found[f"{key}__{form.replace(' ', '_')}"] = stats.mean(part[key])
    return Judged(found, table)
