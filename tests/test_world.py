"""The embedded world: the truth about steps on hand-made scenes, splits, determinism, and the corpus's dials."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib import world
from mmprm_lib.schema import Problem
from mmprm_lib.world import families
from mmprm_lib.world.truth import NEUTRAL

BARS = {
    "family": "bars",
    "values": {"A": 7, "B": 5, "C": 3, "D": 2},
    "extra": {},
    "plan": [
        {"read": "Bar A", "key": "A", "takes": "A"},
        {"read": "Bar B", "key": "B", "takes": "B"},
        {"head": "Sum", "left": "A", "op": "+", "right": "B"},
        {"read": "Bar C", "key": "C", "takes": "C"},
        {"head": "Difference", "left": "r0", "op": "-", "right": "C"},
    ],
    "trap": [],
    "tricky": False,
    "look": 0,
}
RIGHT = ["Bar A is 7", "Bar B is 5", "Sum: 7 + 5 = 12", "Bar C is 3", "Difference: 12 - 3 = 9", "Answer: 9"]


def bars(answer="9", choices=()):
    kind = "choice" if choices else "number"
    return Problem(
        problem_id="p",
        question="?",
        image="p.png",
        image_sha256="0" * 64,
        answer=answer,
        answer_type=kind,
        choices=list(choices),
        source="world/bars",
        split="train",
        scene=BARS,
    )


def test_the_worked_solution_is_right_in_every_step():
    assert world.solve(bars()) == RIGHT
    assert world.truth(bars(), RIGHT) == [1] * 6


@pytest.mark.parametrize(
    ("prefix", "step", "expected"),
    [
        (0, "Bar A is 6", (-1, True, False, True)),  # the bar is 7: misread
        (0, "Bar D is 2", (0, False, True, True)),  # true, of no use
        (0, "Bar D is 9", (-1, False, False, True)),  # of no use and false
        (0, "Point A is 7", (-1, False, False, True)),  # a bar chart has no points
        (2, "Sum: 7 + 5 = 13", (-1, True, True, False)),  # arithmetic slip
        (2, "Difference: 7 - 5 = 2", (-1, False, True, True)),  # right values, not what is asked
        (2, "Sum: 5 + 7 = 12", (1, True, True, True)),  # the order of a sum does not matter
        (4, "Difference: 3 - 12 = 9", (-1, False, True, False)),  # of a difference it does
        (2, "Sum: 6 + 5 = 11", (-1, True, False, True)),  # carries a misreading on
        (5, "Answer: 9", (1, True, True, True)),
        (5, "Answer: 8", (-1, True, False, False)),
        (0, NEUTRAL[0], (0, True, True, True)),
        (0, "import os", (-1, False, False, False)),
        (0, "", (-1, False, False, False)),
    ],
)
def test_a_step_is_judged_in_three_aspects(prefix, step, expected):
    assert tuple(world.check_step(bars(), RIGHT[:prefix], step)) == expected


def test_a_later_right_reading_is_right_again_after_an_error():
    steps = ["Bar A is 6", "Bar B is 5", "Sum: 6 + 5 = 11", "Bar C is 3", "Difference: 11 - 3 = 8", "Answer: 8"]
    assert world.truth(bars(), steps) == [-1, 1, -1, 1, -1, -1]
    assert world.first_error(bars(), steps) == 0


def test_the_answer_of_a_choice_is_its_letter():
    problem = bars("B", ["12", "9", "3", "8"])
    assert world.solve(problem)[-1] == "Answer: B"
    assert world.check_step(problem, RIGHT[:5], "Answer: B").truth == 1
    assert world.check_step(problem, RIGHT[:5], "Answer: A").truth == -1
    assert world.check_step(problem, RIGHT[:5], "Answer: 9").truth == -1  # a number is no option


def test_the_correct_step_is_the_first_planned_one_not_done():
    assert [world.correct_step(bars(), RIGHT[:i]) for i in range(6)] == RIGHT
    assert world.correct_step(bars(), ["Look at the figure", *RIGHT[:2]]) == RIGHT[2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(list(world.FAMILIES)), st.floats(0, 1))
def test_every_problem_solves_itself_and_every_correction_leads_to_the_answer(seed, family, difficulty):
    ((problem, _),) = world.draw(1, seed, difficulty=difficulty, families=(family,))
    steps = []
    while not (steps and steps[-1].startswith("Answer")):
        steps.append(world.correct_step(problem, steps))
        assert world.check_step(problem, steps[:-1], steps[-1]).truth == 1
    assert steps == world.solve(problem) and 3 <= len(steps) <= 7
    assert steps[-1] == f"Answer: {problem.answer}"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=3))
def test_any_text_is_judged_and_none_raises(step, prefix):
    assert world.check_step(bars(), prefix, step).truth in (-1, 0, 1)


def test_the_same_seed_gives_the_same_problems_and_pixels():
    first, again, other = world.draw(20, 3), world.draw(20, 3), world.draw(20, 4)
    assert [p for p, _ in first] == [p for p, _ in again]
    assert [i.tobytes() for _, i in first] == [i.tobytes() for _, i in again]
    assert [p.scene for p, _ in first] != [p.scene for p, _ in other]


def test_no_scene_stands_in_two_splits():
    keys = {name: {world.scene_key(p.scene) for p, _ in world.draw(150, 0, name)} for name in ("train", "dev", "test")}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["dev"] and not keys["dev"] & keys["test"]


def test_families_forms_and_the_dials_of_draw():
    problems = [p for p, _ in world.draw(100, 0, choice_share=1.0, tricky_share=0.0, difficulty=0.0)]
    assert {p.scene["family"] for p in problems} == set(families.FAMILIES) and len(families.FAMILIES) >= 5
    assert all(len(set(p.choices)) == 4 and p.answer in "ABCD" and not p.scene["tricky"] for p in problems)
    long = [p for p, _ in world.draw(100, 0, choice_share=0.0, tricky_share=1.0, difficulty=1.0)]
    assert all(not p.choices and p.scene["tricky"] for p in long)
    lengths = [sum(len(world.solve(p)) for p in group) / len(group) for group in (long, problems)]
    assert lengths[0] > lengths[1] + 0.5
    images = [image for _, image in world.draw(3, 0)]
    assert all(image.size == (112, 112) and image.mode == "RGB" for image in images)


def test_asking_for_more_problems_than_there_are_is_one_clear_error():
    with pytest.raises(ValueError, match="fewer than n = 900 different problems"):
        world.draw(900, 0, "dev", families=("triangle",))


def test_the_corpus_errs_as_its_dials_say():
    problems = [p for p, _ in world.draw(200, 1)]

    def share(group, **rates):
        wrong = sum(
            world.first_error(p, world.corpus_solution(p, random.Random(i), **rates)) is not None
            for i, p in enumerate(group)
        )
        return wrong / len(group)

    clean = dict(slip=0.0, misconception=0.0, background=0.0)
    assert share(problems, **clean) == 0.0
    tricky, plain = ([p for p in problems if p.scene["tricky"] is kind] for kind in (True, False))
    assert share(tricky, **clean | {"misconception": 1.0}) > 0.9  # now and then the neighbour is as high
    assert share(plain, **clean | {"misconception": 1.0}) == 0.0
    assert share(plain, **clean | {"background": 1.0}) > 0.9
    assert 0.2 < share(plain, **clean | {"slip": 0.1}) < 0.6  # 1 - 0.9^(2 to 6) = 0.19 to 0.47, a little noise


def test_a_misconception_goes_the_same_way_every_time():
    problems = [p for p, _ in world.draw(60, 2, tricky_share=1.0, choice_share=0.0)]
    for problem in problems:
        answers = {
            tuple(world.corpus_solution(problem, random.Random(i), slip=0, misconception=1, neutral=0))
            for i in range(5)
        }
        assert len(answers) == 1


def test_kinds_of_steps_and_errors():
    kinds = [world.step_kind(s) for s in [*RIGHT, NEUTRAL[1], "hello"]]
    assert kinds == ["read", "read", "deduce", "read", "deduce", "answer", "neutral", "other"]
    wrong = ["Bar A is 6", "Sum: 7 + 5 = 13", "Difference: 7 - 5 = 2", "Bar A is 7"]
    assert [world.error_kind(world.check_step(bars(), RIGHT[:2], s)) for s in wrong] == ["image", "logic", "intent", ""]
