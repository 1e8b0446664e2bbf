"""Points of a sweep together: literal differences, both kinds of chance apart, and what a point is trained on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from mmprm_lib import ablation, comparison, plots_ablation, points, selection, stats
from mmprm_lib.schema import StepLabels
from tests.doubles import problem, solution


def labels(solution_id: str, scores: list[float], n: int = 4) -> StepLabels:
    return StepLabels(
        solution_id=solution_id, problem_id=solution_id.split("/")[0], steps=[f"step {t}" for t in range(len(scores))],
        n_rollouts=[n] * len(scores), n_correct=[round(n * s) for s in scores], n_unknown=[0] * len(scores),
        mc_score=scores, strategy="exhaustive", n_generated_tokens=40,
    )  # fmt: skip


def table_of(**right: list[list[int]]) -> pd.DataFrame:
    """A table of problems: setting -> for each seed the outcome of each problem in Best-of-N."""
    rows = [
        {"setting": name, "seed": seed, "problem_id": f"p{i}", "best_of_n_mean": value}
        for name, seeds in right.items()
        for seed, values in enumerate(seeds)
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_a_point_takes_the_first_problems_and_solutions_and_k_of_the_rollouts():
    problems = [problem(f"p{i}", split="train") for i in range(3)] + [problem("d", split="dev")]
    records = [labels(f"{p}/s{i}", [1.0, 0.5]) for p in ("d", "p1", "p0", "p2") for i in range(3)]
    found = points.training_labels(records, problems, n_problems=2, n_solutions=2, k=0, seed=0)
    assert [r.solution_id for r in found] == ["p1/s0", "p1/s1", "p0/s0", "p0/s1"]
    fewer = points.training_labels(records, problems, n_problems=2, n_solutions=2, k=1, seed=0)
    assert [r.n_rollouts for r in fewer] == [[1, 1]] * 4 and all(r.mc_score[0] == 1.0 for r in fewer)
    with pytest.raises(ValueError, match="n_problems is 4: 3 train problems"):
        points.training_labels(records, problems, n_problems=4, n_solutions=1, k=0, seed=0)
    with pytest.raises(ValueError, match="n_solutions is 4: 3 solutions"):
        points.training_labels(records, problems, n_problems=1, n_solutions=4, k=0, seed=0)


@pytest.mark.parametrize(("start", "word"), [("embedded", " True?"), ("owner/large", "mean"), (Path("policy"), "mean")])
def test_the_marker_starts_as_a_word_of_the_embedded_base_there_alone(start, word, monkeypatch, tmp_path):
    told = {}

    def train(*given, marker_init, **options):
        told["word"] = marker_init
        raise InterruptedError

    monkeypatch.setattr(points.models, "load", lambda start: (None, None))
    monkeypatch.setattr(points.prm, "train", train)
    with pytest.raises(InterruptedError):
        points.trained([None], [], start, tmp_path, labels="soft", n_updates=1, batch_size=1,
                       gradient_accumulation=1, pack_size=1)  # fmt: skip
    assert told == {"word": word}


def test_a_difference_pairs_problems_and_seeds():
    table = table_of(a=[[1, 1, 0, 1], [1, 0, 1, 1]], b=[[1, 0, 0, 1], [0, 0, 1, 1]])
    a, b = (table[table["setting"] == name] for name in "ab")
    found = ablation.difference(a, b, "best_of_n_mean")
    assert (found["value"], found["n"], found["n_seeds"]) == (0.25, 4, 2)
    assert found["seed_sd"] == 0 and np.isnan(found["p_seeds"])  # each seed differs by 0.25
    assert found["low"] == 0 and found["high"] > 0.25
    assert ablation.difference(b, a, "best_of_n_mean")["value"] == -0.25
    assert ablation.level(a, "best_of_n_mean")["value"] == 0.75
    with pytest.raises(ValueError, match="no pairs"):
        ablation.difference(a, b[b["seed"] == 0], "best_of_n_mean")
    with pytest.raises(ValueError, match="judged on different problems"):
        ablation.level(a[~((a["seed"] == 0) & (a["problem_id"] == "p0"))], "best_of_n_mean")


def test_macro_f1_of_many_seeds_is_the_mean_of_theirs():
    counts = {0: [(3, 1, 1, 3), (2, 0, 1, 1)], 1: [(1, 3, 3, 1), (2, 1, 0, 1)]}
    rows = [
        dict(zip([*ablation.CONFUSION, "seed", "problem_id"], (*c, seed, f"p{i}"), strict=True))
        for seed, each in counts.items()
        for i, c in enumerate(each)
    ]
    found = ablation.level(pd.DataFrame(rows), "macro_f1")
    # totals (5, 1, 2, 4) and (3, 4, 3, 2)
    one = np.mean([10 / (10 + 2 + 1), 8 / (8 + 2 + 1)])
    two = np.mean([6 / (6 + 3 + 4), 4 / (4 + 3 + 4)])
    assert found["value"] == pytest.approx((one + two) / 2) and found["n"] == 2


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-3))
def test_the_interval_over_seeds_is_students(values):
    sd, low, high, p = ablation.of_seeds(values)
    known = ttest_1samp(values, 0)
    assert p == pytest.approx(known.pvalue) and sd == pytest.approx(np.std(values, ddof=1))
    assert (low, high) == pytest.approx(tuple(known.confidence_interval()))


@pytest.mark.parametrize("values", [[0.25] * 3, [0.34 - 0.33, 0.35 - 0.34, 0.5 - 0.49]])
def test_seeds_that_agree_but_for_rounding_are_no_certainty(values):
    sd, low, high, p = ablation.of_seeds(values)
    assert sd == 0 and np.isnan([low, high, p]).all()
    assert ablation.of_seeds([0.0, 0.0])[3] == 1.0


def test_one_seed_says_nothing_of_seeds():
    assert np.isnan(ablation.of_seeds([0.3])).all()
    table = table_of(a=[[1, 0, 1]], b=[[0, 0, 1]])
    found = ablation.compared(table, "setting", "b", ["best_of_n_mean"])
    assert found["n_seeds"].tolist() == [1] and found["holm"].isna().all()


def test_every_setting_is_held_against_the_base_and_corrected_for_all_rows():
    rng = np.random.default_rng(0)
    table = table_of(**{name: rng.integers(0, 2, (5, 40)).tolist() for name in ("a", "b", "c")})
    found = ablation.compared(table, "setting", "b", ["best_of_n_mean"], {"form": "all"})
    assert found["setting"].tolist() == ["a", "c"] and found["form"].tolist() == ["all", "all"]
    p = sorted(found["p_seeds"])
    assert sorted(found["holm"]) == pytest.approx([min(1, 2 * p[0]), min(1, max(2 * p[0], p[1]))])


def test_a_metric_without_problems_is_compared_seed_by_seed():
    rows = [("a", 0, 0.8), ("a", 1, 0.7), ("b", 0, 0.6), ("b", 1, 0.6)]
    frame = pd.DataFrame(rows, columns=["setting", "seed", "value"]).assign(metric="auroc", n=100)
    [found] = ablation.seed_differences(frame, "setting", "b", "auroc").to_dict("records")
    assert found["value"] == pytest.approx(0.15) and found["n_seeds"] == 2 and np.isnan(found["low"])
    assert ablation.seeds_of(frame, ["setting"], "auroc")["value"].tolist() == pytest.approx([0.75, 0.6])
    with pytest.raises(ValueError, match="no seed in common"):
        ablation.seed_differences(frame.assign(seed=[0, 1, 2, 3]), "setting", "b", "auroc")


def test_targets_have_names_that_say_the_threshold():
    frame = pd.DataFrame({"target": ["soft", "hard", "hard", "counts"], "threshold": [None, 0.0, 0.0625, None]})
    assert ablation.target_names(frame).tolist() == ["soft", "hard > 0", "hard > 1/16", "counts"]
    assert ablation.target_names(frame[["target"]]).tolist() == ["soft", "hard > 0", "hard > 0", "counts"]
    done = frame.assign(done=[True, False, True, True])
    assert ablation.counted(done, ["target"]).values.tolist() == [["soft", 1, 1], ["hard", 2, 1], ["counts", 1, 1]]


def test_figures_show_both_intervals_and_all_lines():
    table = table_of(a=[[1, 0, 1, 1], [1, 1, 1, 0]], b=[[0, 0, 1, 1], [1, 0, 0, 0]], c=[[0, 1, 1, 1], [1, 0, 1, 0]])
    gaps = ablation.compared(table, "setting", "b", ["best_of_n_mean"])
    [axis, *_] = plots_ablation.differences(gaps, "setting", ["best_of_n_mean"], base="b", caption="n").axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "c"] and axis.get_xlabel() == "minus b"
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["problems", "seeds"]
    dial = pd.concat([ablation.levels(table, ["setting"], ["best_of_n_mean"]).assign(k=k) for k in (1, 4)])
    [axis] = plots_ablation.over_dial(dial, "k", "setting", ["best_of_n_mean"], log=2).axes
    assert len(axis.lines) == 3 and [t.get_text() for t in axis.get_xticklabels()] == ["1", "4"]


def test_every_seed_by_itself_is_told_from_sums_and_from_metrics():
    table = table_of(a=[[1, 1, 0, 1], [1, 0, 0, 0]])
    metrics = pd.DataFrame(
        [
            {"setting": "a", "seed": s, "metric": m, "value": v}
            for s, v in ((0, 0.9), (1, 0.7))
            for m in ("auroc", "f1")
        ]
    )
    found = ablation.each_seed(table, metrics, ["setting"], ["best_of_n_mean", "auroc"])
    assert found.to_dict("records") == [
        {"setting": "a", "seed": 0, "measure": "best_of_n_mean", "value": 0.75},
        {"setting": "a", "seed": 1, "measure": "best_of_n_mean", "value": 0.25},
        {"setting": "a", "seed": 0, "measure": "auroc", "value": 0.9},
        {"setting": "a", "seed": 1, "measure": "auroc", "value": 0.7},
    ]


def pools(**outcomes: list[float]) -> pd.DataFrame:
    """setting -> the outcome of each problem, at one N and one temperature."""
    rows = [(name, 0.5, f"p{i}", v) for name, values in outcomes.items() for i, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["N", "temperature", "problem_id", "best_of_n"])


def test_shares_are_means_over_problems_with_no_word_on_seeds():
    [row] = ablation.shares(pools(a=[1, 0, 1, 1]), ["N", "temperature"], ["best_of_n"]).to_dict("records")
    assert (row["N"], row["temperature"], row["measure"]) == ("a", 0.5, "best_of_n")
    assert tuple(row[key] for key in ("value", "n", "low", "high")) == stats.mean([1, 0, 1, 1])
    assert row["n_seeds"] == 1 and np.isnan([row["seed_sd"], row["seed_low"], row["seed_high"]]).all()


def test_settings_without_seeds_are_compared_problem_by_problem():
    table = pools(a=[1, 0, 0, 0, 1, 0], b=[1, 1, 1, 1, 1, 1], c=[0.5, 0, 0, 0, 1, 0])
    one, two = ablation.share_differences(table, "N", "a", ["best_of_n"], ["temperature"]).to_dict("records")
    assert (one["temperature"], one["N"], two["N"]) == (0.5, "b", "c")
    expected = stats.paired_difference([1] * 6, [1, 0, 0, 0, 1, 0])
    assert tuple(one[key] for key in ("value", "n", "low", "high")) == expected
    assert one["p"] == one["holm"] == 2 / 2**4  # four problems differ, all the same way
    assert two["value"] == pytest.approx(-0.5 / 6) and np.isnan(two["p"]) and np.isnan(two["holm"])  # no McNemar
    with pytest.raises(ValueError, match="'?N'? were judged on different problems"):
        ablation.share_differences(table[1:], "N", "a", ["best_of_n"], ["temperature"])


def test_what_each_problem_brings_counts_different_answers_and_paths():
    steps = [["a", "1"], ["a", "1"], ["b", "1"], ["c", "2"]]
    candidates = [
        solution(f"p/{i}", s, verdict="correct" if s[-1] == "2" else "wrong", answer=s[-1]) for i, s in enumerate(steps)
    ]
    group = selection.Group("p", candidates, ["1", "1", "1", "2"], None)
    scores = {s.solution_id: [score] * 2 for s, score in zip(candidates, (0.1, 0.2, 0.3, 0.9), strict=True)}
    found = comparison.by_problem([group], [1, 2, 4], scores, "mean")
    assert found.values.tolist() == [["p", 1, 0, 0, 0, 1, 1], ["p", 2, 0, 0, 0, 1, 1], ["p", 4, 1, 0, 1, 2, 3]]
