"""Critiques held against labels and truth: what is counted, what counts as wrong, and what is empty without a truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import critique_quality as quality
from mmprm_lib import data, world
from mmprm_lib.benchmark import Benchmark
from mmprm_lib.critique import SCORES, TeacherCritique
from mmprm_lib.decoding import Sampling
from mmprm_lib.schema import Critique, CritiqueStep, RecordLog
from mmprm_lib.teachers import tried_corrections, validate_corrections
from tests.doubles import ToyGenerator, problem, say, solution

SAMPLING = Sampling()


def judged(p, corrected=None, name="p0/s0", stop=True):
    """A critique with these probabilities of "Correct"; it stops at the first under 0.5, unless `stop` is False."""
    wrong = next((k for k, each in enumerate(p, start=1) if each < 0.5), 0)
    told = p[:wrong] if wrong and stop else p
    steps = [
        CritiqueStep(intent="a", image="b", logic="c", verdict="correct" if x >= 0.5 else "incorrect", p_correct=x)
        for x in told
    ]
    corrected = (corrected or "Bar A is 4") if wrong and stop else None
    return Critique(solution_id=name, steps=steps, first_error=wrong, corrected_step=corrected, parse="ok")


def unread(name="p0/s0", why="failed: step 3: no logic"):
    return Critique(solution_id=name, steps=[], first_error=None, corrected_step=None, parse=why)


def taught(found, steps=("one", "two", "Answer: 12"), problem_id="p0"):
    return TeacherCritique(
        solution_id=found.solution_id, problem_id=problem_id, steps=list(steps), critique=found, teacher="toy"
    )


def bench(solutions, labels):
    return Benchmark([problem()], solutions, labels, [], [])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Two problems of the embedded world with a solution whose second step is wrong, each."""
    problems = data.from_world({"test": 2}, 0, tmp_path_factory.mktemp("quality"))
    solutions = []
    for p in problems:
        right = world.solve(p)
        wrong = [right[0], "Bar A is 999", *right[1:]]
        solutions.append(solution(f"{p.problem_id}/s0", tuple(wrong), problem_id=p.problem_id))
    return problems, solutions


# -- what is learnt from


def test_every_critique_is_accounted_for_stage_by_stage():
    stages = {"labels": (6, {"another step": 1, "error missed": 3}), "works": (3, {"fails": 3})}
    table = quality.filter_table(10, stages)
    # of 10: 6 + 3 + 1; of the 6 that are left: 3 + 3
    assert table.values.tolist() == [
        ["labels", "kept", 6, 0.6], ["labels", "error missed", 3, 0.3], ["labels", "another step", 1, 0.1],
        ["works", "kept", 3, 0.5], ["works", "fails", 3, 0.5],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="works: 3 kept and 2 dropped, of 6"):
        quality.filter_table(10, {"labels": (6, {"x": 4}), "works": (3, {"y": 2})})


def test_trials_are_those_of_the_filter_and_a_file_goes_on_where_it_stopped(tmp_path):
    def script(request, i, sampling):
        return say("Answer: 12" if "good" in request.prefix[-1] else "Answer: 13")

    known = [problem()]
    records = [taught(judged([0.9, 0.1], f"{kind} {k}", f"p0/s{k}")) for k, kind in enumerate(["good", "bad", "good"])]
    records.append(taught(judged([0.9, 0.9, 0.9], name="p0/s3")))
    wanted = validate_corrections(records, known, ToyGenerator(script), 2, SAMPLING)
    assert [why for _, why in tried_corrections(records, known, ToyGenerator(script), 2)] == [
        "", "correction fails", "", "",
    ]  # fmt: skip
    first = ToyGenerator(script)
    path = tmp_path / "trials.jsonl"
    assert quality.validated_to(path, records, known, first, 2, SAMPLING) == wanted and first.n_given == 3
    again = ToyGenerator(script)
    assert quality.validated_to(path, records, known, again, 2, SAMPLING) == wanted and again.n_given == 0
    with pytest.raises(ValueError, match="trials"):
        quality.validated_to(path, records, known, again, 3, SAMPLING)
    with RecordLog(path, quality.Trial, (tmp_path / "trials.key").read_text().strip()) as log:
        assert log.done == {"p0/s0", "p0/s1", "p0/s2", "p0/s3"}


def test_a_teacher_is_held_against_the_truth(worlds):
    problems, solutions = worlds
    right = world.solve(problems[0])[1]
    a, b = (s.solution_id for s in solutions)
    found = [judged([0.9, 0.1], right, a), judged([0.1], "Bar A is 998", b)]
    records = [taught(c, s.steps, s.problem_id) for c, s in zip(found, solutions, strict=True)]
    table = quality.teacher_table({"all": records, "first": records[:1]}, problems)
    assert table.values.tolist() == [["all", 2, 1.0, 0.5, 0.5], ["first", 1, 1.0, 1.0, 1.0]]
    assert quality.teacher_table({"all": records}, [problem()]).empty


# -- verdicts


def test_scores_of_both_readings():
    asked = [solution("p0/s0"), solution("p0/s1"), solution("p0/s2")]
    every = [judged([0.9, 0.2, 0.7], stop=False), unread("p0/s1"), judged([0.9, 0.8, 0.7], name="p0/s2")]
    assert quality.verdict_scores(every, asked) == {
        "p0/s0": [0.9, 0.2, 0.7], "p0/s1": [None, None, None], "p0/s2": [0.9, 0.8, 0.7],
    }  # fmt: skip
    stopped = [judged([0.9, 0.2]), *every[1:]]
    assert quality.stop_scores(stopped, asked) == {
        "p0/s0": [1.0, 0.0, 0.0], "p0/s1": [None, None, None], "p0/s2": [1.0, 1.0, 1.0],
    }  # fmt: skip
    with pytest.raises(ValueError, match="2 of 3 steps are judged; critique it with judge_all=True"):
        quality.verdict_scores(stopped, asked)


def test_both_readings_share_what_finds_no_error(tmp_path, monkeypatch):
    asked = [solution("p0/s0"), solution("p0/s1"), solution("p0/s2")]
    calls = []

    def critiques_to(path, critic, problems, solutions, **options):
        calls.append((path, [s.solution_id for s in solutions], options))
        if options.get("judge_all"):
            return [judged([0.9, 0.2, 0.7], stop=False), unread("p0/s1"), judged([0.9] * 3, name="p0/s2")]
        return [judged([0.9, 0.2]), judged([0.8] * 3, name="p0/s1")]

    monkeypatch.setattr(quality, "critiques_to", critiques_to)
    every, stopped = quality.both_readings("a", "b", None, [], asked, seed=3)
    assert calls == [("a", ["p0/s0", "p0/s1", "p0/s2"], {"judge_all": True, "seed": 3}),
                     ("b", ["p0/s0", "p0/s1"], {"seed": 3})]  # fmt: skip
    assert [c.first_error for c in every] == [2, None, 0] and [c.first_error for c in stopped] == [2, 0, 0]
    with pytest.raises(ValueError, match="leave out temperature"):
        quality.both_readings("a", "b", None, [], asked, temperature=0.5)


def test_a_threshold_is_chosen_where_both_kinds_of_step_were_read():
    asked, labels = [solution("p0/s0"), solution("p0/s1")], [[1, 1, -1], [1, 1, 1]]
    scores = {
        "good": {"p0/s0": [0.9, 0.8, 0.7], "p0/s1": [0.9, 0.9, 0.9]},  # best between 0.7 and 0.8
        "half": {"p0/s0": [None] * 3, "p0/s1": [0.9, 0.9, 0.9]},  # right steps alone
        "mute": {"p0/s0": [None] * 3, "p0/s1": [None] * 3},
    }
    assert quality.thresholds(bench(asked, labels), scores) == pytest.approx({"good": 0.75, "half": 0.5, "mute": 0.5})


def test_reasons_are_counted_without_their_numbers_and_quotations():
    found = [unread(why=f"failed: {w}") for w in ("step 3: no logic", "step 4: no logic", "the verdict is 'Perhaps'")]
    counts = quality.failures([*found, judged([0.9])]).values.tolist()
    assert counts == [["step #: no logic", 2], ["the verdict is ...", 1]]
    assert quality.failures([judged([0.9])]).empty


def test_the_scores_of_solutions_are_held_against_their_truth():
    asked = [solution(f"p{k}/s0") for k in range(4)]  # of three steps
    marks = bench(asked, [[1, 1, 1], [1, 0, 1], [1, 1, -1], [-1, 1, 1]])
    told = [judged([0.9] * 3), judged([0.6] * 3), judged([0.9, 0.7, 0.1]), unread()]
    found = quality.solution_auroc(marks, {"a": told, "b": told[::-1]}).set_index(["critic", "score"])["value"]
    # means 0.9 and 0.6 of the right ones, 0.57 and the last place of the others; turned round, all pairs are wrong
    assert found["a", "mean"] == 1.0 and found["b", "mean"] == 0.0 and len(found) == 2 * len(SCORES)


def test_calibration_by_hand():
    marks = bench([solution("p0/s0"), solution("p0/s1")], [[1, -1, 0], [1, 1, 1]])
    found = quality.calibration(marks, {"a": {"p0/s0": [0.95, 0.95, 0.1], "p0/s1": [None] * 3}}, 10)["a"]
    # one bin of two steps, mean score 0.95, half of them right; the neutral step and the unread ones are left out
    assert found["n"] == 2 and found["ece"] == pytest.approx(0.45)
    nothing = quality.calibration(marks, {"a": {"p0/s0": [None] * 3, "p0/s1": [None] * 3}})["a"]
    assert nothing["n"] == 0 and nothing["ece"] != nothing["ece"]


# -- corrections


def test_corrections_by_hand(worlds):
    problems, solutions = worlds
    right = world.solve(problems[0])[1]
    a, b = (s.solution_id for s in solutions)
    found = [judged([0.9, 0.1], right, a), judged([0.9] * len(solutions[1].steps), name=b)]
    first, missed = quality.correction_table(problems, solutions, found).to_dict("records")
    assert (first["place"], first["place_right"], first["correction_right"], first["mended"]) == (2, 1, 1, 1)
    assert (first["unchanged"], first["leak"]) == (0, 0)
    assert first["error"] == "intent"  # the question is not about bar A
    assert (missed["place"], missed["mended"]) == (0, 0) and missed["leak"] != missed["leak"]
    early = judged([0.1], solutions[0].steps[0], a)  # the right first step is called wrong, and written again
    [row] = quality.correction_table(problems, solutions[:1], [early]).to_dict("records")
    assert (row["error"], row["place_right"], row["correction_right"], row["mended"]) == (quality.RIGHT_STEP, 0, 1, 0)
    assert row["unchanged"] == 1
    told = judged([0.9, 0.1], f"Answer: {problems[0].answer}", a)
    [row] = quality.correction_table(problems, solutions[:1], [told]).to_dict("records")
    assert (row["leak"], row["undue_leak"]) == (1, 1)  # a reading should stand there


def test_rates_of_corrections_and_of_nothing(worlds):
    problems, solutions = worlds
    a, b = (s.solution_id for s in solutions)
    found = [judged([0.9, 0.1], world.solve(problems[0])[1], a), judged([0.1], "Bar A is 998", b)]
    table = quality.correction_table(problems, solutions, found)
    rates = quality.correction_rates(table).set_index("measure")
    # b flags a right step: it is no correction of a wrong one
    assert rates.loc["correction_accuracy", ["value", "n"]].tolist() == [1.0, 1]
    assert rates.loc["correction_accuracy_all", ["value", "n"]].tolist() == [0.5, 2]
    assert rates.loc["mended_share", ["value", "n"]].tolist() == [0.5, 2]
    assert quality.telling({c.solution_id: c for c in found}, table) == {
        "first error found and corrected": [a], "a right step is called wrong": [b],
    }  # fmt: skip
    none = quality.correction_rates(quality.correction_table(problems, solutions, [unread(a), unread(b)]))
    assert none["n"].tolist() == [0] * 7


def test_outside_the_world_only_what_needs_no_truth_is_known():
    asked, found = [solution("p0/s0")], [judged([0.9, 0.1], "so it is 12 then")]
    [row] = quality.correction_table([problem()], asked, found).to_dict("records")
    assert row["error"] is None and (row["leak"], row["unchanged"]) == (1, 0) and row["mended"] != row["mended"]
    rates = quality.correction_rates(quality.correction_table([problem()], asked, found)).set_index("measure")
    assert rates["n"]["leak_share"] == 1 and rates["n"]["correction_accuracy"] == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_running_score_never_rises_and_is_the_product_so_far(line):
    found = quality.running({"s": line, "unread": [None] * 3})
    told = found["s"]
    assert found["unread"] == [None] * 3 and told[0] == line[0]
    assert all(b == pytest.approx(a * p) and b <= a for a, b, p in zip(told, told[1:], line[1:], strict=False))
