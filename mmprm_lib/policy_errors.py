"""How a policy errs: what it was taught, what it wrote, and where, against the truth of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from . import world
from .data import frame
from .policy import Pair
from .schema import Problem, Solution

TRAITS = ["family", "form", "wording"]


def traits(problems: Sequence[Problem]) -> dict[str, dict[str, str]]:
    """problem_id -> family (the source outside the world), form (multiple choice, fill-in), wording (tricky, plain)."""
    table = frame(list({p.problem_id: p for p in problems}.values()))
    table["wording"] = [_wording(p) for p in {p.problem_id: p for p in problems}.values()]
    return table.set_index("problem_id")[TRAITS].to_dict("index")


def _wording(problem: Problem) -> str:
    return "unknown" if problem.scene is None else "tricky" if problem.scene["tricky"] else "plain"


def corpus_frame(pairs: Sequence[Pair]) -> pd.DataFrame:
    """One row per worked solution: problem_id, family, form, wording, n_steps, right, answer_right.

    right: no step is wrong. Both are None outside the embedded world, where nobody knows.
    """
    known, out = traits([p for p, _ in pairs]), []
    for problem, steps in pairs:
        truth = world.truth(problem, steps) if problem.scene else None
        right = {"right": truth and -1 not in truth, "answer_right": truth and truth[-1] == 1}
        out.append({"problem_id": problem.problem_id, **known[problem.problem_id], "n_steps": len(steps), **right})
    return pd.DataFrame(out)


STEP_COLUMNS = [
    "problem_id", "solution_id", *TRAITS, "place", "kind", "truth", "intent", "image", "logic", "error", "first",
    "right", "verdict",
]  # fmt: skip


def step_frame(problems: Sequence[Problem], solutions: Sequence[Solution]) -> pd.DataFrame:
    """One row per step of sampled solutions of the embedded world: what it does, whether it is right, and why not.

    Columns: STEP_COLUMNS. place counts from 1; kind is read, deduce, answer, neutral or other; truth 1, 0, -1, right is
    truth >= 0; intent, image, logic are GM-PRM's aspects; error is the first of them that fails, "" if none; first says
    that no wrong step stands before. Problems without a scene give no rows.
    """
    known, named, out = {p.problem_id: p for p in problems}, traits(problems), []
    for solution in solutions:
        problem, clean = known[solution.problem_id], True
        if problem.scene is None:
            continue
        ids = {"problem_id": problem.problem_id, "solution_id": solution.solution_id}
        for place, step in enumerate(solution.steps):
            judged = world.check_step(problem, solution.steps[:place], step)
            found = {"place": place + 1, "kind": world.step_kind(step), **judged._asdict(), "first": clean}
            found |= {"error": world.error_kind(judged), "right": judged.truth >= 0, "verdict": solution.verdict}
            out.append({**ids, **named[problem.problem_id], **found})
            clean = clean and judged.truth != -1
    return pd.DataFrame(out, columns=STEP_COLUMNS)


def first_errors(steps: pd.DataFrame, by: str) -> pd.DataFrame:
    """How often the first wrong step of a solution fails in intent, image or logic: group (of `by`), kind, value."""
    wrong = steps[steps["first"].astype(bool) & (steps["truth"] == -1)]
    counted = wrong.groupby([by, "error"]).size().reset_index()
    return counted.set_axis(["group", "kind", "value"], axis=1)


def pick(problems: Sequence[Problem], solutions: Sequence[Solution], right: bool) -> tuple[Problem, Solution] | None:
    """A problem and a solution whose verdict is correct (`right`) or wrong: the one that got furthest without an error.

    Outside the embedded world the one with the most steps. The first of equals; None if there is none.
    """
    known = {p.problem_id: p for p in problems}

    def reached(solution: Solution) -> int:
        problem = known[solution.problem_id]
        error = world.first_error(problem, solution.steps) if problem.scene else None
        return len(solution.steps) if error is None else error

    fitting = [s for s in solutions if s.verdict == ("correct" if right else "wrong")]
    best = max(fitting, key=reached, default=None)
    return best and (known[best.problem_id], best)
