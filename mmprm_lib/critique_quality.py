"""How good critiques are: those that a critic learns from, its verdicts on a benchmark, and its corrections.

GM-PRM (arXiv:2508.04088) stops at the first error, VisualProcessBench wants a verdict on every step, so both readings
are here: `verdict_scores` of critiques that judge all steps (`judge_all` of `critic.Options`), which `running` holds to
what comes before, and `stop_scores` of those that stop. They are step scores as `evaluation` takes them; the steps of a
critique that could not be read have None, which counts as judged wrongly. What is right is known in the embedded world
only; elsewhere those tables are empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import evaluation, stats, world
from .benchmark import Benchmark, flatten
from .critic import Critic, critiques_to, step_scores
from .critique import SCORES, TeacherCritique, score
from .evaluation import StepScores, aligned
from .generation import Generator, Sampling
from .labeling_files import named, resumed
from .objective import validation_metrics
from .refined_pairs import leaks
from .schema import Critique, Id, Problem, Record, Solution, fingerprint
from .stats import Estimate
from .teachers import Filtered, tried_corrections

FORMAT = 1  # of the files of trials: a change of what they hold changes their keys
CHUNK = 1024  # critiques whose corrections are tried together
RIGHT_STEP = "right step"  # kind of error of a step that is flagged and right

# -- what is learnt from


class Trial(Record):
    """What came of trying a critique's correction: why the critique is dropped, "" if it is not."""

    solution_id: Id
    why: str


def validated_to(
    path: str | Path, critiques: Sequence[TeacherCritique], problems: Sequence[Problem], generator: Generator, n: int,
    sampling: Sampling,
) -> Filtered:  # fmt: skip
    """As `teachers.validate_corrections`, with a record per critique in the file at `path`; a killed run goes on.

    ValueError if the file is of other critiques, or was made by another policy or sampling.
    """
    wanted = {record.problem_id for record in critiques}
    names = named(p for p in problems if p.problem_id in wanted)
    marks = [[r.solution_id, r.steps, r.critique.first_error, r.critique.corrected_step] for r in critiques]
    key = fingerprint(["trials", FORMAT, generator.fingerprint, sampling, n, names, marks])

    def make(done: set[str]) -> Iterator[Trial]:
        left = [record for record in critiques if record.solution_id not in done]
        for start in range(0, len(left), CHUNK):
            for record, why in tried_corrections(left[start : start + CHUNK], problems, generator, n, sampling):
                yield Trial(solution_id=record.solution_id, why=why)

    trials = resumed(Path(path), Trial, key, [record.solution_id for record in critiques], make)
    kept = [record for record, trial in zip(critiques, trials, strict=True) if not trial.why]
    return kept, Counter(trial.why for trial in trials if trial.why)


def filter_table(n: int, stages: Mapping[str, tuple[int, Mapping[str, int]]]) -> pd.DataFrame:
    """What became of `n` critiques, stage by stage (name -> how many are kept, why others are dropped).

    Columns: stage, outcome ("kept" first, then the reasons, the most frequent first), n, share of those that came to
    the stage. ValueError if a stage does not account for all that came to it.
    """
    rows = []
    for stage, (kept, dropped) in stages.items():
        if kept + sum(dropped.values()) != n:
            raise ValueError(f"{stage}: {kept} kept and {sum(dropped.values())} dropped, of {n}")
        outcomes = {"kept": kept, **dict(sorted(dropped.items(), key=lambda item: -item[1]))}
        rows += [(stage, outcome, count, count / n if n else np.nan) for outcome, count in outcomes.items()]
        n = kept
    return pd.DataFrame(rows, columns=["stage", "outcome", "n", "share"])


def teacher_table(stages: Mapping[str, Sequence[TeacherCritique]], problems: Iterable[Problem]) -> pd.DataFrame:
    """How often a teacher is right, of the critiques that are left after each stage: what the filters are good for.

    Columns: stage, n, wrong_share (critiques that find an error), first_error_right (the true one, or none where there
    is none), correction_right (of the corrections at a place: a right step there). No rows outside the embedded world.
    """
    by_id = {p.problem_id: p for p in problems if p.scene is not None}
    rows = []
    for stage, critiques in stages.items():
        known = [r for r in critiques if r.problem_id in by_id and r.critique.parse == "ok"]
        judged = [_against_truth(by_id[r.problem_id], r.steps, r.critique) for r in known]
        if known:
            placed, corrected = zip(*judged, strict=True)
            right = [each for each in corrected if each is not None]
            wrong = float(np.mean([bool(r.critique.first_error) for r in known]))
            rows.append((stage, len(known), wrong, float(np.mean(placed)), float(np.mean(right)) if right else np.nan))
    return pd.DataFrame(rows, columns=["stage", "n", "wrong_share", "first_error_right", "correction_right"])


def _against_truth(problem: Problem, steps: list[str], critique: Critique) -> tuple[bool, bool | None]:
    """(the first error is the true one, the correction is a right step there; None without a correction)."""
    wrong, found = world.first_error(problem, steps), critique.first_error or 0
    placed = found == (0 if wrong is None else wrong + 1)
    if not found or critique.corrected_step is None:
        return placed, None
    return placed, world.check_step(problem, steps[: found - 1], critique.corrected_step).truth == 1


# -- verdicts


def both_readings(
    every: str | Path, stopped: str | Path, critic: Critic, problems: Sequence[Problem], solutions: Sequence[Solution],
    **options: Any,
) -> tuple[list[Critique], list[Critique]]:  # fmt: skip
    """(critiques that judge all steps, critiques that stop at the first error), of all solutions, in their order.

    The files at `every` and `stopped` keep them; `options` are those of `critic.Options`. A greedy critique that finds
    no error is the same in both readings, so only the others are written a second time. ValueError for options with
    which that does not hold: a temperature, or judge_all.
    """
    if {"temperature", "n_votes", "judge_all"} & set(options):
        raise ValueError(f"both readings share greedy critiques: leave out temperature, n_votes, judge_all: {options}")
    whole = critiques_to(every, critic, problems, solutions, judge_all=True, **options)
    again = [s for s, c in zip(solutions, whole, strict=True) if c.parse != "ok" or c.first_error]
    ended = {c.solution_id: c for c in critiques_to(stopped, critic, problems, again, **options)}
    return whole, [ended.get(c.solution_id, c) for c in whole]


def verdict_scores(critiques: Iterable[Critique], solutions: Iterable[Solution]) -> dict[str, list[float | None]]:
    """solution_id -> p_correct of every step, None for all of a solution whose critique could not be read.

    Of critiques that judge all steps (`judge_all`); ValueError for one that stopped before the end.
    """
    by_id, scores = {c.solution_id: c for c in critiques}, {}
    for solution in solutions:
        critique, n = by_id[solution.solution_id], len(solution.steps)
        if critique.parse == "ok" and len(critique.steps) != n:
            name = solution.solution_id
            found = f"{len(critique.steps)} of {n} steps are judged"
            raise ValueError(f"{name!r}: {found}; critique it with judge_all=True")
        scores[solution.solution_id] = list(step_scores(critique, n)) or [None] * n
    return scores


def running(scores: StepScores) -> dict[str, list[float | None]]:
    """solution_id -> for every step the product of the scores up to it: that it is right and rests on right ones.

    The soft form of the rule that what follows an error is wrong, and what a Monte Carlo label says of a step: a critic
    that has written "Correct" after a wrong step believes in it from there on. None stays None.
    """
    return {
        name: [None] * len(line) if None in line else [float(p) for p in np.cumprod(line)]
        for name, line in scores.items()
    }


def stop_scores(critiques: Iterable[Critique], solutions: Iterable[Solution]) -> dict[str, list[float | None]]:
    """solution_id -> 1 for every step before the first error, 0 from there on: the critic's own words, at 0.5.

    Steps after the first error count as wrong (the usual rule for judges that stop there); None as `verdict_scores`.
    """
    by_id, scores = {c.solution_id: c for c in critiques}, {}
    for solution in solutions:
        critique, n = by_id[solution.solution_id], len(solution.steps)
        right = n if not critique.first_error else critique.first_error - 1
        read = critique.parse == "ok"
        scores[solution.solution_id] = [1.0] * right + [0.0] * (n - right) if read else [None] * n
    return scores


def thresholds(dev: Benchmark, scores: Mapping[str, StepScores]) -> dict[str, float]:
    """As `evaluation.thresholds`; 0.5 for a scorer of whom too little could be read to choose one."""
    chosen = {}
    for name, each in scores.items():
        flat = flatten(dev.labels, aligned(dev, each))
        read = flat.correct[~np.isnan(flat.score)]
        both = read.any() and not read.all()
        chosen |= evaluation.thresholds(dev, {name: each}) if both else {name: evaluation.AT_HALF}
    return chosen


def solution_auroc(bench: Benchmark, judged: Mapping[str, Sequence[Critique]], seed: int = 0) -> pd.DataFrame:
    """How well each score of `critique.SCORES` tells right solutions (no wrong step) from others, by critic.

    `judged`: critic -> critiques of the benchmark's solutions, in their order; one that could not be read comes last of
    all. Columns: critic, score, value, n, low, high; intervals over problems.
    """
    right, rows = [set(truth) <= {0, 1} for truth in bench.labels], []
    clusters = [s.problem_id for s in bench.solutions]
    for name, critiques in judged.items():
        for how in SCORES:
            pairs = zip(critiques, bench.solutions, strict=True)
            value = [max(score(critique, len(solution.steps), how), -1.0) for critique, solution in pairs]
            rows.append((name, how, *stats.auroc(right, value, clusters, seed=seed)))
    return pd.DataFrame(rows, columns=["critic", "score", *Estimate._fields])


def failures(critiques: Iterable[Critique]) -> pd.DataFrame:
    """Why critiques could not be read: reason (numbers and quotations left out), n; no rows if all could."""
    reasons = Counter(
        re.sub(r"\d+", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "...", c.parse.removeprefix("failed: ")))
        for c in critiques
        if c.parse != "ok"
    )
    return pd.DataFrame(reasons.most_common(), columns=["reason", "n"])


def calibration(bench: Benchmark, scores: Mapping[str, StepScores], n_bins: int = 10) -> dict[str, dict]:
    """scorer -> `objective.validation_metrics` of its readable step scores against the labels; `ece` is added.

    ece: expected calibration error, the mean distance of mean score and share of right steps over the bins, by size.
    Neutral steps are left out.
    """
    found = {}
    for name, each in scores.items():
        flat = flatten(bench.labels, aligned(bench, each))
        read = ~np.isnan(flat.score)
        metrics = validation_metrics(flat.score[read], flat.correct[read], n_bins)
        gaps = [row["n"] * abs(row["mean_score"] - row["share_right"]) for row in metrics["bins"]]
        found[name] = metrics | {"ece": sum(gaps) / metrics["n"] if metrics["n"] else np.nan}
    return found


# -- corrections

COLUMNS = [
    "solution_id", "problem_id", "family", "error", "place", "place_right", "correction_right", "mended", "unchanged",
    "leak", "undue_leak",
]  # fmt: skip


def correction_table(
    problems: Iterable[Problem], solutions: Iterable[Solution], critiques: Iterable[Critique]
) -> pd.DataFrame:
    """One row per solution whose critique can be read and finds a wrong step, or misses one; for `stats.rates`.

    Columns: solution_id, problem_id, family (the source outside the world), place (0: none is found), error (GM-PRM's
    aspect in which the flagged step fails, RIGHT_STEP if it does not; of the missed step where none is found), and
    rates in {0, 1}, nan where they do not apply. place_right: at the true first error. correction_right (of the
    corrections): a right step there. mended (of the solutions with a wrong step): both. unchanged: the step as it was.
    leak: it holds the problem's answer; undue_leak: and the step that should stand there does not.
    """
    by_id, told = {p.problem_id: p for p in problems}, {c.solution_id: c for c in critiques}
    rows = []
    for solution in solutions:
        problem, critique = by_id[solution.problem_id], told[solution.solution_id]
        wrong = world.first_error(problem, solution.steps) if problem.scene is not None else None
        if critique.parse == "ok" and (critique.first_error or wrong is not None):
            rows.append(_correction(problem, solution, critique, wrong))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    rates = COLUMNS[COLUMNS.index("place_right") :]
    return frame.astype({name: float for name in rates})


def _correction(problem: Problem, solution: Solution, critique: Critique, wrong: int | None) -> dict:
    place, steps = critique.first_error or 0, solution.steps
    row = {"solution_id": solution.solution_id, "problem_id": problem.problem_id, "place": place, "error": None}
    row["family"] = problem.source if problem.scene is None else problem.scene["family"]
    if place:
        new = (critique.corrected_step or "").strip()
        row["unchanged"] = float(new == steps[place - 1].strip())
        row["leak"] = float(leaks(problem, new, problem.answer))
    if problem.scene is None:
        return row
    at = place - 1 if place else wrong
    row["error"] = world.error_kind(world.check_step(problem, steps[:at], steps[at])) or RIGHT_STEP
    right = False
    if place:
        right = world.check_step(problem, steps[: place - 1], new).truth == 1
        row["place_right"], row["correction_right"] = float(wrong == place - 1), float(right)
        due = leaks(problem, world.correct_step(problem, steps[: place - 1]), problem.answer)
        row["undue_leak"] = float(row["leak"] and not due)
    if wrong is not None:
        row["mended"] = float(right and wrong == place - 1)
    return row


def correction_rates(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """What `correction_table` says in all: measure, value, n, low, high; intervals over problems.

    correction_accuracy is over the flagged steps that are wrong, correction_accuracy_all over all corrections: of a
    right step that is flagged, any right step passes. Measures of nothing have n 0.
    """
    wrong = table[(table["place"] > 0) & table["error"].notna() & (table["error"] != RIGHT_STEP)]
    parts = {
        "correction_accuracy": (wrong, "correction_right"), "correction_accuracy_all": (table, "correction_right"),
        "flag_at_first_error": (table, "place_right"), "mended_share": (table, "mended"),
        "unchanged_share": (table, "unchanged"), "leak_share": (table, "leak"),
        "undue_leak_share": (table, "undue_leak"),
    }  # fmt: skip
    rows = []
    for measure, (part, column) in parts.items():
        part = part[part[column].notna()]
        rows.append((measure, *stats.share(part[column], part["problem_id"].tolist(), seed=seed)))
    frame = pd.DataFrame(rows, columns=["measure", *Estimate._fields])
    return frame.astype({"value": float, "low": float, "high": float})


def telling(critiques: Mapping[str, Critique], table: pd.DataFrame, n: int = 1) -> dict[str, list[str]]:
    """Critiques worth reading, title -> at most n solution ids: mended, the correction wrong, a right step flagged,
    missed. The surest of each come first; titles without one are left out.
    """
    kinds = {
        "first error found and corrected": table["mended"] == 1,
        "found, and the correction is wrong": (table["place_right"] == 1) & (table["correction_right"] == 0),
        "a right step is called wrong": (table["place"] > 0) & (table["error"] == RIGHT_STEP),
        "no error is found": table["place"] == 0,
    }

    def doubt(name: str) -> float:
        steps = critiques[name].steps
        return steps[-1].p_correct if critiques[name].first_error else 1 - min(s.p_correct for s in steps)

    found = {title: sorted(table[mask]["solution_id"], key=doubt)[:n] for title, mask in kinds.items()}
    return {title: names for title, names in found.items() if names}
