"""What became of each solution that was refined: pairs of an initial solution and what fills its slot.

GM-PRM (arXiv:2508.04088) reports the accuracy of whole pools alone; these accounts are ours. What is right is known in
the embedded world only; elsewhere those columns are empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import stats, world
from .answers import extract
from .refinement import Slot
from .schema import Problem, Solution
from .selection import correct


def pair_table(problems: Sequence[Problem], slots: Sequence[Slot], refined: Sequence[Solution]) -> pd.DataFrame:
    """One row per initial solution and what became of it, for `stats.rates` by any column (cluster: problem_id).

    Columns: problem_id, family (the source outside the world), kind, place, error (GM-PRM's aspect in which the flagged
    step fails, "right step" if it does not; None without a truth); then rates in {0, 1}, nan where they do not apply:
    initial_correct, refined_correct; wrong_to_right and right_to_wrong (of the initial ones that were so); flagged,
    false_alarm (of the correct initial ones: flagged), false_alarm_truth (of those without a wrong step: flagged),
    place_right (of the flagged: at the true first error), correction_right (of the corrections: a right step there),
    leak (of the corrections: holds the answer that the refined solution gives).
    """
    by_id = {p.problem_id: p for p in problems}
    rows = []
    for slot, after in zip(slots, refined, strict=True):
        if slot.name != after.solution_id:
            raise ValueError(f"{after.solution_id!r} does not fill slot {slot.name!r}; keep the order of the slots")
        before, flagged = correct(slot.initial), float(slot.place > 0)
        problem, became = by_id[after.problem_id], correct(after)
        rows.append({
            "problem_id": after.problem_id, "family": problem.scene["family"] if problem.scene else problem.source,
            "kind": slot.kind, "place": slot.place, "initial_correct": before, "refined_correct": became,
            "wrong_to_right": became if not before else np.nan, "right_to_wrong": 1 - became if before else np.nan,
            "flagged": flagged, "false_alarm": flagged if before else np.nan, **_truths(problem, slot),
            "leak": float(leaks(problem, slot.prefix[-1], after.answer)) if slot.kind == "corrected" else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def flip_table(pairs: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """The rates of both flips by mode, from the `pair_table` of each: mode, flip, value, n, low, high."""
    rows = []
    for mode, table in pairs.items():
        for flip in ("wrong_to_right", "right_to_wrong"):
            part = table[table[flip].notna()]
            rows.append((mode, flip, *stats.share(part[flip], part["problem_id"].tolist(), seed=seed)))
    return pd.DataFrame(rows, columns=["mode", "flip", *stats.Estimate._fields])


def success_table(
    pairs: pd.DataFrame, column: str = "correction_right", traits: Sequence[str] = ("family", "error"), seed: int = 0
) -> pd.DataFrame:
    """The rate of a column of `pair_table` within each group of each trait: trait, group, value, n, low, high."""
    parts = [stats.rates(pairs, t, column, seed=seed).rename(columns={t: "group"}).assign(trait=t) for t in traits]
    return pd.concat(parts, ignore_index=True)[["trait", "group", *stats.Estimate._fields]]


STAGES = {  # of refining by corrections: stage -> (of which pairs, what is counted)
    "wrong solution is flagged": ("initial_correct == 0", "flagged"),
    "flag stands at the first wrong step": ("initial_correct == 0 and flagged == 1", "place_right"),
    "the correction there is right": ("place_right == 1", "correction_right"),
    "from there the policy is right": ("place_right == 1 and correction_right == 1", "refined_correct"),
    "right solution is left alone": ("initial_correct == 1", "unflagged"),
}


def stages(pairs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Where refining loses: of the pairs that came so far, the share that passes each stage; of rows of `pair_table`.

    Columns: stage, value, n, low, high; intervals over problems. Stages that need the truth have n 0 without one.
    """
    pairs, rows = pairs.assign(unflagged=1 - pairs["flagged"]), []
    for stage, (of, column) in STAGES.items():
        part = pairs.query(of)
        part = part[part[column].notna()]
        rows.append((stage, *stats.share(part[column].astype(float), part["problem_id"].tolist(), seed=seed)))
    return pd.DataFrame(rows, columns=["stage", *stats.Estimate._fields])


def _truths(problem: Problem, slot: Slot) -> dict[str, float | str | None]:
    """What the embedded world says of a slot; nothing outside it."""
    found = {"error": None, "false_alarm_truth": np.nan, "place_right": np.nan, "correction_right": np.nan}
    if problem.scene is None:
        return found
    steps, place = slot.initial.steps, slot.place
    wrong = world.first_error(problem, steps)
    if wrong is None:
        found["false_alarm_truth"] = float(place > 0)
    if place:
        judged = world.check_step(problem, steps[: place - 1], steps[place - 1])
        found["error"] = world.error_kind(judged) or "right step"
        found["place_right"] = float(wrong == place - 1)
    if slot.kind == "corrected":
        *before, step = slot.prefix
        found["correction_right"] = float(world.check_step(problem, before, step).truth == 1)
    return found


def leaks(problem: Problem, step: str, answer: str | None) -> bool:
    """Whether a step holds the answer: states it, or has it (for a letter, the text of its option) as a word."""
    if answer is None:
        return False
    if extract(step) is not None:
        return True
    place = ord(answer) - ord("A") if len(answer) == 1 else -1
    word = problem.choices[place] if problem.choices and 0 <= place < len(problem.choices) else answer
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", step) is not None
