"""The VisualProcessBench protocol: its file format, step-level metrics, and what a judge that sees nothing would score.

Every step is judged, not only the first error. Steps that the annotators call neutral are dropped. A step is predicted
correct if its score reaches the threshold. A step without a score (a parse failure) counts as predicted wrongly, which
lowers both F1s; it is never dropped. Intervals draw whole problems. VisualPRM (2503.10291), section 4 and Table 3;
three readings of its "overall" are in use and differ by up to 0.6 points, so all three are given: pooled (the paper's
own), the mean over sources weighted by their steps, and the plain mean over sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from . import stats
from .data import BadRow, answer_type_of, clean
from .images import Rejected, decode, inside, read_bytes, store
from .rows import lines_of
from .schema import Problem, Solution, faults, fingerprint, sha256_of, write_bytes
from .stats import Estimate

NO_GOLD = "(no gold answer)"  # a benchmark of steps can do without one, a Problem cannot
StepLabel = int  # 1 correct, 0 neutral, -1 incorrect
SolutionScores = Sequence[float | None] | None  # None: nothing could be read, of a step or of the whole solution

# How often a label-only baseline predicts "correct", from the numbers of correct and incorrect steps. The "random
# guessing 50.0" of the paper is `prior`, the best that a judge without eyes can do, not a coin.
BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "prior": lambda correct, incorrect: correct / np.maximum(correct + incorrect, 1),
    "coin": lambda correct, incorrect: 0.5,
    "all_correct": lambda correct, incorrect: 1.0,
    "all_incorrect": lambda correct, incorrect: 0.0,
}


class Benchmark(NamedTuple):
    """What a file in VisualProcessBench's format holds: `labels[i]` are those of `solutions[i]`, one per step.

    `bad`: rows that could not be used; `notes`: rows used with a caveat (several_images: the first was taken; no_gold;
    other_gold: an earlier row of the problem has another one, which is kept).
    """

    problems: list[Problem]
    solutions: list[Solution]
    labels: list[list[StepLabel]]
    bad: list[BadRow]
    notes: list[BadRow]


class Flat(NamedTuple):
    """The steps that count, neutral ones dropped, each of shape (n_steps,); a missing score is nan."""

    correct: np.ndarray
    score: np.ndarray
    solution: np.ndarray  # index of the solution


def read_visualprocessbench(path: str | Path, strict: bool = False) -> Benchmark:
    """The problems, solutions and step labels of a JSON lines file in VisualProcessBench's own format.

    Image paths are relative to the file's folder, and the images stay there. Rows of the same question about the same
    image are one problem with several solutions. Steps are taken as they are, never joined and split again. Unusable
    rows (labels and steps of unequal number, no or broken image, ...) are listed; with `strict` the first is an error.
    """
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"{path} is missing: give a .jsonl file in VisualProcessBench's format")
    found = Benchmark([], [], [], [], [])
    problems, digests, seen = dict[str, Problem](), dict[str, str](), set[str]()
    for row, (_, line) in enumerate(lines_of(path)):
        name = ""
        try:
            record = _json_object(line)
            name = clean(record.get("id")) or f"row{row}"
            problem, solution, labels, notes = _row(record, name, path.parent, digests)
            if name in seen:
                raise Rejected("duplicate_id", f"an earlier row has the id {name!r}")
        except Rejected as why:
            if strict:
                raise ValueError(f"{path}, row {row} ({name or 'no id'}): {why}; correct it or drop strict") from why
            found.bad.append(BadRow(row, name, why.reason, why.detail))
            continue
        seen.add(name)
        kept = problems.setdefault(problem.problem_id, problem)
        if kept.answer != problem.answer:
            notes.append(("other_gold", f"{problem.answer!r}, and {kept.answer!r} in an earlier row"))
        found.notes.extend(BadRow(row, name, reason, detail) for reason, detail in notes)
        found.solutions.append(solution)
        found.labels.append(labels)
    found.problems.extend(problems.values())
    return found


def _json_object(line: bytes | None) -> dict[str, Any]:
    try:
        # half a surrogate pair can be escaped in JSON, but not written
        json.dumps(record := json.loads(line or b""), ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Rejected("broken_row", f"no JSON in UTF-8: {str(error)[:200]}") from error
    if isinstance(record, dict):
        return record
    raise Rejected("broken_row", f"expected an object, found {type(record).__name__}")


def _row(
    record: dict[str, Any], name: str, root: Path, digests: dict[str, str]
) -> tuple[Problem, Solution, list[StepLabel], list[tuple[str, str]]]:
    """The problem, solution, labels and caveats (reason, detail) of a row; Rejected if it cannot be used."""
    steps, labels = _steps(record.get("response"))
    images = record.get("image") if isinstance(record.get("image"), list) else [record.get("image")]
    if not images or not isinstance(images[0], str):
        raise Rejected("no_image", f"the image is {record.get('image')!r}"[:200])
    if images[0] not in digests:
        decode(raw := read_bytes(inside(root, images[0])))
        digests[images[0]] = sha256_of(raw)
    question, gold, source = (clean(record.get(key)) for key in ("question", "answer", "data_source"))
    several, none = ("several_images", f"{len(images)} images, the first is used"), ("no_gold", "the row has no answer")
    notes = [several] * (len(images) > 1) + [none] * (not gold)
    choices = record.get("choices") or []
    kind = record.get("answer_type") or (answer_type_of(question, gold, choices) if gold else "text")
    problem_id = clean(record.get("problem_id")) or fingerprint([digests[images[0]], question, source])
    try:
        problem = Problem(
            problem_id=problem_id, question=question, image=images[0], image_sha256=digests[images[0]],
            answer=gold or NO_GOLD, answer_type=kind, choices=choices, source=source or "unknown", split="test",
        )  # fmt: skip
        solution = Solution(
            solution_id=name, problem_id=problem_id, steps=steps, answer=None, verdict="unknown", seed=0, n_tokens=0,
            policy=clean(record.get("policy_model")) or "unknown", finish_reason="stop", reason="only steps are judged",
        )  # fmt: skip
    except ValidationError as error:
        raise Rejected("invalid_record", faults(error)[:300]) from error
    problem._root = root
    return problem, solution, labels, notes


def _steps(response: Any) -> tuple[list[str], list[StepLabel]]:
    if not isinstance(response, dict) or not {"steps", "process_correctness"} <= set(response):
        raise Rejected("missing_column", "response must be an object with steps and process_correctness")
    steps, labels = response["steps"], response["process_correctness"]
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise Rejected("bad_steps", "steps must be a list of at least one text")
    # bool is an int in Python, and true would pass for 1
    if not isinstance(labels, list) or not all(type(label) is int and label in (1, 0, -1) for label in labels):
        raise Rejected("bad_labels", f"labels must be 1, 0 or -1: {labels!r}"[:200])
    if len(labels) != len(steps):
        raise Rejected("length_mismatch", f"{len(labels)} labels for {len(steps)} steps")
    return steps, labels


def write_visualprocessbench(
    path: str | Path, problems: Sequence[Problem], solutions: Sequence[Solution], labels: Sequence[Sequence[StepLabel]]
) -> None:
    """Nothing; a file in VisualProcessBench's format, whole or not at all, its images copied beside it.

    Fields beyond the format (id, problem_id, answer_type, choices) let it be read back to the same problems.
    """
    path, by_id, names = Path(path), {problem.problem_id: problem for problem in problems}, dict[str, str]()

    def rows() -> Iterator[bytes]:
        for solution, marks in zip(solutions, labels, strict=True):
            name = solution.solution_id
            if solution.problem_id not in by_id:
                raise ValueError(f"solution {name!r} is of problem {solution.problem_id!r}, which is not given")
            if len(marks) != len(solution.steps):
                raise ValueError(f"solution {name!r} has {len(marks)} labels for {len(solution.steps)} steps")
            problem = by_id[solution.problem_id]
            if problem.problem_id not in names:
                source = problem.image_path
                names[problem.problem_id] = store(read_bytes(source), source.suffix, path.parent)[0]
            record = {
                "id": name, "image": [names[problem.problem_id]], "question": problem.question,
                "answer": None if problem.answer == NO_GOLD else problem.answer,
                "response": {"steps": solution.steps, "process_correctness": [int(mark) for mark in marks]},
                "policy_model": solution.policy, "data_source": problem.source, "problem_id": problem.problem_id,
                "answer_type": problem.answer_type, "choices": problem.choices,
            }  # fmt: skip
            yield json.dumps(record, ensure_ascii=False).encode() + b"\n"

    write_bytes(path, rows())


def flatten(labels: Sequence[Sequence[StepLabel]], scores: Sequence[SolutionScores]) -> Flat:
    """The non-neutral steps of all solutions with their scores. ValueError where labels and scores do not match."""
    if len(labels) != len(scores):
        raise ValueError(f"labels of {len(labels)} solutions, scores of {len(scores)}; score every solution")
    rows: list[tuple[bool, float, int]] = []
    for i, (marks, values) in enumerate(zip(labels, scores, strict=True)):
        values = [None] * len(marks) if values is None else values
        if len(values) != len(marks):
            raise ValueError(f"solution {i} has {len(values)} scores for {len(marks)} labelled steps")
        for mark, value in zip(marks, values, strict=True):
            if mark not in (1, 0, -1):
                raise ValueError(f"solution {i} has the label {mark!r}; labels are 1, 0 or -1")
            if mark:
                rows.append((mark == 1, np.nan if value is None else float(value), i))
    correct, score, solution = zip(*rows, strict=True) if rows else ((), (), ())
    return Flat(np.array(correct, dtype=bool), np.array(score, dtype=float), np.array(solution, dtype=np.int64))


def confusion(flat: Flat, n_solutions: int, threshold: float) -> np.ndarray:
    """Counts (n_solutions, 4) = (tp, fn, fp, tn) with "correct" as the positive class; a missing score is a miss."""
    counts = np.zeros((n_solutions, 4))
    predicted = np.where(np.isnan(flat.score), ~flat.correct, flat.score >= threshold)
    np.add.at(counts, (flat.solution, np.where(flat.correct, 0, 2) + np.where(predicted, 0, 1)), 1)
    return counts


def first_errors(flat: Flat, n_solutions: int, threshold: float) -> np.ndarray:
    """Counts (n_solutions, 4) = (erroneous, found, error-free, passed) of solutions, for the first-error F1.

    The predicted first error is the first step with score < threshold, none if there is none; a solution with an
    unreadable step is a miss. Neutral steps count on neither side; a solution with no other step counts nowhere.
    """
    counts = np.zeros((n_solutions, 4))
    # the steps of a solution lie together, in order
    starts = np.flatnonzero(np.diff(flat.solution, prepend=-1))
    for steps in np.split(np.arange(len(flat.solution)), starts[1:]) if len(starts) else []:
        i = flat.solution[steps[0]]
        wrong, low = np.flatnonzero(~flat.correct[steps]), np.flatnonzero(flat.score[steps] < threshold)
        hit = not np.isnan(flat.score[steps]).any() and wrong[:1].tolist() == low[:1].tolist()
        counts[i, 0 if len(wrong) else 2] = 1
        counts[i, 1 if len(wrong) else 3] = hit
    return counts


def first_error_f1(counts: np.ndarray) -> np.ndarray:
    """The harmonic mean of the accuracies on erroneous and error-free solutions (ProcessBench); counts are (..., 4)."""
    erroneous, found, free, passed = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    a, b = found / np.maximum(erroneous, 1), passed / np.maximum(free, 1)
    f1 = np.where(a + b > 0, 2 * a * b / np.maximum(a + b, 1e-12), 0.0)
    return np.where((erroneous > 0) & (free > 0), f1, np.nan)


def baseline_f1(n_correct: Any, n_incorrect: Any, name: str) -> np.ndarray:
    """F1_correct and F1_incorrect, shape (..., 2), of a baseline that sees only how many steps are of each class.

    From its expected counts: with P correct steps, N incorrect ones and a share q predicted correct at random, TP = qP,
    FN = (1 - q)P, FP = qN and TN = (1 - q)N.
    """
    p, n = np.asarray(n_correct, dtype=float), np.asarray(n_incorrect, dtype=float)
    q = BASELINES[name](p, n)
    return stats.f1_scores(np.stack([q * p, (1 - q) * p, q * n, (1 - q) * n], axis=-1))


def choose_threshold(scores: Sequence[SolutionScores], labels: Sequence[Sequence[StepLabel]]) -> float:
    """The threshold with the highest pooled macro F1 on a dev split; of equals the one nearest 0.5.

    Give it the dev split only: a threshold chosen on the split that is reported flatters the number. Candidates lie
    midway between neighbouring scores. ValueError without readable scores of both classes.
    """
    flat = flatten(labels, scores)
    known = ~np.isnan(flat.score)
    if not (flat.correct & known).any() or not (~flat.correct & known).any():
        raise ValueError("a threshold needs scored correct and incorrect steps in the dev split; use a larger one")
    values, group = np.unique(flat.score[known], return_inverse=True)
    ups, downs = (np.bincount(group, weights=side[known]) for side in (flat.correct, ~flat.correct))
    # at candidate i, the steps of all lower values are predicted incorrect
    fn, tn = np.cumsum(ups) - ups, np.cumsum(downs) - downs
    macro = stats.f1_scores(np.stack([ups.sum() - fn, fn, downs.sum() - tn, tn], axis=-1)).mean(axis=-1)
    middle = np.maximum((values[1:] + values[:-1]) / 2, np.nextafter(values[:-1], 1))  # half of the least float is 0
    best = np.concatenate([values[:1], middle])[macro >= macro.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _over_sources(totals: np.ndarray, weighted: bool) -> np.ndarray:
    """The mean macro F1 of the sources that hold both classes, from counts (..., n_sources, 4)."""
    macro = stats.f1_scores(totals).mean(axis=-1)
    weights = np.where(np.isnan(macro), 0.0, totals.sum(axis=-1) if weighted else 1.0)
    total = weights.sum(axis=-1)
    return np.where(total > 0, (np.nan_to_num(macro) * weights).sum(axis=-1) / np.maximum(total, 1e-12), np.nan)


def report(
    labels_per_solution: Sequence[Sequence[StepLabel]],
    scores_per_solution: Sequence[SolutionScores],
    sources: Sequence[str],
    threshold: float,
    problems: Sequence[str] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> dict[str, Estimate]:
    """Every metric of the benchmark with its interval over problems; metric name -> Estimate.

    One entry per solution in each argument; `sources` are the data sources that "overall" averages over, `problems` the
    problem ids (None: every solution is its own cluster). `threshold` must not come from these labels. Keys:
    macro_f1_pooled, f1_correct, f1_incorrect, macro_f1_step_weighted, macro_f1_unweighted, accuracy, auroc,
    first_error_f1, first_error_accuracy_erroneous, first_error_accuracy_error_free, parse_failure_rate (of steps),
    macro_f1__<source>, and baseline_<name>_macro_f1 for prior, coin, all_correct and all_incorrect.
    """
    flat, n_solutions = flatten(labels_per_solution, scores_per_solution), len(labels_per_solution)
    clusters = list(range(n_solutions)) if problems is None else list(problems)
    names = sorted(set(sources))
    if len(sources) != n_solutions or len(clusters) != n_solutions:
        raise ValueError(f"{n_solutions} solutions, {len(sources)} sources, {len(clusters)} problem ids: give one each")
    by_source = np.zeros((n_solutions, len(names), 4))
    by_source[range(n_solutions), [names.index(s) for s in sources]] = confusion(flat, n_solutions, threshold)
    missing = np.bincount(flat.solution[np.isnan(flat.score)], minlength=n_solutions)
    firsts = first_errors(flat, n_solutions, threshold)
    columns = np.concatenate([by_source.reshape(n_solutions, 4 * len(names)), firsts, missing[:, None]], axis=1)
    statistics = _statistics(names, by_source.sum(axis=(0, 2)), firsts.sum(axis=0))
    found = stats.bootstrap_each(stats.cluster_sums(columns, clusters), statistics, seed=seed, n_resamples=n_resamples)
    # a missing score ranks its step where it hurts most, as in the F1s
    bottom, top = np.nanmin(flat.score, initial=0.0) - 1, np.nanmax(flat.score, initial=1.0) + 1
    ranks = np.where(np.isnan(flat.score), np.where(flat.correct, bottom, top), flat.score)
    return found | {"auroc": stats.auroc(flat.correct, ranks, [clusters[i] for i in flat.solution], seed=seed)}


def _statistics(names: list[str], n_steps: np.ndarray, n_first: np.ndarray) -> dict[str, tuple[stats.Statistic, int]]:
    """What `report` computes, with its n, from totals (..., 4 n_sources + 5): confusions, first errors, missing."""

    def cells(totals: np.ndarray) -> np.ndarray:
        return totals[..., :-5].reshape(*totals.shape[:-1], len(names), 4)  # (..., n_sources, 4)

    def f1s(totals: np.ndarray) -> np.ndarray:
        return stats.f1_scores(cells(totals).sum(axis=-2))

    def rate(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)

    def baseline(totals: np.ndarray, name: str) -> np.ndarray:
        counts = cells(totals).sum(axis=-2)
        return baseline_f1(counts[..., :2].sum(axis=-1), counts[..., 2:].sum(axis=-1), name).mean(axis=-1)

    def source_f1(totals: np.ndarray, index: int) -> np.ndarray:
        return stats.f1_scores(cells(totals)[..., index, :]).mean(axis=-1)

    n, n_erroneous, n_free = int(n_steps.sum()), int(n_first[0]), int(n_first[2])
    keys = [re.sub(r"[^A-Za-z0-9_.=-]", "_", name) for name in names]  # what run.metric takes as a key
    return {
        "macro_f1_pooled": (lambda t: f1s(t).mean(axis=-1), n),
        "f1_correct": (lambda t: f1s(t)[..., 0], n),
        "f1_incorrect": (lambda t: f1s(t)[..., 1], n),
        "macro_f1_step_weighted": (lambda t: _over_sources(cells(t), weighted=True), n),
        "macro_f1_unweighted": (lambda t: _over_sources(cells(t), weighted=False), n),
        "accuracy": (lambda t: rate(cells(t)[..., [0, 3]].sum(axis=(-1, -2)), cells(t).sum(axis=(-1, -2))), n),
        "first_error_f1": (lambda t: first_error_f1(t[..., -5:-1]), n_erroneous + n_free),
        "first_error_accuracy_erroneous": (lambda t: rate(t[..., -4], t[..., -5]), n_erroneous),
        "first_error_accuracy_error_free": (lambda t: rate(t[..., -2], t[..., -3]), n_free),
        "parse_failure_rate": (lambda t: rate(t[..., -1], cells(t).sum(axis=(-1, -2))), n),
        **{f"baseline_{name}_macro_f1": (partial(baseline, name=name), n) for name in BASELINES},
        **{f"macro_f1__{key}": (partial(source_f1, index=i), int(n_steps[i])) for i, key in enumerate(keys)},
    }
