"""Intervals and bounds by hand, and their coverage by simulation, also for those who stop when they like it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from mmprm_lib.sequential import (
    above_guess,
    cheapest,
    failures_needed,
    guess_p_value,
    hard_verdict,
    log_mixture,
    miss_bound,
    posterior_above,
    posterior_interval,
    sequence_interval,
)

counts = st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
priors = st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0))


def test_the_flat_posterior_by_hand():
    # prior Beta(1, 1), n = 1, k = 0: Beta(1, 2), P(p <= x) = 1 - (1 - x)^2, so the upper end is 1 - sqrt(0.025)
    low, high = posterior_interval(1, 0, 0.05, (1.0, 1.0))
    assert (low, high) == (0.0, pytest.approx(1 - math.sqrt(0.025)))
    # n = 2, k = 1: Beta(2, 2), P(p <= x) = 3 x^2 - 2 x^3, the same tail on either side
    low, high = posterior_interval(2, 1, 0.1, (1.0, 1.0))
    assert 3 * low**2 - 2 * low**3 == pytest.approx(0.05) and low + high == pytest.approx(1.0)
    assert posterior_interval(0, 0) == sequence_interval(0, 0) == (0.0, 1.0)


def test_the_posterior_above_a_floor_by_hand():
    assert posterior_above(1, 0, 0.3, (1.0, 1.0)) == pytest.approx(0.7**2)
    assert posterior_above(0, 0, 0.0) == 1.0
    assert posterior_above(4, 0, 0.3, (3.0, 1.0)) > posterior_above(4, 0, 0.3, (1.0, 1.0))  # the prior counts


def test_the_mixture_ratio_by_hand():
    # prior Beta(1, 1): B(1 + k, 1 + n - k) = k! (n - k)! / (n + 1)!; n = 2, k = 1: 1/6 over p (1 - p) = 1/4
    assert math.exp(log_mixture(2, 1, 0.5, (1.0, 1.0))) == pytest.approx((1 / 6) / (1 / 4))
    assert log_mixture(3, 1, 0.0) == math.inf and log_mixture(3, 1, 1.0) == math.inf
    # n = 1, k = 1: the ratio is 1/2 / p, below 20 where p > 1/40
    assert sequence_interval(1, 1, 0.05, (1.0, 1.0)) == (pytest.approx(1 / 40), 1.0)


@settings(deadline=None)
@given(counts, priors, st.floats(0.01, 0.3))
def test_intervals_hold_the_ratio_are_symmetric_and_shrink_with_the_error(nk, prior, error):
    n, k = nk
    for interval in (posterior_interval, sequence_interval):
        low, high = interval(n, k, error, prior)
        assert 0 <= low <= high <= 1
        mirrored = interval(n, n - k, error, prior[::-1])
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-7)
        wider = interval(n, k, error / 2, prior)
        assert wider[0] <= low + 1e-9 and wider[1] >= high - 1e-9
    low, high = sequence_interval(n, k, error, prior)
    assert n == 0 or low <= k / n <= high


@settings(deadline=None)
@given(counts, priors)
def test_the_ends_of_the_sequence_lie_on_the_bound(nk, prior):
    n, k = nk
    for end in sequence_interval(n, k, 0.05, prior):
        if 0 < end < 1:
            assert log_mixture(n, k, end, prior) == pytest.approx(math.log(20), abs=1e-5)


def test_counts_and_priors_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="k is 3 of n = 2"):
        posterior_interval(2, 3)
    with pytest.raises(ValueError, match="prior is"):
        sequence_interval(2, 1, 0.05, (0.0, 1.0))
    with pytest.raises(ValueError, match="p is 0"):
        failures_needed(0.0)
    with pytest.raises(ValueError, match="guess is 1"):
        above_guess(0.5, 1.0)


def ever_missed(interval, p, n_max, n_runs, seed, error):
    """The share of runs in which the interval misses p at some n up to n_max."""
    draws = np.random.default_rng(seed).random((n_runs, n_max)) < p
    k = draws.cumsum(axis=1)
    missed = np.zeros(n_runs, dtype=bool)
    for n in range(1, n_max + 1):
        ends = np.array([interval(n, j, error) for j in range(n + 1)])
        low, high = ends[k[:, n - 1]].T
        missed |= (p < low) | (p > high)
    return missed.mean()


@pytest.mark.parametrize("p", [0.02, 0.1, 0.25, 0.5, 0.9])
def test_the_sequence_covers_at_every_n_at_once(p):
    # Ville: at most 0.1; 4,000 runs have a standard error of 0.005
    assert ever_missed(sequence_interval, p, 64, 4000, 0, 0.1) <= 0.1 + 0.015


def test_whoever_looks_after_each_rollout_is_misled_by_the_posterior_and_not_by_the_sequence():
    # so the test above is no empty one: an interval for a fixed n does miss when n is chosen by looking
    assert ever_missed(posterior_interval, 0.5, 64, 4000, 0, 0.1) > 0.2


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.8])
def test_the_posterior_covers_for_a_fixed_n(p):
    k = np.random.default_rng(0).binomial(30, p, size=20_000)
    ends = np.array([posterior_interval(30, j, 0.1) for j in range(31)])[k]
    covered = ((ends[:, 0] <= p) & (p <= ends[:, 1])).mean()
    assert covered > 0.9 - 0.05  # Jeffreys keeps to the level on average over p, with dips (Brown, Cai, DasGupta 2001)


def test_the_posterior_covers_under_optional_stopping_for_p_drawn_from_the_prior():
    # stop as soon as the interval is narrower than 0.3, or at 24 looks; 3,000 runs, standard error 0.006
    rng = np.random.default_rng(1)
    hits = []
    for p in beta.rvs(0.5, 0.5, size=3000, random_state=rng):
        k = 0
        for n in range(1, 25):
            k += rng.random() < p
            low, high = posterior_interval(n, k, 0.1)
            if high - low < 0.3:
                break
        hits.append(low <= p <= high)
    assert np.mean(hits) >= 0.9 - 0.02


def test_the_bound_of_giving_up():
    assert miss_bound(0.05, 16) == pytest.approx(0.440, abs=5e-4)  # 0.95^16
    assert miss_bound(0.25, 16) == pytest.approx(0.0100, abs=5e-5)  # 0.75^16
    # 0.8^13 = 0.055, 0.8^14 = 0.044
    assert failures_needed(0.2, 0.05) == 14 and failures_needed(1.0) == 1 and failures_needed(0.5, 0.25) == 2
    missed = (np.random.default_rng(0).random((20_000, 8)) >= 0.2).all(axis=1).mean()
    assert missed == pytest.approx(miss_bound(0.2, 8), abs=0.008)  # 0.168, standard error 0.0026


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.5))
def test_so_many_failures_and_no_fewer(p, error):
    n = failures_needed(p, error)
    assert miss_bound(p, n) <= error * (1 + 1e-6)
    assert n == 1 or miss_bound(p, n - 1) > error * (1 - 1e-6)


def test_the_guess_floor_by_hand():
    assert [above_guess(s, 0.25) for s in (0.0, 0.25, 0.625, 1.0)] == [0.0, 0.0, 0.5, 1.0]
    assert above_guess(0.3, 0.0) == 0.3
    # 2 of 2 right by guessing one of four: 1/16; at least 1 of 2: 1 - (3/4)^2 = 7/16
    assert guess_p_value(2, 2, 0.25) == pytest.approx(1 / 16)
    assert guess_p_value(2, 1, 0.25) == pytest.approx(7 / 16) and guess_p_value(2, 0, 0.25) == 1.0


def test_hard_verdicts_by_hand():
    assert hard_verdict(0, 0, 4) is None and hard_verdict(3, 0, 4) is None
    assert hard_verdict(4, 0, 4) is False and hard_verdict(3, 1, 4) is True
    # flat prior, 0 of 3: P(p > 0.5) = 0.5^4 = 0.0625; 0 of 4: 0.5^5 = 0.03125
    early = dict(p_min=0.5, error=0.05, prior=(1.0, 1.0))
    assert hard_verdict(3, 0, 16, **early) is None and hard_verdict(4, 0, 16, **early) is False


def test_hard_verdicts_above_a_guess():
    # with 16 rollouts and g = 1/4: P(X >= 8) = 0.027, P(X >= 7) = 0.080
    assert hard_verdict(16, 8, 16, floor=0.25) is True and hard_verdict(16, 7, 16, floor=0.25) is False
    assert hard_verdict(1, 1, 16, floor=0.25) is None  # one right answer may be a guess
    # n of n, Jeffreys: the ratio at 1/4 is (2n choose n); it must pass 20: 3 of 3 gives 20 exactly, 4 of 4 gives 70
    assert hard_verdict(3, 3, 16, floor=0.25) is None and hard_verdict(4, 4, 16, floor=0.25) is True
    assert hard_verdict(3, 3, 16, floor=0.25, error=0.06) is True
    assert hard_verdict(12, 0, 16, floor=0.25) is False
    assert hard_verdict(12, 0, 16, floor=0.25, interval="sequence") is None


def test_the_cheapest_cut_is_the_middle_where_all_tests_cost_the_same():
    # failure as dear as success (1.5 rollouts): halving is best
    assert cheapest((1.0,) * 3, (1.5,) * 3)[1] == 1 and cheapest((1.0,) * 7, (1.5,) * 7)[1] == 3
    # failures much dearer: walk from the front
    assert cheapest((1.0,) * 3, (1000.0,) * 3)[1] == 0
    # one step, first error there or nowhere: (1.5 + 16) / 2
    assert cheapest((1.0,), (16.0,)) == (pytest.approx(8.75), 0)
