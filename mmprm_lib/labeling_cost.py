"""What a label costs and what it is worth: the same questions to every way of labeling, at every budget.

A label is compared with three things: the truth about its step, the truth about its prefix, and the *reference*, the
rate that hundreds of rollouts from the same prefix give, which is what all these labels estimate. Last steps are left
out: every way of labeling settles them by the solution's own verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from . import stats
from .generation import Generator, Sampling
from .label_quality import label_frame
from .labeling import _resumed as resumed
from .rollouts import Ask, Job, judge, mc_score, run_jobs
from .generation import Request
from .schema import Count, Id, Problem, Record, StepLabels, fingerprint

FORMAT = 1  # of the reference file
TRUTHS = {"step truth": "step_right", "prefix truth": "prefix_right", "reference": "reference_right"}
COLUMNS = ["against", "metric", *stats.Estimate._fields]


class PrefixCounts(Record):
    """How many of n rollouts from one prefix were right, and how many could not be judged."""

    prefix_id: Id
    problem_id: Id
    n_rollouts: Count
    n_correct: Count
    n_unknown: Count


def prefix_id(problem_id: str, steps: Sequence[str]) -> str:
    """The name of a beginning of a solution: equal for all solutions of the problem that begin so."""
    return f"{problem_id}/{fingerprint(list(steps))}"


def prefixes(records: Sequence[StepLabels]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """prefix_id -> (problem_id, steps) of all labelled steps but the last of each solution, without repetition."""
    found = {}
    for record in records:
        for t in range(len(record.steps) - 1):
            steps = tuple(record.steps[: t + 1])
            if record.mc_score[t] is not None:
                found[prefix_id(record.problem_id, steps)] = (record.problem_id, steps)
    return found


def reference_to(
    path: str | Path, wanted: Mapping[str, tuple[str, tuple[str, ...]]], problems: Collection[Problem],
    generator: Generator, n: int, sampling: Sampling,
) -> dict[str, float]:  # fmt: skip
    """prefix_id -> the rate of right answers among `n` rollouts, also in the file at `path`; a killed run goes on.

    A prefix whose rollouts could none of them be judged is left out. Give `sampling` a seed that no labeling has used.
    """
    by_id = {p.problem_id: p for p in problems}
    key = fingerprint(["reference", FORMAT, generator.fingerprint, sampling, n, sorted(wanted)])

    def job(name: str) -> Job[PrefixCounts]:
        problem, steps = by_id[wanted[name][0]], wanted[name][1]
        answers = yield [Ask(Request(problem, steps, name), n)]
        labels = [judge(problem, steps, completion).label for completion in answers[name]]
        return PrefixCounts(
            prefix_id=name, problem_id=problem.problem_id, n_rollouts=n,
            n_correct=labels.count("correct"), n_unknown=labels.count("unknown"),
        )  # fmt: skip

    def make(done: set[str]) -> Iterator[PrefixCounts]:
        return run_jobs((job(name) for name in wanted if name not in done), generator, sampling)

    counts = resumed(Path(path), PrefixCounts, key, list(wanted), make)
    rates = {c.prefix_id: mc_score(c.n_rollouts, c.n_correct, c.n_unknown) for c in counts}
    return {name: rate for name, rate in rates.items() if rate is not None}


def thinned(records: Sequence[StepLabels], k: int, seed: int = 0) -> list[StepLabels]:
    """The labels that k of each step's rollouts would have given, drawn at random without replacement.

    Solutions that share a prefix share its draw. Steps with fewer than k known rollouts keep what they have. Tokens are
    those of the records times k / n, rounded. ValueError if k is below 1 or above what was drawn.
    """
    n_drawn = max((n for r in records for n in r.n_rollouts if n is not None), default=0)
    if not 1 <= k <= n_drawn:
        raise ValueError(f"k is {k}: the steps have {n_drawn} rollouts, take k from 1 to that number")
    drawn: dict[str, int] = {}
    return [_thin(record, k, n_drawn, seed, drawn) for record in records]


def _thin(record: StepLabels, k: int, n_drawn: int, seed: int, drawn: dict[str, int]) -> StepLabels:
    kept = {"n_rollouts": list(record.n_rollouts), "n_correct": list(record.n_correct)}
    unknown, scores = list(record.n_unknown), list(record.mc_score)
    for t, (n, right, lost) in enumerate(zip(record.n_rollouts, record.n_correct, record.n_unknown, strict=True)):
        if n is None or n - lost < k:
            continue
        name = prefix_id(record.problem_id, record.steps[: t + 1])
        if name not in drawn:
            rng = np.random.default_rng(int(fingerprint([seed, k, name]), 16))
            drawn[name] = int(rng.hypergeometric(right, n - lost - right, k))
        kept["n_rollouts"][t], kept["n_correct"][t], unknown[t] = k, drawn[name], 0
        scores[t] = drawn[name] / k
    tokens = round(record.n_generated_tokens * k / n_drawn)
    return record.model_copy(
        update={**kept, "n_unknown": unknown, "mc_score": scores, "n_generated_tokens": tokens, "low": None, "high": None}
    )


def step_rows(
    records: Sequence[StepLabels], problems: Sequence[Problem], reference: Mapping[str, float], floor: float
) -> pd.DataFrame:
    """`label_quality.label_frame` without last steps, with `reference` (nan if unknown) and `reference_right`.

    reference_right: whether the reference rate is above `floor`, so that the policy can be said to still solve the
    problem from there; None where the rate is not known.
    """
    frame = label_frame(records, problems)
    names = [prefix_id(r.problem_id, r.steps[: t + 1]) for r in records for t in range(len(r.steps))]
    rates = pd.Series([reference.get(name, np.nan) for name in names], index=frame.index, dtype=float)
    right = (rates > floor).astype(object).where(rates.notna(), None)
    frame = frame.assign(reference=rates, reference_right=right)
    return frame[~frame["last"].astype(bool)].reset_index(drop=True)


def quality(rows: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """How good labels are, one row per comparison: against (a name of TRUTHS), metric, value, n, low, high.

    macro_f1: of the hard label mc_score > `threshold`; auroc: of mc_score itself; rmse: of mc_score against the
    reference rate, in [0, 1]; labelled: the share of steps that have a label. Intervals draw whole problems.
    """
    known = rows[rows["mc_score"].notna()]
    found = [("all steps", "labelled", stats.mean(rows["mc_score"].notna(), rows["problem_id"].tolist(), seed=seed))]
    for name, column in TRUTHS.items():
        part = known[known[column].notna()]
        if part.empty:
            continue
        right, score = part[column].astype(bool).to_numpy(), part["mc_score"].to_numpy(float)
        clusters = part["problem_id"].tolist()
        found.append((name, "macro_f1", stats.macro_f1(right, score > threshold, clusters, seed=seed)))
        found.append((name, "auroc", stats.auroc(right, score, clusters, seed=seed)))
        if name == "reference":
            squares = (score - part["reference"].to_numpy(float)) ** 2
            found.append((name, "rmse", _root(stats.mean(squares, clusters, seed=seed))))
    return pd.DataFrame([(against, metric, *e) for against, metric, e in found], columns=COLUMNS)


def _root(square: stats.Estimate) -> stats.Estimate:
    ends = (None if end is None else float(np.sqrt(max(end, 0.0))) for end in (square.low, square.high))
    return stats.Estimate(float(np.sqrt(square.value)), square.n, *ends)


def tokens(records: Sequence[StepLabels]) -> int:
    """All tokens that the labels took; those of the solutions are not among them."""
    return sum(record.n_generated_tokens for record in records)


def f1_gap(a: pd.DataFrame, b: pd.DataFrame, against: str, threshold: float = 0.0, seed: int = 0) -> stats.Estimate:
    """Macro F1 of the hard labels of `a` minus that of `b` on the steps that both label, whole problems drawn.

    a, b: `step_rows` of the same solutions. ValueError if they have no step in common.
    """
    keys, column = ["solution_id", "place"], TRUTHS[against]
    both = a[a[column].notna()].merge(b[[*keys, "mc_score"]], on=keys, suffixes=("_a", "_b"))
    both = both.dropna(subset=["mc_score_a", "mc_score_b"])
    if both.empty:
        raise ValueError("the two have no labelled step in common: compare labels of the same solutions")
    right = both[column].astype(bool).to_numpy()
    columns = []
    for side in ("mc_score_a", "mc_score_b"):
        one = both[side].to_numpy(float) > threshold
        columns += [right & one, right & ~one, ~right & one, ~right & ~one]  # tp, fn, fp, tn
    sums = stats.cluster_sums(np.stack(columns, axis=1), both["problem_id"].tolist())

    def gap(totals: np.ndarray) -> np.ndarray:
        return stats.f1_scores(totals[..., :4]).mean(-1) - stats.f1_scores(totals[..., 4:]).mean(-1)

    return stats.bootstrap(sums, gap, len(both), seed=seed)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of `value` and `n_tokens` per strategy, setting, against and metric, with the range of values.

    Columns: strategy, setting, against, metric, value, low, high (least and greatest seed), n_tokens, n_seeds, n.
    """
    keys = ["strategy", "setting", "against", "metric"]
    grouped = table.groupby(keys, sort=False)
    out = grouped.agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"), n_tokens=("n_tokens", "mean"),
        n_seeds=("seed", "nunique"), n=("n", "min"),
    )  # fmt: skip
    return out.reset_index()


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
