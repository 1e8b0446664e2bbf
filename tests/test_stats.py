"""Intervals and paired tests: by hand, against scipy, statsmodels and sklearn, and by simulated coverage."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from mmprm_lib import stats
from mmprm_lib.stats import Estimate


def is_empty(estimate: Estimate) -> bool:
    return math.isnan(estimate.value) and estimate[1:] == (0, None, None)


def test_estimate_passes_as_keywords():
    assert Estimate(0.5, 4, 0.1, 0.9)._asdict() == {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9}


@pytest.mark.parametrize(
    "estimate",
    [
        stats.mean([]),
        stats.paired_difference([], []),
        stats.mcnemar([], []),
        stats.wilson(0, 0),
        stats.pass_at_k([], [], 2),
        stats.auroc([], []),
        stats.macro_f1([], []),
    ],
)
def test_nothing_gives_nan_with_n_zero_and_no_interval(estimate):
    assert is_empty(estimate)


def test_mean_by_hand():
    found = stats.mean([1, 0, 1, 1])
    assert found.value == 0.75 and found.n == 4 and 0.0 <= found.low < 0.75 < found.high <= 1.0
    assert stats.mean([0.3]) == Estimate(0.3, 1, None, None)
    assert stats.mean([0.5, 0.5, 0.5]) == Estimate(0.5, 3, 0.5, 0.5)
    assert stats.mean([0.5, 0.5, 0.5], method="bca") == Estimate(0.5, 3, 0.5, 0.5)


def test_a_share_of_outcomes_that_are_all_alike_is_not_certain():
    assert stats.share([1, 0, 1, 1]) == stats.mean([1, 0, 1, 1])
    assert stats.share([1] * 36) == stats.wilson(36, 36) and stats.wilson(36, 36).low < 0.91
    names = [f"p{i // 4}" for i in range(36)]  # nine problems
    low, high = stats.wilson(9, 9)[2:]
    assert stats.share([1] * 36, names) == Estimate(1.0, 36, low, high)
    assert stats.share([0.0] * 4) == stats.wilson(0, 4)
    assert stats.share([True], ["p"]) == Estimate(1.0, 1, None, None) and np.isnan(stats.share([]).value)
    with pytest.raises(ValueError, match="0 or 1"):
        stats.share([0.5, 1.0])


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_mean_agrees_with_scipy(method):
    values = np.random.default_rng(3).gamma(1.0, size=60)  # skewed, so that the two methods differ
    result = scipy.stats.bootstrap((values,), np.mean, method=method, n_resamples=9999, rng=np.random.default_rng(1))
    theirs = result.confidence_interval
    ours = stats.mean(values, method=method, n_resamples=9999)
    assert ours.low == pytest.approx(theirs.low, abs=0.015) and ours.high == pytest.approx(theirs.high, abs=0.015)
    # the tolerance is smaller than the effect of the option
    other = stats.mean(values, method="bca" if method == "percentile" else "percentile", n_resamples=9999)
    assert abs(other.high - ours.high) > 0.02


def test_clustered_mean_agrees_with_scipy_on_paired_sums_and_sizes():
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 6, size=50)
    values = np.concatenate([rng.normal(rng.normal(), 0.1, size=n) for n in sizes])
    clusters = np.repeat(np.arange(50), sizes)
    sums = np.bincount(clusters, weights=values)

    def ratio(s, n, axis):
        return s.sum(axis) / n.sum(axis)

    result = scipy.stats.bootstrap((sums, sizes), ratio, paired=True, method="bca", n_resamples=5000, rng=rng)
    theirs = result.confidence_interval
    ours = stats.mean(values, list(clusters), method="bca", n_resamples=5000)
    assert ours.value == pytest.approx(values.mean()) and ours.n == len(values)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_clusters_widen_the_interval_of_copies():
    # every value ten times: one by one the width shrinks by sqrt(10), by problem it does not move
    values = np.random.default_rng(0).normal(size=40)
    copies, names = np.repeat(values, 10), [f"p{i}" for i in np.repeat(np.arange(40), 10)]
    alone, by_problem, one_by_one = stats.mean(values), stats.mean(copies, names), stats.mean(copies)
    width = alone.high - alone.low
    assert by_problem.high - by_problem.low == pytest.approx(width)
    assert width / (one_by_one.high - one_by_one.low) == pytest.approx(math.sqrt(10), rel=0.1)
    assert by_problem.n == 400


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=30)
    assert stats.mean(values, seed=1) == stats.mean(values, seed=1)
    assert stats.mean(values, seed=1) != stats.mean(values, seed=2)
    assert stats.mean(values, n_resamples=100) != stats.mean(values, n_resamples=200)


def test_confidence_decides_the_width():
    rows = np.random.default_rng(0).normal(size=(50, 1))
    narrow = stats.bootstrap(rows, lambda t: t[..., 0] / 50, 50, confidence=0.5)
    wide = stats.bootstrap(rows, lambda t: t[..., 0] / 50, 50)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_chunks_of_resamples_do_not_depend_on_memory(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    whole = stats.mean(values)
    monkeypatch.setattr(stats, "_CHUNK", 300)
    assert stats.mean(values) == whole
    assert all((rows.sum(axis=1) == 30).all() for rows in stats.resamples(30, 25, 0))


def test_column_means_equal_the_mean_of_each_column():
    matrix = np.random.default_rng(0).random((40, 3))
    for j, found in enumerate(stats.column_means(matrix, seed=4)):
        assert found == pytest.approx(stats.mean(matrix[:, j], seed=4))
    assert stats.column_means(np.array([[0.5]])) == [Estimate(0.5, 1, None, None)]
    assert is_empty(stats.column_means(np.zeros((0, 2)))[1])


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    a, b = (rng.random(300) * 0.1 + hard < 0.6).astype(float), (hard < 0.5).astype(float)
    found = stats.paired_difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean()) and found.n == 300
    assert found.low > 0
    shuffled = stats.paired_difference(a, rng.permutation(b))
    assert shuffled.high - shuffled.low > 1.5 * (found.high - found.low)
    assert stats.paired_difference(b, a).value == -found.value


def test_mcnemar_by_hand():
    # a alone right 1 time, b alone 6 times: 2 * (C(7,0) + C(7,1)) / 2**7 = 2 * 8 / 128 = 0.125
    a = [1] * 1 + [0] * 6 + [1] * 5 + [0] * 3
    b = [0] * 1 + [1] * 6 + [1] * 5 + [0] * 3
    assert stats.mcnemar(a, b) == pytest.approx(Estimate(0.125, 15, None, None))
    assert stats.mcnemar(b, a).value == pytest.approx(0.125)
    assert stats.mcnemar(a, a).value == 1.0
    with pytest.raises(ValueError, match="paired_difference"):
        stats.mcnemar([0.5], [1.0])


def test_holm_by_hand():
    # sorted .01 .03 .04: 3 x .01 = .03, 2 x .03 = .06, then at least what stands before
    found = stats.holm([0.04, np.nan, 0.01, 0.03])
    assert found == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert np.isnan(stats.holm([np.nan])).all() and len(stats.holm([])) == 0


def test_problems_needed_agree_with_statsmodels_and_give_the_power():
    rng = np.random.default_rng(0)
    a, b = rng.random(5000) < 0.60, rng.random(5000) < 0.55
    need = stats.problems_needed(a, b)
    difference = a.astype(float) - b
    size = difference.mean() / difference.std()
    assert need == pytest.approx(TTestPower().solve_power(abs(size), alpha=0.05, power=0.8), rel=0.02)
    drawn = rng.choice(difference, (2000, int(need)))
    z = drawn.mean(1) / (drawn.std(1) / np.sqrt(need))
    assert 0.76 < (np.abs(z) > 1.96).mean() < 0.84
    assert stats.problems_needed(a, a) == np.inf and np.isnan(stats.problems_needed([], []))
    assert stats.problems_needed([1, 1, 1], [0, 0, 0]) == 2.0  # no noise: the least that has a spread
    with pytest.raises(ValueError, match="3 and 2 values"):
        stats.problems_needed([1, 1, 1], [0, 1])


def test_wilson_by_hand():
    # centre (8 + 1.96^2 / 2) / (10 + 1.96^2) = 0.716737
    # half width 1.96 / 13.8416 * sqrt(10 * .8 * .2 + 1.96^2 / 4) = 0.226578
    assert stats.wilson(8, 10) == pytest.approx(Estimate(0.8, 10, 0.490162, 0.943318), abs=1e-4)
    low, high = proportion_confint(8, 10, alpha=0.1, method="wilson")
    assert stats.wilson(8, 10, confidence=0.9)[2:] == pytest.approx((low, high))
    with pytest.raises(ValueError, match="impossible"):
        stats.wilson(3, 2)


def test_pass_at_k_by_hand():
    # n = 5, c = 2, k = 2: 1 - C(3,2) / C(5,2) = 1 - 3/10; c = 0: 0; c = 4: fewer than 2 wrong ones, so 1
    assert stats.pass_at_k_each([2, 0, 4], 5, 2) == pytest.approx([0.7, 0.0, 1.0])
    assert stats.pass_at_k([2, 0, 4], [5, 5, 5], 2).value == pytest.approx(1.7 / 3)
    assert stats.pass_at_k([1, 2], [4, 4], 1).value == pytest.approx(0.375)  # pass@1 is the mean of c / n
    with pytest.raises(ValueError, match="at least 6 samples"):
        stats.pass_at_k([2], [5], 6)
    with pytest.raises(ValueError, match="between 0"):
        stats.pass_at_k([6], [5], 1)


@given(st.integers(1, 200), st.data())
def test_pass_at_k_agrees_with_binomials(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert stats.pass_at_k_each([c], n, k)[0] == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-9)


def test_auroc_by_hand():
    # pairs (positive, negative): .9 > .2, .9 > .5, .5 > .2 and .5 = .5 half: 3.5 of 4
    assert stats.auroc([1, 0, 1, 0], [0.9, 0.2, 0.5, 0.5]).value == pytest.approx(0.875)
    assert stats.auroc([1, 1, 0], [0.9, 0.8, 0.1]).value == 1.0
    assert math.isnan(stats.auroc([1, 1], [0.2, 0.3]).value) and stats.auroc([1, 1], [0.2, 0.3]).n == 2
    assert stats.auroc([1, 0], [0.9, 0.1], ["p", "p"]) == Estimate(1.0, 2, None, None)


def test_auroc_resamples_agree_with_sklearn_on_repeated_rows():
    rng = np.random.default_rng(7)
    positive, scores = rng.random(60) < 0.6, np.round(rng.random(60), 1)  # many ties
    index = rng.integers(0, 12, 60)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    rows = next(stats.resamples(12, 20, 0))
    for row, found in zip(rows, stats._weighted_auroc(rows, index[order], positive[order], starts), strict=True):
        assert found == pytest.approx(roc_auc_score(positive, scores, sample_weight=row[index]))


def test_auroc_interval_holds_chance_and_widens_with_clusters():
    rng = np.random.default_rng(1)
    positive = rng.random(400) < 0.5
    chance = stats.auroc(positive, rng.random(400))
    assert chance.low < 0.5 < chance.high
    truth = np.repeat(rng.random(40) < 0.5, 10)
    scores = np.repeat(rng.random(40), 10)
    alone, clustered = stats.auroc(truth, scores), stats.auroc(truth, scores, list(np.repeat(np.arange(40), 10)))
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert clustered.value == alone.value


def test_macro_f1_by_hand():
    # tp 2, fn 1, fp 1, tn 1: F1+ = 4 / (4 + 2) = 2/3, F1- = 2 / (2 + 2) = 1/2, macro 7/12
    y, p = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert stats.macro_f1(y, p).value == pytest.approx(7 / 12) and stats.macro_f1(y, p).n == 5
    assert stats.f1_scores([2, 1, 1, 1]) == pytest.approx([2 / 3, 1 / 2])
    assert stats.macro_f1([1, 0], [1, 0]).value == 1.0
    assert stats.macro_f1([1, 0], [0, 1]).value == 0.0
    assert math.isnan(stats.macro_f1([1, 1], [1, 1]).value)  # nothing says how it does on incorrect steps


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40).filter(lambda r: len(dict(r)) == 2))
def test_macro_f1_agrees_with_sklearn(rows):
    y, p = zip(*rows, strict=True)
    assert stats.macro_f1(y, p, n_resamples=10).value == pytest.approx(f1_score(y, p, average="macro", zero_division=0))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 and 1"):
        stats.paired_difference([1, 0], [1])
    with pytest.raises(ValueError, match="1 of 2 values are nan"):
        stats.mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="problem id of every row"):
        stats.mean([1.0, 0.0], ["p"])
    with pytest.raises(ValueError, match="'magic' is not known; use one of percentile, bca"):
        stats.mean([1.0, 0.0], method="magic")


def _coverage(method: str, n_problems: int, n_trials: int, n_resamples: int = 400) -> float:
    """How often the interval holds the true mean, when the three steps of a problem share most of their error."""
    rng, hits = np.random.default_rng(0), 0
    names = list(np.repeat(np.arange(n_problems), 3))
    for trial in range(n_trials):
        rate = rng.beta(2, 1, size=n_problems)  # mean 2/3
        steps = rng.random(3 * n_problems) < np.repeat(rate, 3)
        found = stats.mean(steps, names, method=method, n_resamples=n_resamples, seed=trial)
        hits += found.low <= 2 / 3 <= found.high
    return hits / n_trials


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_cover_quickly(method):
    # 0.95 +- 3 * sqrt(.95 * .05 / 200) = 0.046, and a little less for 60 problems
    assert 0.89 <= _coverage(method, n_problems=60, n_trials=200) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_cover(method):
    # 0.95 +- 3 * sqrt(.95 * .05 / 1000) = 0.021
    assert 0.929 <= _coverage(method, n_problems=200, n_trials=1000, n_resamples=1000) <= 0.971
