"""Files of other projects: literal rows of every format, round trips of anything, what is refused, and real samples."""

import gzip
import json
import string
import tracemalloc
import warnings
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmprm_lib import interchange, objective, rows, schema
from mmprm_lib.images import Rejected, open_image, png
from mmprm_lib.interchange import FORMATS, Labelled
from mmprm_lib.schema import Problem, Solution, StepLabels, read_records, sha256_of, write_records
from mmprm_lib.steps import FORMATS as TEMPLATES
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True, scope="module")
def _without_waiting_for_the_disk():
    """A thousand small files are written here; that they reach the disk is the concern of `schema`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema.os, "fsync", lambda handle: None)
        yield


DATA = REPOSITORY.parent / "shared" / "data"
WITH_COUNTS = ("visualprm_raw",)
WITH_RATES = ("visualprm_raw", "mm_prm", "mm_prm_rows", "omegaprm")
WITH_CLASSES = ("visualprm", "math_shepherd")
WITH_MARKS = ("prm800k", "processbench")


def labels(steps=("a", "b"), mc=(0.75, 0.0), counts=None, name="p1/s0", problem="p1", **changes):
    """Labels with (rollouts, correct, unknown) per step, or with rates alone."""
    columns = zip(*[c or (None,) * 3 for c in counts or [None] * len(steps)], strict=True) if steps else ([], [], [])
    n, k, unknown = (list(column) for column in columns)
    values = {"solution_id": name, "problem_id": problem, "steps": list(steps), "mc_score": list(mc), "strategy": "any"}
    values |= {"n_rollouts": n, "n_correct": k, "n_unknown": unknown, "n_generated_tokens": 7}
    return StepLabels(**values | changes)


def example(question="How high is B?", images=("b.png",), changes=None, **of_labels):
    return Labelled(labels=labels(**of_labels), question=question, images=list(images), **(changes or {}))


def read(name, path, **options):
    return list(FORMATS[name][0](path, **{"strict": True} | options))


def write(name, path, examples, **options):
    return FORMATS[name][1](path, examples, **options)


def rows_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]


def one_row(name, path, examples, **options):
    """The one row that is written, without what is beside the format."""
    assert write(name, path, [examples], **options) == 1
    (row,) = rows_of(path)
    assert row.pop("mmprm") or True
    return row


def given_rows(tmp_path, *rows, name="rows.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / name


# -- rows as the projects write them

RAW = {
    "image": "Geometry3K/1.png", "question": "<image>\nHow high is B? Think.", "question_orig": "How high is B?",
    "answer": "12", "response": "B is 12.\n\nSo 12.", "num_mc_sequences": 16, "analysis": "kept",
    "steps_with_score": [
        {"step": "B is 12.", "score": 0.75, "num_mc_correct": 12, "num_mc_total": 16},
        {"step": "So 12.", "score": 0.0, "num_mc_correct": 0, "num_mc_total": 0},
    ],
}  # fmt: skip
CHAT = {
    "id": -1, "image": "a.png",
    "conversations": [
        {"from": "system", "value": "Judge."},
        {"from": "human", "value": "### Question:\n<image>\nHow high?\n\n### Solution Process:\nB is 12."},
        {"from": "gpt", "value": "+"}, {"from": "human", "value": "So\n\n13."}, {"from": "gpt", "value": "-"},
        {"from": "human", "value": "Done."}, {"from": "gpt", "value": "-"},
    ],
}  # fmt: skip
TRAINING = {
    "id": 3, "image": "/data/a.png",
    "conversations": [
        {"from": "human", "value": "Question: How high?\nProcess: B is 12.\n\nRead off.<prm>\n\nSo 13.<prm>"},
        {"from": "gpt", "value": [0.8125, 0]},
    ],
}  # fmt: skip
TRAVERSED = {
    "question": "How high?", "answer": "12", "image_path": "a.png", "process": "B is 12.<prm>\n\nSo 13.<prm>\n\n",
    "labels": [0.8125, 0.0],
}  # fmt: skip
EVALUATION = {
    "query_cot": "How high?", "image_1": "a.png", "image_2": "b.png", "answer": "12", "subject": "bars",
    "solutions_splits": [["B is 12.", "12"], [], ["13"]], "labels": [1, 0, 0], "prm_scores": [[0.9, 0.8], [], [0.1]],
}  # fmt: skip
SHEPHERD = {
    "input": "How high? Step 1: B is 12. ки\nStep 2: C\nis 1. ки\nStep 3: So 13. The answer is: 13 ки",
    "label": "How high? Step 1: B is 12. +\nStep 2: C\nis 1. +\nStep 3: So 13. The answer is: 13 -",
    "task": "GSM8K",
}
BENCH = {
    "id": "gsm8k-1", "generator": "Qwen2", "problem": "How high?", "steps": ["a", "b", "c", "d"],
    "final_answer_correct": True, "label": 2, "split": "gsm8k",
}  # fmt: skip


def rated(*ratings, chosen=0, human=None):
    """A step of PRM800K with a completion per rating, named by its place."""
    completions = [{"text": string.ascii_letters[i], "rating": r, "flagged": None} for i, r in enumerate(ratings)]
    return {"completions": completions, "human_completion": human, "chosen_completion": chosen}


OURS = {"text": "own", "rating": None, "source": "human", "flagged": False}
OPENAI = {
    "labeler": "l1", "timestamp": "t", "generation": 9, "is_quality_control_question": False,
    "is_initial_screening_question": False,
    "question": {"problem": "How high?", "ground_truth_answer": "12", "pre_generated_answer": "13"},
    "label": {
        "steps": [
            rated(1), rated(0, 1, chosen=1), rated(-1, -1, chosen=None, human=OURS), rated(-1, 1, None, chosen=None)
        ],
        "total_time": 5, "finish_reason": "found_error",
    },
}  # fmt: skip
TREE = {
    "question": "How high?", "final_answer": "12", "question_id": 7,
    "reasoning_steps": {
        "text": "How high?", "mc_value": 0.75,
        "children": [
            {"text": "x", "mc_value": 0.5, "children": [
                {"text": "y", "mc_value": 1.0, "children": []}, {"text": "z", "mc_value": 0.0, "children": []}]},
            {"text": "w", "mc_value": 1.0, "children": []},
        ],
    },
}  # fmt: skip
ROWS = {
    "visualprm_raw": RAW, "visualprm": CHAT, "mm_prm": TRAINING, "mm_prm_rows": TRAVERSED, "prm800k": OPENAI,
    "mm_prm_evaluation": EVALUATION, "math_shepherd": SHEPHERD, "processbench": BENCH, "omegaprm": TREE,
}  # fmt: skip


def test_every_format_has_a_row_here():
    assert ROWS.keys() == FORMATS.keys()


def test_raw_rows_of_visualprm_keep_counts_and_what_was_never_sampled(tmp_path):
    (found,) = read("visualprm_raw", given_rows(tmp_path, RAW))
    assert found.steps == ["B is 12.", "So 12."]
    assert found.labels.n_rollouts == [16, None] and found.labels.n_correct == [12, None]
    assert found.labels.mc_score == [0.75, None]  # 12 / 16; the second was not sampled, which is not 0
    assert (found.question, found.images, found.answer) == ("How high is B?", ["Geometry3K/1.png"], "12")
    assert found.more == {"num_mc_sequences": 16, "analysis": "kept", "prompt": RAW["question"]}
    assert found.labels.strategy == "visualprm_raw" and found.record_id == "rows:1"


def test_a_raw_row_is_written_as_it_was_read_but_for_the_zero_that_means_nothing(tmp_path):
    row = one_row("visualprm_raw", tmp_path / "out.jsonl", *read("visualprm_raw", given_rows(tmp_path, RAW)))
    wanted = json.loads(json.dumps(RAW))
    wanted["steps_with_score"][1]["score"] = None
    assert row == wanted


def test_unknown_rollouts_stand_beside_the_counts_so_that_the_score_is_their_ratio(tmp_path):
    # 16 rollouts, 6 correct, 4 not judged: 6 / 12 = 0.5; then a rate without counts, then nothing at all
    made = example(steps=("a", "b", "c", "d"), mc=(0.5, 0.25, None, None), counts=[(16, 6, 4), None, None, (4, 0, 4)])
    row = one_row("visualprm_raw", tmp_path / "out.jsonl", made)
    assert row["steps_with_score"] == [
        {"step": "a", "score": 0.5, "num_mc_correct": 6, "num_mc_total": 12, "num_mc_unknown": 4},
        {"step": "b", "score": 0.25, "num_mc_correct": None, "num_mc_total": None},
        {"step": "c", "score": None, "num_mc_correct": 0, "num_mc_total": 0},
        {"step": "d", "score": None, "num_mc_correct": 0, "num_mc_total": 0, "num_mc_unknown": 4},
    ]
    assert row["num_mc_sequences"] == 16 and row["response"] == "a\n\nb\n\nc\n\nd"
    assert row["question"] == "<image>\nHow high is B?"


@pytest.mark.parametrize(("option", "scores"), [(False, [0.5, 0.0, 0.0]), (True, [0.5, 0.0, None])])
def test_zeros_of_an_early_stop_are_null_when_asked(tmp_path, option, scores):
    plain = [{"step": s, "score": v} for s, v in zip("abc", [0.5, 0.0, 0.0], strict=True)]
    (found,) = read("visualprm_raw", given_rows(tmp_path, RAW | {"steps_with_score": plain}), early_stopped=option)
    assert found.labels.mc_score == scores and found.labels.n_rollouts == [None] * 3
    row = json.loads(json.dumps(CHAT))
    row["conversations"] += [
        {"from": "human", "value": "e"},
        {"from": "gpt", "value": "+"},
    ]  # as no early stop leaves it
    (found,) = read("visualprm", given_rows(tmp_path, row), early_stopped=option)
    assert found.labels.mc_score == [1.0, 0.0, None if option else 0.0, 1.0]


def test_a_zero_that_was_counted_stays_a_zero(tmp_path):
    counted = [
        {"step": s, "score": 0.0, "num_mc_correct": 0, "num_mc_total": n} for s, n in [("a", 16), ("b", 8), ("c", 0)]
    ]
    (found,) = read("visualprm_raw", given_rows(tmp_path, RAW | {"steps_with_score": counted}), early_stopped=True)
    assert found.labels.mc_score == [0.0, 0.0, None] and found.labels.n_rollouts == [16, 8, None]


def test_conversations_of_visualprm(tmp_path):
    (found,) = read("visualprm", given_rows(tmp_path, CHAT))
    assert found.steps == ["B is 12.", "So\n\n13.", "Done."] and found.labels.mc_score == [1.0, 0.0, 0.0]
    assert (found.question, found.images) == ("How high?", ["a.png"]) and found.labels.n_rollouts == [None] * 3
    assert one_row("visualprm", tmp_path / "out.jsonl", found) == CHAT


@pytest.mark.parametrize(("threshold", "signs"), [(0.0, "++-"), (0.3, "+--")])
def test_the_sign_says_whether_the_score_is_above_the_threshold(tmp_path, threshold, signs):
    made = example(steps="abc", mc=(0.75, 0.25, 0.0))
    row = one_row("visualprm", tmp_path / "out.jsonl", made, threshold=threshold, system="Judge.")
    assert [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"] == list(signs)
    row = one_row("math_shepherd", tmp_path / "out.jsonl", made, threshold=threshold)
    assert row["label"] == "How high is B? Step 1: a {}\nStep 2: b {}\nStep 3: c {}".format(*signs)
    assert row["input"] == "How high is B? Step 1: a ки\nStep 2: b ки\nStep 3: c ки"


def test_the_system_turn_is_ours_or_the_users_and_a_row_keeps_its_own(tmp_path):
    def systems(made, **options):
        turns = one_row("visualprm", tmp_path / "out.jsonl", made, **options)["conversations"]
        return [turn["value"] for turn in turns if turn["from"] == "system"]

    assert systems(example()) == ["Is the solution right so far? Answer + or -."]
    assert systems(example(), system="Mine.") == ["Mine."]
    assert systems(example(), system="") == []
    assert systems(*read("visualprm", given_rows(tmp_path, CHAT)), system="Mine.") == ["Judge."]


@pytest.mark.parametrize(("image", "prefix"), [(None, ""), ("a.png", "<image>\n"), (["a", "b"], "<image>\n<image>\n")])
def test_a_question_has_as_many_placeholders_as_images(tmp_path, image, prefix):
    row = {"image": image, "question": prefix + "How?", "steps_with_score": []}
    (found,) = read("visualprm_raw", given_rows(tmp_path, row))
    assert found.question == "How?" and found.images == ([] if image is None else image if len(image) == 2 else [image])
    assert one_row("visualprm_raw", tmp_path / "out.jsonl", found)["question"] == prefix + "How?"
    assert one_row("visualprm_raw", tmp_path / "out.jsonl", found)["image"] == image


def test_a_placeholder_elsewhere_is_left_where_it_is(tmp_path):
    row = {"image": ["a", "b"], "question": "Image-1: <image>\nImage-2: <image>\nHow?", "steps_with_score": []}
    (found,) = read("visualprm_raw", given_rows(tmp_path, row))
    assert found.question == row["question"]
    assert one_row("visualprm_raw", tmp_path / "out.jsonl", found)["question"] == row["question"]


def test_training_rows_of_mm_prm(tmp_path):
    (found,) = read("mm_prm", given_rows(tmp_path, TRAINING))
    assert found.steps == ["B is 12.\n\nRead off.", "So 13."] and found.labels.mc_score == [0.8125, 0.0]
    assert (found.question, found.images) == ("How high?", ["/data/a.png"])
    assert one_row("mm_prm", tmp_path / "out.jsonl", found) == TRAINING
    (found,) = read("mm_prm_rows", given_rows(tmp_path, TRAVERSED))
    assert found.steps == ["B is 12.", "So 13."] and (found.answer, found.images) == ("12", ["a.png"])
    # traverse.py's row ends in a separator, the training text does not
    wanted = TRAVERSED | {"process": "B is 12.<prm>\n\nSo 13.<prm>"}
    assert one_row("mm_prm_rows", tmp_path / "out.json", found) == wanted


def test_markers_without_separators_are_read_too(tmp_path):
    (found,) = read("mm_prm", given_rows(tmp_path, TRAVERSED | {"process": "a<prm>b<prm>"}))
    assert found.steps == ["a", "b"]


@pytest.mark.parametrize(
    ("spans", "process", "values"),
    [(False, "a<prm>\n\nb<prm>\n\nc<prm>\n\nd<prm>", [None, 0.5, None, None]), (True, "a\n\nb<prm>", [0.5])],
)
def test_a_step_without_a_label_is_null_or_part_of_a_span(tmp_path, spans, process, values):
    made = example(steps="abcd", mc=(None, 0.5, None, None))
    row = one_row("mm_prm_rows", tmp_path / "out.json", made, spans=spans)
    assert (row["process"], row["labels"]) == (process, values)
    row = one_row("mm_prm", tmp_path / "out.jsonl", made, spans=spans)
    assert row["conversations"][0]["value"] == "Question: How high is B?\nProcess: " + process
    assert row["conversations"][1]["value"] == values and row["id"] == 0


def test_training_rows_are_numbered(tmp_path):
    write("mm_prm", tmp_path / "out.jsonl", [example(name="s1"), example(name="s2")])
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == [0, 1]


def test_candidates_of_mm_prm(tmp_path):
    found = read("mm_prm_evaluation", given_rows(tmp_path, EVALUATION))
    assert [(one.steps, one.verdict, one.scores) for one in found] == [
        (["B is 12.", "12"], "correct", [0.9, 0.8]), ([], "wrong", []), (["13"], "wrong", [0.1])
    ]  # fmt: skip
    assert found[0].images == ["a.png", "b.png"] and found[0].labels.mc_score == [None, None]
    assert len({one.labels.problem_id for one in found}) == 1
    assert write("mm_prm_evaluation", tmp_path / "out.json", found) == 1
    (row,) = rows_of(tmp_path / "out.json")
    same = {key: value for key, value in EVALUATION.items() if key != "query_cot"}
    assert {k: v for k, v in row.items() if k != "mmprm"} == same | {"question": "How high?"}
    again = read("mm_prm_evaluation", tmp_path / "out.json")
    assert again == found


def test_an_unknown_verdict_is_null_and_no_scores_are_no_key(tmp_path):
    group = [example(name="s1", changes={"verdict": "unknown"}), example(name="s2", changes={"verdict": "correct"})]
    write("mm_prm_evaluation", tmp_path / "out.json", group)
    (row,) = rows_of(tmp_path / "out.json")
    assert row["labels"] == [None, 1] and "prm_scores" not in row and row["image_path"] == "b.png"


def test_solutions_labelled_by_people(tmp_path):
    (found,) = read("prm800k", given_rows(tmp_path, OPENAI))
    # chosen a; chosen b, the second; the labeler's own; nothing chosen: the first, where labeling ended
    assert found.steps == ["a", "b", "own", "a"] and found.marks == [1, 1, None, -1]
    assert found.labels.mc_score == [None] * 4 and found.labels.truth is None  # because one mark is None
    assert (found.question, found.answer, found.verdict) == ("How high?", "12", "unknown")
    assert found.more["generation"] == 9 and found.more["question"] == {"pre_generated_answer": "13"}


def test_what_was_not_chosen_is_read_when_asked(tmp_path):
    whole, *others = read("prm800k", given_rows(tmp_path, OPENAI), alternatives=True)
    assert whole == read("prm800k", tmp_path / "rows.jsonl")[0]
    assert [(one.record_id, one.steps, one.marks) for one in others] == [
        ("rows:1/t1c0", ["a", "a"], [1, 0]),
        ("rows:1/t2c0", ["a", "b", "a"], [1, 1, -1]),  # both, because the labeler wrote a better one
        ("rows:1/t2c1", ["a", "b", "b"], [1, 1, -1]),
        ("rows:1/t3c1", ["a", "b", "own", "b"], [1, 1, None, 1]),  # the third has no rating
    ]
    assert {one.labels.problem_id for one in others} == {whole.labels.problem_id}
    assert others[0].labels.truth == [1, 0]


@pytest.mark.parametrize(
    ("marks", "verdict", "chosen", "reason"),
    [
        ([1, -1], "wrong", [0, None], "found_error"),
        ([-1, 0], "unknown", [0, 0], "give_up"),
        ([1, None], "correct", [0, 0], "solution"),
    ],
)
def test_marks_are_written_as_ratings(tmp_path, marks, verdict, chosen, reason):
    made = example(changes={"marks": marks, "verdict": verdict, "answer": "12"})
    row = one_row("prm800k", tmp_path / "out.jsonl", made)
    assert [step["completions"][0]["rating"] for step in row["label"]["steps"]] == marks
    assert [step["chosen_completion"] for step in row["label"]["steps"]] == chosen
    assert row["label"]["finish_reason"] == reason
    assert row["question"] == {"problem": "How high is B?", "ground_truth_answer": "12"}


def test_tagged_text_of_math_shepherd(tmp_path):
    (found,) = read("math_shepherd", given_rows(tmp_path, SHEPHERD))
    assert found.question == "How high?"
    assert found.steps == ["B is 12.", "C\nis 1.", "So 13. The answer is: 13"]
    assert found.labels.mc_score == [1.0, 1.0, 0.0] and found.labels.n_rollouts == [None] * 3
    assert one_row("math_shepherd", tmp_path / "out.jsonl", found) == SHEPHERD


def test_labels_of_math_shepherd_may_be_a_list(tmp_path):
    (found,) = read("math_shepherd", given_rows(tmp_path, SHEPHERD | {"label": ["+", 0.25, None]}))
    assert found.labels.mc_score == [1.0, 0.25, None]


@pytest.mark.parametrize(("label", "marks"), [(2, [1, 1, -1, None]), (0, [-1, None, None, None]), (-1, [1, 1, 1, 1])])
def test_the_first_error_says_nothing_of_what_follows(tmp_path, label, marks):
    (found,) = read("processbench", given_rows(tmp_path, BENCH | {"label": label}))
    assert found.marks == marks and found.labels.truth == (marks if label == -1 else None)
    assert (found.record_id, found.policy, found.verdict) == ("gsm8k-1", "Qwen2", "correct")
    wanted = BENCH | {"label": label, "reference_final_answer": None}
    assert one_row("processbench", tmp_path / "out.jsonl", found) == wanted


def test_a_neutral_step_is_no_error_and_what_follows_the_first_is_not_looked_at(tmp_path):
    made = example(steps="abcd", mc=[None] * 4, changes={"marks": [0, -1, None, -1]})
    assert one_row("processbench", tmp_path / "out.jsonl", made)["label"] == 1


def test_ways_through_a_tree(tmp_path):
    found = read("omegaprm", given_rows(tmp_path, TREE))
    assert [(one.record_id, one.steps, one.labels.mc_score) for one in found] == [
        ("rows:1/p0", ["x", "y"], [0.5, 1.0]), ("rows:1/p1", ["x", "z"], [0.5, 0.0]), ("rows:1/p2", ["w"], [1.0])
    ]  # fmt: skip
    assert write("omegaprm", tmp_path / "out.jsonl", found) == 1
    (row,) = rows_of(tmp_path / "out.jsonl")
    for node in (row["reasoning_steps"]["children"][0]["children"][0], row["reasoning_steps"]["children"][1]):
        assert node["mmprm"].pop("solution_id") in ("rows:1/p0", "rows:1/p2")
    assert read("omegaprm", tmp_path / "out.jsonl") == found
    text = (tmp_path / "out.jsonl").read_text()
    assert text.count('"text": "x"') == 1  # one node for the two that begin with it


def test_prefixes_become_the_same_ways_as_their_tree(tmp_path):
    flat = [
        {"solution_prefix": "How high?" + text, "mc_value": value}
        for text, value in [("", 0.75), ("\n\nx", 0.5), ("\n\nw", 1.0), ("\n\nx\n\ny", 1.0), ("\n\nx\n\nz", 0.0)]
    ]
    found = read("omegaprm", given_rows(tmp_path, TREE | {"reasoning_steps": flat}))
    tree = read("omegaprm", given_rows(tmp_path, TREE))
    key = lambda one: (one.steps, one.labels.mc_score, one.question, one.answer, one.more)  # noqa: E731
    assert sorted(map(key, found), key=str) == sorted(map(key, tree), key=str)


# -- anything there and back

SPECIAL = ["ки", "к", "\r", "\n", "\n\n", "<prm>", "<prm", " Step 1: ", "Step 2: ", " ", "\nProcess: ", "<image>\n"]
SPECIAL += [
    "\n\n### Solution Process:\n",
    "\n\n### Solution Process:",
    "\u2028",
    "\0",
    "\x1b",
    "\\frac{1}{2}",
    "<|im_end|>",
]
TEXT = st.one_of(st.text(max_size=10), st.lists(st.sampled_from(SPECIAL), max_size=4).map("".join))
PLAIN = st.text(st.sampled_from("ab \\{}$\r\n"), max_size=6)
COUNTS = st.integers(1, 16).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda k: st.tuples(st.just(n), st.just(k), st.integers(0, n - k)))
)


@st.composite
def anything(draw, name="s"):
    """A labelled solution with labels, marks and scores that agree with its steps, and texts of any kind."""
    text = draw(st.sampled_from([TEXT, PLAIN]))
    steps, whole = draw(st.lists(text, max_size=4)), draw(st.booleans())
    counts, scores = [], []
    for _ in steps:
        count = draw(COUNTS if whole else st.none() | COUNTS)
        free = draw(st.none() | st.floats(0, 1)) if count is None else None
        known = count[0] - count[2] if count else 0
        counts.append(count)
        scores.append(count[1] / known if known else free)
    marks = st.lists(st.sampled_from([1, 0, -1]) | st.none(), min_size=len(steps), max_size=len(steps))
    fields = {
        "answer": draw(st.none() | TEXT), "policy": draw(TEXT), "marks": draw(st.none() | marks),
        "verdict": draw(st.sampled_from(["correct", "wrong", "unknown"])),
        "scores": draw(st.none() | st.lists(st.floats(0, 1), min_size=len(steps), max_size=len(steps))),
    }  # fmt: skip
    images = draw(st.lists(TEXT, max_size=2))
    return example(draw(text), images, fields, steps=steps, mc=scores, counts=counts, name=name)


def refused(name, one):
    """Whether the format cannot hold it, said once more and in other words."""
    steps, mc, marks = one.steps, one.labels.mc_score, one.marks
    if name in WITH_CLASSES and (not steps or None in mc):
        return True
    if name == "visualprm":
        head = "<image>\n" * len(one.images) + one.question
        return (head + "\n\n### Solution Process:\n").index("\n\n### Solution Process:\n") != len(head)
    if name == "math_shepherd":
        early = (one.question + " Step 1: ").index(" Step 1: ") != len(one.question)
        return early or "ки" in one.question or any("ки" in step for step in steps)
    if name in ("mm_prm", "mm_prm_rows") and (len(one.images) > 1 or any("<prm>" in step for step in steps)):
        return True
    if name == "mm_prm":
        return (one.question + "\nProcess: ").index("\nProcess: ") != len(one.question)
    if name in WITH_MARKS and marks is None:
        return True
    if name == "processbench":
        return None in (marks[: marks.index(-1)] if -1 in marks else marks)
    return name == "omegaprm" and not steps


def what_survives(name, one):
    """The labels, marks and scores that come back, by the table of the module."""
    steps, own, nothing = one.steps, one.labels, [None] * len(one.steps)
    lists = {key: getattr(own, key) for key in ("n_rollouts", "n_correct", "n_unknown")}
    if name not in WITH_COUNTS:
        lists = dict.fromkeys(lists, nothing)
    mc, marks = own.mc_score if name in WITH_RATES else nothing, one.marks if name in WITH_MARKS else None
    if name in WITH_CLASSES:
        mc = [float(score > 0) for score in own.mc_score]
    if name == "processbench":
        first = marks.index(-1) if -1 in marks else len(marks)
        marks = [1] * first + [-1] * (first < len(marks)) + [None] * (len(marks) - first - 1)
    truth = marks if marks is not None and None not in marks else None
    made = own.model_copy(update=lists | {"mc_score": mc, "truth": truth, "steps": steps})
    scores = one.scores if name == "mm_prm_evaluation" else None
    return one.model_copy(update={"labels": made, "marks": marks, "scores": scores, "more": {}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interchange")


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(one=anything())
def test_what_is_written_comes_back_or_is_refused(folder, name, one):
    path = folder / f"{name}.jsonl"
    if refused(name, one):
        with pytest.raises(ValueError, match=r"\.jsonl:1 \(s\): (bad_steps|bad_labels|invalid_record|several_images)"):
            write(name, path, [one])
        return
    assert write(name, path, [one]) == 1
    (again,) = read(name, path)
    assert again.model_copy(update={"more": {}}) == what_survives(name, one)
    assert write(name, path, [again]) == 1  # what was read is no longer refused, and nothing more is lost
    assert read(name, path) == [again]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_many_solutions_come_back_in_order(folder, name, data):
    n = data.draw(st.integers(0, 4))
    many = [data.draw(anything(f"s{i}")) for i in range(n)]
    same = {key: getattr(many[0], key) for key in ("question", "answer", "images", "scores")} if many else {}
    many = [one.model_copy(update=same | {"scores": None}) for one in many]
    wanted = [one for one in many if not refused(name, one)]
    if name == "omegaprm" and len(wanted) < n:
        wanted = []  # a tree is written whole or not
    bad = []
    n_rows = write(name, folder / "many", many, strict=False, bad=bad)
    again = read(name, folder / "many")
    assert [one.model_copy(update={"more": {}}) for one in again] == [what_survives(name, one) for one in wanted]
    grouped = name in ("mm_prm_evaluation", "omegaprm")
    assert n_rows == (min(len(wanted), 1) if grouped else len(wanted))
    assert len(bad) == (int(len(wanted) < n) if grouped else n - len(wanted))


@settings(max_examples=20, deadline=None)
@given(
    ways=st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 1.0, None])), min_size=1, max_size=4),
                  min_size=1, max_size=6)
)  # fmt: skip
def test_any_ways_are_read_from_the_tree_they_make(folder, ways):
    """Also ways that begin with one another, twins, and two labels of one prefix."""
    many = [example(steps=[s for s, _ in way], mc=[v for _, v in way], name=f"s{i}") for i, way in enumerate(ways)]
    assert write("omegaprm", folder / "ways", many) == 1
    found = [(one.record_id, one.steps, one.labels.mc_score) for one in read("omegaprm", folder / "ways")]
    assert found == [(one.record_id, one.steps, one.labels.mc_score) for one in many]


# -- bad rows


def changed(row, *path, value):
    """A copy of the row with the value at the path replaced, or taken out if it is `...`."""
    copy = json.loads(json.dumps(row))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


BAD = [
    ("visualprm_raw", (("steps_with_score",), ...), "missing_column", "'steps_with_score' is not among"),
    ("visualprm_raw", (("question",), 3), "invalid_record", "question is '3', wanted str"),
    ("visualprm_raw", (("steps_with_score", 0), "a"), "bad_steps", r"steps_with_score\[0\] is 'a', wanted an object"),
    ("visualprm_raw", (("steps_with_score", 0, "score"), 1.5), "bad_labels", r"\[0\].score is '1.5', wanted a number"),
    ("visualprm_raw", (("steps_with_score", 0, "score"), True), "bad_labels", "score is 'True'"),
    ("visualprm_raw", (("steps_with_score", 0, "score"), 0.5), "invalid_record", r"0.5 should be 12 / \(16 - 0\)"),
    ("visualprm_raw", (("steps_with_score", 0, "num_mc_total"), 11), "invalid_record", "more than n_rollouts 11"),
    ("visualprm_raw", (("steps_with_score", 0, "num_mc_total"), 16.0), "invalid_record", "num_mc_total is '16.0'"),
    ("visualprm_raw", (("steps_with_score", 0, "num_mc_correct"), None), "invalid_record", "num_mc_correct is 'None'"),
    ("visualprm_raw", (("steps_with_score", 1, "score"), 0.5), "bad_labels", "score 0.5 and 0 correct of 0 rollouts"),
    ("visualprm_raw", (("image",), [1]), "bad_steps", "image is no list of texts"),
    ("visualprm_raw", (("mmprm",), 1), "invalid_record", "mmprm is '1', wanted dict"),
    ("visualprm_raw", (("mmprm",), {"solution_id": ""}), "invalid_record", "solution_id: String should have at least"),
    ("visualprm", (("conversations", 2, "value"), "="), "bad_labels", "an answer is '=', wanted '[+]' or '-'"),
    ("visualprm", (("conversations", 6), ...), "bad_steps", "wanted human and gpt in turn"),
    ("visualprm", (("conversations",), []), "bad_steps", "wanted human and gpt in turn"),
    ("visualprm", (("conversations", 1, "value"), "How?"), "bad_steps", "the first human turn is not"),
    ("visualprm", (("conversations", 3), {"from": "human"}), "bad_steps", r"conversations\[3\] is"),
    ("mm_prm", (("conversations", 0, "value"), "Question: a"), "bad_steps", "has no '.*Process: ' after its question"),
    ("mm_prm", (("conversations", 1, "value"), [0.5]), "length_mismatch", r"labels are \[0.5\], wanted 2, one per"),
    ("mm_prm", (("conversations", 1, "value"), [0.5, "+"]), "bad_labels", r"label 1 is '\+'"),
    ("mm_prm", (("conversations", 1), ...), "bad_steps", "not a human turn"),
    ("mm_prm_rows", (("process",), "a<prm>b"), "bad_steps", "the process ends in 'b', wanted <prm> after every step"),
    ("mm_prm_rows", (("labels",), None), "length_mismatch", "labels are None"),
    ("mm_prm_evaluation", (("labels",), [1]), "length_mismatch", r"labels is \[1\]: 3 candidates"),
    ("mm_prm_evaluation", (("labels", 0), 2), "bad_labels", r"labels\[0\] is '2', wanted 0, 1 or null"),
    ("mm_prm_evaluation", (("prm_scores", 1), [0.5]), "length_mismatch", r"prm_scores\[1\] is .*, wanted .* 0 steps"),
    ("mm_prm_evaluation", (("solutions_splits", 0), "a"), "bad_steps", r"solutions_splits\[0\] is no list of texts"),
    ("prm800k", (("label", "steps", 0, "completions", 0, "rating"), 2), "bad_labels", "is rated '2', wanted -1, 0, 1"),
    ("prm800k", (("label", "steps", 0, "completions", 0, "rating"), True), "bad_labels", "is rated 'True'"),
    ("prm800k", (("label", "steps", 1, "chosen_completion"), 2), "bad_steps", r"\[1\].chosen_completion is 2 of 2"),
    ("prm800k", (("question", "problem"), ...), "missing_column", "'problem' is not among"),
    ("math_shepherd", (("label",), SHEPHERD["label"][:-1] + "?"), "bad_labels", "[+] or - for each 'ки': see step 3"),
    ("math_shepherd", (("label",), SHEPHERD["label"] + "!"), "bad_labels", "see its end"),
    ("math_shepherd", (("label",), "X" + SHEPHERD["label"][1:]), "bad_labels", "see step 1"),
    ("math_shepherd", (("label",), ["+"]), "length_mismatch", "label has 1 entries for 3 steps"),
    ("math_shepherd", (("input",), "no steps"), "bad_steps", "input is no question, ' Step 1: ' and steps"),
    ("math_shepherd", (("label",), ...), "missing_column", "label is 'None', wanted a text or a list"),
    ("processbench", (("label",), 4), "bad_labels", "label is 4, wanted -1 or the place of one of 4 steps"),
    ("processbench", (("label",), -2), "bad_labels", "label is -2"),
    ("processbench", (("label",), True), "invalid_record", "label is 'True', wanted int"),
    ("processbench", (("steps", 0), None), "bad_steps", "steps is no list of texts"),
    ("processbench", (("final_answer_correct",), 1), "invalid_record", "final_answer_correct is '1', wanted bool"),
    ("omegaprm", (("reasoning_steps", "children", 0), "x"), "bad_steps", "a child is 'x', wanted an object"),
    ("omegaprm", (("reasoning_steps", "children", 1, "mc_value"), -1), "bad_labels", "mc_value is '-1'"),
    ("omegaprm", (("reasoning_steps",), [{"solution_prefix": "x"}]), "bad_steps", r"\[0\].solution_prefix does not"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "reason", "message"), BAD)
def test_a_bad_row_names_its_line_and_field_and_costs_itself_alone(tmp_path, name, change, reason, message):
    path, good = given_rows(tmp_path, ROWS[name], changed(ROWS[name], *change[0], value=change[1]), ROWS[name]), []
    bad = []
    good = read(name, path, strict=False, bad=bad)
    assert len(good) == 2 * len(read(name, given_rows(tmp_path, ROWS[name], name="good.jsonl")))
    assert [(row.row, row.reason) for row in bad] == [(1, reason)]
    assert bad[0].detail.startswith(f"{path}:2: ")
    with pytest.raises(
        ValueError, match=rf"rows\.jsonl:2: {reason}: .*{message}.*; correct it, or read with strict=False"
    ):
        read(name, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "from", "value"]), inner),
    max_leaves=4,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_a_field_holds_is_read_or_refused(folder, name, data):
    """No row makes a reader stop, and what it reads, the writer takes or refuses."""
    row = json.loads(json.dumps(ROWS[name]))
    place = row
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    bad = []
    found = read(name, given_rows(folder, row), strict=False, bad=bad)
    assert found or bad or name in ("mm_prm_evaluation", "omegaprm")  # no candidates, no ways
    write(name, folder / "out", found, strict=False, bad=bad)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"3", b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff", b'{"a": 1e999}', b"[" * 9999]
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_line_that_is_no_row_is_counted(tmp_path, name, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROWS[name]).encode() + b"\n\n" + line + b"\n")
    with pytest.warns(UserWarning, match="rows left out: 1 .*; the first: .*rows.jsonl:3"):
        assert read(name, path, strict=False)


def test_nothing_is_said_where_nothing_is_wrong(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, row in ROWS.items():
            assert read(name, given_rows(tmp_path, row, row), strict=False)


def test_a_missing_file_is_an_error_before_the_first_row_is_asked_for(tmp_path):
    for reader, _ in FORMATS.values():
        with pytest.raises(FileNotFoundError, match="none.jsonl is missing: give a .jsonl or .json file"):
            reader(tmp_path / "none.jsonl")


def test_a_refused_solution_is_an_error_counted_or_listed(tmp_path):
    pair, path = [example(mc=(None, 0.5), name="s1"), example(name="s2")], tmp_path / "out.jsonl"
    message = "out.jsonl:1 .s1.: bad_labels: step 1 has no mc_score, and this format no null; cut the solution there"
    with pytest.raises(ValueError, match=message):
        write("visualprm", path, pair)
    assert not path.exists()  # whole or not at all
    with pytest.warns(UserWarning, match="rows left out: 1 bad_labels; the first: .*s1"):
        assert write("visualprm", path, pair, strict=False) == 1
    bad = []
    assert write("visualprm", path, pair, strict=False, bad=bad) == 1 and [row.id for row in bad] == ["s1"]
    assert [one.record_id for one in read("visualprm", path)] == ["s2"]


def test_candidates_with_and_without_scores_or_of_two_questions_make_no_row(tmp_path):
    scored = example(name="s1", changes={"scores": [0.5, 0.5]})
    with pytest.raises(ValueError, match="some candidates have scores and others not"):
        write("mm_prm_evaluation", tmp_path / "out.json", [scored, example(name="s2")])
    for name in ("mm_prm_evaluation", "omegaprm"):
        with pytest.raises(ValueError, match="the problem 'p1' of 's1' has another question or answer in 's2'"):
            write(name, tmp_path / "out.json", [example(name="s1"), example("Other?", name="s2")])


# -- files


@pytest.mark.parametrize("chunk", [1, 7, 100, 2**16])
@pytest.mark.parametrize("packed", [False, True])
def test_an_array_is_read_whatever_the_pieces_it_comes_in(tmp_path, monkeypatch, chunk, packed):
    monkeypatch.setattr(rows, "CHUNK", chunk)
    text = "\n [ " + " ,\r\n ".join(
        json.dumps(TRAVERSED | {"answer": "ки\u2028]" * i}, ensure_ascii=False) for i in range(4)
    )
    path = tmp_path / ("rows.json.gz" if packed else "rows.json")
    (gzip.open if packed else open)(path, "wb").write((text + "] \n").encode())
    if packed:
        path.write_bytes(gzip.compress((text + "] \n").encode()))
    found = read("mm_prm_rows", path)
    assert [one.answer for one in found] == ["ки\u2028]" * i for i in range(4)]
    assert [one.record_id for one in found] == ["rows:1", "rows:2", "rows:3", "rows:4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "element 0, .*the file ends before the array does"),
        ("[{}", "element 1, .*the file ends within it"),
        ("[{} {}]", r"element 1, .*found '\{\}\]', wanted ','"),
        ("[{},", "element 1, .*the file ends before the array does"),
        ("[nul]", "element 1"),
        ("[" * 5000, "element 1"),
    ],
)
def test_a_broken_array_is_an_error_at_its_element(tmp_path, text, message):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match="rows.json, " + message):
        read("mm_prm_rows", tmp_path / "rows.json", strict=False, bad=[])


def test_a_broken_element_is_not_sought_through_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 10)
    monkeypatch.setattr(rows, "MAX_ROW", 100)
    (tmp_path / "rows.json").write_text('[{"a": x' + " " * 100_000 + "]")
    sizes, read_text = [], rows.io.TextIOWrapper.read

    class Counted(rows.io.TextIOWrapper):
        def read(self, size=-1):
            sizes.append(size)
            return read_text(self, size)

    monkeypatch.setattr(rows.io, "TextIOWrapper", Counted)
    with pytest.raises(ValueError, match="rows.json, element 1, .*Expecting value"):
        read("mm_prm_rows", tmp_path / "rows.json")
    assert sum(sizes) < 400  # 10 + 10 + 19 + 38 + 76, and then it is over 100


def test_an_element_that_is_no_object_is_a_bad_row(tmp_path):
    (tmp_path / "rows.json").write_text(f"[12, {json.dumps(TRAVERSED)}, null]")
    bad = []
    assert len(read("mm_prm_rows", tmp_path / "rows.json", strict=False, bad=bad)) == 1
    assert [(row.row, row.reason) for row in bad] == [(0, "broken_row"), (2, "broken_row")]
    (tmp_path / "rows.json").write_text(f"[{json.dumps(TRAVERSED)} , ] ")
    assert len(read("mm_prm_rows", tmp_path / "rows.json")) == 1
    (tmp_path / "rows.json").write_text("[ ]")
    assert read("mm_prm_rows", tmp_path / "rows.json") == []
    assert write("mm_prm_rows", tmp_path / "none.json", []) == 0 and rows_of(tmp_path / "none.json") == []


def test_a_byte_order_mark_and_packed_lines_are_read(tmp_path):
    (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf[" + json.dumps(TRAVERSED).encode() + b"]")
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(TRAVERSED).encode() + b"\r\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(TRAVERSED).encode()))
    for name in ("rows.json", "rows.jsonl", "rows.jsonl.gz"):
        assert [one.record_id for one in read("mm_prm", tmp_path / name)] == ["rows:1"]


@pytest.mark.parametrize("name", ["visualprm_raw", "mm_prm_rows"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    n, long = 500, "x" * 5000  # 500 rows of 10 kB each, 5 MB in all

    def many():
        return (example(name=f"s{i}", steps=(long, long), mc=(0.5, 0.5)) for i in range(n))

    tracemalloc.start()
    assert write(name, tmp_path / "big", many()) == n
    assert sum(1 for _ in FORMATS[name][0](tmp_path / "big")) == n
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "big").stat().st_size > 5e6 and peak < 1e6


def test_only_what_is_asked_for_is_read(tmp_path):
    rows = read("processbench", given_rows(tmp_path, BENCH))
    (tmp_path / "rows.jsonl").write_text(json.dumps(BENCH) + "\n" + "broken\n")
    assert list(islice(FORMATS["processbench"][0](tmp_path / "rows.jsonl", strict=True), 1)) == rows


# -- to records of ours and back


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(Image.new("RGB", (8, 8), colour)))
    return sha256_of(path)


def problem(root, **changes):
    values = {"problem_id": "p1", "question": "How high is B?", "image": "b.png", "answer": "12", "source": "s"}
    values |= {"image_sha256": picture(root / "b.png"), "answer_type": "number", "split": "train"}
    made = Problem(**values | changes)
    made._root = root
    return made


def solution(**changes):
    values = {"solution_id": "p1/s0", "problem_id": "p1", "steps": ["a", "b"], "answer": "12", "verdict": "correct"}
    values |= {"policy": "base", "seed": 3, "n_tokens": 9, "finish_reason": "stop"}
    return Solution(**values | changes)


def test_records_of_ours_are_written_and_come_back_as_records(tmp_path):
    counted = labels(counts=[(16, 12, 0), (4, 0, 0)])
    made = interchange.labelled_of(problem(tmp_path, choices=["12", "13"], answer="A"), counted, solution())
    assert made.question == "How high is B?\n(A) 12 (B) 13" and (made.policy, made.verdict) == ("base", "correct")
    write("visualprm_raw", tmp_path / "out.jsonl", [made])
    (again,) = read("visualprm_raw", tmp_path / "out.jsonl")
    found, solved, marked = interchange.records_of(again, tmp_path, split="dev", source="raw")
    assert marked == counted
    assert (found.problem_id, found.image, found.answer, found.split, found.source) == (
        "p1",
        "b.png",
        "A",
        "dev",
        "raw",
    )
    assert found.image_sha256 == sha256_of(tmp_path / "b.png") and open_image(found).size == (8, 8)
    assert (solved.policy, solved.verdict, solved.steps) == ("base", "correct", ["a", "b"])
    for model, record in ((Problem, found), (Solution, solved), (StepLabels, marked)):
        write_records(tmp_path / "records.jsonl", [record])
        assert read_records(tmp_path / "records.jsonl", model) == [record]


def test_labels_of_another_problem_or_solution_are_refused(tmp_path):
    with pytest.raises(ValueError, match="labels of 'p1/s0' go with problem 'p2', given others"):
        interchange.labelled_of(problem(tmp_path), labels(problem="p2"))
    with pytest.raises(ValueError, match="given others"):
        interchange.labelled_of(problem(tmp_path), labels(), solution(solution_id="p1/s1"))


def test_text_alone_has_no_problem_unless_a_blank_image_is_wanted(tmp_path):
    (found,) = read("math_shepherd", given_rows(tmp_path, SHEPHERD))
    with pytest.raises(Rejected, match="no_image: 'rows:1' has 0 images, a problem needs one: set blank"):
        interchange.records_of(found, tmp_path)
    made, solved, marked = interchange.records_of(found, tmp_path, blank=True)
    assert open_image(made).getcolors() == [(64 * 64, (255, 255, 255))]
    assert made.answer == "(no gold answer)" and solved.verdict == "unknown" and made.source == "math_shepherd"
    (ready,) = objective.examples(TEMPLATES["marker"], [marked], [made], "soft", 0.0)
    assert ready.labels == [1.0, 1.0, 0.0]
    assert interchange.labelled_of(made, marked).answer is None


def test_an_image_lies_below_the_folder_and_there_is_one(tmp_path):
    picture(tmp_path / "data" / "b.png")
    inner = interchange.records_of(example(images=[str(tmp_path / "data" / "b.png")]), tmp_path)[0]
    assert inner.image == "data/b.png"
    for images, reason in [(["../b.png"], "path_escapes"), (["none.png"], "no_image"), (["a", "b"], "several_images")]:
        with pytest.raises(Rejected, match=reason):
            interchange.records_of(example(images=images), tmp_path / "data", blank=True)


@pytest.mark.parametrize(("neutral", "score"), [(1.0, 1.0), (0.0, 0.0), (None, None)])
def test_marks_become_labels_to_train_on_when_asked(neutral, score):
    marked = example(steps="abcd", mc=[None] * 4, changes={"marks": [1, 0, -1, None]})
    assert interchange.scores_from_marks(marked, neutral).labels.mc_score == [1.0, score, 0.0, None]
    assert interchange.scores_from_marks(marked).labels.mc_score == [1.0, 1.0, 0.0, None]
    with pytest.raises(Rejected, match="'p1/s0' has mc_score already"):
        interchange.scores_from_marks(example(changes={"marks": [1, 1]}))


@pytest.mark.parametrize(("threshold", "marks"), [(0.0, [1, 1, -1, None]), (0.3, [1, -1, -1, None])])
def test_labels_become_marks_when_asked(tmp_path, threshold, marks):
    made = example(steps="abcd", mc=(0.75, 0.25, 0.0, None))
    with pytest.raises(ValueError, match="no marks: make some of its mc_score with marks_from_scores"):
        write("processbench", tmp_path / "out.jsonl", [made])
    marked = interchange.marks_from_scores(made, threshold)
    assert marked.marks == marks
    assert one_row("processbench", tmp_path / "out.jsonl", marked)["label"] == marks.index(-1)
    with pytest.raises(Rejected, match="has marks already"):
        interchange.marks_from_scores(marked)


def test_a_truth_stands_in_for_marks(tmp_path):
    write("prm800k", tmp_path / "out.jsonl", [example(truth=[1, -1])])
    assert read("prm800k", tmp_path / "out.jsonl")[0].marks == [1, -1]


def test_a_solution_is_cut_before_its_first_null(tmp_path):
    changes = {"marks": [1, 1, -1], "scores": [0.5, 0.5, 0.5], "verdict": "correct"}
    made = example(steps="abc", mc=(0.5, None, 0.0), low=[0.1, None, 0.0], changes=changes)
    cut = interchange.labelled_prefix(made)
    assert (cut.steps, cut.labels.mc_score, cut.labels.low, cut.marks, cut.scores) == (["a"], [0.5], [0.1], [1], [0.5])
    assert cut.verdict == "unknown"  # the verdict was on the whole
    assert write("visualprm", tmp_path / "out.jsonl", [cut]) == 1
    whole = example()
    assert interchange.labelled_prefix(whole) == whole
    assert interchange.first_steps(made, 3) == made


def test_raw_rows_become_conversations_as_visualprm_makes_them(tmp_path):
    full = json.loads(json.dumps(RAW))
    full["steps_with_score"][1] |= {"num_mc_total": 16}
    (found,) = read("visualprm_raw", given_rows(tmp_path, full))
    row = one_row("visualprm", tmp_path / "out.jsonl", found, system="")
    # the question is the one that was sent; + iff the score is above 0
    assert [turn["value"] for turn in row["conversations"]] == [
        f"### Question:\n{RAW['question']}\n\n### Solution Process:\nB is 12.", "+", "So 12.", "-"
    ]  # fmt: skip


# -- real samples


def sample(name):
    if not (DATA / name).is_file():
        pytest.skip(f"the sample {DATA / name} is not here")
    return DATA / name


REAL = [
    # (format, file, solutions, steps, what is counted over the steps)
    ("math_shepherd", "formats/samples_math-shepherd.jsonl", 7, 25, {1.0: 5, 0.0: 20}),
    ("prm800k", "formats/samples_prm800k.jsonl", 6, 45, {1: 41, 0: 1, -1: 1, None: 2}),
    ("processbench", "processbench/processbench_subset.jsonl", 80, 731, {1: 191, -1: 80, None: 460}),
    ("omegaprm", "formats/samples_math-aps-tree.jsonl", 242, 624, None),
    ("omegaprm", "formats/samples_math-aps.jsonl", 134, 314, None),
]


@pytest.mark.parametrize(("name", "file", "n", "n_steps", "counted"), REAL)
def test_real_samples_load_whole_and_come_back(tmp_path, name, file, n, n_steps, counted):
    found = read(name, sample(file))
    assert len(found) == n and sum(len(one.steps) for one in found) == n_steps
    if counted:
        assert Counter(v for one in found for v in one.marks or one.labels.mc_score) == counted
    write(name, tmp_path / "again.jsonl", found)
    assert read(name, tmp_path / "again.jsonl") == found


def test_real_rows_of_math_shepherd_and_processbench_are_written_as_they_are(tmp_path):
    for name, file in (REAL[0][:2], REAL[2][:2]):
        write(name, tmp_path / "again.jsonl", read(name, sample(file)))
        rows = [{k: v for k, v in row.items() if k != "mmprm"} for row in rows_of(tmp_path / "again.jsonl")]
        assert rows == rows_of(sample(file))


def test_every_rated_completion_of_the_real_prm800k_sample_is_read(tmp_path):
    found = read("prm800k", sample("formats/samples_prm800k.jsonl"), alternatives=True)
    rows = rows_of(sample("formats/samples_prm800k.jsonl"))
    offered = [c["rating"] for row in rows for step in row["label"]["steps"] for c in step["completions"] or []]
    # 6 solutions, and an alternative for every completion that is on no trail (2 steps of the trails are people's own)
    assert len(offered) == 45 - 2 + len(found) - 6 == 73
    assert Counter(one.marks[-1] for one in found[:1]) == {1: 1}


def test_every_estimate_of_the_real_prefixes_is_on_a_way_once():
    found = read("omegaprm", sample("formats/samples_math-aps.jsonl"))
    ends = [(one.question, tuple(one.steps), one.labels.mc_score[-1]) for one in found]
    inner = {(one.question, *one.steps[: t + 1]) for one in found for t in range(len(one.steps) - 1)}
    # 90 + 13 + 42 estimates in the file, 3 of them of the questions themselves
    assert len(ends) + len(inner) == 145 - 3
    # one prefix was estimated at 0 and again at 3/32: the longer ones go on from the second
    again = [one for one in found if one.labels.mc_score[-1] == 0.0 and any(
        other.steps[: len(one.steps)] == one.steps and other.labels.mc_score[len(one.steps) - 1] == 3 / 32
        for other in found
    )]  # fmt: skip
    assert len(again) == 1


def test_every_node_of_the_real_trees_is_on_a_way():
    found, n_leaves = read("omegaprm", sample("formats/samples_math-aps-tree.jsonl")), 0
    for row in rows_of(sample("formats/samples_math-aps-tree.jsonl")):
        stack = [row["reasoning_steps"]]
        while stack:
            node = stack.pop()
            n_leaves += not node["children"]
            stack += node["children"]
    assert len(found) == n_leaves == 242
    assert {one.more["mc_value"] for one in found} == {row["reasoning_steps"]["mc_value"] for row in rows_of(
        sample("formats/samples_math-aps-tree.jsonl"))}  # fmt: skip


def test_the_same_prefix_estimated_twice_is_two_ways(tmp_path):
    flat = [("", 0.5), ("\n\nx", 0.0), ("\n\nx", 0.25), ("\n\nx y", 1.0), ("\n\nx y", 0.0)]
    row = TREE | {"reasoning_steps": [{"solution_prefix": "How high?" + text, "mc_value": mc} for text, mc in flat]}
    found = read("omegaprm", given_rows(tmp_path, row))
    assert [(one.steps, one.labels.mc_score) for one in found] == [
        (["x"], [0.0]), (["x", "y"], [0.25, 0.0]), (["x", "y"], [0.25, 1.0])
    ]  # fmt: skip
