"""What a discriminative PRM is trained on and judged by: labels of its decisions, the step loss, validation metrics."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from mmprm_lib.schema import Problem, Solution, StepLabels
from mmprm_lib.steps import Format

IGNORED = -100.0
LABELS = ("soft", "hard", "counts", "advantage")
NEUTRAL = 0.5  # the label of "=" in the advantage PRM: between wrong (0) and right (1)


class Example(NamedTuple):
    """A record ready for training: labels in [0, 1] or None per decision, and what validation compares with."""

    name: str
    problem: Problem
    steps: list[str]
    labels: list[float | None]
    right: list[bool | None]  # the truth where the record has it, else mc_score > 0; None is not evaluated
    history: list[str]  # the true answers of a chat PRM, shown after the steps
    weights: list[float] | None = None  # of the decisions in the loss; None: all alike

    @property
    def problem_id(self) -> str:
        return self.problem.problem_id

    @property
    def solution_id(self) -> str:
        return self.name


def decision_labels(
    form: Format, record: StepLabels | Solution, labels: str = "soft", threshold: float = 0.0
) -> list[float | None]:
    """One label per decision: soft = the mc_score as it is (counts: the same, see `decision_weights`), hard = 1 where
    mc_score > `threshold`; None is ignored by the loss.

    Advantage (VisualPRM, section 2.1): 1, 0 or 0.5 by the sign of mc_i - mc_(i-1), of three words or, ours, as the
    label of two. Before step 1 nothing is sampled, so the first step is 1 where mc_1 > threshold, else 0. ORM: the
    verdict (unknown is None), or the last step's label if only Monte Carlo labels exist.
    """
    if isinstance(record, Solution):
        if form.kind != "orm":
            raise ValueError(
                f"{record.solution_id}: a {form.kind} PRM needs step labels, a solution has only a verdict"
            )
        return [{"correct": 1.0, "wrong": 0.0, "unknown": None}[record.verdict]] if record.steps else []
    if labels not in LABELS:
        raise ValueError(f"labels is {labels!r}: choose one of {', '.join(LABELS)}")
    mc = record.mc_score
    hard = [None if m is None else float(m > threshold) for m in mc]
    if form.kind == "chat_advantage" and labels not in ("hard", "advantage"):
        raise ValueError('the advantage PRM has three classes and no soft label: set labels="hard"')
    if form.kind == "chat_advantage" or labels == "advantage":
        gain = [None if a is None or b is None else (np.sign(b - a) + 1) / 2 for a, b in zip(mc, mc[1:], strict=False)]
        values = hard[:1] + [None if g is None else float(g) for g in gain]
    else:
        values = hard if labels == "hard" else mc
    return list(values[-1:] if form.kind == "orm" else values)


def decision_weights(form: Format, record: StepLabels | Solution, labels: str = "soft") -> list[float] | None:
    """For `counts` the number of judged rollouts behind each label, so that the loss is the binomial log-likelihood of
    the rollouts (up to its scale); None for all others, whose labels count alike however few rollouts they rest on.
    """
    if labels != "counts" or isinstance(record, Solution):
        return None
    known = [0.0 if n is None else float(n - (lost or 0))
             for n, lost in zip(record.n_rollouts, record.n_unknown, strict=True)]  # fmt: skip
    return known[-1:] if form.kind == "orm" else known


def _right(form: Format, record: StepLabels | Solution, labels: list[float | None]) -> list[bool | None]:
    """What validation compares with: the truth (neutral steps left out), else mc_score > 0, else the verdict."""
    if form.kind == "orm":
        return [None if y is None else y > 0 for y in labels]
    if record.truth is not None:
        return [None if t == 0 else t > 0 for t in record.truth]
    return [None if m is None else m > 0 for m in record.mc_score]


def examples(
    form: Format, records: Iterable, problems: Iterable[Problem], labels: str, threshold: float
) -> list[Example]:
    """The records as examples. ValueError naming the record whose problem is missing."""
    by_id, made = {p.problem_id: p for p in problems}, []
    for record in records:
        if record.problem_id not in by_id:
            raise ValueError(f"{record.solution_id}: problem {record.problem_id!r} is not among the {len(by_id)} given")
        y = decision_labels(form, record, labels, threshold)
        hard = decision_labels(form, record, "hard", threshold) if form.kind.startswith("chat") else []
        words = {None: form.labels[0], 1.0: form.labels[0], 0.0: form.labels[1], NEUTRAL: form.labels[-1]}
        history = [words[label] for label in hard]
        made.append(
            Example(
                record.solution_id, by_id[record.problem_id], record.steps, y, _right(form, record, y), history,
                decision_weights(form, record, labels),
            )  # fmt: skip
        )
    return made


def step_loss(
    logits: torch.Tensor, labels: torch.Tensor, n_labelled=None, weights: torch.Tensor | None = None,
    step_weights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean over labelled steps of the cross-entropy between label words and `labels`; a scalar.

    `logits` (batch, step, 2 or 3), `labels` (batch, step) in [0, 1] or IGNORED. Two words: -y log p - (1 - y) log(1 -
    p) with p = sigmoid(z_right - z_wrong) and y exactly as given (MM-PRM, section 3.2). Three words: y of 1, 0, 0.5 is
    +, -, =. `n_labelled` is the count over the whole accumulated batch; MM-PRM takes the mean in each micro-batch,
    which weighs rows unevenly. `weights` (label,) multiplies each class, `step_weights`
    (batch, step) each step. VisualPRM's loss is over the full vocabulary
    and also trains the turn's end; here only the label words compete, because the score compares only them.
    """
    known = labels != IGNORED
    y = labels[known].float()
    if logits.shape[-1] == 3:
        targets = torch.stack([y == 1, y == 0, y == NEUTRAL], -1).float()
    else:
        targets = torch.stack([y, 1 - y], -1)
    if weights is not None:
        targets = targets * weights.to(targets)
    if step_weights is not None:
        targets = targets * step_weights[known].to(targets)[:, None]
    total = -(targets * logits[known].float().log_softmax(-1)).sum()
    return total / (max(int(known.sum()), 1) if n_labelled is None else n_labelled)


def class_weights(labels: Iterable[float], n_labels: int, balance: float | None) -> torch.Tensor | None:
    """Loss weights (label,) that give wrong steps the share `balance` of the loss, mean weight 1; None if `balance` is
    None.

    Monte Carlo labels are 4 to 10 % negative in VisualPRM's data, and the benchmark 32 %. The weights move the scores'
    calibration with them: a threshold must be chosen again.
    """
    if balance is None:
        return None
    if not 0 < balance < 1:
        raise ValueError(f"balance is {balance}: give the share of wrong steps between 0 and 1, or None")
    y = np.array(list(labels))
    wrong = float(np.mean(y == 0 if n_labels == 3 else 1 - y))
    if not 0 < wrong < 1:
        raise ValueError(f"balance needs right and wrong labels: the wrong ones are {wrong:.0%} of {len(y)}")
    other = (1 - balance) / (1 - wrong)
    return torch.tensor([other, balance / wrong, other][:n_labels])


def validation_metrics(scores: Iterable[float], right: Iterable[bool], n_bins: int = 10) -> dict:
    """`n`, `share_right`, `auroc`, `macro_f1` at 0.5, `brier`, and `bins` for a reliability plot.

    AUROC is None where only one class is there. A bin: low, high, n, mean_score, share_right; empty bins are left out.
    """
    p, y = np.asarray(list(scores), float), np.asarray(list(right), bool)
    if not len(p):
        return {"n": 0, "share_right": None, "auroc": None, "macro_f1": None, "brier": None, "bins": []}
    place = np.minimum((p * n_bins).astype(int), n_bins - 1)
    bins = [
        dict(
            low=b / n_bins,
            high=(b + 1) / n_bins,
            n=int(m.sum()),
            mean_score=float(p[m].mean()),
            share_right=float(y[m].mean()),
        )
        for b in range(n_bins)
        if (m := place == b).any()
    ]
    return {
        "n": len(y),
        "share_right": float(y.mean()),
        "auroc": float(roc_auc_score(y, p)) if 0 < y.sum() < len(y) else None,
        "macro_f1": float(f1_score(y, p > 0.5, average="macro", labels=[False, True], zero_division=0.0)),
        "brier": float(brier_score_loss(y, p, labels=[False, True], pos_label=True)),
        "bins": bins,
    }
