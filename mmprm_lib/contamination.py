"""Which problems a training set and a benchmark share: by text, by image, exactly and nearly; and by what feeds them.

Candidates to be looked at, and no proof: two questions of one template differ in a number, and plain figures look alike
to a 64-bit hash. A pair that agrees in text and image is as good as a proof.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from . import registry
from .images import dhash
from .schema import Problem

SHINGLE = 3  # tokens; shorter questions are compared as wholes only
COMMON = 3  # a text that so many problems of a benchmark have ("as shown in the figure") names none of them
BLOCK = 1024  # training problems at a time
KINDS = ("exact text", "near text", "exact image", "near image", "text and image")
COLUMNS = ["benchmark", "kind", "n_training", "n_benchmark", "n", "share", "example"]
Pairs = np.ndarray  # sorted codes i * len(b) + j of (training problem i, benchmark problem j), as there may be millions


def tokens(problem: Problem) -> tuple[str, ...]:
    """The question as words, numbers and signs, without case, width of characters, LaTeX's dress and final punctuation.

    What a benchmark's entry asks for (`grading["ask"]`) is not part of it.
    """
    ask = (problem.grading or {}).get("ask", "")
    text = unicodedata.normalize("NFKC", problem.question.removesuffix(ask)).casefold()
    text = re.sub(r"\\(?:left|right|text|mathrm|displaystyle|[dt](?=frac))(?![a-z])|\\[,;:! ]|[${}\\]", " ", text)
    found = re.findall(r"[^\W\d_]+|\d+(?:\.\d+)?|[^\s\w]", text)
    while found and found[-1] in ".?!:,;":
        found.pop()
    return tuple(found)


def _shingles(words: Sequence[str]) -> list[str]:
    return [" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)]


def near_texts(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]], least: float) -> Pairs:
    """The pairs of token sequences whose sets of three-token shingles overlap (Jaccard, in [0, 1]) by at least `least`.

    Broder 1997, without his sampling: the overlap is exact. Sequences under three tokens are near nothing.
    """
    if not any(map(_shingles, a)) or not any(map(_shingles, b)):
        return np.array([], dtype=np.int64)
    vectorizer = CountVectorizer(analyzer=_shingles, binary=True, dtype=np.int32).fit(b)
    right, sizes_b = vectorizer.transform(b).T.tocsc(), np.array([len(set(_shingles(words))) for words in b])
    pairs = []
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK]
        sizes_a = np.array([len(set(_shingles(words))) for words in part])
        shared = sparse.coo_array(vectorizer.transform(part) @ right)
        union = sizes_a[shared.row] + sizes_b[shared.col] - shared.data
        close = shared.data >= least * union
        pairs.append((start + shared.row[close].astype(np.int64)) * len(b) + shared.col[close])
    return np.unique(np.concatenate(pairs))


def _equal(a: Sequence, b: Sequence) -> Pairs:
    where: dict = {}
    for j, key in enumerate(b):
        where.setdefault(key, []).append(j)
    return np.unique(np.array([i * len(b) + j for i, key in enumerate(a) for j in where.get(key, ())], dtype=np.int64))


def _near_images(a: Sequence[Problem], b: Sequence[Problem], bits: int) -> Pairs:
    left, right = (np.array([dhash(problem) for problem in side], dtype=np.uint64) for side in (a, b))
    pairs = [np.array([], dtype=np.int64)]
    for start in range(0, len(left), BLOCK):
        close = np.bitwise_count(left[start : start + BLOCK, None] ^ right[None, :]) <= bits
        pairs.append(start * len(b) + np.flatnonzero(close))
    return np.concatenate(pairs)


def table(
    training: Sequence[Problem], benchmarks: Mapping[str, Sequence[Problem]], least: float = 0.7, bits: int = 4
) -> pd.DataFrame:
    """What a training set shares with each benchmark, a row per kind of KINDS; the columns are COLUMNS.

    n_training, n_benchmark: problems with a partner; "near" ones have no exact partner. n, share: of the benchmark.
    near text: `near_texts` of at least `least`; near image: difference hashes (`images.dhash`) at most `bits` of 64
    apart; "text and image": both, exactly or nearly, in one pair. Texts that COMMON problems of a benchmark have count
    in the last kind alone.
    """
    rows = []
    for name, tested in benchmarks.items():
        found = _found(training, tested, least, bits) if training and tested else {}
        for kind in KINDS:
            pairs, exact = (found.get(k, np.array([], dtype=np.int64)) for k in (kind, kind.replace("near", "exact")))
            sides = [np.unique(part) for part in np.divmod(pairs, max(len(tested), 1))]
            if kind.startswith("near"):
                exact = np.divmod(exact, max(len(tested), 1))
                sides = [np.setdiff1d(side, other) for side, other in zip(sides, exact, strict=True)]
            first = pairs[np.isin(pairs % max(len(tested), 1), sides[1])][:1]
            shown = [divmod(code, len(tested)) for code in first]
            example = "".join(f"{training[i].problem_id} ~ {tested[j].problem_id}" for i, j in shown)
            share = len(sides[1]) / len(tested) if tested else float("nan")
            rows.append((name, kind, len(sides[0]), len(sides[1]), len(tested), share, example))
    return pd.DataFrame(rows, columns=COLUMNS)


def _found(training: Sequence[Problem], tested: Sequence[Problem], least: float, bits: int) -> dict[str, Pairs]:
    """The pairs of each kind."""
    texts = [[tokens(problem) for problem in side] for side in (training, tested)]
    often = Counter(texts[1])
    telling = np.array([j for j, key in enumerate(texts[1]) if often[key] < COMMON], dtype=np.int64)
    same, alike = _equal(*texts), near_texts(*texts, least)
    images = _equal([p.image_sha256 for p in training], [p.image_sha256 for p in tested])
    look = np.union1d(images, _near_images(training, tested, bits)) if bits >= 0 else images
    both = np.intersect1d(np.union1d(same, alike), look)
    named = [pairs[np.isin(pairs % len(tested), telling)] for pairs in (same, alike)]
    return dict(zip(KINDS, [*named, images, look, both], strict=True))


def by_registry(sources: Sequence[str]) -> pd.DataFrame:
    """The benchmarks that share a source with the data sets of `sources` by the registry: source, benchmark, shares.

    sources: `Problem.source` of the training problems. No row says only that the registry knows of nothing.
    """
    rows = [
        (source, name, ", ".join(shares))
        for source in dict.fromkeys(sources)
        for name in registry.registry().benchmarks
        if (shares := registry.shared_sources(source, name))
    ]
    return pd.DataFrame(rows, columns=["source", "benchmark", "shares"])
