"""What is done with trained PRMs: load them, score files of solutions, and compare scorers, group by group.

A scorer's scores are a dict, solution_id -> one score in [0, 1] per step. Intervals draw whole problems.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import benchmark, stats, world
from .asking import Generator
from .benchmark import Benchmark
from .critic import Critic
from .critic_training import form_of
from .engines import is_server, load_fleet
from .fleet import FleetScorer
from .grading import verdict
from .provenance import project_root
from .released import check_choices, scorer_at, system_file
from .run import Run, progress
from .schema import Problem, RecordLog, Scores, Solution, fingerprint
from .scoring import Scorer
from .stats import Estimate
from .steps import join

FORMAT = 1  # of the score files: a change of what they mean changes their keys
AT_HALF = 0.5
ORIGINS = {"dev": "from the dev part", "stated": "as stated"}  # where a threshold is from, in words
StepScores = Mapping[str, Sequence[float]]

# -- models by name


def locate(run: Run, where: str) -> str | Path:
    """What `models.load` takes: "embedded", an output of this run ("04_prm_training/marker"), a folder, or a hub id."""
    if re.match(r"\d\d_", where):
        return run.input(where)
    if where != "embedded" and (project_root() / where).exists():
        return run.external(where)
    return where


def load_policy(
    run: Run, where: str, *, engine: str = "transformers", n_workers: int = 0, batch_size: int = 512,
    bf16: bool = False, trust_remote_code: bool = False,
) -> Generator:  # fmt: skip
    """A generator of the policy at `where` (see `locate`), on the GPU if there is one; the run records its hash.

    `engine` as of `engines.load_generator` (at a server, `where` is the model's name there); with `n_workers`, one in
    each of so many workers of a Ray cluster.
    """
    place = where if is_server(engine) else locate(run, where)
    options = {"batch_size": batch_size, "bf16": bf16, "trust_remote_code": trust_remote_code}
    generator = load_fleet(n_workers, place, engine, name=where.rpartition("/")[2], **options)
    run.model("policy", generator.fingerprint)
    return generator


def load_critic(
    run: Run, name: str, where: str | Path, *, engine: str = "transformers", n_workers: int = 0, batch_size: int = 256,
    trust_remote_code: bool = False,
) -> Critic:  # fmt: skip
    """The critic that `critic_training.train` has put at `where` (see `locate`; a Path is taken as it is).

    The run records its hash as that of `name`. `engine` and `n_workers` as of `load_policy`; at a server, too, the
    folder is read: for the form and the tokens of the verdicts.
    """
    folder = where if isinstance(where, Path) else locate(run, where)
    form, options = form_of(folder), {"batch_size": batch_size, "trust_remote_code": trust_remote_code}
    place = where if is_server(engine) else folder
    critic = Critic(load_fleet(n_workers, place, engine, name=name, processor=folder, **options), form)
    run.model(name, critic.fingerprint)
    return critic


def load_scorer(
    run: Run, name: str, where: str, *, n_workers: int = 0, bf16: bool = False, trust_remote_code: bool = False,
    choices: Mapping[str, Any] | None = None, **options: Any,
) -> Scorer | FleetScorer:  # fmt: skip
    """The PRM at `where` (see `locate`) as a Scorer called `name`, on the GPU if there is one; `options` are Scorer's.

    A folder without prm.json holds a PRM that others trained, if there are `choices` (see `released`), else a plain
    model: it is read in the format that the name says (marker, marker_hard, chat, chat_advantage, orm, judge),
    untrained. The run records the file that holds a system message. ValueError if the name says none, or if a PRM that
    knows its format is given choices. With `n_workers`, one in each of so many workers of a Ray cluster, whose places
    no other fleet gets before it is closed (`with`).
    """
    check_choices({name: choices} if choices else {})
    if text := system_file(choices or {}):
        run.external(text)
    load_options = {"dtype": torch.bfloat16 if bf16 else torch.float32, "trust_remote_code": trust_remote_code}
    make = partial(scorer_at, name, where, locate(run, where), load_options, choices or {}, **options)
    scorer = FleetScorer(make, n_workers) if n_workers else make()
    run.model(name, scorer.fingerprint)
    return scorer


def scores_to(
    path: str | Path, scorer: Scorer | FleetScorer, problems: Sequence[Problem], solutions: Sequence[Solution]
) -> dict[str, list[float]]:
    """The scores of all solutions, also as records in the file at `path`; a killed run goes on where it stopped."""
    known = {p.problem_id: p for p in problems}
    marks = [[s.solution_id, s.steps, known[s.problem_id].image_sha256] for s in solutions]
    texts = [[p.problem_id, p.question, p.choices] for p in problems]
    key = fingerprint(["scores", FORMAT, scorer.fingerprint, scorer.name, marks, texts])
    with RecordLog(Path(path), Scores, key) as log:
        left = [s for s in solutions if s.solution_id not in log.done]
        records = scorer.score_records(problems, left, chunk=1024)
        for record in progress(records, total=len(left), desc=Path(path).stem) if left else ():
            log.append(record)
        found = {record.solution_id: record.step_scores for record in log.records()}
    return {s.solution_id: found[s.solution_id] for s in solutions}


# -- the benchmark made by the world


def writer_solutions(
    problems: Sequence[Problem], name: str, n: int, seed: int, *, slip: float, misconception: float, neutral: float
) -> list[Solution]:
    """n solutions per problem by a corpus writer called `name`, who makes mistakes at these rates, in [0, 1].

    See `world.corpus_solution`. ValueError for a problem without a scene, which nobody can write about unseen.
    """
    rng, solutions = random.Random(f"{seed}/{name}"), []
    for problem in problems:
        if problem.scene is None:
            raise ValueError(f"{problem.problem_id}: no scene, so no truth: set benchmark_path to a labelled file")
        for i in range(n):
            steps = world.corpus_solution(problem, rng, slip=slip, misconception=misconception, neutral=neutral)
            label, answer, reason = verdict(join(steps), problem)
            solution = Solution(
                solution_id=f"{problem.problem_id}/s{i}", problem_id=problem.problem_id, steps=steps, answer=answer,
                verdict=label, policy=name, seed=seed, n_tokens=0, finish_reason="stop", reason=reason,
            )  # fmt: skip
            solutions.append(solution)
    return by_policy(solutions, name)


def by_policy(solutions: Sequence[Solution], name: str) -> list[Solution]:
    """The same solutions under the name of who wrote them, in `policy` and in the id: <problem_id>/<name>/s<i>."""
    named = []
    for solution in solutions:
        sample = solution.solution_id.rpartition("/")[2]
        update = {"policy": name, "solution_id": f"{solution.problem_id}/{name}/{sample}"}
        named.append(solution.model_copy(update=update))
    return named


def truths(problems: Sequence[Problem], solutions: Sequence[Solution]) -> list[list[int]]:
    """The world's label of every step: 1, -1, or 0 for a step that claims nothing. ValueError outside the world."""
    known = {p.problem_id: p for p in problems}
    blind = next((p.problem_id for p in problems if p.scene is None), None)
    if blind is not None:
        raise ValueError(f"{blind}: no truth outside the embedded world: set benchmark_path to a labelled file")
    return [world.truth(known[s.problem_id], s.steps) for s in solutions]


# -- the benchmark's two parts, and metrics on them


def divide(bench: Benchmark, dev_share: float, seed: int) -> tuple[Benchmark, Benchmark]:
    """(dev, reported): a seeded share of the problems with all their solutions, for thresholds alone, and the rest."""
    names = sorted(p.problem_id for p in bench.problems)
    random.Random(f"{seed}/dev").shuffle(names)
    dev = set(names[: round(dev_share * len(names))])
    return _part(bench, dev), _part(bench, set(names) - dev)


def first(bench: Benchmark, n: int) -> Benchmark:
    """The first n problems of a benchmark with all their solutions, for what is too costly for all of it."""
    return _part(bench, {p.problem_id for p in bench.problems[:n]})


def _part(bench: Benchmark, names: set[str]) -> Benchmark:
    kept = [i for i, s in enumerate(bench.solutions) if s.problem_id in names]
    problems = [p for p in bench.problems if p.problem_id in names]
    return bench._replace(
        problems=problems, solutions=[bench.solutions[i] for i in kept], labels=[bench.labels[i] for i in kept]
    )


def aligned(bench: Benchmark, scores: StepScores) -> list[Sequence[float]]:
    """The scores in the order of the benchmark's solutions."""
    return [scores[s.solution_id] for s in bench.solutions]


def thresholds(
    dev: Benchmark, scores: Mapping[str, StepScores], formats: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, float]:
    """Each scorer's best threshold on the dev part; 0.5 where that holds only one kind of step.

    A `threshold` that `formats` states for a scorer (see `released`) stands in its place.
    """
    stated = {n: float(formats[n]["threshold"]) for n, o in origins(scores, formats).items() if o == "stated"}
    if not {1, -1} <= {label for labels in dev.labels for label in labels}:
        return {name: stated.get(name, AT_HALF) for name in scores}
    return {
        name: stated[name] if name in stated else benchmark.choose_threshold(aligned(dev, each), dev.labels)
        for name, each in scores.items()
    }


def origins(names: Iterable[str], formats: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Where each scorer's threshold of `thresholds` is from, a key of ORIGINS: "stated" in `formats`, else "dev"."""
    return {name: "stated" if "threshold" in (formats or {}).get(name, {}) else "dev" for name in names}


def compare(
    bench: Benchmark, scores: Mapping[str, StepScores], chosen: Mapping[str, float], seed: int, n_resamples: int,
    formats: Mapping[str, Mapping[str, Any]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Every metric of `benchmark.report` for every scorer, at its own threshold (`chosen` by `thresholds`, from
    `formats` or the dev part) and at 0.5, in long form.

    Columns: scorer, threshold_from (a key of ORIGINS, or "half"), threshold, metric, value, n, low, high.
    """
    sources = {p.problem_id: p.source for p in bench.problems}
    places = [s.problem_id for s in bench.solutions]
    rows, own = [], origins(scores, formats)
    for name, each in scores.items():
        for origin, threshold in ((own[name], chosen[name]), ("half", AT_HALF)):
            found = benchmark.report(
                bench.labels, aligned(bench, each), [sources[p] for p in places], threshold, places, seed, n_resamples
            )
            rows += [(name, origin, threshold, metric, *estimate) for metric, estimate in found.items()]
    columns = ["scorer", "threshold_from", "threshold", "metric", *Estimate._fields]
    return pd.DataFrame(rows, columns=columns).astype({"low": float, "high": float})


def look_up(table: pd.DataFrame, metric: str, **where: Any) -> dict[str, Any]:
    """The value, n, low and high of the one row with this metric that fits `where`: run.metric(key, **found)."""
    rows = table[table["metric"] == metric]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows hold {metric} where {where}; name one")
    found = rows.iloc[0][list(Estimate._fields)].to_dict()
    return {key: None if key in ("low", "high") and pd.isna(value) else value for key, value in found.items()}


def f1_difference(
    bench: Benchmark, a: StepScores, b: StepScores, at: tuple[float, float], seed: int, n_resamples: int
) -> Estimate:
    """Pooled macro F1 of `a` minus that of `b`, each at its own threshold, both on the same resampled problems."""
    n = len(bench.solutions)
    flats = [benchmark.flatten(bench.labels, aligned(bench, scores)) for scores in (a, b)]
    counts = [benchmark.confusion(flat, n, threshold) for flat, threshold in zip(flats, at, strict=True)]
    sums = stats.cluster_sums(np.concatenate(counts, axis=1), [s.problem_id for s in bench.solutions])

    def gap(totals: np.ndarray) -> np.ndarray:
        return stats.f1_scores(totals[..., :4]).mean(axis=-1) - stats.f1_scores(totals[..., 4:]).mean(axis=-1)

    return stats.bootstrap(sums, gap, len(flats[0].correct), method="bca", seed=seed, n_resamples=n_resamples)


def step_table(
    bench: Benchmark, scores: Mapping[str, StepScores], known: Mapping[str, Problem] | None = None
) -> pd.DataFrame:
    """One row per step with its label and, in a column `score_<scorer>`, each score.

    Columns: solution_id, problem_id, source, policy, position (from 1), kind (of the world's step forms), label, error
    (intent, image or logic, where `known` has the problem's scene and the step is wrong; else "").
    """
    sources, rows = {p.problem_id: p.source for p in bench.problems}, []
    for solution, labels in zip(bench.solutions, bench.labels, strict=True):
        problem = (known or {}).get(solution.problem_id)
        for t, (step, label) in enumerate(zip(solution.steps, labels, strict=True)):
            judged = world.check_step(problem, solution.steps[:t], step) if problem and problem.scene else None
            row = dict(
                solution_id=solution.solution_id, problem_id=solution.problem_id, source=sources[solution.problem_id],
                policy=solution.policy, position=t + 1, kind=world.step_kind(step),
                error=world.error_kind(judged) if judged and label == -1 else "", label=label,
            )  # fmt: skip
            rows.append(row | {f"score_{name}": each[solution.solution_id][t] for name, each in scores.items()})
    return pd.DataFrame(rows)


def by_group(
    steps: pd.DataFrame, by: str, scorers: Mapping[str, float], seed: int = 0, min_steps: int = 1
) -> pd.DataFrame:
    """Macro F1 and AUROC of each scorer (name -> threshold) in each group of steps, in long form.

    Columns: `by`, scorer, metric (macro_f1, auroc, share_wrong), value, n, low, high. Neutral steps
    are dropped, and groups under `min_steps` left out; with one kind of step only, the first two metrics are nan.
    """
    rows = []
    for group, part in steps[steps["label"] != 0].groupby(by, sort=True):
        if len(part) < min_steps:
            continue
        right, clusters = (part["label"] == 1).to_numpy(), part["problem_id"].tolist()
        for name, threshold in scorers.items():
            score = part[f"score_{name}"].to_numpy(float)
            found = {
                "macro_f1": stats.macro_f1(right, score >= threshold, clusters, seed=seed),
                "auroc": stats.auroc(right, score, clusters, seed=seed, n_resamples=200),
                "share_wrong": stats.mean(~right, clusters, seed=seed),
            }
            rows += [(group, name, metric, *estimate) for metric, estimate in found.items()]
    frame = pd.DataFrame(rows, columns=[by, "scorer", "metric", *Estimate._fields])
    return frame.astype({"value": float, "low": float, "high": float})


def caught(steps: pd.DataFrame, scorers: Mapping[str, float], seed: int = 0) -> pd.DataFrame:
    """The share of wrong steps below each scorer's threshold, by `error`: error, scorer, value, n, low, high.

    No rows where the kind of error is not known, that is, outside the embedded world.
    """
    rows = [
        (error, name, *stats.mean(part[f"score_{name}"] < threshold, part["problem_id"].tolist(), seed=seed))
        for error, part in steps[steps["error"] != ""].groupby("error")
        for name, threshold in scorers.items()
    ]
    return pd.DataFrame(rows, columns=["error", "scorer", *Estimate._fields])


def telling(bench: Benchmark, scores: StepScores, threshold: float) -> dict[str, int]:
    """Solutions worth looking at, title -> index: the one whose first wrong step is found, and stands out most, and the
    one with the wrong step that is believed most. Titles without such a solution are left out.
    """
    found, missed = {}, {}
    for i, (solution, labels) in enumerate(zip(bench.solutions, bench.labels, strict=True)):
        score, label = np.array(scores[solution.solution_id]), np.array(labels)
        if not (label == -1).any():
            continue
        first, low = int(np.argmax(label == -1)), np.flatnonzero((score < threshold) & (label != 0))
        if len(low) and low[0] == first and first > 0:
            found[i] = score[:first].min() - score[first]
        missed[i] = score[label == -1].max()
    ranked = {"first mistake found": found, "mistake believed": missed}
    return {title: max(each, key=each.__getitem__) for title, each in ranked.items() if each}
