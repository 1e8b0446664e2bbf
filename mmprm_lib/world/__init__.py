"""The embedded world: problems about figures, drawn from a seed, with the truth about every possible step."""

import hashlib
import random
from io import BytesIO

from PIL import Image

from ..schema import Problem, fingerprint
from .families import FAMILIES, parts, vocabulary
from .render import render
from .truth import (
    StepTruth,
    check_step,
    corpus_solution,
    correct_step,
    error_kind,
    first_error,
    solve,
    step_kind,
    truth,
    walk,
)

__all__ = [
    "FAMILIES",
    "StepTruth",
    "check_step",
    "corpus_solution",
    "correct_step",
    "draw",
    "error_kind",
    "first_error",
    "parts",
    "render",
    "scene_key",
    "solve",
    "step_kind",
    "truth",
    "vocabulary",
]
SPLITS = {"train": range(0, 75), "dev": range(75, 85), "test": range(85, 100)}  # percent of all scenes


def scene_key(scene: dict) -> str:
    """What makes two scenes the same: the family and the values in the figure."""
    return fingerprint([scene["family"], sorted(scene["values"].items())])


def split_of(scene: dict) -> str:
    """The split a scene belongs to, by its content alone: no scene can stand in two splits, however many are drawn."""
    bucket = int(hashlib.sha256(scene_key(scene).encode()).hexdigest(), 16) % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def draw(
    n: int,
    seed: int,
    split: str = "train",
    *,
    difficulty: float = 0.5,
    families: tuple[str, ...] = tuple(FAMILIES),
    choice_share: float = 0.5,
    tricky_share: float = 0.45,
) -> list[tuple[Problem, Image.Image]]:
    """`n` problems of a split with their figures, no two alike in both figure and question.

    difficulty: chance of the longer form of a question, in [0, 1]. choice_share: share of four-option questions.
    tricky_share: share of questions in the wording that invites the family's misconception.
    """
    rng, problems, known = random.Random(f"{seed}/{split}"), [], set()
    for _ in range(40 * n + 2000):
        if len(problems) == n:
            return problems
        scene, draft = _scene(rng, families[len(problems) % len(families)], difficulty, tricky_share)
        question = draft.tricky if scene["tricky"] else draft.plain
        key = (scene_key(scene), question)
        choose = rng.random() < choice_share
        if split_of(scene) == split and key not in known:
            known.add(key)
            problems.append(_problem(f"world-{split}-{seed}-{len(problems):05d}", question, scene, choose, split, rng))
    raise ValueError(
        f"the world has fewer than n = {n} different problems of split {split!r} in {families}: ask for fewer"
    )


def _scene(rng: random.Random, family: str, difficulty: float, tricky_share: float) -> tuple[dict, object]:
    draft = FAMILIES[family](rng, difficulty)
    scene = {
        "family": family,
        "values": draft.values,
        "extra": draft.extra,
        "plan": draft.plan,
        "trap": draft.trap,
        "tricky": rng.random() < tricky_share,
        "look": rng.randrange(2**31),
    }
    return scene, draft


def _problem(
    name: str, question: str, scene: dict, choose: bool, split: str, rng: random.Random
) -> tuple[Problem, Image.Image]:
    result, answer, choices = walk(scene["plan"], scene)[1], None, []
    if choose:
        trap = [t for t in (walk(scene["trap"], scene)[1],) if t != result]
        near = sorted({result + d for d in (-10, -2, -1, 1, 2, 10) if result + d >= 0} - set(trap))
        options = [result, *trap, *rng.sample(near, 3 - len(trap))]
        rng.shuffle(options)
        choices, answer = [str(x) for x in options], "ABCD"[options.index(result)]
    image = render(scene)
    problem = Problem(
        problem_id=name,
        question=question,
        image=f"images/{name}.png",
        image_sha256=pixels_sha256(image),
        answer=answer or str(result),
        answer_type="choice" if choose else "number",
        choices=choices,
        source=f"world/{scene['family']}",
        split=split,
        scene=scene,
    )
    return problem, image


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of the figure as the PNG file that is written."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return hashlib.sha256(buffer.getvalue()).hexdigest()
