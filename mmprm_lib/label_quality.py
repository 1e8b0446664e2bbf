"""How good Monte Carlo labels are where the truth is known: of a step, of its prefix, and by the number of rollouts.

Two truths are compared. A *step* is right on its own (VisualProcessBench; a neutral one is left out); a *prefix* is
right if no wrong step stands in it, which is what a rollout can notice. After a first error they part.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import hypergeom

from . import stats, world
from .labeling import Options
from .policy_errors import TRAITS, traits
from .schema import Problem, Solution, StepLabels
from .trees import Tree

COLUMNS = [
    "problem_id", "solution_id", "split", *TRAITS, "place", "n_steps", "last", "kind", "n_rollouts", "n_correct",
    "n_unknown", "n_known", "mc_score", "above_0", "step_right", "prefix_right",
]  # fmt: skip
TRUTHS = {"step": "step_right", "prefix": "prefix_right"}
# A hard label is 1 if at least so many of k rollouts are right: VisualPRM's mc > 0, and half of them.
RULES: dict[str, Callable[[int], int]] = {"mc > 0": lambda k: 1, "mc >= 0.5": lambda k: math.ceil(k / 2)}
BANDS = {"0": 0.0, "up to 1/4": 0.25, "up to 1/2": 0.5, "under 1": 1.0 - 1e-9, "1": 1.0}  # name -> upper end


def label_frame(labels: Sequence[StepLabels], problems: Sequence[Problem]) -> pd.DataFrame:
    """One row per step of labelled solutions: the counts, the label, and, in the embedded world, the two truths.

    Columns: COLUMNS. place counts from 1; n_known = n_rollouts - n_unknown; mc_score is nan where nothing is known;
    above_0 is VisualPRM's hard label; step_right is None for a neutral step; the truths are None outside the world.
    """
    known, named, rows = {p.problem_id: p for p in problems}, traits(problems), []
    for record in labels:
        problem, clean = known[record.problem_id], True
        ids = {"problem_id": record.problem_id, "solution_id": record.solution_id, "split": problem.split}
        for t, step in enumerate(record.steps):
            counts = [column[t] for column in (record.n_rollouts, record.n_correct, record.n_unknown)]
            score, truth = record.mc_score[t], record.truth[t] if record.truth else None
            clean = clean and truth != -1
            row = dict(zip(["n_rollouts", "n_correct", "n_unknown"], counts, strict=True))
            row |= {"place": t + 1, "n_steps": len(record.steps), "last": t + 1 == len(record.steps)}
            row |= {"kind": world.step_kind(step) if problem.scene else "other", "mc_score": score}
            row |= {"n_known": None if counts[0] is None else counts[0] - counts[2]}
            row |= {"above_0": None if score is None else score > 0}
            row |= {"step_right": truth == 1 if truth else None, "prefix_right": None if truth is None else clean}
            rows.append(ids | named[record.problem_id] | row)
    numbers = ["n_rollouts", "n_correct", "n_unknown", "n_known", "mc_score"]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def against_truth(steps: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Labels against each truth: truth (step, prefix), metric, value, n, low, high; no rows where no truth is known.

    Metrics: macro_f1 and accuracy of the hard label mc_score > threshold, auroc of mc_score itself. Intervals draw
    whole problems.
    """
    rows = []
    for name, column in TRUTHS.items():
        part = steps[steps[column].notna() & steps["mc_score"].notna()]
        if len(part):
            right, score = part[column].astype(bool).to_numpy(), part["mc_score"].to_numpy()
            hard, clusters = score > threshold, part["problem_id"].tolist()
            found = {
                "macro_f1": stats.macro_f1(right, hard, clusters, seed=seed),
                "accuracy": stats.mean(hard == right, clusters, seed=seed),
                "auroc": stats.auroc(right, score, clusters, seed=seed),
            }
            rows += [(name, metric, *estimate) for metric, estimate in found.items()]
    return pd.DataFrame(rows, columns=["truth", "metric", *stats.Estimate._fields])


# -- fewer rollouts than were drawn


def chances(n_correct: ArrayLike, n_known: ArrayLike, k: int) -> np.ndarray:
    """P(j of k rollouts are right), shape (n_steps, k + 1), j = 0, ..., k, for k of a step's rollouts drawn at random.

    Without replacement: hypergeometric, so that no sampling noise is added to what was measured. ValueError if a step
    has fewer than k known rollouts.
    """
    right, known = np.asarray(n_correct, dtype=int), np.asarray(n_known, dtype=int)
    if len(known) and not 1 <= k <= known.min():
        raise ValueError(f"k is {k}, the known rollouts of a step are {known.min()}: take k from 1 to that number")
    return hypergeom.pmf(np.arange(k + 1), known[:, None], right[:, None], k)


def label_chance(n_correct: ArrayLike, n_known: ArrayLike, k: int, rule: str = "mc > 0") -> np.ndarray:
    """The chance, shape (n_steps,), that k of a step's rollouts would have labelled it 1 under a rule of RULES."""
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown: choose one of {', '.join(RULES)}")
    return np.clip(chances(n_correct, n_known, k)[:, RULES[rule](k) :].sum(axis=1), 0.0, 1.0)


def doublings(n: int) -> list[int]:
    """1, 2, 4, ... up to n (n >= 1): the k at which labels are compared."""
    return [2**i for i in range(n.bit_length())]


def quality_by_k(steps: pd.DataFrame, ks: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """How good labels from k rollouts would be: truth, rule, metric, k, value, n, low, high.

    Metrics: accuracy and macro_f1 of the hard labels of each rule (the F1 of the expected counts), and auroc of the
    soft label (rule "soft"). All k share the same steps, those with at least max(ks) known rollouts; a last step that
    was settled by its own verdict has one, and so is not among them. Intervals draw whole problems.
    """
    rows = []
    for name, column in TRUTHS.items():
        part = steps[steps[column].notna() & (steps["n_known"] >= max(ks))]
        for k in ks if len(part) else ():
            each = chances(part["n_correct"], part["n_known"], k)
            right = part[column].astype(bool).to_numpy()
            for rule, metric, found in _at_k(each, right, part["problem_id"].tolist(), seed):
                rows.append((name, rule, metric, k, *found))
    return pd.DataFrame(rows, columns=["truth", "rule", "metric", "k", *stats.Estimate._fields])


def _at_k(each: np.ndarray, right: np.ndarray, clusters: list[str], seed: int) -> list[tuple]:
    """(rule, metric, Estimate) for the chances (n_steps, k + 1) of every number of right rollouts."""
    found, n = [], len(right)
    for rule, needed in RULES.items():
        p = each[:, needed(each.shape[1] - 1) :].sum(axis=1)
        counts = np.stack([right * p, right * (1 - p), ~right * p, ~right * (1 - p)], axis=1)  # tp, fn, fp, tn
        sums = stats.cluster_sums(counts, clusters)
        found.append((rule, "accuracy", stats.mean(np.where(right, p, 1 - p), clusters, seed=seed)))
        found.append((rule, "macro_f1", stats.bootstrap(sums, lambda x: stats.f1_scores(x).mean(-1), n, seed=seed)))
    histograms = np.concatenate([each * right[:, None], each * ~right[:, None]], axis=1)
    sums = stats.cluster_sums(histograms, clusters)
    return [*found, ("soft", "auroc", stats.bootstrap(sums, _auroc_of_histograms, n, seed=seed))]


def _auroc_of_histograms(totals: np.ndarray) -> np.ndarray:
    """AUROC, shape (...), from the score histograms of right and wrong steps side by side, (..., 2 (k + 1)); ties half.

    nan where one of the classes is missing.
    """
    ups, downs = np.split(np.asarray(totals, dtype=float), 2, axis=-1)
    below = downs.cumsum(-1) - downs / 2
    pairs = ups.sum(-1) * downs.sum(-1)
    wins = (ups * below).sum(-1)
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1.0), np.nan)


# -- what the labels look like


def score_bands(steps: pd.DataFrame, by: str) -> pd.DataFrame:
    """How many steps have an mc_score in each band of BANDS, or none: group (of `by`), kind (the band), value."""
    names = pd.cut(steps["mc_score"], [-1.0, *BANDS.values()], labels=list(BANDS)).astype(object)
    counted = steps.assign(band=names.where(steps["mc_score"].notna(), "not known"))
    order = [band for band in [*BANDS, "not known"] if (counted["band"] == band).any()]
    table = counted.groupby([by, "band"]).size().unstack(fill_value=0).reindex(columns=order)
    return table.reset_index(names="group").melt("group", var_name="kind", value_name="value")


def first_tries(solutions: Sequence[Solution], trees: Sequence[Tree] = ()) -> tuple[list[float], list[str]]:
    """How often the policy is right from the question alone, and of which problem: 0 or 1 of each sampled solution.

    Of trees, whose paths were chosen and not sampled, the rates of their roots, where they are known.
    """
    if not trees:
        return [float(s.verdict == "correct") for s in solutions], [s.problem_id for s in solutions]
    roots = [(tree.nodes[0].mc_value, tree.problem_id) for tree in trees]
    known = [(rate, name) for rate, name in roots if rate is not None]
    return [rate for rate, _ in known], [name for _, name in known]


def unknowns(
    solutions: Sequence[Solution], labels: Sequence[StepLabels], options: Options, trees: Sequence[Tree] = ()
) -> pd.DataFrame:
    """What could not be judged: of (solutions, rollouts), reason, n. The reason of a single rollout is not kept.

    A path of a tree that ends before the solution does has no verdict, and is not among them.
    """
    lost = [] if trees else [s.reason for s in solutions if s.verdict == "unknown"]
    rows = [("solutions", reason, int(n)) for reason, n in pd.Series(lost, dtype=object).value_counts().items()]
    nodes = (node for tree in trees for node in tree.nodes if node.estimated)
    n = sum(n.n_unknown or 0 for n in nodes) if trees else sum(_drawn(labels, solutions, options, "n_unknown"))
    return pd.DataFrame([*rows, *([("rollouts", "no verdict", n)] if n else [])], columns=["of", "reason", "n"])


def outcome_frame(solutions: Sequence[Solution], labels: Sequence[StepLabels]) -> pd.DataFrame:
    """One row per solution with a truth: problem_id, solution_id, correct, clean (no wrong step).

    A correct answer after a wrong step is what an outcome label cannot see.
    """
    truths = {r.solution_id: r.truth for r in labels if r.truth is not None}
    rows = [
        (s.problem_id, s.solution_id, s.verdict == "correct", -1 not in truths[s.solution_id])
        for s in solutions
        if s.solution_id in truths
    ]
    found = pd.DataFrame(rows, columns=["problem_id", "solution_id", "correct", "clean"])
    return found.astype({"correct": bool, "clean": bool})  # a mask, also where there are no rows


def cost(
    labels: Sequence[StepLabels], solutions: Sequence[Solution], options: Options, trees: Sequence[Tree] = ()
) -> tuple[int, int]:
    """(rollouts, tokens) that the labels took; a last step that its solution's own verdict settled took none.

    Of trees all that they took: a node stands in many paths, and a tree may have none.
    """
    if trees:
        spent = [(tree.n_rollouts or 0, tree.n_generated_tokens or 0) for tree in trees]
        return sum(n for n, _ in spent), sum(n for _, n in spent)
    n_tokens = sum(record.n_generated_tokens for record in labels)
    return sum(_drawn(labels, solutions, options, "n_rollouts")), n_tokens


def _drawn(labels: Sequence[StepLabels], solutions: Sequence[Solution], options: Options, column: str) -> list[int]:
    """The counts of a column over all steps that were rolled out."""
    settled = {s.solution_id for s in solutions if s.finish_reason == "stop" and options.last_step == "verdict"}
    counts = [getattr(r, column)[: -1 if r.solution_id in settled else None] for r in labels]
    return [n for row in counts for n in row if n is not None]


def telling(labels: Sequence[StepLabels]) -> list[StepLabels]:
    """The labels in the order in which they are worth a look: the widest fall from one step to a later one first."""

    def fall(record: StepLabels) -> float:
        known = [score for score in record.mc_score if score is not None]
        return max((max(known[: i + 1]) - score for i, score in enumerate(known)), default=0.0)

    return sorted(labels, key=fall, reverse=True)
