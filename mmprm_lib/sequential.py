"""How surely a chance of success is known while one is still counting: intervals, stopping bounds, the guess floor.

All here is about one step's chance p that a rollout is right, after `n` rollouts that could be judged, `k` of them
right. Counting that stops when it likes what it sees spoils an ordinary interval; the confidence sequence below holds
at every n at once, so it may be looked at after each rollout.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import betaincinv, betaln, xlogy
from scipy.stats import beta, binom

JEFFREYS = (0.5, 0.5)  # flat in information; most of its mass near 0 and 1, where most steps of a solution lie
CACHE = 2**16  # labels ask for the same few hundred (n, k) again and again


def _checked(n: float, k: float, prior: tuple[float, float]) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"k is {k} of n = {n}: give 0 <= k <= n, and leave rollouts without a verdict out of n")
    if min(prior) <= 0:
        raise ValueError(f"prior is {prior}: both numbers of a Beta prior must be above 0")


@lru_cache(CACHE)
def posterior_interval(
    n: float, k: float, error: float = 0.05, prior: tuple[float, float] = JEFFREYS
) -> tuple[float, float]:
    """The ends of p's equal-tailed posterior interval of mass 1 - error: Beta(a + k, b + n - k); (0, 1) for n = 0.

    The end is 0 where k = 0 and 1 where k = n, as Brown, Cai and DasGupta (2001, section 4.1.1) mend it, because the
    plain one never covers p = 0 or 1; there the other end takes its own tail only. With the Jeffreys prior and n fixed
    beforehand it covers about 1 - error also in the frequentist sense; under optional stopping it holds for a p drawn
    from the prior, and for no fixed p.
    """
    _checked(n, k, prior)
    a, b = prior[0] + k, prior[1] + n - k
    low = 0.0 if k == 0 else float(betaincinv(a, b, error / 2))
    high = 1.0 if k == n else float(betaincinv(a, b, 1 - error / 2))
    return low, high


@lru_cache(CACHE)
def posterior_above(n: int, k: int, floor: float, prior: tuple[float, float] = JEFFREYS) -> float:
    """P(p > floor) under the posterior Beta(a + k, b + n - k), in [0, 1]."""
    _checked(n, k, prior)
    return float(beta.sf(floor, prior[0] + k, prior[1] + n - k))


def log_mixture(n: int, k: int, p: float, prior: tuple[float, float] = JEFFREYS) -> float:
    """The log of the likelihood ratio of a Beta mixture against p: B(a + k, b + n - k) / (B(a, b) p^k (1 - p)^(n - k)).

    Infinite where p makes the data impossible. Its exponential, as n grows, is a martingale of mean 1 if p is true.
    """
    null = float(xlogy(k, p) + xlogy(n - k, 1 - p))
    return float(betaln(prior[0] + k, prior[1] + n - k) - betaln(*prior)) - null


@lru_cache(CACHE)
def sequence_interval(
    n: float, k: float, error: float = 0.05, prior: tuple[float, float] = JEFFREYS
) -> tuple[float, float]:
    """The ends of a confidence sequence for p at n: all p whose `log_mixture` is below log(1 / error).

    Theorem (Ville 1939; for mixtures Robbins 1970, Howard, Ramdas, McAuliffe and Sekhon 2021): with M_0 = 1 and
    E[M_n | past] = M_(n-1) under the true p, P(M_n >= 1 / error for some n) <= error. So the intervals of all n, taken
    together, miss the true p with a chance of at most `error`, whenever and for whatever reason one stops, and however
    it is chosen which step to sample next, as long as each rollout, given the past, is right with chance p. The price
    is width: at n = 16, k = 0 and error 0.05 the end is 0.28 where the posterior's is 0.14 (Jeffreys). The prior only
    shapes the width; the bound holds for every prior.
    """
    _checked(n, k, prior)
    if n == 0:
        return 0.0, 1.0
    bound, top = -math.log(error), k / n

    def excess(p: float) -> float:
        return min(log_mixture(n, k, p, prior) - bound, 1e3)  # finite, as the root finder wants

    # log_mixture is convex in p with its least value, at most 0, at k / n: one root on either side
    low = 0.0 if k == 0 or excess(0.0) <= 0 else float(brentq(excess, 0.0, top))
    high = 1.0 if k == n or excess(1.0) <= 0 else float(brentq(excess, top, 1.0))
    return low, high


INTERVALS = {"posterior": posterior_interval, "sequence": sequence_interval}


def miss_bound(p: float, failures: int) -> float:
    """(1 - p)^failures: how often "stop at the first success, give up after `failures`" misses a step of chance p.

    Exact for independent rollouts. The other error does not exist: a success is proof that p > 0. With 16 failures a
    step of p = 0.05 is missed with chance 0.44, one of p = 0.25 with 0.01.
    """
    return (1.0 - p) ** failures


def failures_needed(p: float, error: float = 0.05) -> int:
    """The fewest failures in a row after which `miss_bound` of chance p is at most `error`; p in (0, 1]."""
    if not 0 < p <= 1 or not 0 < error < 1:
        raise ValueError(f"p is {p} and error is {error}: give 0 < p <= 1 and 0 < error < 1")
    if p == 1:
        return 1
    return max(1, math.ceil(math.log(error) / math.log1p(-p) - 1e-9))


# -- multiple choice: a guess is right with chance g


def above_guess(score: float, guess: float) -> float:
    """(score - g) / (1 - g), at least 0: the chance of success beyond guessing, for a rollout that knows or guesses.

    Of a hopeless prefix with 4 options a quarter of the rollouts is right; its label should be 0, and that of a prefix
    that is always right 1. The map rises, so it takes the ends of an interval to the ends of an interval.
    """
    if not 0 <= guess < 1:
        raise ValueError(f"guess is {guess}: give the chance of a right guess, 0 <= guess < 1")
    return max(0.0, (score - guess) / (1 - guess))


@lru_cache(CACHE)
def guess_p_value(n: int, k: int, guess: float) -> float:
    """P(at least k of n rollouts are right | each is a guess): the one-sided binomial test; 1 for k = 0.

    For an n fixed beforehand. Whoever looks after each rollout and stops at the first small value errs more often than
    the value says; `sequence_interval`'s lower end above g is the test for that.
    """
    _checked(n, k, JEFFREYS)
    return float(binom.sf(k - 1, n, guess))


# -- hard labels


def hard_verdict(
    n: int, k: int, n_max: int, *, floor: float = 0.0, p_min: float = 0.0, error: float = 0.05,
    interval: str = "posterior", prior: tuple[float, float] = JEFFREYS,
) -> bool | None:  # fmt: skip
    """Whether a step can still succeed, after n known rollouts with k right ones; None: not known yet, ask on.

    floor 0: yes at the first success, which is proof; no after n_max failures (`miss_bound` is the error), or earlier
    once P(p > p_min) < error. floor g, the chance of a guess: yes once the sequence interval lies above g, no once the
    `interval` lies below; with n_max rollouts yes if `guess_p_value` is at most `error`, else no. So a step that only
    guesses is called good with a chance of at most 2 * error: once for the looks, once for the last test.
    """
    if floor == 0:
        if k:
            return True
        lost = n > 0 and posterior_above(n, 0, p_min, prior) < error
        return False if lost or n >= n_max else None
    if n >= n_max:
        return guess_p_value(n, k, floor) <= error
    if sequence_interval(n, k, error, prior)[0] > floor:
        return True
    return False if INTERVALS[interval](n, k, error, prior)[1] < floor else None


ROLLOUTS_TO_SUCCESS = 1.5  # what a test of a step that can still succeed costs; a guess, which moves speed alone


@lru_cache(2**14)
def cheapest(good: tuple[float, ...], bad: tuple[float, ...]) -> tuple[float, int]:
    """(expected cost, index) of the best first test in a search for the first error among len(good) steps.

    The first error is equally likely at each step or nowhere; a test of step i costs ROLLOUTS_TO_SUCCESS * good[i] if
    the step can still succeed, bad[i] if not. Failures cost much more than successes, so the best cut lies before the
    middle: OmegaPRM's middle is best where both cost the same.
    """
    if not good:
        return 0.0, 0
    n = len(good)
    costs = [
        (n - i) / (n + 1) * (ROLLOUTS_TO_SUCCESS * good[i] + cheapest(good[i + 1 :], bad[i + 1 :])[0])
        + (i + 1) / (n + 1) * (bad[i] + cheapest(good[:i], bad[:i])[0])
        for i in range(n)
    ]
    best = min(range(n), key=costs.__getitem__)
    return costs[best], best
