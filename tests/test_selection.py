"""Aggregators by hand, every selection method by hand, and what must hold for all of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import selection, stats
from mmprm_lib.schema import Solution
from mmprm_lib.selection import AGGREGATORS, Group

STEPS = np.array([0.9, 0.4, 0.8])
BY_HAND = {
    "mean": 0.7,  # 2.1 / 3
    "min": 0.4,
    "last": 0.8,
    "product": 0.288,  # 0.9 * 0.4 * 0.8
    "max": 0.9,
    "sum_logprob": math.log(0.288),
    "sum_logit": math.log(9 * (2 / 3) * 4),  # odds 9, 2/3, 4
    "mean_odds": (9 + 2 / 3 + 4) / 3,
    "geometric_mean": 0.288 ** (1 / 3),
    "first": 0.9,
    "first_error": 1 / 3,  # one step of three before the first under 0.5
}
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def solution(name: str, verdict: str = "wrong", n_steps: int = 1, problem: str = "p") -> Solution:
    return Solution(
        solution_id=name, problem_id=problem, steps=["x"] * n_steps, answer=None, verdict=verdict, policy="toy", seed=0,
        n_tokens=4 * n_steps, finish_reason="stop",
    )  # fmt: skip


def group(verdicts: str, answers: str, name: str = "p", greedy: str | None = None) -> Group:
    """A problem from one letter per candidate: c correct, w wrong, u unknown; answers as letters, "-" for none."""
    words = {"c": "correct", "w": "wrong", "u": "unknown"}
    candidates = [solution(f"{name}-{i}", words[v], problem=name) for i, v in enumerate(verdicts)]
    decoded = solution(f"{name}-greedy", words[greedy]) if greedy else None
    return Group(name, candidates, [None if a == "-" else a for a in answers], decoded)


def one_step(g: Group, values: list[float]) -> dict[str, list[float]]:
    return {s.solution_id: [v] for s, v in zip(g.candidates, values, strict=True)}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregator_by_hand(name):
    assert AGGREGATORS[name](STEPS) == pytest.approx(BY_HAND[name])
    assert selection.solution_scores([STEPS], name)[0] == pytest.approx(BY_HAND[name])


def test_every_aggregator_gives_another_number():
    assert set(BY_HAND) == set(AGGREGATORS)
    found = [round(f(np.array([0.6, 0.9, 0.4, 0.7])), 9) for f in AGGREGATORS.values()]
    assert len(set(found)) == len(found)


@given(probabilities, st.sampled_from(sorted(AGGREGATORS)), st.data())
def test_aggregators_are_finite_and_never_fall_when_a_step_rises(p, name, data):
    i = data.draw(st.integers(0, len(p) - 1))
    higher = [*p[:i], data.draw(st.floats(p[i], 1)), *p[i + 1 :]]
    low, high = AGGREGATORS[name](np.array(p)), AGGREGATORS[name](np.array(higher))
    assert math.isfinite(low) and math.isfinite(high)
    assert high >= low - 1e-9 * max(1.0, abs(low))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_extremes_are_finite_and_in_order(name):
    zero, half, one = (AGGREGATORS[name](np.array([p, p])) for p in (0.0, 0.5, 1.0))
    assert math.isfinite(zero) and math.isfinite(one)
    assert zero < one and zero <= half <= one


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_empty_solution_never_wins(name):
    scores = selection.solution_scores([[], [0.0, 0.0], []], name)
    assert scores[0] == -math.inf and int(np.argmax(scores)) == 1
    assert int(np.argmax(selection.solution_scores([[], []], name))) == 0


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="'median' is not known; use one of mean, min"):
        selection.solution_scores([[0.5]], "median")
    with pytest.raises(ValueError, match="must lie in"):
        selection.solution_scores([[0.5], [1.5]], "mean")
    with pytest.raises(ValueError, match="must lie in"):
        selection.solution_scores([[float("nan")]], "mean")
    g = group("cw", "ab")
    with pytest.raises(ValueError, match="'p-1' has no scores"):
        selection.group_scores(g, {"p-0": [0.1]}, "mean")
    with pytest.raises(ValueError, match="2 scores for 1 steps"):
        selection.group_scores(g, {"p-0": [0.1], "p-1": [0.2, 0.3]}, "mean")


def test_an_outcome_model_gives_one_score_for_a_whole_solution():
    long = Group("p", [solution("a", n_steps=3), solution("b", n_steps=0)], [None, None])
    assert selection.group_scores(long, {"a": [0.25], "b": []}, "last").tolist() == [0.25, -math.inf]


def test_best_of_n_takes_the_highest_of_the_first_n_and_the_first_of_equals():
    g = group("wcwc", "abcd")
    scores = one_step(g, [0.2, 0.7, 0.7, 0.9])
    chosen = [selection.best_of_n(g.candidates, scores, n).solution_id for n in (1, 2, 3, 4)]
    assert chosen == ["p-0", "p-1", "p-1", "p-3"]
    found = [selection.outcomes([g], "best_of_n", n, scores)[0] for n in (1, 2, 3, 4)]
    assert found == [0.0, 1.0, 1.0, 1.0]


def test_changing_the_aggregator_changes_the_choice():
    candidates = [solution("steady", "correct", 2), solution("risky", "wrong", 2)]
    g, scores = Group("p", candidates, ["a", "b"]), {"steady": [0.6, 0.6], "risky": [1.0, 0.4]}
    assert selection.best_of_n(candidates, scores, 2, "min").solution_id == "steady"
    assert selection.best_of_n(candidates, scores, 2, "mean").solution_id == "risky"
    assert selection.outcomes([g], "best_of_n", 2, scores, "min").tolist() == [1.0]
    assert selection.outcomes([g], "best_of_n", 2, scores, "max").tolist() == [0.0]
    assert selection.outcomes([g], "weighted_vote", 2, scores, "min").tolist() == [1.0]
    assert selection.outcomes([g], "weighted_vote", 2, scores, "max").tolist() == [0.0]


def test_majority_vote_by_hand():
    def vote(verdicts, answers):
        return selection.majority_vote(group(verdicts, answers), len(verdicts))

    assert vote("wcc", "abb") == 1.0
    assert vote("cww", "abb") == 0.0
    assert vote("cwwc", "abba") == 1.0  # a and b tie 2 to 2, a came first
    assert vote("wccw", "abba") == 0.0
    assert vote("uuc", "--a") == 1.0  # None does not vote, however often
    assert vote("uu", "--") == 0.0  # all None: the first candidate, unknown
    assert vote("cu", "--") == 1.0
    assert selection.majority_vote(group("wcc", "abb"), 1) == 0.0  # only the first N vote


def test_weighted_vote_by_hand():
    g = group("cwwu", "abb-")
    # a: 0.9; b: 0.3 + 0.4 = 0.7; the unanswered 1.0 does not vote
    assert selection.weighted_vote(g, 4, np.array([0.9, 0.3, 0.4, 1.0])) == 1.0
    # b: 0.5 + 0.5 = 1.0 > 0.9
    assert selection.weighted_vote(g, 4, np.array([0.9, 0.5, 0.5, 0.0])) == 0.0
    assert selection.weighted_vote(g, 2, np.array([0.9, 0.5, 0.5, 0.0])) == 1.0
    assert selection.weighted_vote(g, 3, np.array([0.1, -np.inf, 0.0, 0.0])) == 1.0  # an empty solution adds nothing
    with pytest.raises(ValueError, match="negative"):
        selection.weighted_vote(g, 4, np.array([-0.9, 0.5, 0.5, 0.0]))


def test_random_greedy_and_ceiling_by_hand():
    g = group("wcuw", "abcd", greedy="c")
    assert selection.outcomes([g], "random", 4).tolist() == [0.25]
    assert selection.outcomes([g], "random", 2).tolist() == [0.5]
    assert selection.outcomes([g], "pass_at_n", 1).tolist() == [0.0]
    assert selection.outcomes([g], "pass_at_n", 2).tolist() == [1.0]
    assert selection.outcomes([g], "greedy", 4).tolist() == [1.0]


def test_wrong_calls_say_what_to_do():
    g = group("cw", "ab")
    with pytest.raises(ValueError, match="2 candidates, N = 4 needs more"):
        selection.outcomes([g], "random", 4)
    with pytest.raises(ValueError, match="temperature 0"):
        selection.outcomes([g], "greedy", 1)
    with pytest.raises(ValueError, match="not known"):
        selection.outcomes([g], "oracle", 1)
    with pytest.raises(ValueError, match="needs the step scores"):
        selection.outcomes([g], "best_of_n", 1)
    with pytest.raises(ValueError, match="1 answers for 2 candidates"):
        selection.outcomes([g._replace(answers=["a"])], "majority_vote", 2)


@given(st.data())
def test_no_method_beats_the_ceiling_and_order_does_not_matter(data):
    n = data.draw(st.integers(1, 8))
    answers = data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    values = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n, unique=True))
    g = group("".join("c" if a == "b" else "w" for a in answers), "".join(answers))
    scores = one_step(g, values)
    order = data.draw(st.permutations(range(n)))
    mixed = Group("p", [g.candidates[i] for i in order], [g.answers[i] for i in order])
    assert selection.best_of_n(g.candidates, scores, n) == selection.best_of_n(mixed.candidates, scores, n)
    for method in ("best_of_n", "weighted_vote", "majority_vote", "random"):
        found = selection.outcomes([g], method, n, scores)[0]
        assert 0 <= found <= selection.outcomes([g], "pass_at_n", n)[0]
    # with equal scores a weighted vote is the majority vote
    equal = one_step(g, [0.5] * n)
    assert selection.outcomes([g], "weighted_vote", n, equal) == selection.outcomes([g], "majority_vote", n)


def table_of_three(**options):
    groups = [group("wc", "ab", "p", "w"), group("cw", "ab", "q", "c"), group("ww", "ab", "r", "c")]
    scores = {name: values for g in groups for name, values in one_step(g, [0.1, 0.9]).items()}
    return groups, scores, selection.selection_table(groups, {"prm": scores}, **{"ns": (1, 2), **options})


def value_of(table, method, n, aggregator=""):
    rows = table[(table.method == method) & (table["N"] == n) & (table.aggregator == aggregator)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_selection_table_by_hand():
    groups, scores, table = table_of_three(aggregators=("mean", "sum_logprob"))
    # the scorer always picks the second: right on p only. Two answers with one vote each: the first, right on q only
    assert value_of(table, "best_of_n", 2, "mean").value == pytest.approx(1 / 3)
    assert value_of(table, "weighted_vote", 2, "mean").value == pytest.approx(1 / 3)
    assert value_of(table, "majority_vote", 2).value == pytest.approx(1 / 3)
    assert value_of(table, "random", 2).value == pytest.approx(1 / 3)
    assert value_of(table, "pass_at_n", 2).value == pytest.approx(2 / 3)
    assert value_of(table, "greedy", 1).value == pytest.approx(2 / 3)
    assert list(table.columns) == ["method", "scorer", "aggregator", "N", "value", "n", "low", "high"]
    assert (table.n == 3).all() and set(table.N) == {1, 2}
    # greedy, three unscored methods at two N, Best-of-N with two aggregators, a weighted vote with the non-negative one
    assert len(table) == 1 + 3 * 2 + 2 * 2 + 1 * 2
    row = value_of(table, "best_of_n", 2, "mean")
    alone = stats.mean(selection.outcomes(groups, "best_of_n", 2, scores))
    assert alone == pytest.approx((row.value, row.n, row.low, row.high))


def test_selection_table_options():
    _, scores, table = table_of_three(aggregators={"prm": ["last"]}, ns=(2,))
    assert set(table.aggregator) == {"", "last"} and set(table.N) == {1, 2}  # N = 1 is the greedy row
    draws = np.random.default_rng(0).choice(list("cwu"), size=(31, 4))
    groups = [group("".join(row), "abab", f"p{i}") for i, row in enumerate(draws)]
    one, same, other = (selection.selection_table(groups, {}, ns=(2, 4), seed=s) for s in (1, 1, 2))
    assert one.equals(same) and not one.equals(other)
    assert "greedy" not in set(one.method)


def test_candidate_table_keeps_every_candidate():
    groups, scores, _ = table_of_three()
    table = selection.candidate_table(groups, {"prm": scores}, ("mean", "min"))
    assert len(table) == 3 * 2 * 2
    first = table.iloc[1]
    assert first.drop(["scorer", "aggregator"]).tolist() == ["p", "p-1", 1, 1, 4, "correct", 0.9]
