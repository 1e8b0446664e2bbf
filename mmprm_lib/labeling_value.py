"""What a PRM learns from labels of one price: the same tokens, the same number of updates, the same benchmark."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import benchmark, evaluation, label_selection, models, prm, stats
from .benchmark import Benchmark
from .generation import TransformersGenerator
from .labeling_cost import LabelSet, Rolled
from .schema import Problem, Solution, StepLabels, fingerprint, write_bytes
from .teachers import world_teacher

FORMAT = 1  # of what is kept of a trained PRM
COLUMNS = ["metric", *stats.Estimate._fields]
BLOCK = 100  # problems


def affordable(records: Sequence[StepLabels], extra: Mapping[str, int], budget: int) -> list[StepLabels]:
    """The records of the first problems whose tokens, with `extra[problem_id]` for its solutions, stay within `budget`.

    A problem is taken whole: solutions that share rollouts stay together.
    """
    cost: dict[str, int] = {}
    for record in records:
        cost.setdefault(record.problem_id, extra.get(record.problem_id, 0))
        cost[record.problem_id] += record.n_generated_tokens
    spent, bought = 0, set()
    for name, price in cost.items():
        spent += price
        if spent > budget:
            break
        bought.add(name)
    return [record for record in records if record.problem_id in bought]


def bought(
    rolled: Rolled, strategy: str, settings: Mapping[str, Any], solutions: Sequence[Solution],
    problems: Sequence[Problem], budget: int, seed: int, block: int = BLOCK,
) -> LabelSet:  # fmt: skip
    """The labels of as many problems, from the first on, as `budget` tokens pay, their solutions included.

    `block` problems are labelled at a time, until the budget is spent: at most so many are paid for in vain. n_tokens
    is what was spent; less than the budget if the problems run out.
    """
    sampled = strategy != "omegaprm"  # which grows its own solutions
    records: list[StepLabels] = []
    extra: dict[str, int] = {}
    for solution in solutions if sampled else ():
        extra[solution.problem_id] = extra.get(solution.problem_id, 0) + solution.n_tokens
    for start in range(0, len(problems), block):
        part = problems[start : start + block]
        names = {p.problem_id for p in part}
        mine = [s for s in solutions if s.problem_id in names] if sampled else []
        records += rolled.labels(strategy, settings, mine, part, seed).records
        paid = affordable(records, extra, budget)
        if len(paid) < len(records):
            break
    spent = sum(r.n_generated_tokens for r in paid)
    return LabelSet(paid, spent + sum(extra.get(name, 0) for name in {r.problem_id for r in paid}))


QUARTER = 0.25  # of the solutions, where a selection keeps a part: the share at which BIS is reported to suffice
NOISE = 0.2  # of the judge whose agreement is asked for: the world's truth with so many mistaken critiques


def chosen(
    labels: LabelSet, how: str, solutions: Sequence[Solution], problems: Sequence[Problem], seed: int
) -> LabelSet:
    """The labels that a selection keeps; n_tokens stays what all of them cost.

    how: "all"; "informative" (the quarter with the highest balanced information, arXiv 2602.04145, in each source);
    "random" (a quarter, its control); "up-sampled" (solutions with a negative step repeated until negatives are half of
    all steps); "agreed" (those where a judge, the world's truth with noise, finds the same first error).
    """
    records = labels.records
    if how == "informative":
        source = {p.problem_id: p.source for p in problems}
        scores = label_selection.balanced_information(records)
        records = label_selection.select_top(records, scores, QUARTER, [source[r.problem_id] for r in records])
    elif how == "random":
        records = random.Random(f"{seed}/quarter").sample(records, max(1, round(QUARTER * len(records))))
    elif how == "up-sampled":
        records = label_selection.upsample_negatives(records, 0.5, seed)
    elif how == "agreed":
        names = {r.solution_id for r in records}
        judged = world_teacher([s for s in solutions if s.solution_id in names], problems, seed, NOISE)
        judgements = label_selection.judgements_of(j.critique for j in judged)
        records = label_selection.agrees_with_judge(records, judgements).kept
    elif how != "all":
        raise ValueError(f"selection {how!r} is unknown: choose all, informative, random, up-sampled or agreed")
    return labels._replace(records=records)


def trained_on(
    labels: LabelSet, problems: Sequence[Problem], bench: Benchmark, folder: Path, *, start: str, n_updates: int,
    learning_rate: float, batch_size: int, bf16: bool, pack_size: int, threshold: float, dev_share: float, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """A marker PRM trained on hard labels from the checkpoint `start`, and its quality on the benchmark.

    One row per metric (macro_f1 at the threshold of the dev part, auroc, first_error_f1): metric, value, n, low, high.
    `n_updates` whatever the number of labels, so that only the labels differ. What was found is kept below `folder`
    under a key of labels, start, settings and benchmark, so that a killed run trains no PRM twice; the weights in
    `folder` are those of the last PRM trained.
    """
    vlm, processor = models.load(start)
    settings = dict(
        labels="hard", threshold=threshold, epochs=n_updates * batch_size / len(labels.records), seed=seed,
        learning_rate=learning_rate, batch_size=batch_size, bf16=bf16, pack_size=pack_size,
        marker_init=" True?" if start == "embedded" else "mean",
    )  # fmt: skip
    asked = [FORMAT, TransformersGenerator(vlm, processor).fingerprint, settings, dev_share, labels.records]
    images = {p.problem_id: p.image_sha256 for p in (*problems, *bench.problems)}
    kept = Path(folder) / "quality" / f"{fingerprint([*asked, images, bench.solutions, bench.labels])}.json"
    if kept.exists():
        return pd.DataFrame(json.loads(kept.read_text()), columns=COLUMNS)
    trained = prm.train("marker", labels.records, problems, vlm, processor, folder, **settings)
    scorer = trained.scorer(name=folder.name)
    scores = {r.solution_id: r.step_scores for r in scorer.score_records(bench.problems, bench.solutions)}
    dev, reported = evaluation.divide(bench, dev_share, seed)
    found = benchmark.report(
        reported.labels, evaluation.aligned(reported, scores), [p.source for p in _problems_of(reported)],
        evaluation.thresholds(dev, {"prm": scores})["prm"], [s.problem_id for s in reported.solutions], seed, 1000,
    )  # fmt: skip
    rows = [[name, *estimate] for name, estimate in found.items()]
    write_bytes(kept, [json.dumps(rows).encode()])
    return pd.DataFrame(rows, columns=COLUMNS)


def _problems_of(bench: Benchmark) -> list[Problem]:
    """The problem of each solution."""
    known = {p.problem_id: p for p in bench.problems}
    return [known[s.problem_id] for s in bench.solutions]


def purchases(bought: Mapping[tuple[str, int], LabelSet], budget: int) -> pd.DataFrame:
    """What the budget bought, one row per (strategy, seed): n_problems, n_solutions, n_steps, n_tokens, share_spent."""
    rows = []
    for (strategy, seed), found in bought.items():
        n_problems = len({r.problem_id for r in found.records})
        n_steps = sum(len(r.steps) for r in found.records)
        rows.append((strategy, seed, n_problems, len(found.records), n_steps, found.n_tokens, found.n_tokens / budget))
    names = ["strategy", "seed", "n_problems", "n_solutions", "n_steps", "n_tokens", "share_spent"]
    return pd.DataFrame(rows, columns=names)
