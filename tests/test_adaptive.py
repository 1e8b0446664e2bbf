"""Adaptive labels against scripted policies whose chances of success are known."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib.adaptive import HARD, SOFT, Options, label, label_problem
from mmprm_lib.decoding import uniforms
from mmprm_lib.generation import Sampling
from mmprm_lib.rollouts import judge
from mmprm_lib.sequential import posterior_interval, sequence_interval
from mmprm_lib.steps import join, split
from tests.doubles import ToyGenerator, coin_policy, problem, say, solution

RIGHT, WRONG, MUTE, FAILED = say("Answer: 12"), say("Answer: 13"), say("hm"), say("", "error", "no image")
BARE = dict(own_verdict=False, passing=False)  # nothing but a step's own rollouts
EVERY = dict(search="every", **BARE)
FULL = dict(target="soft", search="every", width=1e-6)  # no interval is so narrow: n_max rollouts of every step


def wrong(name="p0/s0", steps=("one", "two", "three", "Answer: 13"), **fields):
    return solution(name, steps, **(dict(verdict="wrong", answer="13") | fields))


class Table:
    """A script that gives each prefix length its completions in turn, over and over, and notes all that it gave."""

    def __init__(self, table):
        self.table, self.given, self.log = table, Counter(), []

    def __call__(self, request, sample, sampling):
        row = self.table[len(request.prefix)]
        completion = row[self.given[request.prefix] % len(row)]
        self.given[request.prefix] += 1
        self.log.append((request.prefix, completion))
        return completion


def labelled(table, options=HARD, solutions=None, question=None, **fields):
    script = table if callable(table) else Table(table)
    generator = ToyGenerator(script)
    solutions = solutions or [wrong()]
    return list(label(solutions, [question or problem()], generator, options, **fields)), generator, script


def hard(record):
    return [None if s is None else int(s > 0) for s in record.mc_score]


def flakes(chances, unknown=0.0):
    """A policy that succeeds from a prefix of t steps with chances[t - 1], and cannot be judged as often as said."""

    def script(request, sample, sampling):
        first, second = uniforms(sampling.seed, request.seed_key, sample, 2)
        if first < unknown:
            return MUTE
        return RIGHT if second < chances[len(request.prefix) - 1] else WRONG

    return script


# -- hard labels


def test_a_correct_solution_costs_nothing():
    [record], generator, _ = labelled({}, solutions=[solution()])
    assert record.n_rollouts == record.n_correct == [1, 1, 1]  # its own verdict, a sample of each prefix
    assert record.mc_score == [1.0, 1.0, 1.0] and record.strategy == "adaptive"
    assert record.n_generated_tokens == generator.n_generated_tokens == 0
    # one of one: Jeffreys' low end is the 0.025 quantile of Beta(1.5, 0.5); the end of a solution is a fact
    assert record.low == [pytest.approx(posterior_interval(1, 1)[0])] * 2 + [1.0] and record.high == [1.0, 1.0, 1.0]
    _, generator, _ = labelled({1: [RIGHT], 2: [RIGHT]}, Options(own_verdict=False), [solution()])
    assert generator.n_generated_tokens > 0


def test_the_first_error_of_a_hand_made_case():
    [record], generator, _ = labelled({1: [RIGHT], 2: [RIGHT], 3: [WRONG]}, Options(n_max=4, split="middle"))
    # step 2 is the middle of 1, 2, 3: the solution failed, one rollout is right, 1 of 2; it proves step 1, which keeps
    # its 0 of 1 to itself; step 3: the solution and 3 rollouts fail, in chunks of 1 and 2; 3 tokens each: 3 + 3 * 3
    assert record.n_rollouts == [None, 2, 4, 1] and record.n_correct == [None, 1, 0, 0]
    assert record.mc_score == [1.0, 0.5, 0.0, 0.0]
    assert record.n_generated_tokens == generator.n_generated_tokens == 12
    assert (record.low[0], record.high[0]) == posterior_interval(1, 0)  # what the counts alone say
    assert (record.low[2], record.high[2]) == posterior_interval(4, 0)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from(["middle", "cheapest"]), st.booleans(), st.booleans())
def test_the_search_agrees_with_every_step_where_the_truth_is_monotone(n, good, cut, own, passing):
    steps = [f"step {i}" for i in range(n)] + ["Answer: 13"]
    table = {t: [RIGHT if t <= good else WRONG] for t in range(1, n + 1)}
    options = dict(n_max=5, own_verdict=own, passing=passing)
    [found], searched, _ = labelled(table, Options(split=cut, **options), [wrong(steps=steps)])
    [full], all_asked, _ = labelled(table, Options(search="every", **options), [wrong(steps=steps)])
    assert hard(found) == hard(full) == [int(t < good) for t in range(n)] + [0]
    assert searched.n_generated_tokens <= all_asked.n_generated_tokens


def test_a_cut_where_it_is_cheapest_saves_rollouts():
    table = {t: [RIGHT if t <= 3 else WRONG] for t in range(1, 10)}
    long = [wrong(steps=[f"step {i}" for i in range(9)] + ["Answer: 13"])]
    tokens = {cut: labelled(table, Options(split=cut), long)[1].n_generated_tokens for cut in ("middle", "cheapest")}
    assert tokens["cheapest"] < tokens["middle"]


def test_giving_up_misses_as_often_as_the_bound_says():
    # p = 0.2, 8 failures: 0.8^8 = 0.168 of the steps are missed; 1,500 problems, standard error 0.0097
    problems = [problem(f"p{i}") for i in range(1500)]
    two = [wrong(f"p{i}/s0", ("one", "Answer: 13")) for i in range(1500)]
    records = list(label(two, problems, ToyGenerator(flakes([0.2]), 64), Options(n_max=8, **BARE)))
    assert np.mean([r.mc_score[0] == 0 for r in records]) == pytest.approx(0.8**8, abs=0.035)
    # a success ends it: the rollouts of a step that is found good are 1, 2 or 4 chunks, never all 8 of need
    assert {r.n_rollouts[0] for r in records if r.mc_score[0]} <= {1, 3, 7, 8}


@pytest.mark.parametrize("options", [HARD, Options(split="middle"), Options(search="every"), Options(n_max=24)])
def test_hard_labels_agree_with_the_truth(options):
    # before the error 0.6, after it never; missed with chance 0.4^15 at most, so all 900 steps are right
    problems = [problem(f"p{i}") for i in range(300)]
    each = [wrong(f"p{i}/s0") for i in range(300)]
    for record in label(each, problems, ToyGenerator(flakes([0.6, 0.6, 0.0]), 64), options):
        assert hard(record) == [1, 1, 0, 0]


def test_a_chunk_grows_and_never_passes_n_max():
    def chunks(**options):
        sizes = []

        class Sized(ToyGenerator):
            def sample(self, requests, n, sampling):
                sizes.append(n)
                return super().sample(requests, n, sampling)

        two = wrong(steps=("one", "Answer: 13"))
        list(label([two], [problem()], Sized(Table({1: [WRONG]})), Options(**options)))
        return sizes

    assert chunks(n_max=16, own_verdict=False) == [1, 2, 4, 8, 1]
    assert chunks(n_max=16, chunk=4) == [4, 8, 3]  # the solution's own verdict is the sixteenth
    assert chunks(n_max=2) == [1] and chunks(n_max=1) == []


def test_a_hopeless_step_is_given_up_early_on_request():
    _, late, _ = labelled({1: [WRONG], 2: [WRONG], 3: [WRONG]}, Options(own_verdict=False))
    _, early, _ = labelled({1: [WRONG], 2: [WRONG], 3: [WRONG]}, Options(own_verdict=False, p_min=0.3))
    _, sure, _ = labelled({1: [WRONG], 2: [WRONG], 3: [WRONG]}, Options(own_verdict=False, p_min=0.3, error=0.005))
    _, hoping, _ = labelled({1: [WRONG], 2: [WRONG], 3: [WRONG]}, Options(own_verdict=False, p_min=0.3, prior=(5, 1)))
    assert early.n_generated_tokens < sure.n_generated_tokens <= late.n_generated_tokens
    assert early.n_generated_tokens < hoping.n_generated_tokens


def test_what_follows_the_first_error_is_assumed_left_out_or_sampled():
    table = {1: [WRONG], 2: [WRONG], 3: [RIGHT]}
    five = [wrong(steps=("one", "two", "three", "four", "Answer: 13"))]

    def rest(kind, **more):
        options = Options(n_max=4, after_error=kind, **(BARE | more))
        [record], generator, script = labelled(table | {4: [WRONG]}, options, five)
        return record, {len(prefix) for prefix, _ in script.log}

    record, asked = rest("zero")  # the search tests step 2, then step 1
    assert record.mc_score == [0.0] * 5 and record.n_rollouts == [4, 4, None, None, 1] and asked == {1, 2}
    assert record.high[2] == 1.0  # assumed, not counted: nothing is known
    record, _ = rest("zero", own_verdict=True)
    assert record.n_rollouts == [4, 4, 1, 1, 1] and record.mc_score == [0.0] * 5  # counted once, and agreeing
    record, asked = rest("null")
    assert record.mc_score == [0.0, None, None, None, None] and asked == {1, 2}
    assert record.n_rollouts == [4, None, None, None, None] and record.low == [0.0, None, None, None, None]
    record, asked = rest("sample")
    assert record.mc_score == [0.0, 0.0, 1.0, 0.0, 0.0] and asked == {1, 2, 3, 4}


# -- evidence


def test_a_correct_rollout_counts_for_what_it_passes():
    table = {1: [say("two\n\nthree\n\nAnswer: 12")]}
    [record], generator, _ = labelled(table, Options(own_verdict=False))
    assert record.n_rollouts == [1, 1, 1, 1] and record.mc_score == [1.0, 1.0, 1.0, 0.0]
    assert generator.n_given == 1
    _, generator, _ = labelled(table | {2: [RIGHT], 3: [RIGHT]}, Options(**EVERY))
    assert generator.n_given == 3


def test_a_text_that_ends_at_a_prefix_is_no_sample_of_going_on():
    # the rollouts end with the step "two": they say nothing of a text that goes on after it
    [record], _, script = labelled({1: [say("two")], 2: [RIGHT]}, Options(n_max=2, **(FULL | BARE)), [
        wrong(steps=("one", "two", "Answer: 13"))])  # fmt: skip
    assert record.n_rollouts[1] == 2 and {prefix for prefix, _ in script.log} == {("one",), ("one", "two")}


def test_merged_steps_are_recognised_in_a_rollout():
    merged = wrong(steps=("one\n\ntwo", "three\n\nfour", "Answer: 13"))
    [record], _, _ = labelled({1: [say("three\n\nfour\n\nAnswer: 12")]}, Options(own_verdict=False), [merged])
    assert record.n_correct == [1, 1, 0]


def siblings():
    return [
        wrong("p0/s0", ("one", "two", "three", "Answer: 13")),
        wrong("p0/s1", ("one", "two", "four", "Answer: 14"), answer="14"),
        solution("p0/s2", ("one", "five", "Answer: 12")),
        wrong("p0/s3", ("six", "two", "cut"), verdict="unknown", finish_reason="length", answer=None),
        wrong("p0/s4", (), verdict="unknown", finish_reason="error", answer=None),
    ]


def wanderer(request, sample, sampling):
    """Wanders over the steps of `siblings`, and ends right, wrong, cut, mute or failed."""
    draws = uniforms(sampling.seed, request.seed_key, sample, 8)
    here, texts = len(request.prefix), []
    for t in range(here, 3):
        texts.append([["one", "six"], ["two", "two", "five"], ["three", "four", "cut"]][t][int(draws[t] * 2)])
    end = ["Answer: 12", "Answer: 13", "Answer: 14", "hm", "Answer: 1"][int(draws[5] * 5)]
    if draws[6] < 0.1:
        return say("", "error", "no image")
    return say(join([*texts, end]), "length" if end == "Answer: 1" else "stop")


@settings(deadline=None, max_examples=60)
@given(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99), st.integers(1, 9), st.integers(1, 4))
def test_every_count_is_the_number_of_texts_that_pass_and_none_twice(own, passing, share, seed, n_max, chunk):
    log = []

    def script(request, sample, sampling):
        log.append((request, wanderer(request, sample, sampling)))
        return log[-1][1]

    options = Options(**FULL, own_verdict=own, passing=passing, share_prefixes=share, n_max=n_max, chunk=chunk)
    [*records], generator, _ = labelled(script, options, siblings(), sampling=Sampling(seed=seed))
    for record, one in zip(records, siblings(), strict=True):
        for t in range(len(one.steps) - (one.finish_reason == "stop")):
            prefix, found = list(one.steps[: t + 1]), []
            for request, completion in log:
                text = [*request.prefix, *split(completion.text)]
                from_here = list(request.prefix) == prefix
                passed = passing and len(request.prefix) <= t and len(text) > t + 1 and text[: t + 1] == prefix
                mine = share or request.key.startswith(one.solution_id + "/")
                if mine and (from_here or passed):
                    found.append(judge(problem(), request.prefix, completion).label)
            for other in siblings() if own else ():
                if (share or other == one) and len(other.steps) > t + 1 and list(other.steps[: t + 1]) == prefix:
                    found.append(other.verdict)
            counts = (record.n_rollouts[t] or 0, record.n_correct[t] or 0, record.n_unknown[t] or 0)
            assert counts == (len(found), found.count("correct"), found.count("unknown"))
    asked = Counter((request.key.rsplit("/", 2)[0], request.prefix) for request, _ in log)
    assert max(asked.values(), default=0) <= n_max
    assert sum(r.n_generated_tokens for r in records) == generator.n_generated_tokens


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["hard", "soft"]), st.sampled_from(["every", "first_error"]), st.booleans(), st.booleans(),
    st.sampled_from(["zero", "null", "sample"]), st.sampled_from(["verdict", "rollout"]), st.integers(0, 99),
)  # fmt: skip
def test_no_step_is_asked_more_than_n_max_times_and_the_order_changes_nothing(
    target, search, own, passing, after, last, seed
):
    options = Options(target=target, search=search, own_verdict=own, passing=passing, after_error=after,
                      last_step=last, n_max=6)  # fmt: skip
    runs = []
    for window in (1, 3, 100):
        asked = Counter()

        def script(request, sample, sampling, asked=asked):
            asked[request.prefix] += 1
            return wanderer(request, sample, sampling)

        generator = ToyGenerator(script, window)
        runs.append(list(label(siblings(), [problem()], generator, options, Sampling(seed=seed))))
        assert max(asked.values()) <= 6
        assert sum(r.n_generated_tokens for r in runs[-1]) == generator.n_generated_tokens
    assert runs[0] == runs[1] == runs[2]
    for record in runs[0]:
        for score, low, high, n in zip(record.mc_score, record.low, record.high, record.n_rollouts, strict=True):
            assert (low is None) == (high is None) and (score is None) == (low is None)
            assert n is None or score is None or low <= score <= high


def test_siblings_that_begin_alike_are_one():
    pair = [wrong("p0/s0", ("one", "two", "Answer: 13")), wrong("p0/s1", ("one", "three", "Answer: 13"))]
    options = dict(n_max=2, **FULL)
    records, generator, _ = labelled({1: [WRONG], 2: [WRONG]}, Options(**options, own_verdict=False), pair)
    assert generator.n_given == 3 * 2 and records[1].n_generated_tokens == 2 * 3  # "one" is borne by the first; 1 + 1
    records, generator, _ = labelled({1: [WRONG], 2: [WRONG]}, Options(**options), pair)
    assert [r.n_rollouts[0] for r in records] == [2, 2]  # both verdicts, no rollout
    records, generator, _ = labelled({1: [WRONG], 2: [WRONG]}, Options(**options, share_prefixes=False), pair)
    assert generator.n_given == 4 and [r.n_generated_tokens for r in records] == [6, 6]


def test_unknown_is_no_failure():
    table = {1: [RIGHT], 2: [MUTE, FAILED], 3: [MUTE]}
    [record], _, script = labelled(table, Options(n_max=4, **BARE))
    assert record.mc_score == [1.0, None, None, 0.0]  # the last is a verdict
    assert record.n_rollouts[1] == record.n_unknown[1] == 4 and record.n_correct[1] == 0
    [record], _, _ = labelled(table, Options(n_max=4, passing=False))  # the solution failed from there, once
    assert record.mc_score == [0.5, None, None, 0.0]  # 1 of 2; one failure and silence settle nothing
    [record], _, _ = labelled({1: [FAILED, WRONG]}, Options(n_max=4, **EVERY), [wrong(steps=("one", "Answer: 13"))])
    assert (record.n_rollouts[0], record.n_unknown[0], record.mc_score[0]) == (4, 2, 0.0)


# -- soft labels


def test_a_soft_label_stops_when_its_interval_is_narrow():
    def n_drawn(chance, **options):
        table = {1: [RIGHT] * 4 if chance == 1 else [RIGHT, WRONG]}
        two = [wrong(steps=("one", "Answer: 13"))]
        [record], _, _ = labelled(table, Options(target="soft", search="every", own_verdict=False, **options), two)
        assert record.high[0] - record.low[0] <= options["width"] or record.n_rollouts[0] == options["n_max"]
        return record.n_rollouts[0]

    # chunks 1, 2, 4, 8, ...; n of n is known to 0.4 at 7 (Jeffreys: 1 - 0.70), n / 2 of n at 31
    assert n_drawn(1, width=0.4, n_max=64) == 7 and n_drawn(0.5, width=0.4, n_max=64) == 31
    assert n_drawn(0.5, width=0.6, n_max=64) < 31 and n_drawn(0.5, width=0.4, n_max=16) == 16
    assert n_drawn(1, width=0.4, n_max=64, interval="sequence") > 7
    assert n_drawn(1, width=0.4, n_max=64, error=0.3) < 7
    assert n_drawn(1, width=0.4, n_max=64, prior=(3.0, 3.0)) > 7


def test_intervals_are_those_of_the_options():
    for interval, function in (("posterior", posterior_interval), ("sequence", sequence_interval)):
        options = Options(**(FULL | EVERY), n_max=8, interval=interval, error=0.1, prior=(1.0, 1.0))
        [record], _, _ = labelled({1: [RIGHT, WRONG], 2: [RIGHT], 3: [WRONG]}, options)
        pairs = [function(8, k, 0.1, (1.0, 1.0)) for k in (4, 8, 0)]
        assert list(zip(record.low, record.high, strict=True))[:3] == pairs


def test_sequence_intervals_cover_although_the_counting_stops_by_what_it_sees():
    # p = 0.3 and 0.7, siblings share and pass, stop at width 0.6: at most 5 % of the intervals miss
    problems = [problem(f"p{i}") for i in range(400)]
    each = [wrong(f"p{i}/s{j}", ("one", "two", "Answer: 13")) for i in range(400) for j in range(2)]
    options = Options(target="soft", search="every", interval="sequence", width=0.6, own_verdict=False)
    records = list(label(each, problems, ToyGenerator(flakes([0.3, 0.7]), 64), options))
    for t, p in enumerate([0.3, 0.7]):
        assert np.mean([r.low[t] <= p <= r.high[t] for r in records]) >= 0.95


def test_a_soft_target_may_stop_at_the_first_error():
    options = Options(target="soft", n_max=8, width=0.1, **BARE)
    [record], _, script = labelled({1: [RIGHT], 2: [RIGHT, WRONG], 3: [WRONG], 4: [WRONG]}, options, [
        wrong(steps=("one", "two", "three", "four", "Answer: 13"))])  # fmt: skip
    assert record.mc_score == [1.0, 0.5, 0.0, 0.0, 0.0] and record.n_rollouts == [8, 8, 8, None, 1]
    assert {len(prefix) for prefix, _ in script.log} <= {1, 2, 3, 4}


def test_a_pooled_rate_is_put_together_from_where_the_rollouts_went():
    # from step 1: two go on through "two" (one right), two leave (one right); two more from step 2 are right: 3 of 4
    # there, so step 1 is worth (2 * 3/4 + 1) / 4 = 0.625, where its own counts say 2 / 4
    texts = ["two\n\nAnswer: 12", "two\n\nAnswer: 13", "zwei\n\nAnswer: 12", "zwei\n\nAnswer: 13"]
    three = [wrong(steps=("one", "two", "Answer: 13"))]
    table = {1: [say(text) for text in texts], 2: [RIGHT]}
    options = dict(n_max=4, chunk=4, own_verdict=False, **FULL)
    [pooled], _, _ = labelled(table, Options(**options, pool=True), three)
    assert pooled.mc_score == [0.625, 0.75, 0.0] and pooled.n_rollouts == [None, None, 1]
    [counted], _, _ = labelled(table, Options(**options), three)
    assert counted.mc_score == [0.5, 0.75, 0.0] and counted.n_rollouts == [4, 4, 1]
    assert pooled.high[0] - pooled.low[0] <= counted.high[0] - counted.low[0] + 1e-9


def test_pooled_rates_are_unbiased_where_counting_does_not_stop_by_what_it_sees():
    # half of the rollouts go on through "two"; chances 0.9 from there, 0.3 elsewhere: 0.6 from step 1
    def script(request, sample, sampling):
        a, b = uniforms(sampling.seed, request.seed_key, sample, 2)
        on = len(request.prefix) == 2 or a < 0.5
        step = "" if len(request.prefix) == 2 else "two\n\n" if on else "zwei\n\n"
        return say(step + ("Answer: 12" if b < (0.9 if on else 0.3) else "Answer: 13"))

    problems = [problem(f"p{i}") for i in range(600)]
    each = [wrong(f"p{i}/s0", ("one", "two", "Answer: 13")) for i in range(600)]

    def scores(pool):
        options = Options(**FULL, own_verdict=False, n_max=8, chunk=8, pool=pool)
        return np.array([r.mc_score[0] for r in label(each, problems, ToyGenerator(script, 64), options)])

    # standard error of a mean of 600: sqrt(0.24 / 8 / 600) = 0.007
    assert scores(True).mean() == pytest.approx(0.6, abs=0.025) == scores(False).mean()
    assert scores(True).std() < scores(False).std()


# -- multiple choice


def choice():
    return problem(answer="A", answer_type="choice", choices=["3", "4", "5", "6"])


def test_labels_above_the_guess_floor():
    hit, miss = say("Answer: A"), say("Answer: B")
    two = [wrong(steps=("one", "Answer: B"), answer="B")]
    options = dict(n_max=16, **EVERY)

    def first(row, **more):
        [record], generator, _ = labelled({1: row}, Options(**(options | more)), two, choice())
        return record, generator.n_given

    record, _ = first([miss, miss, hit, miss])  # a quarter, as guessing would have it
    assert record.mc_score[0] > 0  # the first right answer ends it
    record, _ = first([miss, miss, hit, miss], guess=True)
    assert record.mc_score[0] == 0.0 and record.n_rollouts[0] is None
    record, n_asked = first([hit], guess=True)
    assert record.mc_score[0] == 1.0 and n_asked > 1  # one right answer proves nothing
    record, _ = first([miss, hit], guess=True, target="soft", width=1e-6)
    # 8 of 16: (0.5 - 0.25) / 0.75 = 1/3, and so the ends of the interval
    assert record.mc_score[0] == pytest.approx(1 / 3) and record.n_rollouts[0] is None
    low, high = posterior_interval(16, 8)
    assert (record.low[0], record.high[0]) == (pytest.approx((low - 0.25) / 0.75), pytest.approx((high - 0.25) / 0.75))


def test_a_guessed_answer_proves_nothing_of_the_steps_before_it():
    lucky = solution(steps=("one", "two", "Answer: A"), answer="A")
    table = {1: [say("Answer: A")] + [say("Answer: B")] * 3, 2: [say("Answer: B")]}
    [record], _, _ = labelled(table, HARD, [lucky], choice())
    assert hard(record) == [1, 1, 1]
    [record], _, _ = labelled(table, Options(guess=True), [lucky], choice())
    assert hard(record) == [0, 0, 1]
    [record], generator, _ = labelled(table, Options(guess=True), [solution()])  # no choices, no floor
    assert hard(record) == [1, 1, 1] and generator.n_given == 0


def test_hopeless_choices_are_seldom_called_good():
    problems = [choice().model_copy(update={"problem_id": f"p{i}"}) for i in range(300)]
    each = [wrong(f"p{i}/s0", ("one", "Answer: B"), answer="B") for i in range(300)]

    def guesser(request, sample, sampling):
        return say(f"Answer: {'ABCD'[int(4 * uniforms(sampling.seed, request.seed_key, sample, 1)[0])]}")

    def share(**options):
        records = label(each, problems, ToyGenerator(guesser, 64), Options(**options))
        return np.mean([r.mc_score[0] > 0 for r in records])

    assert share() > 0.9  # 1 - 0.75^15 = 0.987
    # at most 0.05 for the looks and 0.05 for the last test; 300 problems have a standard error of 0.017
    assert share(guess=True) <= 0.1 + 0.035
    assert share(guess=True, error=0.001) < 0.03


# -- the stream


def test_the_last_step_is_rolled_out_on_request_and_where_the_solution_was_cut():
    [record], _, _ = labelled({1: [WRONG], 2: [WRONG]}, Options(n_max=2, last_step="rollout", **EVERY), [
        wrong(steps=("one", "Answer: 13"))])  # fmt: skip
    assert record.n_rollouts == [2, 2]
    cut = wrong(steps=("one", "two"), finish_reason="length", verdict="unknown", answer=None)
    [record], _, _ = labelled({1: [WRONG], 2: [RIGHT]}, Options(n_max=2, **EVERY), [cut])
    assert record.mc_score == [0.0, 1.0]


def test_truth_fills_its_column_and_strangers_are_named():
    def truth(problem, steps):
        return [1, 1, -1, -1]

    table = {1: [RIGHT], 2: [RIGHT], 3: [WRONG]}
    [record], _, _ = labelled(table, question=problem(scene={"family": "toy"}), truth=truth)
    assert record.truth == [1, 1, -1, -1]
    [record], _, _ = labelled(table, truth=truth)
    assert record.truth is None
    with pytest.raises(KeyError, match="'q9/s0' names problem 'q9'"):
        labelled(table, solutions=[wrong("q9/s0")])
    with pytest.raises(ValueError, match="'q9/s0' is no solution of 'p0'"):
        next(label_problem(problem(), [wrong("q9/s0")]))


def test_options_are_checked():
    for field in ("target", "search", "split", "after_error", "interval", "last_step"):
        with pytest.raises(ValueError, match=f"{field} 'odd' is unknown"):
            Options(**{field: "odd"})
    for fields in (dict(n_max=0), dict(chunk=0), dict(error=0.0), dict(p_min=1.0), dict(prior=(0.0, 1.0))):
        with pytest.raises(ValueError, match="wanted"):
            Options(**fields)
    with pytest.raises(ValueError, match="pool needs"):
        Options(pool=True)
    assert SOFT.target == "soft" and Options() == HARD


def test_solutions_are_read_as_they_are_needed():
    read = []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield solution(f"p{i % 2}/s{i}")

    problems = [problem("p0"), problem("p1")]
    options = Options(own_verdict=False, n_max=2)
    records = list(islice(label(endless(), problems, ToyGenerator(coin_policy, 8), options), 20))
    assert len({r.solution_id for r in records}) == 20 and len(read) < 2000
