"""The benchmark's protocol by hand, its published baselines, its file format, and the errors a file can hold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from mmprm_lib import benchmark
from mmprm_lib.benchmark import baseline_f1, choose_threshold, read_visualprocessbench, report, write_visualprocessbench
from mmprm_lib.stats import Estimate

# correct and incorrect steps by source (VisualPRM, Table 1; the sources add up to the total)
PUBLISHED = {
    "MMMU": (1698, 708),
    "MathVision": (3875, 2350),
    "MathVerse-VO": (5767, 2960),
    "DynaMath": (3469, 1091),
    "WeMath": (1776, 582),
}
TOTAL = (16585, 7691)


def percent(value: float) -> float:
    return round(100 * value, 1)


def test_published_counts_add_up():
    assert tuple(np.sum(list(PUBLISHED.values()), axis=0)) == TOTAL


@pytest.mark.parametrize(
    ("name", "f1_correct", "f1_incorrect", "macro", "by_source"),
    [
        # q = 1/2: F1+ = P / (P + (P + N) / 2) = 16585 / 28723 = .577, F1- = 7691 / 19829 = .388
        ("coin", 57.7, 38.8, 48.3, [47.8, 49.2, 48.7, 46.4, 46.6]),
        # q = P / (P + N) = .683: F1+ = q, F1- = 1 - q, so the macro F1 is 1/2 whatever the prior
        ("prior", 68.3, 31.7, 50.0, [50.0] * 5),
        # F1+ = 2 P / (2 P + N) = 33170 / 40861 = .812
        ("all_correct", 81.2, 0.0, 40.6, [41.4, 38.4, 39.8, 43.2, 43.0]),
        # F1- = 2 N / (2 N + P) = 15382 / 31967 = .481
        ("all_incorrect", 0.0, 48.1, 24.1, [22.7, 27.4, 25.3, 19.3, 19.8]),
    ],
)
def test_label_only_baselines_reproduce_the_published_ones(name, f1_correct, f1_incorrect, macro, by_source):
    f1 = baseline_f1(*TOTAL, name)
    assert [percent(f1[0]), percent(f1[1]), percent(f1.mean())] == [f1_correct, f1_incorrect, macro]
    assert [percent(baseline_f1(*counts, name).mean()) for counts in PUBLISHED.values()] == by_source


@pytest.mark.parametrize("name", ["coin", "prior"])
def test_a_baseline_is_what_random_predictions_score(name):
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < TOTAL[0] / sum(TOTAL)
    share = {"coin": 0.5, "prior": TOTAL[0] / sum(TOTAL)}[name]
    scored = f1_score(labels, rng.random(len(labels)) < share, average="macro")
    assert scored == pytest.approx(baseline_f1(*TOTAL, name).mean(), abs=0.005)


# Two sources at threshold 0.5, neutral steps dropped.
# a: 1 1 -1 | 1, scores .9 .4 .2 | .8: tp 2, fn 1, tn 1;  F1+ = 4/5, F1- = 2/3
# b: -1 -1 1, scores .7 .1 .6: fp 1, tn 1, tp 1;            F1+ = 2/3, F1- = 2/3
LABELS = [[1, 0, 1, -1], [1, 0], [-1, -1, 1]]
SCORES = [[0.9, 0.1, 0.4, 0.2], [0.8, 0.0], [0.7, 0.1, 0.6]]
SOURCES = ["a", "a", "b"]


def test_report_by_hand():
    found = report(LABELS, SCORES, SOURCES, 0.5)
    value = {key: estimate.value for key, estimate in found.items()}
    # pooled: tp 3, fn 1, fp 1, tn 2: F1+ = 6/8, F1- = 4/6
    assert value["f1_correct"] == pytest.approx(3 / 4) and value["f1_incorrect"] == pytest.approx(2 / 3)
    assert value["macro_f1_pooled"] == pytest.approx(17 / 24)
    assert value["macro_f1__a"] == pytest.approx(11 / 15) and value["macro_f1__b"] == pytest.approx(2 / 3)
    assert value["macro_f1_step_weighted"] == pytest.approx((4 * 11 / 15 + 3 * 2 / 3) / 7)
    assert value["macro_f1_unweighted"] == pytest.approx((11 / 15 + 2 / 3) / 2)
    assert value["accuracy"] == pytest.approx(5 / 7)
    # pairs of .9 .4 .8 .6 above .2 .7 .1: 3 + 2 + 3 + 2 = 10 of 12
    assert value["auroc"] == pytest.approx(10 / 12)
    # first errors: solution 0 predicted at .4, is at .2: miss; 1 passes; 2 predicted at .1, is at .7: miss
    assert value["first_error_accuracy_erroneous"] == 0 and value["first_error_accuracy_error_free"] == 1
    assert value["first_error_f1"] == 0 and value["parse_failure_rate"] == 0
    # four correct, three incorrect: all_correct 8 / 11 / 2
    assert value["baseline_all_correct_macro_f1"] == pytest.approx(4 / 11)
    assert value["baseline_prior_macro_f1"] == pytest.approx(0.5)
    assert found["macro_f1_pooled"].n == 7 and found["macro_f1__b"].n == 3 and found["first_error_f1"].n == 3
    assert (found["first_error_accuracy_erroneous"].n, found["first_error_accuracy_error_free"].n) == (2, 1)


def test_the_three_overalls_differ():
    found = report(LABELS, SCORES, SOURCES, 0.5)
    assert len({round(found[f"macro_f1_{key}"].value, 6) for key in ("pooled", "step_weighted", "unweighted")}) == 3


def test_the_threshold_decides_and_a_score_on_it_is_correct():
    # at 0.3 the step at .4 is right too: tp 4, fp 1, tn 2: F1+ = 8/9, F1- = 4/5
    assert report(LABELS, SCORES, SOURCES, 0.3)["macro_f1_pooled"].value == pytest.approx(38 / 45)
    assert report([[1], [-1]], [[0.5], [0.4]], ["a", "a"], 0.5)["macro_f1_pooled"].value == 1.0
    assert report([[1], [-1]], [[0.5], [0.4]], ["a", "a"], 0.51)["f1_correct"].value == 0.0


def test_a_perfect_judge_and_one_without_eyes():
    rng = np.random.default_rng(0)
    labels = [[int(x) for x in rng.choice([1, 1, -1, 0], size=6)] for _ in range(200)]
    sources = [f"s{i % 3}" for i in range(200)]
    perfect = report(labels, [[float(mark == 1) for mark in marks] for marks in labels], sources, 0.5)
    names = ["macro_f1_pooled", "macro_f1_step_weighted", "macro_f1_unweighted", "auroc", "first_error_f1", "accuracy"]
    for key in names:
        assert perfect[key][2:] == pytest.approx((1.0, 1.0)) and perfect[key].value == pytest.approx(1.0)
    blind = report(labels, [list(rng.random(6)) for _ in labels], sources, 0.5)
    for key, chance in {"macro_f1_pooled": blind["baseline_coin_macro_f1"].value, "auroc": 0.5}.items():
        assert blind[key].low < chance < blind[key].high


def test_nothing_to_score_gives_nan():
    for labels, scores in (([], []), ([[0, 0]], [[0.1, 0.2]])):
        found = report(labels, scores, ["a"] * len(labels), 0.5)
        assert all(math.isnan(estimate.value) and estimate.low is None for estimate in found.values())
        assert all(estimate.n == 0 for estimate in found.values())


def test_every_key_can_be_a_metric():
    assert "macro_f1__We_Math_" in report([[1]], [[0.5]], ["We Math!"], 0.5)


def test_a_source_with_one_class_has_no_macro_f1_and_no_weight():
    found = report([[1, -1], [1, 1]], [[0.9, 0.1], [0.1, 0.9]], ["both", "only"], 0.5)
    assert math.isnan(found["macro_f1__only"].value)
    assert found["macro_f1_step_weighted"].value == found["macro_f1_unweighted"].value == 1.0
    assert found["macro_f1_pooled"].value < 1.0


def test_parse_failures_count_against_both_classes():
    labels, sources = [[1, -1], [1, -1]], ["a", "a"]
    full = report(labels, [[0.9, 0.1], [0.9, 0.1]], sources, 0.5)
    # tp 1, fn 1, fp 1, tn 1: both F1 = 2 / 4
    for broken in ([[0.9, 0.1], None], [[0.9, 0.1], [None, None]], [[0.9, 0.1], [float("nan")] * 2]):
        found = report(labels, broken, sources, 0.5)
        assert full["f1_correct"].value == full["f1_incorrect"].value == 1.0
        assert found["f1_correct"].value == found["f1_incorrect"].value == 0.5
        assert found["parse_failure_rate"].value == 0.5 and found["macro_f1_pooled"].n == 4
        # the lost correct step ranks last and the lost incorrect one first: one pair of four is won
        assert found["auroc"].value == pytest.approx(0.25)
    lost = report([[1, -1], [1, 1]], [[0.9, 0.1], [0.9, None]], sources, 0.5)
    assert lost["first_error_accuracy_error_free"].value == 0.0 and lost["first_error_accuracy_erroneous"].value == 1.0


def test_first_error_f1_by_hand():
    labels = [[1, -1, -1], [1, 1, -1], [-1, 1], [1, 1], [1, 1], [0, 1, -1]]
    scores = [[0.9, 0.1, 0.9], [0.9, 0.1, 0.1], [0.9, 0.9], [0.9, 0.9], [0.9, 0.1], [0.0, 0.9, 0.2]]
    # erroneous: hit, too early, none found, hit (the neutral step counts on neither side): 2 of 4; error-free: 1 of 2
    flat = benchmark.flatten(labels, scores)
    counts = benchmark.first_errors(flat, 6, 0.5)
    assert counts.sum(axis=0).tolist() == [4, 2, 2, 1]
    assert benchmark.first_error_f1(counts.sum(axis=0)) == pytest.approx(0.5)
    # ProcessBench: accuracies 0.8 and 0.4 give 2 * .32 / 1.2 = 0.5333
    assert benchmark.first_error_f1([5, 4, 5, 2]) == pytest.approx(0.64 / 1.2)
    assert benchmark.first_error_f1([5, 0, 5, 0]) == 0.0
    assert math.isnan(benchmark.first_error_f1([5, 4, 0, 0]))


def test_intervals_draw_problems():
    rng = np.random.default_rng(1)
    labels = [[int(x) for x in rng.choice([1, -1], size=5)] for _ in range(60)]
    scores = [[float(rng.random() * 0.8 + 0.2 * (mark == 1)) for mark in marks] for marks in labels]
    # every solution three times: as one problem nothing is learnt from the copies
    copies, names = [labels * 3, scores * 3, ["a"] * 180], [f"p{i}" for i in range(60)] * 3
    alone, clustered, each = report(labels, scores, ["a"] * 60, 0.5), report(*copies, 0.5, names), report(*copies, 0.5)
    for key in ("macro_f1_pooled", "auroc", "first_error_accuracy_erroneous"):
        width = clustered[key].high - clustered[key].low
        assert width == pytest.approx(alone[key].high - alone[key].low)
        assert width > 1.4 * (each[key].high - each[key].low)
    other = report(*copies, 0.5, names, seed=1)
    assert all(other[key] != clustered[key] for key in ("macro_f1_pooled", "auroc"))
    assert report(*copies, 0.5, names, n_resamples=50)["macro_f1_pooled"] != clustered["macro_f1_pooled"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from([1, 0, -1]), st.floats(0, 1)), min_size=1), min_size=1, max_size=8))
def test_pooled_metrics_agree_with_sklearn(rows):
    labels, scores = [[mark for mark, _ in row] for row in rows], [[value for _, value in row] for row in rows]
    found = report(labels, scores, ["a"] * len(rows), 0.5, n_resamples=5)
    y = np.array([mark == 1 for row in rows for mark, _ in row if mark])
    p = np.array([value for row in rows for mark, value in row if mark])
    if len(set(y.tolist())) < 2:
        assert math.isnan(found["macro_f1_pooled"].value)
    else:
        assert found["macro_f1_pooled"].value == pytest.approx(f1_score(y, p >= 0.5, average="macro"))
        assert found["auroc"].value == pytest.approx(roc_auc_score(y, p))


def test_choose_threshold_by_hand():
    # between .7 (the best incorrect) and .8 (the worst correct): all right
    assert choose_threshold([[0.9, 0.8], [0.7, None, 0.1]], [[1, 1], [-1, 1, -1]]) == pytest.approx(0.75)
    # .2 < .3 | .6: the neutral step at .6 does not count
    assert choose_threshold([[0.2, 0.6, 0.4]], [[-1, 0, 1]]) == pytest.approx(0.3)
    # at .15: tp 2, fp 1, tn 1; at .55: tp 1, fn 1, tn 2; both (4/5 + 2/3) / 2, and .55 is nearer .5
    assert choose_threshold([[0.1, 0.2, 0.5, 0.6]], [[-1, 1, -1, 1]]) == pytest.approx(0.55)
    for scores in ([0.2, 0.6], [0.2, None]):
        with pytest.raises(ValueError, match="dev split"):
            choose_threshold([scores], [[1, 1 if scores[1] else -1]])


@settings(max_examples=40, deadline=None)
@example([(False, 0.0), (True, 5e-324)])  # half of the least float is 0
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=30).filter(lambda r: len(dict(r)) == 2))
def test_no_threshold_is_better_than_the_chosen_one(rows):
    y, p = np.array([a for a, _ in rows]), np.array([b for _, b in rows])
    chosen = choose_threshold([p.tolist()], [[1 if a else -1 for a in y]])
    best = max(f1_score(y, p >= t, average="macro", zero_division=0) for t in p)
    assert f1_score(y, p >= chosen, average="macro", zero_division=0) == pytest.approx(best)


def test_what_does_not_match_is_refused():
    with pytest.raises(ValueError, match="solution 0 has 1 scores for 2"):
        report([[1, -1]], [[0.5]], ["a"], 0.5)
    with pytest.raises(ValueError, match="score every solution"):
        report([[1, -1]], [], ["a"], 0.5)
    with pytest.raises(ValueError, match="label 2"):
        report([[2]], [[0.5]], ["a"], 0.5)
    with pytest.raises(ValueError, match="give one each"):
        report([[1]], [[0.5]], [], 0.5)


def row(**changes):
    return {
        "image": ["images/a.png"], "question": "How many?", "answer": "3", "policy_model": "GPT4o",
        "response": {"steps": ["Look.", "So 3.\n\nDone."], "process_correctness": [0, 1]}, "data_source": "WeMath",
        **changes,
    }  # fmt: skip


def bench_file(folder: Path, *rows) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for name, shade in (("a", 0), ("b", 200)):
        Image.new("RGB", (8, 8), (shade, 10, 10)).save(folder / "images" / f"{name}.png")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    path = folder / "test.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_reading_keeps_steps_labels_and_problems(tmp_path):
    path = bench_file(tmp_path, row(), row(policy_model=None, id="x"), row(image="images/b.png", answer=None))
    found = read_visualprocessbench(path)
    assert found.labels == [[0, 1]] * 3 and found.bad == []
    assert [s.steps for s in found.solutions] == [["Look.", "So 3.\n\nDone."]] * 3  # never joined and split again
    assert [s.solution_id for s in found.solutions] == ["row0", "x", "row2"]
    assert [s.policy for s in found.solutions] == ["GPT4o", "unknown", "GPT4o"]
    # two solutions of one problem are one cluster
    assert len(found.problems) == 2 and found.solutions[0].problem_id == found.solutions[1].problem_id
    first, second = found.problems
    assert (first.answer, first.answer_type, first.source, first.split) == ("3", "number", "WeMath", "test")
    assert first.image_path == (tmp_path / "images/a.png").resolve() and first.image_sha256 != second.image_sha256
    assert second.answer == benchmark.NO_GOLD
    assert [(note.row, note.reason) for note in found.notes] == [(2, "no_gold")]


def test_several_images_and_another_gold_are_noted(tmp_path):
    path = bench_file(tmp_path, row(image=["images/a.png", "images/b.png"]), row(answer="4"))
    found = read_visualprocessbench(path)
    assert [(note.row, note.reason) for note in found.notes] == [(0, "several_images"), (1, "other_gold")]
    assert [p.image for p in found.problems] == ["images/a.png"] and found.problems[0].answer == "3"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json", "broken_row"),
        ("[1]", "broken_row"),
        (row(response="text"), "missing_column"),
        (row(response={"steps": ["a"], "process_correctness": [1, 1]}), "length_mismatch"),
        (row(response={"steps": ["a"], "process_correctness": [2]}), "bad_labels"),
        (row(response={"steps": ["a"], "process_correctness": [True]}), "bad_labels"),
        (row(response={"steps": [], "process_correctness": []}), "bad_steps"),
        (row(response={"steps": [3], "process_correctness": [1]}), "bad_steps"),
        (row(image=[]), "no_image"),
        (row(image=["images/none.png"]), "no_image"),
        (row(image=[None]), "no_image"),
        (row(choices="3"), "invalid_record"),
        (row(response={"steps": ["\ud800"], "process_correctness": [1]}), "broken_row"),
        (row(image=["\ud800.png"]), "broken_row"),
        (row(image=["images/broken.png"]), "broken_image"),
        (row(image=["../secret.png"]), "path_escapes"),
        (row(id="kept"), "duplicate_id"),
        (row(answer_type="song"), "invalid_record"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, bad, reason):
    path = bench_file(tmp_path, row(id="kept"), bad, row(id="after"))
    found = read_visualprocessbench(path)
    assert [(b.row, b.reason) for b in found.bad] == [(1, reason)]
    assert [s.solution_id for s in found.solutions] == ["kept", "after"] and len(found.labels) == 2
    with pytest.raises(ValueError, match=f"row 1 .*{reason}"):
        read_visualprocessbench(path, strict=True)


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="VisualProcessBench's format"):
        read_visualprocessbench(tmp_path / "none.jsonl")


def test_written_and_read_again_is_the_same(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    other = row(id="y", answer=None, question="A?"), row(id="z", question="B?", choices=["1", "3"], answer="B")
    first = read_visualprocessbench(bench_file(here, row(id="x"), *other))
    assert len(first.problems) == 3 and first.problems[2].answer_type == "choice"
    there = tmp_path / "there" / "bench.jsonl"
    write_visualprocessbench(there, *first[:3])
    again = read_visualprocessbench(there)
    assert again.labels == first.labels and again.solutions == first.solutions and again.bad == []
    # only the name of the image differs, which is that of its content
    assert all(p.image == f"images/{p.image_sha256[:32]}.png" for p in again.problems)
    for before, after in zip(first.problems, again.problems, strict=True):
        assert after.model_copy(update={"image": before.image}) == before
    assert set(row()) <= set(json.loads(there.read_text().splitlines()[0]))
    assert len(list((there.parent / "images").iterdir())) == 1


def test_writing_checks_lengths_and_leaves_nothing_half_done(tmp_path):
    found = read_visualprocessbench(bench_file(tmp_path, row()))
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="1 labels for 2 steps"):
        write_visualprocessbench(out, found.problems, found.solutions, [[1]])
    with pytest.raises(ValueError, match="which is not given"):
        write_visualprocessbench(out, [], found.solutions, found.labels)
    assert not out.exists()


def test_the_real_rows():
    path = Path(__file__).parents[1] / "../shared/data/visualprocessbench/test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there: the twelve real rows are kept outside the repository")
    found = read_visualprocessbench(path)
    assert len(found.solutions) == len(found.problems) == 12 and found.bad == []
    assert sum(map(len, found.labels)) == 69
    told = [[(1 + mark) / 2 for mark in marks] for marks in found.labels]
    result = report(found.labels, told, [p.source for p in found.problems], 0.5)["macro_f1_pooled"]
    assert result.value == 1.0 and result.n == sum(mark != 0 for marks in found.labels for mark in marks)


def test_the_size_of_the_benchmark_takes_seconds():
    rng = np.random.default_rng(0)
    labels = [[int(x) for x in rng.choice([1, 1, -1], size=9)] for _ in range(2866)]
    scores = [list(rng.random(9)) for _ in labels]
    found = report(labels, scores, [f"s{i % 5}" for i in range(2866)], 0.5, n_resamples=500)
    assert isinstance(found["auroc"], Estimate) and found["macro_f1_pooled"].n == 2866 * 9
