"""Dividing problems into splits, and what two splits have in common."""

from __future__ import annotations

import random
import unicodedata
from itertools import combinations

import numpy as np
import pandas as pd

from . import world
from .images import dhash
from .schema import Problem

BLOCK = 2048  # rows of the distance matrix at a time: 2,048 x 10,000 distances are 20 MB


def split_by(problems: list[Problem], fractions: dict[str, float], seed: int) -> list[Problem]:
    """The problems in their order, each with a split drawn in these fractions; problems with one image stay together.

    The sizes are met to within the largest group. ValueError if the fractions are negative or do not sum to 1.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"fractions {fractions} must not be negative and must sum to 1, not {sum(fractions.values())}")
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(problem.image_sha256, []).append(index)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    names = [name for name, share in fractions.items() if share > 0]
    ends = np.cumsum([fractions[name] for name in names]) * len(problems)  # where each split is full
    placed, split_of = 0, {}
    for group in order:
        # a group belongs where its middle falls, so that no split is overrun by more than half a group
        middle = placed + len(groups[group]) / 2
        split_of[group] = names[min(int(np.searchsorted(ends, middle)), len(names) - 1)]
        placed += len(groups[group])
    return [problem.model_copy(update={"split": split_of[problem.image_sha256]}) for problem in problems]


def question_key(problem: Problem) -> str:
    """The question without differences of case, spacing, width of characters and closing punctuation."""
    text = unicodedata.normalize("NFKC", problem.question).casefold()
    return " ".join(text.split()).rstrip(" .?!:_")


def _keys(problems: list[Problem]) -> dict[str, list[str | tuple[str, str] | None]]:
    images = [p.image_sha256 for p in problems]
    questions = [question_key(p) for p in problems]
    scenes = [None if p.scene is None else world.scene_key(p.scene) for p in problems]
    both = list(zip(images, questions, strict=True))
    return {"image": images, "question": questions, "image and question": both, "scene": scenes}


def overlap(a: list[Problem], b: list[Problem], near: int = -1) -> pd.DataFrame:
    """What two lists of problems share, one row per kind: kind, n_a, n_b (problems with a partner), example (two ids).

    Kinds: "image" (same file), "question" (same text but for case and spacing), both together, "scene" (same figure
    content, embedded world only), and with near >= 0 "near image": difference hashes at most `near` of 64 bits apart.
    Plain figures look alike to a 9 x 8 hash, so that near images are candidates to be looked at and no proof.
    """
    rows = []
    for (kind, left), right in zip(_keys(a).items(), _keys(b).values(), strict=True):
        where = {key: j for j, key in enumerate(right) if key is not None}
        hits = [(i, where[key]) for i, key in enumerate(left) if key in where]
        shared = {left[i] for i, _ in hits}
        example = f"{a[hits[0][0]].problem_id} = {b[hits[0][1]].problem_id}" if hits else ""
        rows.append((kind, len(hits), sum(key in shared for key in right), example))
    if near >= 0:
        rows.append(("near image", *_near(a, b, near)))
    return pd.DataFrame(rows, columns=["kind", "n_a", "n_b", "example"])


def _near(a: list[Problem], b: list[Problem], near: int) -> tuple[int, int, str]:
    left, right = (np.array([dhash(p) for p in side], dtype=np.uint64) for side in (a, b))
    hit_a, hit_b, example = np.zeros(len(a), bool), np.zeros(len(b), bool), ""
    for start in range(0, len(a), BLOCK):
        close = np.bitwise_count(left[start : start + BLOCK, None] ^ right[None, :]) <= near  # (block, len(b))
        hit_a[start : start + BLOCK] = close.any(axis=1)
        hit_b |= close.any(axis=0)
        if not example and close.any():
            i, j = np.argwhere(close)[0]
            example = f"{a[start + i].problem_id} ~ {b[j].problem_id}"
    return int(hit_a.sum()), int(hit_b.sum()), example


def overlap_table(problems: list[Problem], near: int = -1) -> pd.DataFrame:
    """`overlap` of every pair of splits, in the order of their first problem: a, b, kind, n_a, n_b, example."""
    by_split: dict[str, list[Problem]] = {}
    for problem in problems:
        by_split.setdefault(problem.split, []).append(problem)
    tables = [overlap(by_split[a], by_split[b], near).assign(a=a, b=b) for a, b in combinations(by_split, 2)]
    columns = ["a", "b", "kind", "n_a", "n_b", "example"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def frame(problems: list[Problem]) -> pd.DataFrame:
    """One row per problem: id, split, family, form ("multiple choice" or "fill-in"), answer type, answer, n_steps, ...

    family is the source and n_steps is missing where there is no scene, that is, no worked solution.
    """
    rows = [
        {
            "problem_id": p.problem_id,
            "split": p.split,
            "family": p.scene["family"] if p.scene else p.source,
            "form": "multiple choice" if p.answer_type == "choice" else "fill-in",
            "answer_type": p.answer_type,
            "answer": p.answer,
            "n_choices": len(p.choices),
            "n_steps": len(world.solve(p)) if p.scene else None,
            "question_words": len(p.question.split()),
        }
        for p in problems
    ]
    return pd.DataFrame(rows).astype({"n_steps": "Int64"})


def counts(table: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """How often each value of `column` occurs within each value of `by`: the two columns, n, share within `by`."""
    values = table[column].astype("object").where(table[column].notna(), "unknown")
    found = table.assign(**{column: values}).groupby([by, column], sort=True).size().reset_index(name="n")
    return found.assign(share=found["n"] / found.groupby(by)["n"].transform("sum"))


def examples(problems: list[Problem], n: int = 1) -> list[Problem]:
    """The first `n` problems of every family (or source) in every answer form, families together."""
    table = frame(problems)
    chosen = table.groupby(["family", "form"], sort=True).head(n).sort_values(["family", "form"], kind="stable")
    return [problems[i] for i in chosen.index]


def guess_floor(problems: list[Problem]) -> float:
    """Accuracy of blind guessing in [0, 1]: one over the number of options, 0 where the answer must be written out."""
    return float(np.mean([1 / len(p.choices) if p.choices else 0.0 for p in problems])) if problems else float("nan")
