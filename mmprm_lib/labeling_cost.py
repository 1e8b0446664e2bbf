"""What a label costs and what it is worth: the same questions to every way of labeling, at every budget.

A label is compared with three things: the truth about its step, the truth about its prefix, and the *reference*, the
rate that hundreds of rollouts from the same prefix give, which is what all these labels estimate. Last steps that the
solution's own verdict settles are left out: they cost nothing and are the same for every way of labeling.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import adaptive, labeling, omegaprm, stats
from .generation import Generator, Request, Sampling
from .label_quality import label_frame
from .labeling_files import resumed
from .rollouts import Ask, Job, judge, mc_score, run_jobs
from .schema import Count, Id, Problem, Record, Solution, StepLabels, fingerprint
from .trees import labels_of, paths

FORMAT = 1  # of the reference file
TRUTHS = {"step truth": "step_right", "prefix truth": "prefix_right", "reference": "reference_right"}
REFERENCE_SEED = 1_000_003  # added to the seed of the labels
Prefix = tuple[str, tuple[str, ...]]  # problem_id, steps
COLUMNS = ["against", "metric", *stats.Estimate._fields]


class LabelSet(NamedTuple):
    """Labels made in one way with one seed, and the tokens that they took (those of solutions are not among them)."""

    records: list[StepLabels]
    n_tokens: int

    def thinned(self, k: int, seed: int = 0) -> LabelSet:
        """What k of each step's rollouts would have given, and their share of the tokens; see `thinned`."""
        records = thinned(self.records, k, seed)
        return LabelSet(records, sum(r.n_generated_tokens for r in records))


Sets = Mapping[tuple[str, str, int], LabelSet]  # (strategy, setting, seed) -> labels


@dataclass(frozen=True)
class Rolled:
    """Labels by any strategy, each in a file of its own below `folder`, so that a killed run goes on."""

    folder: Path
    generator: Generator
    sampling: Sampling

    def labels(
        self, strategy: str, settings: Mapping[str, Any], solutions: Sequence[Solution], problems: Sequence[Problem],
        seed: int,
    ) -> LabelSet:  # fmt: skip
        """Labels of the solutions, or, by "omegaprm", of the paths of trees of the problems, drawn with `seed`.

        settings: fields of `labeling.Options`, `adaptive.Options` or `omegaprm.Options`.
        """
        name = fingerprint([strategy, dict(settings), seed, [p.problem_id for p in problems], len(solutions)])
        path, sampling = self.folder / f"{strategy}_{name}.jsonl", replace(self.sampling, seed=seed)
        if strategy == "omegaprm":
            trees = omegaprm.trees_to(path, problems, self.generator, omegaprm.Options(**settings), sampling)
            # MM-PRM leaves out rows of at most 10 words; short solutions would nearly all be lost
            pairs = zip(trees, problems, strict=True)
            found = [labels_of(tree, problem, paths(tree, min_words=0)) for tree, problem in pairs]
            return LabelSet([r for part in found for r in part], sum(tree.n_generated_tokens or 0 for tree in trees))
        if strategy == "adaptive":
            options = labeling.Options("adaptive", adaptive=adaptive.Options(**_tuples(settings)))
        else:
            options = labeling.Options(strategy, **settings)
        records = list(labeling.labels_to(path, solutions, problems, self.generator, options, sampling))
        return LabelSet(records, sum(r.n_generated_tokens for r in records))

    def reference(
        self, path: Path, wanted: Mapping[str, Prefix], problems: Sequence[Problem], n: int
    ) -> dict[str, float]:
        """`reference_to` with random numbers that no strategy uses."""
        sampling = replace(self.sampling, seed=self.sampling.seed + REFERENCE_SEED)
        return reference_to(path, wanted, problems, self.generator, n, sampling)


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with lists, which parameter files have, as the tuples that frozen options want."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


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


def prefixes(records: Sequence[StepLabels]) -> dict[str, Prefix]:
    """prefix_id -> (problem_id, steps) of all labelled steps but the last of each solution, without repetition."""
    found = {}
    for record in records:
        for t in range(len(record.steps) - 1):
            steps = tuple(record.steps[: t + 1])
            if record.mc_score[t] is not None:
                found[prefix_id(record.problem_id, steps)] = (record.problem_id, steps)
    return found


def reference_to(
    path: str | Path, wanted: Mapping[str, Prefix], problems: Collection[Problem],
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
    kept |= {"n_unknown": unknown, "mc_score": scores, "low": None, "high": None}
    return record.model_copy(update={**kept, "n_generated_tokens": round(record.n_generated_tokens * k / n_drawn)})


def step_rows(
    records: Sequence[StepLabels], problems: Sequence[Problem], reference: Mapping[str, float], floor: float
) -> pd.DataFrame:
    """`label_quality.label_frame` without last steps that a verdict settled, with two more columns.

    reference: the rate of the step's prefix, nan if it is not known.
    reference_right: whether the reference rate is above `floor`, so that the policy can be said to still solve the
    problem from there; None where the rate is not known.
    """
    frame = label_frame(records, problems)
    names = [prefix_id(r.problem_id, r.steps[: t + 1]) for r in records for t in range(len(r.steps))]
    rates = pd.Series([reference.get(name, np.nan) for name in names], index=frame.index, dtype=float)
    right = (rates > floor).astype(object).where(rates.notna(), None)
    frame = frame.assign(reference=rates, reference_right=right)
    # the last step of a tree's path may be a prefix without success: rolled out, and the error that was searched for
    settled = frame["last"].astype(bool) & (frame["n_rollouts"].fillna(1) <= 1)
    return frame[~settled].reset_index(drop=True)


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

    return stats.bootstrap(sums, gap, len(both), method="bca", seed=seed)


def cost_table(sets: Sets) -> pd.DataFrame:
    """One row per set of labels: strategy, setting, seed, n_solutions, n_labels, n_tokens, tokens_per_label."""
    rows = []
    for (strategy, setting, seed), found in sets.items():
        n = sum(score is not None for record in found.records for score in record.mc_score)
        per_label = found.n_tokens / n if n else float("nan")
        rows.append((strategy, setting, seed, len(found.records), n, found.n_tokens, per_label))
    names = ["strategy", "setting", "seed", "n_solutions", "n_labels", "n_tokens", "tokens_per_label"]
    return pd.DataFrame(rows, columns=names)


def quality_table(
    sets: Sets, rows: Mapping[tuple[str, str, int], pd.DataFrame], threshold: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """`quality` of every set, with the columns strategy, setting, seed and n_tokens (per labelled step)."""
    tables = []
    for (strategy, setting, labels_seed), found in sets.items():
        frame = rows[strategy, setting, labels_seed]
        names = dict(strategy=strategy, setting=setting, seed=labels_seed, n_tokens=found.n_tokens / max(len(frame), 1))
        tables.append(quality(frame, threshold, seed).assign(**names))
    return pd.concat(tables, ignore_index=True)


def gap_table(
    rows: Mapping[tuple[str, str, int], pd.DataFrame], a: tuple[str, str], b: tuple[str, str], threshold: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Macro F1 of strategy and setting `a` minus that of `b`, all seeds together: against, value, n, low, high."""
    seeds = [s for strategy, setting, s in rows if (strategy, setting) == a]
    first, second = (
        pd.concat([rows[*name, s].assign(place=lambda f, s=s: f["place"] + 1000 * s) for s in seeds]) for name in (a, b)
    )
    known = [against for against, column in TRUTHS.items() if first[column].notna().any()]
    found = [(against, *f1_gap(first, second, against, threshold, seed)) for against in known]
    return pd.DataFrame(found, columns=["against", *stats.Estimate._fields])


def token_share(sets: Sets, a: tuple[str, str], b: tuple[str, str], seed: int = 0) -> stats.Estimate:
    """Tokens of `a` over tokens of `b`, all seeds together; the interval draws whole problems."""
    sums: dict[str, list[float]] = {}
    for side, name in enumerate((a, b)):
        for (strategy, setting, _), found in sets.items():
            for record in found.records if (strategy, setting) == name else ():
                sums.setdefault(record.problem_id, [0.0, 0.0])[side] += record.n_generated_tokens
    table = np.array(list(sums.values()))
    return stats.bootstrap(table, lambda totals: totals[..., 0] / totals[..., 1], len(table), seed=seed)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of `value` and `n_tokens` per strategy, setting, against and metric, and the range of values.

    Columns: strategy, setting, against, metric, value, low, high (least and greatest seed), n_tokens, n_seeds, n.
    """
    keys = ["strategy", "setting", "against", "metric"]
    grouped = table.groupby(keys, sort=False)
    out = grouped.agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"), n_tokens=("n_tokens", "mean"),
        n_seeds=("seed", "nunique"), n=("n", "min"),
    )  # fmt: skip
    return out.reset_index()
