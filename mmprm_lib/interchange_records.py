"""Labelled solutions of foreign files as records of ours and back; a person's marks as labels, and labels as marks."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .fields import answer_type_of
from .foreign import Labelled, Mark, marks_of
from .images import Rejected, decode, inside, png, read_bytes, store
from .schema import Problem, Solution, StepLabels, sha256_of
from .steps import question_text

NO_GOLD = "(no gold answer)"  # what `benchmark` writes, too: labels of steps can do without one, a Problem cannot


def labelled_of(problem: Problem, labels: StepLabels, solution: Solution | None = None) -> Labelled:
    """Records of ours as a labelled solution, to be written; choices become a line of the question."""
    if labels.problem_id != problem.problem_id or (solution and solution.solution_id != labels.solution_id):
        raise ValueError(f"labels of {labels.solution_id!r} go with problem {labels.problem_id!r}, given others")
    of_solution = {"policy": solution.policy, "verdict": solution.verdict} if solution else {}
    answer = None if problem.answer == NO_GOLD else problem.answer
    return Labelled(
        labels=labels, question=question_text(problem), images=[problem.image], answer=answer, **of_solution
    )


def records_of(
    example: Labelled, root: Path, *, split: str = "all", source: str = "", blank: bool = False
) -> tuple[Problem, Solution, StepLabels]:
    """The problem, the solution and the labels; the one image lies below `root`, where it stays.

    A Problem has an image. Text alone can have a white one (`blank`, 64 x 64 pixels, written below `root`), which says
    to a model as little as a picture can; without `blank` it is Rejected. So are several images. What the file does
    not know of the solution is empty: answer None, 0 tokens. ValueError (Rejected) names the solution.
    """
    name, root = example.record_id, Path(root)
    if len(example.images) > 1 or not (example.images or blank):
        reason, what = ("several_images", "has one image") if example.images else ("no_image", "needs one: set blank")
        raise Rejected(reason, f"{name!r} has {len(example.images)} images, a problem {what}")
    if example.images:
        path = inside(root, example.images[0])
        decode(raw := read_bytes(path))
        image, digest = path.relative_to(root.resolve()).as_posix(), sha256_of(raw)
    else:
        image, digest = store(png(Image.new("RGB", (64, 64), "white")), ".png", root)
    gold = example.answer or NO_GOLD
    problem = Problem(
        problem_id=example.labels.problem_id, question=example.question, image=image, image_sha256=digest, answer=gold,
        answer_type=answer_type_of(example.question, gold, []) if example.answer else "text",
        source=source or example.labels.strategy, split=split,
    )  # fmt: skip
    problem._root = root
    solution = Solution(
        solution_id=name, problem_id=problem.problem_id, steps=example.steps, answer=None, verdict=example.verdict,
        policy=example.policy, seed=0, n_tokens=0, finish_reason="stop", reason="read from a foreign file",
    )  # fmt: skip
    return problem, solution, example.labels


def scores_from_marks(example: Labelled, neutral: float | None = 1.0) -> Labelled:
    """The same with mc_score 1 for a right step, 0 for a wrong one, `neutral` for a neutral one, None where not judged.

    For training on what people said. PRM800K's authors score neutral steps as right (2305.20050); None leaves them out
    of the loss. A mark is of the step, an mc_score of the prefix: after the first wrong step they are
    not the same thing. Rejected if there are no marks, or Monte Carlo labels would be lost.
    """
    marks, name = marks_of(example), example.record_id
    if any(score is not None for score in example.labels.mc_score):
        raise Rejected("bad_labels", f"{name!r} has mc_score already; take its labels as they are")
    value: dict[Mark | None, float | None] = {1: 1.0, 0: neutral, -1: 0.0, None: None}
    labels = example.labels.model_copy(update={"mc_score": [value[mark] for mark in marks]})
    return example.model_copy(update={"labels": StepLabels.model_validate(labels.model_dump())})


def marks_from_scores(example: Labelled, threshold: float = 0.0) -> Labelled:
    """The same with marks 1 where mc_score > `threshold`, -1 where it is not, None where there is none.

    For formats that know marks alone (PRM800K, ProcessBench). Rejected if there are marks already.
    """
    if example.marks is not None:
        raise Rejected("bad_labels", f"{example.record_id!r} has marks already; write it as it is")
    scores = example.labels.mc_score
    return example.model_copy(update={"marks": [None if s is None else 1 if s > threshold else -1 for s in scores]})


def labelled_prefix(example: Labelled) -> Labelled:
    """The same, its steps up to the first without an mc_score: what formats that know no null can hold."""
    scores = example.labels.mc_score
    return first_steps(example, scores.index(None)) if None in scores else example


def first_steps(example: Labelled, n: int) -> Labelled:
    """The same with its first `n` steps and their labels; the verdict, which is on the whole, becomes unknown."""
    values = example.labels.model_dump()
    cut = {k: v[:n] if isinstance(v, list) else v for k, v in values.items()}
    lists = {name: None if (v := getattr(example, name)) is None else v[:n] for name in ("marks", "scores")}
    verdict = example.verdict if n >= len(example.steps) else "unknown"
    return example.model_copy(update={"labels": StepLabels(**cut), "verdict": verdict, **lists})
