"""Refined solutions and pools, by a policy that adds up the bars it has read and a critic that knows them."""

import os
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import pools, refined_pairs, refinement, world
from mmprm_lib.comparison import groups_of
from mmprm_lib.generation import Sampling
from mmprm_lib.refinement import MODES, Slot, refine, refined_to, slots
from mmprm_lib.schema import Critique, CritiqueStep
from tests.doubles import ToyCritic, ToyGenerator, coin_policy, problem, say, solution

P = problem()  # the answer is 12 = 7 + 5
GOOD = ("Bar A is 7", "Bar B is 5", "Sum: 7 + 5 = 12", "Answer: 12")
BAD = ("Bar A is 7", "Bar B is 4", "Sum: 7 + 4 = 11", "Answer: 11")
CRITIC = ToyCritic({"A": 7, "B": 5})


def adds(request, sample, sampling):
    """Reads what is missing (A rightly, B as 3) and adds it up: a fresh sample is wrong, 10."""
    read = dict(re.findall(r"Bar (\w) is (\d+)", "\n".join(request.prefix)))
    new = [f"Bar {bar} is {value}" for bar, value in (("A", "7"), ("B", "3")) if bar not in read]
    read = {"A": "7", "B": "3"} | read
    total = int(read["A"]) + int(read["B"])
    return say("\n\n".join([*new, f"Sum: {read['A']} + {read['B']} = {total}", f"Answer: {total}"]))


def made(*texts, problem_id="p0"):
    """Initial solutions of these steps, s0, s1, ..."""
    found = []
    for i, steps in enumerate(texts):
        answer = steps[-1].removeprefix("Answer: ") if steps else None
        verdict = "correct" if answer == "12" else "wrong" if steps else "unknown"
        name = f"{problem_id}/s{i}"
        found.append(solution(name, steps, problem_id=problem_id, answer=answer, verdict=verdict))
    return found


def refined(initial, mode="correction", critic=CRITIC, problems=(P,), script=adds, **options):
    """(slots, refined solutions in their order, generator)."""
    generator = ToyGenerator(script)
    wanted = slots(problems, initial, critic.critique(problems, initial), mode)
    by_name = {s.solution_id: s for s in refine(wanted, problems, generator, **options)}
    return wanted, [by_name[slot.name] for slot in wanted], generator


# -- slots


def test_a_flagged_solution_goes_on_from_the_steps_before_and_the_corrected_one():
    [slot], [after], generator = refined(made(BAD))
    assert (slot.kind, slot.place, slot.prefix) == ("corrected", 2, ("Bar A is 7", "Bar B is 5"))
    assert after.steps == ["Bar A is 7", "Bar B is 5", "Sum: 7 + 5 = 12", "Answer: 12"]
    assert (after.answer, after.verdict, after.finish_reason, after.policy) == ("12", "correct", "stop", "toy")
    # "Sum: 7 + 5 = 12" is 6 words, "Answer: 12" is 2, and the end: the continuation alone
    assert after.n_tokens == generator.n_generated_tokens == 9
    assert re.fullmatch(r"p0/r0-[0-9a-f]{8}", after.solution_id)


def test_the_prefix_goes_through_byte_for_byte():
    odd = (" Bar A is 7\t", "Let $\\frac{1}{2}$\nbe \u00bd ", "Bar B is 4")
    seen = []

    def script(request, sample, sampling):
        seen.append(request)
        return say("Answer: 12")

    wanted, [after], _ = refined(made(odd), script=script)
    [request] = seen
    assert request.prefix == (odd[0], odd[1], "Bar B is 5") == tuple(after.steps[:3])
    assert (request.problem, request.instruction, request.opening) == (P, "", "")  # inside the assistant turn
    assert request.key == wanted[0].name == after.solution_id


def test_what_is_not_flagged_or_not_readable_leaves_its_slot_to_a_fresh_sample():
    critic = ToyCritic({"A": 7, "B": 5}, unreadable=("p0/s1",))
    wanted, after, _ = refined(made(GOOD, BAD, ()), critic=critic)
    assert [(s.kind, s.place, s.prefix, s.name) for s in wanted] == [("fresh", 0, (), f"p0/r{i}") for i in range(3)]
    assert [s.verdict for s in after] == ["wrong"] * 3 and after[0].answer == "10"  # 7 + 3


@pytest.mark.parametrize("correction", [None, "", "  \n", "Bar B is 4", " Bar B is 4 "])
def test_without_a_usable_correction_it_is_cut_and_sampled_from_there(correction):
    steps = [CritiqueStep(intent="", image="", logic="", verdict=v) for v in ("correct", "incorrect")]
    critique = Critique(solution_id="p0/s0", steps=steps, first_error=2, corrected_step=correction, parse="ok")
    [slot] = slots([P], made(BAD), [critique])
    assert (slot.kind, slot.prefix, slot.place) == ("resampled", ("Bar A is 7",), 2)
    [after] = refine([slot], [P], ToyGenerator(adds))
    assert after.steps == ["Bar A is 7", "Bar B is 3", "Sum: 7 + 3 = 10", "Answer: 10"]


def test_a_first_step_without_correction_is_the_fresh_sample_of_its_slot():
    initial = made(("Bar A is 4", "Answer: 4"))
    [cut], [after], _ = refined(initial, "resample")
    [fresh], [plain], _ = refined(initial, "fresh")
    assert (cut.kind, cut.prefix, cut.name) == ("resampled", (), fresh.name) and after == plain


def test_the_modes_fill_the_slots_each_in_its_own_way():
    initial = made(BAD, GOOD)
    found = {mode: refined(initial, mode)[0] for mode in ("correction", "masked", "resample", "fresh")}
    assert [s.kind for s in found["correction"]] == ["corrected", "fresh"]
    assert [s.kind for s in found["masked"]] == ["corrected", "fresh"]
    assert [s.kind for s in found["resample"]] == ["resampled", "fresh"]
    assert [s.kind for s in found["fresh"]] == ["fresh", "fresh"]
    assert found["resample"][0].prefix == ("Bar A is 7",)
    assert len({slots_of[1].name for slots_of in found.values()}) == 1  # and so they share what they agree on


def test_a_correction_that_states_the_answer_ends_the_solution_or_is_masked():
    steps = [CritiqueStep(intent="", image="", logic="", verdict=v) for v in ("correct",) * 3 + ("incorrect",)]
    critique = Critique(solution_id="p0/s0", steps=steps, first_error=4, corrected_step="Answer: 12", parse="ok")
    initial, generator = made(GOOD[:3] + ("Answer: 11",)), ToyGenerator(lambda *_: say("Answer: 99"))
    [slot] = slots([P], initial, [critique])
    [ended] = refine([slot], [P], generator)
    assert (ended.steps, ended.verdict, ended.n_tokens, generator.n_given) == (list(GOOD), "correct", 0, 0)
    [went_on] = refine([slot], [P], generator, end_at_answer=False)
    assert (went_on.steps, went_on.answer, generator.n_given) == ([*GOOD, "Answer: 99"], "99", 1)
    [masked] = slots([P], initial, [critique], "masked")
    assert (masked.kind, masked.prefix) == ("resampled", GOOD[:3])


def test_random_steps_are_cut_where_the_seed_says_and_only_of_flagged_solutions():
    initial = made(*[BAD] * 40, GOOD)
    critiques = list(CRITIC.critique([P], initial))
    places = [s.place for s in slots([P], initial, critiques, "random_step", seed=1)]
    assert set(places[:40]) == {1, 2, 3, 4} and places[40] == 0
    assert places == [s.place for s in slots([P], initial, critiques, "random_step", seed=1)]
    again = slots([P], initial, critiques, "random_step", seed=2)
    assert places != [s.place for s in again]
    assert all(s.kind == "resampled" and s.prefix == BAD[: s.place - 1] for s in again[:40])


@pytest.fixture(scope="module")
def scenes():
    """Four problems of the embedded world, each with a solution whose last step alone is wrong."""
    found = [p for p, _ in world.draw(4, 0, choice_share=0.0)]
    wrong = [
        solution(f"{p.problem_id}/s0", (*world.solve(p)[:-1], "Answer: 99999"), problem_id=p.problem_id,
                 answer="99999", verdict="wrong")
        for p in found
    ]  # fmt: skip
    return found, wrong


def test_the_ceiling_takes_place_and_step_from_the_truth(scenes):
    problems, initial = scenes
    found = slots(problems, initial, [], "truth")
    for p, slot in zip(problems, found, strict=True):
        assert slot.prefix == tuple(world.solve(p)) and slot.place == len(world.solve(p)) and slot.kind == "corrected"
    right = [solution(f"{p.problem_id}/s0", tuple(world.solve(p)), problem_id=p.problem_id) for p in problems]
    assert {s.kind for s in slots(problems, right, [], "truth")} == {"fresh"}


def test_the_true_step_stands_where_the_critic_points(scenes):
    problems, initial = scenes
    place = 2
    critiques = [
        Critique(solution_id=s.solution_id, steps=[], first_error=place, corrected_step="nonsense", parse="ok")
        for s in initial
    ]
    for p, s, slot in zip(problems, initial, slots(problems, initial, critiques, "true_correction"), strict=True):
        # the step there was right already, so that nothing is corrected
        assert world.correct_step(p, s.steps[:1]) == s.steps[1]
        assert (slot.kind, slot.prefix) == ("resampled", tuple(s.steps[:1]))
    last = [c.model_copy(update={"first_error": len(s.steps)}) for c, s in zip(critiques, initial, strict=True)]
    assert [s.prefix for s in slots(problems, initial, last, "true_correction")] == [
        s.prefix for s in slots(problems, initial, [], "truth")
    ]


def test_what_cannot_be_refined_is_named():
    initial = made(BAD)
    critiques = list(CRITIC.critique([P], initial))
    with pytest.raises(ValueError, match="mode 'magic' is not known; use one of correction, masked"):
        slots([P], initial, critiques, "magic")
    with pytest.raises(ValueError, match="'p0' has no scene"):
        slots([P], initial, critiques, "truth")
    with pytest.raises(KeyError, match="'p0/s0' has no critique"):
        slots([P], initial, [])
    with pytest.raises(KeyError, match="names problem 'p0', which is not given"):
        slots([problem("p1")], initial, critiques)
    with pytest.raises(ValueError, match="finds step 2 of 1 wrong"):
        slots([P], made(("Answer: 1",)), critiques)


# -- refining


def test_an_answer_that_cannot_be_judged_is_unknown():
    [_], [after], _ = refined(made(BAD), script=lambda *_: say("hm"))
    assert (after.verdict, after.answer, after.steps[2:]) == ("unknown", None, ["hm"])
    [_], [cut], _ = refined(made(BAD), script=lambda *_: say("Answer: 1", "length"))
    assert (cut.verdict, cut.finish_reason) == ("unknown", "length")
    [_], [failed], _ = refined(made(BAD), script=lambda *_: say("", "error", "no image"))
    # the prefix alone could score high and win, so a failed request leaves no steps
    assert (failed.verdict, failed.reason, failed.steps) == ("unknown", "no image", [])


def test_merging_leaves_the_prefix_alone():
    long = say("\n\n".join("abcdef"))
    [_], [after], _ = refined(made(BAD), script=lambda *_: long, max_steps=5)
    # 5 - 2 of the prefix: six steps in groups of two
    assert after.steps == ["Bar A is 7", "Bar B is 5", "a\n\nb", "c\n\nd", "e\n\nf"]
    [_], [short], _ = refined(made(BAD), script=lambda *_: long, max_steps=1)
    assert short.steps == ["Bar A is 7", "Bar B is 5", "a\n\nb\n\nc\n\nd\n\ne\n\nf"]


def test_sampling_and_its_seed_reach_the_policy():
    seen = []
    [_], [after], _ = refined(
        made(BAD), script=lambda r, i, sampling: seen.append(sampling) or say("Answer: 12"), sampling=Sampling(seed=7)
    )
    assert after.seed == 7 and seen == [Sampling(seed=7)]


def many(n=6):
    problems = [problem(f"p{i}") for i in range(n)]
    return problems, [s for p in problems for s in made(BAD, GOOD, BAD[:1] + GOOD[1:], problem_id=p.problem_id)]


@given(st.randoms(use_true_random=False))
def test_no_order_matters(random):
    problems, initial = many(3)
    critiques = list(CRITIC.critique(problems, initial))

    def run(problems, critiques, window):
        wanted = slots(problems, initial, critiques)
        return {s.solution_id: s for s in refine(wanted, problems, ToyGenerator(coin_policy, window))}

    whole = run(problems, critiques, 3)
    shuffled = list(critiques)
    random.shuffle(shuffled)
    assert run(problems[::-1], shuffled, random.randint(1, 9)) == whole
    done = random.sample(sorted(whole), 4)
    left = refine(slots(problems, initial, critiques), problems, ToyGenerator(coin_policy), done=done)
    assert {s.solution_id: s for s in left} == {name: s for name, s in whole.items() if name not in done}


# -- files


def to_file(path, modes=("correction", "resample", "fresh"), script=coin_policy, kill_after=None, **options):
    problems, initial = many()
    critiques = list(CRITIC.critique(problems, initial))
    generator = ToyGenerator(script, kill_after=kill_after)
    return refined_to(path, problems, initial, critiques, generator, modes=modes, **options), generator


def test_modes_share_what_they_agree_on_and_keep_the_order_of_the_initial(tmp_path):
    found, generator = to_file(tmp_path / "refined.jsonl")
    assert list(found) == ["correction", "resample", "fresh"]
    for solutions in found.values():
        assert [s.solution_id[:5] for s in solutions] == [f"p{i}/r{j}" for i in range(6) for j in range(3)]
    # per problem: a fresh one for each of the three slots, one corrected, one cut
    assert generator.n_given == 6 * 5 == len(refinement.unique(found))
    assert found["correction"][1] == found["resample"][1] == found["fresh"][1]
    assert found["correction"][0] != found["resample"][0]
    again, idle = to_file(tmp_path / "refined.jsonl")
    assert again == found and idle.n_given == 0


def killed(path, n):
    """Whether a run over this file, in a process of its own, was killed before request number n."""
    child = os.fork()
    if not child:
        try:
            to_file(path, kill_after=n)
        finally:
            os._exit(1)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    to_file(tmp_path / "whole.jsonl")
    assert [killed(tmp_path / "parts.jsonl", n) for n in (4, 0, 7)] == [True] * 3
    assert 0 < (tmp_path / "parts.jsonl").stat().st_size < (tmp_path / "whole.jsonl").stat().st_size
    to_file(tmp_path / "parts.jsonl")
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    "change", [dict(modes=("correction",)), dict(max_steps=3), dict(end_at_answer=False), dict(sampling=Sampling(0.5))]
)
def test_a_file_of_other_settings_is_refused(tmp_path, change):
    to_file(tmp_path / "refined.jsonl")
    with pytest.raises(ValueError, match="the parameters, the model or the data changed"):
        to_file(tmp_path / "refined.jsonl", **change)


def test_other_critiques_are_another_file(tmp_path):
    initial, generator = made(BAD), ToyGenerator(adds)
    refined_to(tmp_path / "r.jsonl", [P], initial, list(CRITIC.critique([P], initial)), generator)
    other = list(ToyCritic({"A": 7, "B": 6}).critique([P], initial))
    with pytest.raises(ValueError, match="holds records made under key"):
        refined_to(tmp_path / "r.jsonl", [P], initial, other, generator)


def test_what_failed_is_asked_again_and_nothing_else(tmp_path):
    def flaky(request, sample, sampling):
        broken = request.key.startswith("p1/")
        return say("", "error", "no image") if broken else coin_policy(request, sample, sampling)

    found, _ = to_file(tmp_path / "refined.jsonl", script=flaky)
    assert Counter(s.finish_reason for s in found["correction"]) == {"stop": 15, "error": 3}
    mended, generator = to_file(tmp_path / "refined.jsonl", retry=True)
    assert generator.n_given == 5  # of the one problem
    assert mended == to_file(tmp_path / "never_failed.jsonl")[0]


def test_fresh_samples_that_exist_fill_the_slots_that_want_one(tmp_path):
    initial = made(BAD, GOOD)
    drawn = [s.model_copy(update={"solution_id": f"p0/s{i}"}) for i, s in enumerate(made(GOOD, BAD), start=2)]
    critiques, generator = list(CRITIC.critique([P], initial)), ToyGenerator(adds)
    options = dict(modes=("correction", "fresh"), fresh=drawn)
    found = refined_to(tmp_path / "r.jsonl", [P], initial, critiques, generator, **options)
    assert [s.steps for s in found["fresh"]] == [list(GOOD), list(BAD)]
    assert [s.solution_id for s in found["fresh"]] == ["p0/r0", "p0/r1"]
    # the first one is corrected, the second one not flagged: its slot takes the second sample
    assert found["correction"][1] == found["fresh"][1] and generator.n_given == 1
    again = ToyGenerator(adds)
    assert refined_to(tmp_path / "r.jsonl", [P], initial, critiques, again, **options) == found
    assert again.n_given == 0
    other = [drawn[0], drawn[1].model_copy(update={"n_tokens": 99})]
    with pytest.raises(ValueError, match="holds records made under key"):
        refined_to(tmp_path / "r.jsonl", [P], initial, critiques, generator, modes=options["modes"], fresh=other)
    for wrong, message in ((drawn[:1], "1 fresh samples for 2 slots"), (initial, "'p0/s0' is an initial solution")):
        with pytest.raises(ValueError, match=message):
            refined_to(tmp_path / "w.jsonl", [P], initial, critiques, generator, fresh=wrong)


# -- pools


def pooled(initial, mode="correction", problems=(P,), critic=CRITIC):
    """(pools, scores) of initial solutions and what became of them."""
    _, after, _ = refined(initial, mode, critic, problems)
    everything = [*initial, *{s.solution_id: s for s in after}.values()]
    scores = pools.critique_scores(everything, list(critic.critique(problems, everything)))
    return pools.pools_of(problems, initial, after), scores


def test_a_pool_holds_n_half_of_each_kind_and_the_best_of_it_by_hand():
    initial = made(BAD, GOOD, ("Bar A is 4", "Answer: 4"), BAD)
    [group], scores = pooled(initial)
    names = [s.solution_id.split("-")[0] for s in group.candidates]
    assert names == ["p0/s0", "p0/r0", "p0/s1", "p0/r1", "p0/s2", "p0/r2", "p0/s3", "p0/r3"]
    # the corrected s0 is right, s1 was right and is sampled afresh (10); s2 gets A = 7 and reads B as 3 itself
    assert [s.answer for s in group.candidates] == ["11", "12", "12", "10", "4", "10", "11", "12"]
    # mean over the judged steps: two steps of a cut critique (0.9 + 0.2) / 2, four right steps 0.9, s2 has one, 0.2;
    # a critique of what reads B as 3 ends there, at (0.9 + 0.2) / 2
    found = [scores[s.solution_id] for s in group.candidates]
    assert found == pytest.approx([0.55, 0.9, 0.9, 0.55, 0.2, 0.55, 0.55, 0.9])
    # N = 2: the refined one at 0.9; N = 4: s1 and r0 tie with the same answer, the initial one comes first
    assert [pools.pick(group, n, scores) for n in (2, 4, 8)] == [1, 2, 2]
    assert list(pools.refined_best_of_n([group], scores, 2)) == [1.0]
    with pytest.raises(ValueError, match="has 8 candidates, N = 16 needs more"):
        pools.pick(group, 16, scores)
    with pytest.raises(ValueError, match="N is 3: a pool holds as many refined"):
        pools.pick(group, 3, scores)


def by_hand(answers, values):
    """A pool of candidates with these answers (12 is right, "-" none) and scores."""
    made_up = [
        solution(f"p0/{i}", ("x",), answer=None if a == "-" else a, verdict="correct" if a == "12" else "wrong")
        for i, a in enumerate(answers)
    ]
    return groups_of([P], made_up)[0], {s.solution_id: v for s, v in zip(made_up, values, strict=True)}


def test_ties_go_to_the_answer_most_share_then_to_the_initial_solution():
    def taken(answers, values):
        group, scores = by_hand(answers, values)
        return pools.pick(group, 4, scores)

    assert taken(["3", "12", "4", "12"], [0.9, 0.9, 0.9, 0.1]) == 1
    assert taken(["3", "12", "4", "5"], [0.1, 0.9, 0.9, 0.9]) == 2  # 0 and 2 are initial, 1 and 3 refined
    assert taken(["-", "-", "-", "5"], [0.9, 0.9, 0.9, 0.9]) == 3  # no answer has no vote


def test_rounding_makes_ties_of_what_is_as_good_as_equal():
    group, scores = by_hand(["3", "12", "4", "12"], [0.99991, 0.99990, 0.5, 0.2])
    assert pools.pick(group, 4, scores) == 0
    assert pools.pick(group, 4, scores, decimals=3) == 1
    assert list(pools.refined_best_of_n([group], scores, 4, decimals=3)) == [1.0]


def test_what_has_no_score_never_wins_by_default():
    group, scores = by_hand(["3", "12"], [-np.inf, 0.01])
    assert pools.pick(group, 2, scores, decimals=2) == 1
    with pytest.raises(ValueError, match="'p0/1' has no score"):
        pools.pick(group, 2, {"p0/0": 0.5})
    empty = made(())
    assert pools.critique_scores(empty, list(CRITIC.critique([P], empty))) == {"p0/s0": -np.inf}
    with pytest.raises(KeyError, match="'p0/s0' has no critique"):
        pools.critique_scores(empty, [])


def test_the_kind_of_score_is_used():
    initial = made(BAD)
    critiques = list(CRITIC.critique([P], initial))
    assert pools.critique_scores(initial, critiques, "padded")["p0/s0"] == pytest.approx(1.1 / 4)
    assert pools.critique_scores(initial, critiques, "min")["p0/s0"] == pytest.approx(0.2)


@given(st.permutations(range(4)), st.lists(st.floats(0, 1), min_size=8, max_size=8, unique=True))
def test_the_order_of_slots_does_not_matter_where_no_scores_tie(order, values):
    answers = ["12", "3", "4", "12", "5", "6", "7", "8"]
    group, scores = by_hand(answers, values)
    places = [2 * i + half for i in order for half in (0, 1)]
    shuffled = group._replace(
        candidates=[group.candidates[i] for i in places], answers=[group.answers[i] for i in places]
    )
    assert places[pools.pick(shuffled, 8, scores)] == pools.pick(group, 8, scores)


def test_pools_refuse_what_does_not_belong_together():
    with pytest.raises(ValueError, match="2 initial and 1 refined"):
        pools.pools_of([P], made(BAD, GOOD), made(BAD))
    with pytest.raises(ValueError, match="'p1/s0' does not fill the slot of 'p0/s0'"):
        pools.pools_of([P], made(BAD), made(BAD, problem_id="p1"))


# -- tokens


def test_tokens_of_critiques_are_counted_from_their_texts():
    initial = made(BAD, ())
    critiques = list(CRITIC.critique([P], initial))
    words = pools.critique_tokens(critiques, lambda text: len(text.split()))
    # a step is "Step 1 / Intent: Read / Image: - / Logic: - / Judgement: Correct", 10 words; two of them, "Correct
    # Step: Bar B is 5" 6, the end 1, less "Step 1 / Intent:" 3; what could not be read counts as the mean
    assert words == {"p0/s0": 10 + 10 + 6 + 1 - 3, "p0/s1": 24}
    assert pools.critique_tokens([c for c in critiques if c.parse != "ok"], len) == {"p0/s1": 0}


def test_accounts_of_tokens_by_hand():
    initial = made(BAD, GOOD)
    groups, scores = pooled(initial)
    tokens = {name: 100 for name in scores}
    # n_tokens: 9 of each initial; "Sum: 7 + 5 = 12", "Answer: 12" and the end 9; the fresh one 4 + 4 + 6 + 2 + 1 = 17
    assert [float(x[0]) for x in pools.token_account(groups, 2, tokens, "correction")] == [18.0, 200.0]
    assert [float(x[0]) for x in pools.token_account(groups, 4, tokens, "correction")] == [44.0, 400.0]
    # nothing is chosen by its score: the critic has read the initial half only, and none for plain Best-of-N
    assert [float(x[0]) for x in pools.token_account(groups, 4, tokens, "correction", chosen=False)] == [44.0, 200.0]
    assert [float(x[0]) for x in pools.token_account(groups, 4, tokens, "fresh", chosen=False)] == [44.0, 0.0]


def samples(answers, n_tokens, problem_id="p0"):
    drawn = [
        solution(f"{problem_id}/s{i}", answer=a, n_tokens=n, verdict="correct" if a == "12" else "wrong")
        for i, (a, n) in enumerate(zip(answers, n_tokens, strict=True))
    ]
    return groups_of([problem(problem_id)], drawn)[0]


def test_a_vote_at_equal_tokens_gets_no_less_than_it_is_compared_with():
    group = samples(["3", "12", "12", "3", "3"], [10, 10, 10, 10, 10])
    vote = pools.vote_at_equal_tokens([group] * 5, [0, 10, 21, 30, 51])
    assert list(vote.n_samples) == [1, 1, 3, 3, 5]
    assert list(vote.n_tokens) == [10, 10, 30, 30, 50]
    assert list(vote.outcomes) == [0, 0, 1, 1, 0]  # 3 alone; 3, 12, 12; three of five
    assert list(vote.short) == [False, False, False, False, True]
    with pytest.raises(ValueError, match="1 budgets for 2 problems"):
        pools.vote_at_equal_tokens([group] * 2, [1])


# -- tables


def two_problems():
    """p0 is mended by the correction, p1 was right at once; and the same by fresh samples, which are wrong."""
    problems = [P, problem("p1")]
    initial = [*made(BAD), *made(GOOD, problem_id="p1")]
    by_mode, scores = {}, {}
    for mode in ("correction", "fresh"):
        by_mode[mode], found = pooled(initial, mode, problems)
        scores |= found
    return problems, initial, by_mode, scores


def test_the_table_of_pools_by_hand():
    _, _, by_mode, scores = two_problems()
    table = pools.pool_table(by_mode, scores, dict.fromkeys(scores, 10), ns=(2,)).set_index(["mode", "method"])
    assert table.loc[("correction", "best_of_n"), "value"] == 1.0
    assert table.loc[("fresh", "best_of_n"), "value"] == 0.5  # p0: 11 and 10
    assert table.loc[("correction", "random"), "value"] == 0.5
    assert table.loc[("fresh", "pass_at_n"), "value"] == 0.5
    assert table.loc[("fresh", "distinct_answers"), "value"] == 2.0
    assert set(table["n"]) == {2} and (table["low"] <= table["value"]).all()
    # p0: 9 + 9, p1: 9 + 17 tokens of the policy
    assert table.loc[("correction", "best_of_n"), "n_policy_tokens"] == 22.0
    critic = table["n_critic_tokens"].unstack()
    assert critic.loc["correction", ["best_of_n", "majority_vote"]].tolist() == [20.0, 10.0]
    assert critic.loc["fresh", ["best_of_n", "majority_vote"]].tolist() == [20.0, 0.0]


def test_samples_without_a_critic_make_rows_for_the_same_figures():
    table = pools.sample_table([samples(["3", "12", "12"], [10, 20, 30])], ns=(1, 3)).set_index(["method", "N"])
    assert table.loc[("majority_vote", 1), "value"] == 0.0 and table.loc[("majority_vote", 3), "value"] == 1.0
    assert table.loc[("distinct_answers", 3), "value"] == 2.0
    assert table.loc[("random", 3), ["n_policy_tokens", "n_critic_tokens"]].tolist() == [60.0, 0.0]
    assert set(table["mode"]) == {"samples"}


def test_modes_are_compared_on_the_same_problems():
    _, _, by_mode, scores = two_problems()
    table = pools.paired_table(by_mode, scores, ns=(2,))
    assert table[["method", "N", "mode", "other"]].values.tolist() == [
        ["best_of_n", 2, "correction", "fresh"], ["pass_at_n", 2, "correction", "fresh"],
    ]  # fmt: skip
    assert table["value"].tolist() == [0.5, 0.5] and table["mcnemar_p"].tolist() == [1.0, 1.0]  # one discordant pair
    assert table["holm_p"].tolist() == [1.0, 1.0] and (table["problems_needed"] > 2).all()
    other = pools.paired_table(by_mode, scores, ns=(2,), main="fresh", methods=("pass_at_n",))
    assert other["value"].tolist() == [-0.5]
    with pytest.raises(ValueError, match="'fresh' and 'correction' hold other problems"):
        pools.paired_table(by_mode | {"fresh": by_mode["fresh"][::-1]}, scores, ns=(2,))


def test_votes_at_equal_tokens_in_a_table():
    _, _, by_mode, scores = two_problems()
    drawn = [samples(["3", "12", "12"], [10, 10, 10], name) for name in ("p0", "p1")]
    table = pools.equal_token_table(by_mode, drawn, scores, dict.fromkeys(scores, 10), ns=(2,)).set_index("account")
    # budgets 18 and 26 of the policy: 2 and 3 samples, one 3 and one 12 (the first wins), then 12; with 20 of the
    # critic 38 and 46: all three, which are not enough
    assert table.loc["policy", ["n_samples", "n_tokens", "share_short"]].tolist() == [2.5, 25.0, 0.0]
    assert table.loc["policy", ["refined", "vote", "value"]].tolist() == [1.0, 0.5, 0.5]
    assert table.loc["policy and critic", ["n_samples", "n_tokens", "share_short"]].tolist() == [3.0, 30.0, 1.0]
    assert table.loc["policy and critic", ["refined", "vote", "value"]].tolist() == [1.0, 1.0, 0.0]


def test_pairs_say_what_became_of_every_solution():
    initial = made(BAD, GOOD, ("Bar A is 4", "Bar B is 5", "Answer: 12"))
    wanted, after, _ = refined(initial)
    table = refined_pairs.pair_table([P], wanted, after)
    assert table["kind"].tolist() == ["corrected", "fresh", "corrected"]
    assert table["initial_correct"].tolist() == [0, 1, 1]
    assert table["refined_correct"].tolist() == [1, 0, 0]  # the last one gets A = 7 and reads B as 3 itself
    pd.testing.assert_series_equal(table["wrong_to_right"], pd.Series([1, np.nan, np.nan]), check_names=False)
    pd.testing.assert_series_equal(table["right_to_wrong"], pd.Series([np.nan, 1, 1]), check_names=False)
    pd.testing.assert_series_equal(table["false_alarm"], pd.Series([np.nan, 0, 1]), check_names=False)
    assert table["leak"].tolist()[::2] == [0, 0] and table["place"].tolist() == [2, 0, 1]
    assert table[["place_right", "correction_right", "false_alarm_truth", "error"]].isna().all().all()  # no scene
    assert table["family"].tolist() == ["toy"] * 3
    with pytest.raises(ValueError, match="does not fill slot"):
        refined_pairs.pair_table([P], wanted, after[::-1])


def test_pairs_of_the_embedded_world_know_what_was_right(scenes):
    problems, initial = scenes
    wanted = slots(problems, initial, [], "truth")
    after = list(refine(wanted, problems, ToyGenerator(adds)))
    table = refined_pairs.pair_table(problems, wanted, after)
    assert table["place_right"].tolist() == table["correction_right"].tolist() == table["leak"].tolist() == [1.0] * 4
    assert table["family"].tolist() == [p.scene["family"] for p in problems]
    assert table["false_alarm_truth"].isna().all() and set(table["error"]) <= {"intent", "image", "logic"}
    # a right solution, flagged at its first step and made worse there
    right = solution(f"{problems[0].problem_id}/s0", tuple(world.solve(problems[0])), problem_id=problems[0].problem_id)
    worse = Slot(f"{right.problem_id}/r0-x", right, "corrected", ("nonsense",), 1)
    table = refined_pairs.pair_table(problems, [worse], [right.model_copy(update={"solution_id": worse.name})])
    [row] = table.to_dict("records")
    assert (row["false_alarm_truth"], row["place_right"], row["correction_right"]) == (1.0, 0.0, 0.0)
    assert row["error"] == "right step"


def test_rates_of_pairs_by_mode_and_by_trait():
    pairs = pd.DataFrame({
        "problem_id": ["p0", "p0", "p1", "p2"], "family": ["bars", "bars", "bars", "dice"],
        "wrong_to_right": [1, 0, np.nan, 1], "right_to_wrong": [np.nan, np.nan, 0, np.nan],
        "correction_right": [1, 0, np.nan, 1],
    })  # fmt: skip
    flips = refined_pairs.flip_table({"correction": pairs, "fresh": pairs[:2]}).set_index(["mode", "flip"])
    assert flips.loc[("correction", "wrong_to_right"), ["value", "n"]].tolist() == [2 / 3, 3]
    assert flips.loc[("correction", "right_to_wrong"), ["value", "n"]].tolist() == [0, 1]
    assert flips.loc[("fresh", "right_to_wrong"), "n"] == 0
    table = refined_pairs.success_table(pairs, traits=("family",))[["trait", "group", "value", "n"]]
    assert table.values.tolist() == [["family", "bars", 0.5, 2], ["family", "dice", 1, 1]]
    assert refined_pairs.success_table(pairs, "wrong_to_right", ("family",))["n"].tolist() == [2, 1]


def test_a_leak_is_an_answer_stated_or_held_as_a_word():
    assert refined_pairs.leaks(P, "Sum: 7 + 5 = 12", "12") and refined_pairs.leaks(P, "So the answer is 3", "12")
    assert not refined_pairs.leaks(P, "Bar A is 120", "12") and not refined_pairs.leaks(P, "Bar A is 7", None)
    choice = problem(answer="B", answer_type="choice", choices=["11", "12"])
    assert refined_pairs.leaks(choice, "Sum: 7 + 5 = 12", "B") and not refined_pairs.leaks(choice, "Bar B is 5", "B")


def test_every_mode_is_described():
    assert all(MODES.values()) and set(refinement.NEEDS_CRITIC) == set(MODES) - {"truth", "fresh"}


def test_stages_count_of_those_that_came_so_far():
    columns = ["problem_id", "initial_correct", "flagged", "place_right", "correction_right", "refined_correct"]
    rows = [
        ("a", 0, 1, 1, 1, 1), ("a", 0, 1, 1, 1, 0), ("b", 0, 1, 1, 0, 0), ("b", 0, 1, 0, 1, 0),
        ("c", 0, 0, np.nan, np.nan, 1), ("c", 1, 1, 0, 0, 0), ("d", 1, 0, np.nan, np.nan, 1),
    ]  # fmt: skip
    table = refined_pairs.stages(pd.DataFrame(rows, columns=columns)).set_index("stage")
    # 4 of 5 wrong ones flagged, 3 of these 4 in place, 2 of 3 corrected rightly, 1 of 2 right then, 1 of 2 left alone
    assert table["value"].tolist() == pytest.approx([4 / 5, 3 / 4, 2 / 3, 1 / 2, 1 / 2])
    assert table["n"].tolist() == [5, 4, 3, 2, 2]
    blind = pd.DataFrame(rows, columns=columns).assign(place_right=np.nan, correction_right=np.nan)
    assert refined_pairs.stages(blind)["n"].tolist() == [5, 0, 0, 0, 2]


def test_pools_under_several_kinds_of_score_by_hand():
    initial = made(BAD, GOOD)
    groups, _ = pooled(initial)
    names = [s.solution_id for s in groups[0].candidates]  # wrong, its correction, right, a fresh one (wrong)
    values = {"good": (0.1, 0.9, 0.5, 0.2), "bad": (0.9, 0.1, 0.5, 0.2)}
    by_score = {how: dict(zip(names, each, strict=True)) for how, each in values.items()}
    table = pools.score_table({"correction": groups}, by_score, ns=[2, 4])
    assert table.columns.tolist() == ["mode", "score", "N", "value", "n", "low", "high"]
    assert table["score"].tolist() == ["good", "good", "bad", "bad"] and table["N"].tolist() == [2, 4, 2, 4]
    assert table["value"].tolist() == [1.0, 1.0, 0.0, 0.0]
