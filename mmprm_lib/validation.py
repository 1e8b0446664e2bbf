"""How well PRMs tell right steps from wrong ones: one table of all their decisions, and estimates from it.

A table of decisions has the columns prm, solution_id, problem_id, place (from 1), kind, score, and right: True, False,
or None where there is nothing to compare with (a neutral step, or one without rollouts).
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from mmprm_lib import stats, world
from mmprm_lib.objective import Example, examples
from mmprm_lib.schema import Problem, Scores, Solution, StepLabels
from mmprm_lib.selection import solution_scores
from mmprm_lib.steps import FORMATS, Format

COLUMNS = ["prm", "solution_id", "problem_id", "place", "kind", "score", "right"]


def decisions(
    prm: str,
    form: Format,
    records: Sequence[StepLabels | Solution],
    problems: Sequence[Problem],
    scores: Iterable[Scores],
) -> pd.DataFrame:
    """The table of decisions of the PRM named `prm`: one row per step, or per solution for an ORM (kind "solution").

    `right` is the truth where the record has it, else mc_score > 0; for an ORM the verdict. `scores` may come in any
    order. ValueError naming the record that has no scores, or not one per decision.
    """
    known = {line.solution_id: line.step_scores for line in scores}
    rows = []
    for example in examples(form, records, problems, "hard", 0.0):
        line = known.get(example.name)
        if line is None or len(line) != len(example.right):
            found = "no" if line is None else len(line)
            raise ValueError(f"{example.name}: {found} scores by {prm} for {len(example.right)} decisions: score again")
        rows += _rows(prm, example, line, "solution" if form.kind == "orm" else "")
    return _table(rows)


def label_decisions(records: Sequence[StepLabels], problems: Sequence[Problem], prm: str = "mc_labels") -> pd.DataFrame:
    """The table of decisions of the Monte Carlo labels themselves, each mc_score taken as a score.

    Rows of steps that have both an mc_score and a truth: no rows outside the embedded world, where nothing but the
    label itself says what is right.
    """
    rows = []
    for example in examples(FORMATS["marker"], [r for r in records if r.truth is not None], problems, "soft", 0.0):
        rows += [row for row in _rows(prm, example, example.labels) if row[5] is not None]
    return _table(rows)


def _rows(prm: str, example: Example, scores: Sequence[float | None], kind: str = "") -> list[tuple]:
    first = len(example.steps) if kind else 1  # the one decision of an ORM stands at the end
    return [
        (prm, example.name, example.problem_id, place, kind or _kind(example, place - 1), score, right)
        for place, (score, right) in enumerate(zip(scores, example.right, strict=True), start=first)
    ]


def _kind(example: Example, index: int) -> str:
    return "other" if example.problem.scene is None else world.step_kind(example.steps[index])


def _table(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"score": float, "right": object})
    return frame.where(frame.notna(), None).astype({"score": float})


def estimates(table: pd.DataFrame, seed: int = 0, by: str | None = None) -> pd.DataFrame:
    """AUROC, macro F1 at 0.5 and Brier score of every PRM, in long form: prm, metric, value, n, low, high.

    Intervals: 95 %, whole problems drawn. n counts decisions that have something to compare with. `by` names a column
    (kind, place) to take the estimates apart by; it becomes a column of the result. AUROC and macro F1 are nan where
    only one class is there.
    """
    known = table[table["right"].notna()]
    keys = ["prm"] if by is None else ["prm", by]
    rows = []
    for names, part in known.groupby(keys, sort=False):
        right, score = part["right"].astype(bool).to_numpy(), part["score"].to_numpy()
        clusters = part["problem_id"].tolist()
        found = {
            "auroc": stats.auroc(right, score, clusters, seed=seed),
            "macro_f1": stats.macro_f1(right, score > 0.5, clusters, seed=seed),
            "brier": stats.mean((score - right) ** 2, clusters, seed=seed),
        }
        rows += [dict(zip(keys, names, strict=True), metric=m, **e._asdict()) for m, e in found.items()]
    frame = pd.DataFrame(rows, columns=[*keys, "metric", "value", "n", "low", "high"])
    return frame.astype({"value": float, "low": float, "high": float})


def side_by_side(found: pd.DataFrame) -> pd.DataFrame:
    """`estimates` as a reader wants them: one row per PRM (and group), "0.912 [0.89, 0.93]" per metric, and n."""
    keys = [name for name in found.columns if name not in ("metric", "value", "n", "low", "high")]
    rows = []
    for names, part in found.groupby(keys, sort=False):
        texts = {row.metric: _text(row.value, row.low, row.high) for row in part.itertuples()}
        rows.append(dict(zip(keys, names, strict=True), n=int(part["n"].max()), **texts))
    return pd.DataFrame(rows, columns=[*keys, "n", "auroc", "macro_f1", "brier"]).set_index(keys)


def _text(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.3f}" if pd.isna(low) else f"{value:.3f} [{low:.2f}, {high:.2f}]"


def solution_decisions(table: pd.DataFrame, solutions: Iterable[Solution], aggregator: str = "mean") -> pd.DataFrame:
    """A table of decisions with one row per solution: its aggregated step scores against its verdict.

    So PRMs and the ORM, whose single score is its own aggregate, can be compared. An unknown verdict is None.
    """
    right = {s.solution_id: {"correct": True, "wrong": False}.get(s.verdict) for s in solutions}
    rows = []
    for (prm, solution_id), part in table.groupby(["prm", "solution_id"], sort=False):
        (score,) = solution_scores([part["score"].to_numpy()], aggregator)
        row = (prm, solution_id, part["problem_id"].iloc[0], len(part), "solution", score, right.get(solution_id))
        rows.append(row)
    return _table(rows)


def label_summary(records: Sequence[StepLabels], problems: Sequence[Problem]) -> pd.DataFrame:
    """What there is to learn from, one row per split: n_problems, n_solutions, n_steps, n_unlabelled (steps), and the
    shares of labelled steps with mc_score 0, in between, and 1, and of judged steps that are right (nan without truth).
    """
    split, rows = {p.problem_id: p.split for p in problems}, {}
    for record in records:
        truth = record.truth or [None] * len(record.steps)
        rows.setdefault(split[record.problem_id], []).append((record, list(zip(record.mc_score, truth, strict=True))))
    lines = []
    for name, part in rows.items():
        steps = pd.DataFrame([s for _, line in part for s in line], columns=["mc", "truth"], dtype=float)
        mc, judged = steps["mc"].dropna(), steps["truth"][steps["truth"].abs() == 1]
        lines.append(
            dict(
                split=name,
                n_problems=len({record.problem_id for record, _ in part}),
                n_solutions=len(part),
                n_steps=len(steps),
                n_unlabelled=int(steps["mc"].isna().sum()),
                share_0=(mc == 0).mean(),
                share_between=mc.between(0, 1, inclusive="neither").mean(),
                share_1=(mc == 1).mean(),
                share_right=(judged == 1).mean(),
            )
        )
    return pd.DataFrame(lines)
