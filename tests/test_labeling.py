"""Monte Carlo labels by hand, in a stream, and through a kill."""

import os
import random
import signal
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import adaptive
from mmprm_lib.fingerprints import fingerprint, fingerprint_of_many
from mmprm_lib.generation import Sampling
from mmprm_lib.labeling import (
    Options,
    intervals,
    judge,
    label,
    labels_to,
    mc_label,
    mc_score,
    sample_solutions,
    solutions_to,
    unknown_reasons,
)
from mmprm_lib.labeling_files import Records, resumed
from mmprm_lib.schema import Solution, StepLabels, read_records
from tests.doubles import ToyGenerator, coin_policy, problem, say, solution

RIGHT, WRONG, MUTE = say("Answer: 12"), say("Answer: 13"), say("hm")


def by_step(table):
    """A script: the completions of every prefix length, in turn."""
    return lambda request, sample, sampling: table[len(request.prefix)][sample]


def labelled(table, options=None, solutions=None, **fields):
    generator = ToyGenerator(by_step(table))
    options = options or Options(n_rollouts=4)
    return list(label(solutions or [solution()], [problem()], generator, options, **fields)), generator


def test_counts_and_scores_of_a_hand_made_case():
    [record], _ = labelled({1: [RIGHT, RIGHT, WRONG, MUTE], 2: [WRONG, WRONG, WRONG, MUTE]})
    assert record.n_rollouts == [4, 4, 1]  # the solution itself is the one rollout from its last step
    assert record.n_correct == [2, 0, 1]
    assert record.n_unknown == [1, 1, 0]
    assert record.mc_score == [2 / 3, 0.0, 1.0]  # 2 / (4 - 1), 0 / (4 - 1), 1 / 1
    # "Answer: 12" is 2 words and the end, "hm" is 1 and the end: 3 + 3 + 3 + 2 from each of the two steps
    assert record.n_generated_tokens == 22
    assert record.strategy == "exhaustive" and record.truth is None


def test_all_unknown_is_none_and_not_zero():
    [record], _ = labelled({1: [MUTE] * 4, 2: [RIGHT] * 4})
    assert (record.n_rollouts[0], record.n_correct[0], record.n_unknown[0], record.mc_score[0]) == (4, 0, 4, None)


def test_a_failed_request_is_unknown():
    failed = say("Answer: 12", "error", "no image")
    [record], _ = labelled({1: [failed, RIGHT, RIGHT, WRONG], 2: [RIGHT] * 4})
    assert (record.n_correct[0], record.n_unknown[0], record.mc_score[0]) == (2, 1, 2 / 3)


def test_the_verdict_is_on_prefix_and_continuation_together():
    steps = ("so the answer is 7", "two", "Answer: 12")
    [record], _ = labelled({1: [MUTE, MUTE, RIGHT, RIGHT], 2: [MUTE] * 4}, solutions=[solution(steps=steps)])
    assert record.n_correct[0] == 2 and record.n_unknown[0] == 0  # 7 is judged wrong where nothing better follows


def test_the_last_step_is_rolled_out_on_request_only():
    table = {1: [RIGHT] * 4, 2: [RIGHT] * 4, 3: [say(""), say(""), WRONG, WRONG]}
    [taken], generator = labelled(table)
    assert taken.n_rollouts == [4, 4, 1] and generator.n_given == 2
    [rolled], generator = labelled(table, Options(n_rollouts=4, last_step="rollout"))
    assert rolled.n_rollouts == [4, 4, 4] and rolled.mc_score == [1.0, 1.0, 0.5] and generator.n_given == 3


def test_a_solution_that_was_cut_has_its_last_step_rolled_out():
    cut = solution(steps=("one", "two"), finish_reason="length", verdict="unknown", answer=None)
    [record], _ = labelled({1: [RIGHT] * 4, 2: [RIGHT, RIGHT, RIGHT, WRONG]}, solutions=[cut])
    assert record.n_rollouts == [4, 4] and record.mc_score == [1.0, 0.75]


def test_early_stop_leaves_later_steps_unsampled():
    table = {1: [RIGHT] * 4, 2: [WRONG] * 4, 3: [RIGHT] * 4}
    four = solution(steps=("one", "two", "three", "Answer: 13"), verdict="wrong")
    [record], generator = labelled(table, Options(n_rollouts=4, early_stop=True), [four])
    assert record.n_rollouts == record.n_rollouts[:2] + [None, None] == [4, 4, None, None]
    assert record.n_correct == [4, 0, None, None] and record.mc_score == [1.0, 0.0, None, None]
    assert generator.n_given == 2
    [record], _ = labelled(table, Options(n_rollouts=4), [four])
    assert record.n_rollouts == [4, 4, 4, 1]


def test_unknown_alone_does_not_stop_early():
    [record], _ = labelled({1: [MUTE] * 4, 2: [RIGHT] * 4}, Options(n_rollouts=4, early_stop=True))
    assert record.mc_score == [None, 1.0, 1.0]


def test_a_solution_without_steps_is_a_record_without_labels():
    empty = solution(steps=(), verdict="unknown", answer=None)
    for early in (False, True):
        [record], _ = labelled({}, Options(early_stop=early), [empty])
        assert record.steps == record.mc_score == record.n_rollouts == []


def test_truth_fills_its_column_in_the_world_only():
    def truth(problem, steps):
        return [1, -1, 0]

    world = problem(scene={"family": "toy"})
    table = {1: [RIGHT] * 4, 2: [RIGHT] * 4}
    [record] = label([solution()], [world], ToyGenerator(by_step(table)), Options(n_rollouts=4), truth=truth)
    assert record.truth == [1, -1, 0]
    [record], _ = labelled(table, truth=truth)
    assert record.truth is None


def test_options_are_checked_and_an_unknown_problem_is_named():
    with pytest.raises(ValueError, match="strategy 'greedy' is unknown"):
        Options(strategy="greedy")
    with pytest.raises(ValueError, match="last_step"):
        Options(last_step="skip")
    with pytest.raises(KeyError, match="'q9/s0' names problem 'q9'"):
        labelled({}, solutions=[solution("q9/s0")])


def test_labels_are_made_as_they_are_asked_for():
    # 10^9 solutions: whoever holds them all, or their completions, does not come back
    endless = (solution(f"p0/s{i}") for i in range(10**9))
    generator = ToyGenerator(coin_policy, window=8)
    records = list(islice(label(endless, [problem()], generator, Options(n_rollouts=2)), 40))
    assert len({r.solution_id for r in records}) == 40
    assert generator.n_read <= 40 * 2 + 2 * 8  # two sampled steps each, and the windows in flight


@pytest.mark.parametrize("window", [1, 5, 100])
def test_order_of_completion_changes_nothing(window):
    def labels(solutions, generator):
        options = Options(n_rollouts=3, share_prefixes=False)  # shared, the first of a prefix bears its tokens
        return {r.solution_id: r for r in label(solutions, [problem()], generator, options)}

    solutions = [solution(f"p0/s{i}") for i in range(9)]
    assert labels(solutions[::-1], ToyGenerator(coin_policy, window)) == labels(solutions, ToyGenerator(coin_policy))


def test_solutions_that_begin_alike_share_their_rollouts():
    # prefixes: (one), (one two) twice, (one three): 3 requests when shared, 4 when not; the last step has its verdict
    solutions = [solution("p0/s0", ["one", "two", "Answer: 12"]), solution("p0/s1", ["one", "three", "Answer: 13"])]

    def labels(share):
        generator = ToyGenerator(coin_policy)
        options = Options(n_rollouts=8, share_prefixes=share)
        return list(label(solutions, [problem()], generator, options)), generator.n_given

    (shared, asked), (apart, asked_apart) = labels(True), labels(False)
    first, second = sorted(shared, key=lambda r: r.solution_id)
    assert (asked, asked_apart) == (3, 4)
    assert first.n_correct[0] == second.n_correct[0] and first.n_rollouts == second.n_rollouts == [8, 8, 1]
    assert first.n_generated_tokens > second.n_generated_tokens > 0
    tokens = [sum(r.n_generated_tokens for r in records) for records in (shared, apart)]
    assert tokens[0] < tokens[1]


def test_the_seed_changes_the_rollouts():
    def scores(seed):
        solutions, options = [solution(f"p0/s{i}") for i in range(9)], Options(n_rollouts=3)
        return [
            r.mc_score for r in label(solutions, [problem()], ToyGenerator(coin_policy), options, Sampling(seed=seed))
        ]

    assert scores(0) == scores(0) != scores(1)


def test_solutions_are_split_judged_and_named():
    failed = say("", "error", "ValueError: broken_image")
    texts = [say("one\n\ntwo\n\nAnswer: 12"), say("Answer: 13"), say("one\n\nhm"), failed]
    drawn = list(sample_solutions([problem()], ToyGenerator(lambda r, i, s: texts[i]), 4, Sampling(seed=5)))
    assert [s.solution_id for s in drawn] == ["p0/s0", "p0/s1", "p0/s2", "p0/s3"]
    assert [s.verdict for s in drawn] == ["correct", "wrong", "unknown", "unknown"]
    assert [s.answer for s in drawn] == ["12", "13", None, None]
    assert drawn[0].steps == ["one", "two", "Answer: 12"] and drawn[3].steps == []
    assert "no final answer" in drawn[2].reason and drawn[3].reason == "ValueError: broken_image"
    assert (drawn[0].policy, drawn[0].seed, drawn[0].n_tokens) == ("toy", 5, 5)  # one, two, Answer:, 12, end
    assert drawn[3].finish_reason == "error"


def test_max_steps_merges_neighbours():
    text = say("\n\n".join("abcde"))
    drawn = [next(sample_solutions([problem()], ToyGenerator(lambda *_: text), 1, max_steps=m)) for m in (5, 3)]
    assert drawn[0].steps == ["a", "b", "c", "d", "e"]
    assert drawn[1].steps == ["a\n\nb", "c\n\nd", "e"]  # ceil(5 / 3) = 2 in a group


def test_a_text_cut_inside_its_answer_is_unknown():
    assert judge(problem(), (), say("Answer: 12")).label == "correct"
    assert judge(problem(), (), say("Answer: 12", "length")).label == "unknown"  # 120 might have followed
    assert judge(problem(), (), say("Answer: 12\n\nmore", "length")).label == "correct"
    assert judge(problem(), ("the answer is 12",), say("hm", "length")).label == "unknown"


def test_soft_and_hard_labels():
    [record], _ = labelled({1: [RIGHT, WRONG, WRONG, WRONG], 2: [MUTE] * 4})
    assert mc_label(record) == [0.25, None, 1.0]
    assert mc_label(record, "hard") == [1.0, None, 1.0]
    assert mc_label(record, "hard", 0.25) == [0.0, None, 1.0]
    with pytest.raises(ValueError, match="'medium'"):
        mc_label(record, "medium")


def test_score_and_interval_by_hand():
    assert mc_score(16, 4) == 0.25 and mc_score(16, 4, 8) == 0.5 and mc_score(3, 0, 3) is None
    [record], _ = labelled({1: [RIGHT, RIGHT, WRONG, WRONG], 2: [MUTE] * 4})
    (low, high), nothing, _ = intervals(record)
    # Wilson, k = 2, n = 4, z = 1.96: centre 0.5, half width z / (n + z^2) * sqrt(n/4 + z^2/4)
    # = 1.96 / 7.8416 * sqrt(1.9604) = 0.3500
    assert (round(low, 3), round(high, 3), nothing) == (0.15, 0.85, None)


# -- killed and run again


def chain(folder: Path, kill_after: int | None = None) -> list[StepLabels]:
    """18 solutions of 6 problems and their labels: 6 requests, then 2 prefixes each."""
    problems, generator = [problem(f"p{i}") for i in range(6)], ToyGenerator(coin_policy, 4, kill_after)
    solutions = solutions_to(folder / "solutions.jsonl", problems, generator, 3)
    return labels_to(folder / "labels.jsonl", solutions, problems, generator, Options(n_rollouts=4))


def killed(folder: Path, kill_after: int) -> bool:
    """Whether the chain, in a process of its own, killed itself before its request number `kill_after` was answered."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            chain(folder, kill_after)
            status = 0
        finally:
            os._exit(status)  # nothing of the test runner may run twice
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, seed):
    chain(tmp_path / "whole")
    rng = random.Random(seed)
    kills = [rng.randrange(1, 6), rng.randrange(1, 6), 1, 0, rng.randrange(1, 4)]  # of 6 + 12 requests
    assert sum(killed(tmp_path / "killed", k) for k in kills) >= 4  # a rerun may have nothing left to be killed in
    begun, whole = tmp_path / "killed/labels.jsonl", tmp_path / "whole/labels.jsonl"
    assert not begun.exists() or begun.stat().st_size < whole.stat().st_size
    labels = chain(tmp_path / "killed")
    for name in ("solutions.jsonl", "labels.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [r.solution_id for r in labels] == [f"p{i}/s{j}" for i in range(6) for j in range(3)]
    assert read_records(tmp_path / "killed/labels.jsonl", StepLabels) == labels


def test_a_torn_last_line_is_made_again_and_nothing_comes_twice(tmp_path):
    chain(tmp_path / "whole")
    whole = (tmp_path / "whole/labels.jsonl").read_bytes()
    for cut in (1, len(whole) // 3, len(whole) - 1):
        chain(tmp_path / "torn")
        (tmp_path / "torn/labels.jsonl").write_bytes(whole[:cut])
        chain(tmp_path / "torn")
        assert (tmp_path / "torn/labels.jsonl").read_bytes() == whole


def test_a_finished_file_costs_no_sample(tmp_path):
    chain(tmp_path)
    problems, generator = [problem(f"p{i}") for i in range(6)], ToyGenerator(coin_policy)
    solutions = solutions_to(tmp_path / "solutions.jsonl", problems, generator, 3)
    labels_to(tmp_path / "labels.jsonl", solutions, problems, generator, Options(n_rollouts=4))
    assert generator.n_given == 0


@pytest.mark.parametrize("change", ["weights", "rollouts", "seed", "question", "image", "last_step", "step"])
def test_any_change_of_what_shapes_the_labels_is_refused(tmp_path, change):
    def attempt(weights="a", rollouts=2, seed=0, question="How many?", image="0" * 64, last_step="verdict", step="one"):
        generator = ToyGenerator(coin_policy)
        generator.fingerprint = weights
        problems = [problem(question=question, image_sha256=image)]
        options = Options(n_rollouts=rollouts, last_step=last_step)
        solutions = [solution(steps=(step, "Answer: 12"))]
        labels_to(tmp_path / "labels.jsonl", solutions, problems, generator, options, Sampling(seed=seed))

    other = dict(weights="b", rollouts=3, seed=1, question="How few?", image="1" * 64, last_step="rollout", step="won")
    attempt()
    attempt()
    with pytest.raises(ValueError, match="holds records made under key"):
        attempt(**{change: other[change]})


def test_solutions_have_a_key_too(tmp_path):
    generator = ToyGenerator(coin_policy)
    solutions_to(tmp_path / "s.jsonl", [problem()], generator, 2)
    assert len(read_records(tmp_path / "s.jsonl", Solution)) == 2
    with pytest.raises(ValueError, match="holds records made under key"):
        solutions_to(tmp_path / "s.jsonl", [problem()], generator, 2, max_steps=3)


# -- strategies, order, files that are read as they are needed


def test_the_strategy_decides_who_labels_and_reads_its_own_options(tmp_path):
    asked = []

    class Watched(ToyGenerator):
        def sample(self, requests, n, sampling):
            asked.append(n)
            return super().sample(requests, n, sampling)

    for chunk in (1, 3):  # "adaptive" asks for `chunk` rollouts first; "exhaustive" for n_rollouts
        options = Options("adaptive", n_rollouts=7, adaptive=adaptive.Options(chunk=chunk, own_verdict=False))
        [record] = labels_to(tmp_path / f"{chunk}.jsonl", [solution()], [problem()], Watched(coin_policy), options)
        assert record.strategy == "adaptive" and asked[0] == chunk
        assert record == next(adaptive.label([solution()], [problem()], ToyGenerator(coin_policy), options.adaptive))
        asked.clear()
    next(label([solution()], [problem()], Watched(coin_policy), Options(n_rollouts=7)))
    assert asked == [7]


def test_solutions_that_do_not_stand_side_by_side_are_labelled_as_if_they_did(tmp_path):
    problems = [problem(f"p{i}") for i in range(4)]
    apart = [solution(f"p{i}/s{j}") for j in range(3) for i in range(4)]
    beside = sorted(apart, key=lambda s: s.solution_id)
    found = labels_to(tmp_path / "apart.jsonl", apart, problems, ToyGenerator(coin_policy))
    wanted = labels_to(tmp_path / "beside.jsonl", beside, problems, ToyGenerator(coin_policy))
    assert [r.solution_id for r in found] == [s.solution_id for s in apart]
    assert sorted(found, key=lambda r: r.solution_id) == wanted


def test_records_that_stay_in_their_file_are_a_sequence_like_a_list(tmp_path):
    problems, generator = [problem(f"p{i}") for i in range(5)], ToyGenerator(coin_policy)
    held = solutions_to(tmp_path / "a.jsonl", problems, generator, 2)
    lazy = solutions_to(tmp_path / "b.jsonl", problems, generator, 2, keep=False)
    assert isinstance(held, list) and isinstance(lazy, Records)
    assert list(lazy) == held and len(lazy) == 10 and lazy[3] == held[3] and lazy[-1] == held[-1]
    assert list(lazy[2:7:2]) == held[2:7:2] and list(lazy) == list(lazy) and held[4] in lazy
    with pytest.raises(IndexError):
        lazy[10]
    options = Options(n_rollouts=2)
    from_list = labels_to(tmp_path / "c.jsonl", held, problems, generator, options)
    from_file = labels_to(tmp_path / "d.jsonl", lazy, problems, generator, options, keep=False)
    assert list(from_file) == from_list and list(Records(tmp_path / "d.jsonl", StepLabels)) == from_list
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "d.jsonl").read_bytes()
    assert (tmp_path / "c.key").read_bytes() == (tmp_path / "d.key").read_bytes()


def test_two_solutions_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two records would have the id 'p0/s0'"):
        labels_to(tmp_path / "l.jsonl", [solution(), solution()], [problem()], ToyGenerator(coin_policy))


def test_a_maker_that_leaves_out_a_record_is_found_out(tmp_path):
    def make(done):
        yield solution("p0/s0")

    with pytest.raises(RuntimeError, match="1 records are missing, the first is 'p0/s1'"):
        resumed(tmp_path / "s.jsonl", Solution, "key", ["p0/s0", "p0/s1"], make)


def test_reasons_of_unknown_rollouts_are_counted_once_each(tmp_path):
    # two solutions share the prefixes (one) and (one two): 2 requests of 4 rollouts, of which one in each is mute
    solutions = [solution("p0/s0"), solution("p0/s1")]
    generator = ToyGenerator(lambda request, i, sampling: (RIGHT, WRONG, say("so it goes on and on"), RIGHT)[i])
    path = tmp_path / "labels.jsonl"
    labels_to(path, solutions, [problem()], generator, Options(n_rollouts=4))
    assert unknown_reasons(path) == {"no final answer in the response": 2}
    labels_to(path, solutions, [problem()], generator, Options(n_rollouts=4))
    assert unknown_reasons(path) == {"no final answer in the response": 2}


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
json_values = st.recursive(plain, st.lists, max_leaves=5)


@given(st.lists(json_values, max_size=4), st.lists(json_values, max_size=2), st.lists(json_values, max_size=2))
def test_a_fingerprint_of_many_is_that_of_the_list(items, before, after):
    whole = [*before, items, *after] if before or after else items
    assert fingerprint_of_many(iter(items), before, after) == fingerprint(whole)
