"""Contamination: planted duplicates are found, planted near-duplicates are near, and the rest is left alone."""

import io

import numpy as np
import pytest
from PIL import Image

from mmprm_lib import contamination, images, world
from mmprm_lib.schema import Problem, sha256_of

FILLER = ["What is the area of the garden in square metres if its sides are {0} and {1} metres long?",
          "A train leaves the station at {0} and arrives {1} minutes later; how far did it go?"]  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """A problem with a noise image of its seed; `change` alters the pixels a little."""

    def one(name, question, seed, change=None, **more) -> Problem:
        picture = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), dtype=np.uint8)
        image = Image.fromarray(picture).resize((96, 84), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        (change(image) if change else image).save(buffer, "PNG")
        place, digest = images.store(buffer.getvalue(), ".png", tmp_path)
        problem = Problem(problem_id=name, question=question, image=place, image_sha256=digest, answer="1",
                          answer_type="number", source="x", split="train", **more)  # fmt: skip
        problem._root = tmp_path
        assert digest == sha256_of(buffer.getvalue())
        return problem

    return one


def brighter(image):
    return image.point(lambda v: min(255, int(v * 0.9) + 8)).resize((100, 90))


def counts(table):
    return {row.kind: (row.n_training, row.n_benchmark) for row in table.itertuples()}


def test_planted_duplicates_and_near_duplicates_are_told_apart(make):
    training = [make(f"t{i}", FILLER[i % 2].format(i, i + 7), i) for i in range(40)]
    question = "In the figure, the line AB is perpendicular to CD; how large is the angle at the point O, in degrees?"
    latex = r"Given $\left(x^{2}+1\right)=5$, find $x$ ."
    training += [make("copy", question, 100), make("words", question, 102), make("latex", latex, 103)]
    tested = [
        make("b-copy", question, 100),  # text and image
        make("b-words", question.replace("perpendicular to", "orthogonal to"), 200, brighter),  # text nearly, no image
        make("b-image", "Something else is asked of it here, in other words.", 0),  # the image of t0
        make("b-scaled", "And here it is asked about the colours of the bars.", 1, brighter),  # that of t1, nearly
        make("b-latex", r"GIVEN (x^2 + 1) = 5, FIND x", 201),
        make("b-none", "How many apples are on the table, and how many of them are red?", 202),
    ]
    found = contamination.table(training, {"bench": tested})
    assert counts(found) == {
        "exact text": (3, 2),  # copy, words with b-copy, and latex with b-latex
        "near text": (0, 1),  # b-words, whose partners copy and words have an exact one besides
        "exact image": (2, 2),  # copy and t0
        "near image": (1, 1),  # t1
        "text and image": (1, 1),
    }
    assert found["n"].tolist() == [6] * 5 and found["share"].round(3).tolist() == [0.333, 0.167, 0.333, 0.167, 0.167]
    assert found["example"].tolist()[4] == "copy ~ b-copy" and found["example"].tolist()[3] == "t1 ~ b-scaled"


def test_a_pair_that_agrees_nearly_in_both_is_one_problem(make):
    question = "How many of the grey squares in the figure touch a white square on at least two of their sides?"
    training = [make("t", question, 1)]
    tested = [make("b", question.replace("at least two", "exactly two"), 1, brighter)]
    found = counts(contamination.table(training, {"bench": tested}, least=0.6))
    assert found["text and image"] == (1, 1) and found["exact text"] == found["exact image"] == (0, 0)
    assert counts(contamination.table(training, {"bench": tested}, least=0.95))["text and image"] == (0, 0)
    assert counts(contamination.table(training, {"bench": tested}, least=0.6, bits=-1))["text and image"] == (0, 0)


def test_a_text_that_many_problems_have_names_none_of_them(make):
    question = "According to the question shown in the image, please give the answer."
    training = [make("t", question, 1)]
    few, many = ([make(f"b{i}", question, 1 + i) for i in range(n)] for n in (2, 3))
    assert counts(contamination.table(training, {"bench": few}))["exact text"] == (1, 2)
    found = counts(contamination.table(training, {"bench": many}))
    assert found["exact text"] == found["near text"] == (0, 0) and found["text and image"] == (1, 1)


def test_what_the_registry_asks_for_is_not_compared(make):
    ask = "Give the letter of the right option."
    training = [make("t", "How many sides has the figure?", 1)]
    tested = [make("b", f"How many sides has the figure?\n{ask}", 2, grading={"benchmark": "mathvista", "ask": ask})]
    assert counts(contamination.table(training, {"bench": tested}))["exact text"] == (1, 1)


def test_nothing_is_shared_with_nothing(make):
    problem = make("t", "How many sides has the figure?", 1)
    assert counts(contamination.table([], {"bench": [problem]})) == dict.fromkeys(contamination.KINDS, (0, 0))
    empty = contamination.table([problem], {"bench": []})
    assert empty["n"].tolist() == [0] * 5 and empty["share"].isna().all()
    assert contamination.table([problem], {}).empty
    short = [make("s", "Why?", 3)]
    assert counts(contamination.table(short, {"b": [make("r", "How?", 4)]}))["near text"] == (0, 0)


def test_the_near_texts_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    a, b = ([tuple(rng.choice(list("ab"), size=rng.integers(1, 9))) for _ in range(60)] for _ in range(2))

    def jaccard(x, y):
        p, q = ({t[i : i + 3] for i in range(len(t) - 2)} for t in (x, y))
        return len(p & q) / len(p | q) if p | q else 0.0

    for least in (0.3, 0.7, 1.0):
        expected = [i * 60 + j for i, x in enumerate(a) for j, y in enumerate(b) if jaccard(x, y) >= least]
        assert contamination.near_texts(a, b, least).tolist() == expected and expected


def test_the_registry_warns_where_no_file_is_at_hand():
    found = contamination.by_registry(["OpenGVLab/VisualPRM400K-v1.1@abc", "world", "world"])
    assert set(found["source"]) == {"OpenGVLab/VisualPRM400K-v1.1@abc"}
    shares = found.set_index("benchmark")["shares"]
    assert "geometry3k" in shares["mathvista"] and "visualprocessbench" in shares and "logicvista" not in shares
    found = contamination.by_registry(["mathvision"])  # whoever trains on it has seen what VisualProcessBench asks
    assert found.set_index("benchmark")["shares"]["visualprocessbench"] == "competitions, mathvision"


def test_problems_of_the_world_share_wordings_and_no_problem(tmp_path):
    sets = []
    for split in ("train", "test"):
        sets.append([])
        for problem, image in world.draw(60, 0, split):
            name, digest = images.store(images.png(image), ".png", tmp_path)
            sets[-1].append(problem.model_copy(update={"image": name, "image_sha256": digest}))
            sets[-1][-1]._root = tmp_path
    found = counts(contamination.table(sets[0], {"test": sets[1]}, bits=0))
    assert found["exact image"] == (0, 0)
