"""Teachers: what the world says of a step, what an endpoint is asked; and which critiques the filters let through."""

from __future__ import annotations

import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import world
from mmprm_lib.critique import FORMATS, TeacherCritique, fault_of, parse, render
from mmprm_lib.decoding import Sampling
from mmprm_lib.endpoint import Endpoint
from mmprm_lib.models import new_tokenizer
from mmprm_lib.schema import Critique, CritiqueStep, StepLabels
from mmprm_lib.teachers import (
    MISTAKES,
    SAMPLING,
    WRONG_SHARE,
    balance,
    consensus,
    endpoint_teacher,
    teacher_chat,
    validate_corrections,
    world_critique,
    world_teacher,
)
from mmprm_lib.world import check_step
from mmprm_lib.world.explain import correction, explain
from mmprm_lib.world.truth import NEUTRAL
from tests.doubles import ToyGenerator, problem, say, solution
from tests.servers import ChatServer, ok, status

# -- the world


def bars(question="What are bar A and bar B together, plus bar C?", choices=(), answer="12", **values):
    """A problem about bars A 4, B 3, C 5, D 9: 4 + 3 = 7, 7 + 5 = 12."""
    plan = [
        {"read": "Bar A", "key": "A", "takes": "A"}, {"read": "Bar B", "key": "B", "takes": "B"},
        {"head": "Sum", "left": "A", "op": "+", "right": "B"}, {"read": "Bar C", "key": "C", "takes": "C"},
        {"head": "Sum", "left": "r0", "op": "+", "right": "C"},
    ]  # fmt: skip
    scene = {"family": "bars", "values": dict(A=4, B=3, C=5, D=9) | values, "plan": plan, "trap": plan, "extra": {}}
    kind = "choice" if choices else "number"
    return problem("p0", answer, question=question, scene=scene, choices=list(choices), answer_type=kind)


RIGHT = ["Bar A is 4", "Bar B is 3", "Sum: 4 + 3 = 7", "Bar C is 5", "Sum: 7 + 5 = 12", "Answer: 12"]


class First(random.Random):
    """Always takes the first wording, and never errs."""

    def choice(self, seq):
        """The first."""
        return seq[0]

    def random(self) -> float:
        """The largest."""
        return 1.0


def told(steps: list[str], **fields) -> Critique:
    """The critique of a solution of `bars()` in the first wordings."""
    return world_critique(bars(**fields), steps, First())


def test_a_right_solution_gets_this_critique():
    text = render(told(RIGHT))
    blocks = [
        "Step 1\nIntent: Read Bar A\nImage: Bar A is 4\nLogic: Bar A is 4\nJudgement: Correct",
        "Step 2\nIntent: Read Bar B\nImage: Bar B is 3\nLogic: Bar B is 3\nJudgement: Correct",
        "Step 3\nIntent: Sum of Bar A and Bar B\nImage: Bar A is 4, Bar B is 3\n"
        "Logic: Sum: 4 + 3 = 7\nJudgement: Correct",
        "Step 4\nIntent: Read Bar C\nImage: Bar C is 5\nLogic: Bar C is 5\nJudgement: Correct",
        "Step 5\nIntent: Sum of Sum and Bar C\nImage: Sum is 7, Bar C is 5\n"
        "Logic: Sum: 7 + 5 = 12\nJudgement: Correct",
        "Step 6\nIntent: Answer the Question\nImage: Sum is 12\nLogic: Answer: 12\nJudgement: Correct",
    ]
    assert text == "\n\n".join(blocks)


A, B, C = "Bar A is 4", "Bar B is 3", "Bar C is 5"
FIRST_SUM, LAST_SUM = "Sum: 4 + 3 = 7", "Sum: 7 + 5 = 12"


@pytest.mark.parametrize(
    ("prefix", "wrong", "intent", "image", "logic", "corrected"),
    [
        # a misreading; out of order, too, it is the same bar that is read anew
        ([], "Bar A is 9", "Read Bar A", "Bar A is 4", A, A),
        ([], "Bar B is 5", "Read Bar B", "Bar B is 3", B, B),
        ([A, B, FIRST_SUM], "Bar C is 6", "Read Bar C", "Bar C is 5", C, C),
        # a sum that is not yet done is what a later bar waits for: the misread bar is not wanted yet
        ([A, B], "Bar C is 6", "Read Bar C", "Bar C is 5", C, FIRST_SUM),
        # a slip of arithmetic, a wrong operation, a number carried from nowhere, and the same numbers turned round
        ([A, B], "Sum: 4 + 3 = 8", "Sum of Bar A and Bar B", f"{A}, {B}", FIRST_SUM, FIRST_SUM),
        ([A, B], "Cost: 4 * 3 = 12", "Sum of Bar A and Bar B", f"{A}, {B}",
         FIRST_SUM, FIRST_SUM),
        ([A, B], "Sum: 4 + 8 = 12", "Sum of Bar A and Bar B", f"{A}, {B}", FIRST_SUM, FIRST_SUM),
        ([A, B], "Sum: 3 + 4 = 8", "Sum of Bar A and Bar B", f"{A}, {B}", FIRST_SUM, FIRST_SUM),
        # the second sum of the plan, once the first one is there
        ([A, B, FIRST_SUM, C], "Sum: 7 + 5 = 11", "Sum of Sum and Bar C", "Sum is 7, Bar C is 5",
         LAST_SUM, LAST_SUM),
        # what nobody asked for, what does not exist, what is no step at all
        ([], "Bar D is 2", "Read Bar D", "Bar D is 9", "Bar D is 9", A),
        ([], "Bar E is 2", "Read Bar A", "Bar A is 4", A, A),
        ([], "Angle A is 4", "Read Bar A", "Bar A is 4", A, A),
        ([A], "I  guess\nso", "Read Bar B", "Bar B is 3", B, B),
        # an answer too early, and a wrong one
        ([A, B, FIRST_SUM], "Answer: 7", "Read Bar C", "Bar C is 5", C, C),
        (RIGHT[:5], "Answer: 7", "Answer the Question", "Sum is 12", "Answer: 12", "Answer: 12"),
        (RIGHT[:5], "Answer: B", "Answer the Question", "Sum is 12", "Answer: 12", "Answer: 12"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_explained_and_corrected(prefix, wrong, intent, image, logic, corrected):
    critique = told([*prefix, wrong, "Answer: 12"])
    last = critique.steps[-1]
    assert critique.first_error == len(prefix) + 1 == len(critique.steps) and last.verdict == "incorrect"
    assert (last.intent, last.image, last.logic) == (intent, image, logic)
    assert critique.corrected_step == corrected
    assert {s.verdict for s in critique.steps[:-1]} <= {"correct"}


def test_a_letter_is_looked_up_in_the_options():
    fields = dict(choices=("7", "12", "13", "2"), answer="B")
    right, wrong, number = (told([*RIGHT[:5], f"Answer: {x}"], **fields) for x in ("B", "C", "12"))
    assert (right.steps[-1].image, right.steps[-1].logic) == ("Sum is 12, B is 12", "Answer: B")
    assert right.first_error == 0 and right.corrected_step is None
    assert (wrong.steps[-1].image, wrong.steps[-1].logic) == ("Sum is 12, B is 12", "Answer: B")
    assert wrong.corrected_step == number.corrected_step == "Answer: B"
    assert (number.steps[-1].image, number.steps[-1].logic) == ("Sum is 12, B is 12", "Answer: B")


def test_neutral_steps_are_correct_and_so_are_true_ones_of_no_use():
    critique = told(["Look at the figure", "Bar D is 9", *RIGHT])
    assert critique.first_error == 0 and [s.verdict for s in critique.steps] == ["correct"] * 8
    assert critique.steps[0].model_dump() == dict(
        intent="Look first", image="No statement", logic="No statement is False", verdict="correct", p_correct=None
    )
    assert critique.steps[1].logic == "Bar D is 9"


def test_the_same_numbers_in_another_order_are_right():
    critique = told([B, A, "Sum: 3 + 4 = 7", C, "Sum: 5 + 7 = 12", "Answer: 12"])
    assert critique.first_error == 0
    assert critique.steps[2].logic == "Sum: 3 + 4 = 7"


def due(logic: str) -> str:
    """What the step should say, whatever the wording."""
    return logic.removeprefix("Now ").removeprefix("True: ")


WORLD = [p for p, _ in world.draw(120, 5, difficulty=0.6)]


def sampled(rng: random.Random) -> tuple:
    """A problem and a solution with many errors."""
    drawn = rng.choice(WORLD)
    return drawn, world.corpus_solution(drawn, rng, slip=0.3, misconception=0.7, background=0.2)


@given(st.randoms(use_true_random=False))
def test_the_logic_states_the_step_exactly_where_it_is_right_and_every_correction_is_right(rng):
    drawn, steps = sampled(rng)
    critique = world_critique(drawn, steps, rng)
    truth = world.truth(drawn, steps)
    assert critique.first_error == next((k for k, t in enumerate(truth, start=1) if t == -1), 0)
    for said, text in zip(critique.steps, steps, strict=False):
        if text not in NEUTRAL:
            assert (due(said.logic) == text) is (said.verdict == "correct"), said.logic
    if critique.first_error:
        before, wrong = steps[: critique.first_error - 1], steps[critique.first_error - 1]
        assert critique.corrected_step != wrong
        assert check_step(drawn, before, critique.corrected_step).truth == 1
    assert parse("solution", render(critique), len(steps)) == critique
    bare = FORMATS["verdict_only"]
    assert parse("solution", render(critique, bare), len(steps), bare).first_error == critique.first_error


@given(st.lists(st.text(max_size=12) | st.sampled_from(RIGHT), min_size=1, max_size=4), st.randoms())
def test_any_text_as_a_step_can_be_explained(steps, rng):
    critique = world_critique(bars(), steps, rng)
    assert fault_of(critique, len(steps)) is None


def test_a_critique_is_cheap_and_in_the_models_own_words():
    tokenizer, rng = new_tokenizer(), random.Random(3)
    words = {w.strip() for w in world.vocabulary()}
    n_tokens, wordings = [], set()
    for _ in range(200):
        drawn, steps = sampled(rng)
        critique = world_critique(drawn, steps, rng)
        n_tokens.append(len(tokenizer(render(critique))["input_ids"]) / len(critique.steps))
        for said in critique.steps:
            spoken = f"{said.intent} {said.image} {said.logic}"
            assert all(w in words for w in "".join(c if c.isalpha() else " " for c in spoken).split()), spoken
            wordings.add("".join("" if c.isdigit() else c for c in spoken))
    assert 25 < sum(n_tokens) / len(n_tokens) < 45
    assert len(wordings) > 300


def test_explaining_reads_the_figure_and_not_the_claim():
    honest, fooled = (explain(bars(A=value), [], "Bar A is 9", First()) for value in (4, 9))
    assert (honest.image, fooled.image) == ("Bar A is 4", "Bar A is 9")
    assert correction(bars(), [], "Bar A is 9") == "Bar A is 4"


# -- noise


def test_a_teacher_is_repeatable_by_solution_and_its_noise_is_a_share():
    drawn = WORLD[:100]
    rng = random.Random(1)
    solutions = [solution(f"{p.problem_id}/s{i}", tuple(world.corpus_solution(p, rng)), problem_id=p.problem_id)
                 for p in drawn for i in range(4)]  # fmt: skip
    clean, noisy, again = (list(world_teacher(solutions, drawn, seed=7, noise=x)) for x in (0.0, 0.3, 0.3))
    assert noisy == again and [r.solution_id for r in clean] == [s.solution_id for s in solutions]
    assert list(world_teacher(solutions[5:6], drawn, seed=7, noise=0.3)) == noisy[5:6]
    assert list(world_teacher(solutions, drawn, seed=8)) != clean
    assert {clean[0].teacher, noisy[0].teacher} == {"world", "world, noise 0.3"}
    # 400 draws of chance 0.3: 120 expected, 27.5 is three standard deviations
    assert abs(sum(a.critique != b.critique for a, b in zip(clean, noisy, strict=True)) - 120) < 28
    assert all(fault_of(r.critique, len(r.steps)) is None for r in noisy)


@given(st.randoms(use_true_random=False), st.sampled_from(list(MISTAKES)))
def test_every_mistake_changes_a_critique_and_keeps_its_format(rng, kind):
    drawn, steps = sampled(rng)
    right = world_critique(drawn, steps, random.Random(0))
    wrong = MISTAKES[kind](drawn, steps, right, rng)
    assert fault_of(wrong, len(steps)) is None
    moved = wrong.first_error != right.first_error
    if kind in ("flipped", "misplaced"):
        assert moved
    elif kind == "miscorrected" and right.first_error:
        assert not moved and wrong.corrected_step != right.corrected_step and wrong.steps == right.steps
    else:
        changed = [a.image != b.image for a, b in zip(right.steps, wrong.steps, strict=False)]
        assert moved or (sum(changed) == 1 and wrong.corrected_step == right.corrected_step)


def test_a_problem_without_a_scene_and_a_solution_without_a_problem_are_refused():
    with pytest.raises(ValueError, match="ask an endpoint_teacher"):
        list(world_teacher([solution()], [problem()]))
    with pytest.raises(KeyError, match="which is not given"):
        list(world_teacher([solution()], []))
    with pytest.raises(ValueError, match="noise is 2"):
        list(world_teacher([solution()], [bars()], noise=2))


def test_an_empty_solution_has_no_critique():
    (record,) = world_teacher([solution(steps=())], [bars()])
    assert record.critique.parse == "failed: the solution has no step"


# -- an endpoint

READ = """Step 1
Intent: add up
Image: there are \\frac{12}{1} dots
Logic: fine
Judgement: Correct

Step 2
Intent: go on
Image: there are 12
Logic: 5 is not 12
Judgement: Incorrect

Correct Step: there are 12"""


@pytest.fixture
def seen(tmp_path):
    """A problem with a real image."""
    (drawn, image), *_ = world.draw(1, 0)
    image.save(tmp_path / "i.png", "PNG", compress_level=1)
    values = drawn.model_dump() | dict(problem_id="p0", image="i.png", scene=None)
    found = type(drawn)(**values)
    found._root = tmp_path
    return found


def test_an_endpoint_is_asked_with_image_steps_and_answer(seen, tmp_path):
    with ChatServer([ok(READ, n_completion=40)]) as server:
        endpoint = Endpoint(server.url, "toy", prices=(1.0, 10.0))
        (record,) = endpoint_teacher([solution()], [seen], endpoint, tmp_path / "replies.jsonl")
    assert record.critique == parse("p0/s0", READ, 3) and record.critique.first_error == 2
    assert record.critique.steps[0].image == r"there are \frac{12}{1} dots"
    assert (record.teacher, record.n_tokens, record.steps) == ("toy", 40, ["one", "two", "Answer: 12"])
    assert endpoint.cost == pytest.approx((7 * 1.0 + 40 * 10.0) / 1e6)
    system, user = server.requests[0]["messages"]
    image, text = user["content"]
    assert system["role"] == "system" and image["image_url"]["url"].startswith("data:image/png;base64,")
    order = [seen.question, "Step 1: one\nStep 2: two\nStep 3: Answer: 12", "Go through the steps", seen.answer]
    assert [text["text"].find(part) for part in order] == sorted(text["text"].find(part) for part in order)
    assert all(part in text["text"] for part in order)


def test_the_answer_can_be_withheld_from_the_teacher():
    told_, untold = (teacher_chat(solution(), problem(answer="31415"), show).messages[1]["content"] for show in (1, 0))
    assert "31415" in told_ and "31415" not in untold and "reference" not in untold


def test_sampling_and_silence_about_the_answer_reach_the_endpoint(seen, tmp_path):
    with ChatServer([ok(READ)]) as server:
        endpoint_teacher([solution()], [seen], Endpoint(server.url, "toy"), tmp_path / "r.jsonl", show_answer=False,
                         sampling=Sampling(temperature=0.25, max_new_tokens=77))  # fmt: skip
    (sent,) = server.requests
    assert (sent["temperature"], sent["max_tokens"]) == (0.25, 77)
    assert "For your eyes only" not in sent["messages"][1]["content"][1]["text"]


def test_steps_of_several_lines_cannot_pass_for_others():
    text = teacher_chat(solution(steps=("a\nStep 2: b", "c")), problem()).messages[1]["content"]
    assert "Step 1: a\n  Step 2: b\nStep 2: c\n" in text


def test_what_cannot_be_read_is_asked_once_more_and_then_counted(seen, tmp_path):
    replies = {"p0/s0": ["gibberish", READ], "p0/s1": ["no", "no"], "p0/s2": [READ]}
    solutions = [solution(name, steps=(name, "two", "three")) for name in replies]

    def script(request):
        text = request["messages"][1]["content"][1]["text"]
        name = next(n for n in replies if n in text)
        return ok(replies[name]["could not be read" in text], n_completion=5)

    with ChatServer(script) as server:
        endpoint = Endpoint(server.url, "toy")
        records = endpoint_teacher(solutions, [seen], endpoint, tmp_path / "replies.jsonl")
        assert len(server.requests) == 5  # three, and two again
        assert endpoint_teacher(solutions, [seen], endpoint, tmp_path / "replies.jsonl") == records
        assert len(server.requests) == 5  # nothing is paid for twice
        (once,) = endpoint_teacher(solutions[:1], [seen], endpoint, tmp_path / "one.jsonl", n_attempts=1)
    assert [r.critique.parse[:12] for r in records] == ["ok", "failed: text", "ok"]
    assert [r.n_tokens for r in records] == [10, 10, 5]
    assert once.critique.parse.startswith("failed: text 'before the first step'")
    again = [r["messages"][1]["content"][1]["text"] for r in server.requests if "could not" in str(r)]
    assert "failed: text 'before the first step' that is in no field: 'gibberish'" in " ".join(again)


def test_a_failed_request_is_no_attempt_and_is_asked_again_by_the_next_run(seen, tmp_path):
    with ChatServer([status(400, "overfull"), ok(READ)]) as server:
        endpoint = Endpoint(server.url, "toy")
        (failed,) = endpoint_teacher([solution()], [seen], endpoint, tmp_path / "r.jsonl")
        assert failed.critique.parse.startswith("failed: no reply: ") and len(server.requests) == 1
        (mended,) = endpoint_teacher([solution()], [seen], endpoint, tmp_path / "r.jsonl")
    assert mended.critique.parse == "ok"


def test_a_cut_reply_and_an_empty_solution_are_failures(seen, tmp_path):
    with ChatServer([ok(READ, finish="length")]) as server:
        teacher = endpoint_teacher([solution(), solution("p0/s1", steps=())], [seen], Endpoint(server.url, "toy"),
                                   tmp_path / "r.jsonl")  # fmt: skip
        assert len(server.requests) == 2  # the cut one twice, the empty one never
    assert [r.critique.parse for r in teacher] == ["failed: cut at max_new_tokens", "failed: the solution has no step"]


def test_records_of_both_teachers_are_plain_json_lines(seen, tmp_path):
    with ChatServer([ok(READ)]) as server:
        (record,) = endpoint_teacher([solution()], [seen], Endpoint(server.url, "toy"), tmp_path / "r.jsonl")
    assert TeacherCritique.model_validate_json(record.model_dump_json()) == record
    assert json.loads(record.model_dump_json())["critique"]["steps"][0]["image"] == r"there are \frac{12}{1} dots"


# -- filters


def taught(first_error: int, n: int = 3, corrected: str = "new", name: str = "p0/s0", image="m", parse="ok"):
    """A teacher's critique that puts the first error at a step (0: nowhere) of a solution of n steps "x1", "x2", ..."""
    verdicts = ["correct"] * n if not first_error else ["correct"] * (first_error - 1) + ["incorrect"]
    steps = [CritiqueStep(intent="i", image=image, logic="l", verdict=v) for v in verdicts]
    critique = Critique(solution_id=name, steps=steps, first_error=first_error,
                        corrected_step=corrected if first_error else None, parse=parse)  # fmt: skip
    texts = [f"x{k}" for k in range(1, n + 1)]
    return TeacherCritique(solution_id=name, problem_id="p0", steps=texts, critique=critique, teacher="toy")


def labels(*scores: float | None, name: str = "p0/s0") -> StepLabels:
    """Monte Carlo labels with these scores."""
    nothing = [None] * len(scores)
    return StepLabels(
        solution_id=name, problem_id="p0", steps=[f"x{k}" for k in range(1, len(scores) + 1)], n_rollouts=nothing,
        n_correct=nothing, n_unknown=nothing, mc_score=list(scores), strategy="toy", n_generated_tokens=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("critique", "scores", "why"),
    [
        (taught(0), (1.0, 0.5, 0.1), None),
        (taught(2), (0.9, 0.0, 0.0), None),
        (taught(2), (0.9, 0.0, None), None),  # labeling stopped at the first error
        (taught(2), (0.9, 0.0, 0.6), None),  # the policy came back: the first error counts
        (taught(2), (0.9, 0.8, 0.0), "another step"),
        (taught(3), (0.9, 0.0, 0.0), "another step"),
        (taught(0), (0.9, 0.0, 0.0), "error missed"),
        (taught(3), (0.9, 0.9, 0.9), "error imagined"),
        (taught(2), (None, 0.0, 0.0), "unlabelled"),
        (taught(0), (1.0, None, 1.0), "unlabelled"),
        (taught(2, corrected="x2"), (0.9, 0.0, 0.0), "correction changes nothing"),
        (taught(2, corrected=" x2\n"), (0.9, 0.0, 0.0), "correction changes nothing"),
        (taught(2, corrected="123456"), (0.9, 0.0, 0.0), None),  # 6 characters for 2
        (taught(2, corrected="1234567"), (0.9, 0.0, 0.0), "correction too long"),
        (taught(2, corrected=" "), (0.9, 0.0, 0.0), "unreadable"),
        (taught(0, parse="failed: hm"), (1.0, 1.0, 1.0), "unreadable"),
        (taught(0, image="as the Expected Answer says"), (1.0, 1.0, 1.0), "shows the answer"),
        (taught(2, corrected="the reference"), (0.9, 0.0, 0.0), "shows the answer"),
        (taught(0, image="it prefers 5"), (1.0, 1.0, 1.0), None),
    ],
)
def test_a_critique_is_kept_if_its_first_error_is_where_the_labels_put_it(critique, scores, why):
    kept, dropped = consensus([critique], [labels(*scores)])
    assert (kept, dropped) == (([critique], Counter()) if why is None else ([], Counter({why: 1})))


def test_a_judge_who_stops_too_early_is_unreadable():
    short = taught(0, n=2)
    short.steps.append("x3")
    assert consensus([short], [labels(1.0, 1.0, 1.0)]) == ([], Counter(unreadable=1))


def test_the_threshold_of_the_labels_is_an_option():
    assert consensus([taught(2)], [labels(0.9, 0.1, 0.0)])[1] == Counter({"another step": 1})
    assert consensus([taught(2)], [labels(0.9, 0.1, 0.0)], threshold=0.1)[1] == Counter()


def test_nothing_is_dropped_without_being_counted_and_nothing_joined_wrongly():
    critiques = [taught(0, name=f"p0/s{i}") for i in range(4)]
    known = [labels(1.0, 1.0, 1.0, name="p0/s0"), labels(1.0, 0.0, 0.0, name="p0/s2"), labels(None, 1, 1, name="p0/s3")]
    kept, dropped = consensus(critiques, known)
    assert [r.solution_id for r in kept] == ["p0/s0"]
    assert dropped == {"unlabelled": 2, "error missed": 1} and len(kept) + dropped.total() == 4
    with pytest.raises(ValueError, match="of other steps than its critique"):
        consensus([taught(0)], [labels(1.0, 1.0)])


def test_noise_is_caught_by_perfect_labels_where_labels_can_see_it():
    rng = random.Random(2)
    pairs = [sampled(rng) for _ in range(200)]
    drawn = [p.model_copy(update={"problem_id": f"q{i}"}) for i, (p, _) in enumerate(pairs)]
    solutions = [solution(f"q{i}/s0", tuple(steps)) for i, (_, steps) in enumerate(pairs)]
    perfect = []
    for p, s in zip(drawn, solutions, strict=True):
        scores = [float(t != -1) for t in world.truth(p, s.steps)]
        perfect.append(labels(*scores, name=s.solution_id).model_copy(update={"steps": s.steps}))
    clean, noisy = (list(world_teacher(solutions, drawn, noise=x)) for x in (0.0, 1.0))
    assert consensus(clean, perfect) == (clean, Counter())
    kept, dropped = consensus(noisy, perfect)
    assert set(dropped) >= {"error missed", "error imagined", "another step"}
    assert {r.critique.first_error for r in kept} == {
        c.critique.first_error for c, n in zip(clean, noisy, strict=True) if n in kept
    }


# -- corrections


def policy(answers: dict[str, list[str]]):
    """A generator that goes on from a prefix with the answers listed under its last step, one per sample."""
    return ToyGenerator(lambda request, i, sampling: say(answers[request.prefix[-1]][i]))


def test_a_correction_is_kept_if_one_rollout_from_it_gets_the_answer():
    critiques = [taught(0, name="p0/s0"), *(taught(2, corrected=c, name=f"p0/{c}") for c in ("good", "bad", "mute"))]
    generator = policy({
        "good": ["Answer: 1", "Answer: 2", "Answer: 3", "Answer: 12"], "bad": ["Answer: 1"] * 4, "mute": ["hm"] * 4,
    })  # fmt: skip
    kept, dropped = validate_corrections(critiques, [problem()], generator)
    assert [r.solution_id for r in kept] == ["p0/s0", "p0/good"]
    assert dropped == {"correction fails": 1, "correction unknown": 1}
    assert generator.n_given == 3  # nothing is asked where there is no error
    kept, _ = validate_corrections(critiques, [problem()], generator, n=3)
    assert [r.solution_id for r in kept] == ["p0/s0"]  # the fourth rollout was the one


def test_rollouts_go_on_inside_the_turn_and_are_shared():
    requests = []

    def script(request, i, sampling):
        requests.append((request.prefix, request.instruction, request.opening, sampling))
        return say("Answer: 12")

    critiques = [taught(2, name="p0/s0"), taught(2, name="p0/s1"), taught(3, name="p0/s2")]
    kept, _ = validate_corrections(critiques, [problem()], ToyGenerator(script), n=1)
    assert kept == critiques
    assert sorted(requests, key=lambda r: r[0]) == [
        (("x1", "new"), "", "", SAMPLING), (("x1", "x2", "new"), "", "", SAMPLING)]  # fmt: skip
    validate_corrections(critiques[:1], [problem()], ToyGenerator(script), sampling=Sampling(0.5))
    assert requests[-1][3] == Sampling(0.5)


def test_a_correction_that_states_the_answer_is_judged_as_it_is():
    critiques = [taught(3, corrected=f"Answer: {x}", name=f"p0/{x}") for x in (12, 13)]
    kept, dropped = validate_corrections(critiques, [problem()], SimpleNamespace())  # nothing is sampled
    assert [r.solution_id for r in kept] == ["p0/12"] and dropped == {"correction fails": 1}


def test_without_rollouts_every_correction_is_believed():
    critiques = [taught(2, name="p0/s0"), taught(0, name="p0/s1")]
    kept, dropped = validate_corrections(critiques, [problem()], SimpleNamespace(), n=0)  # nothing is sampled
    assert kept == critiques and not dropped


def test_a_correction_of_an_unknown_problem_is_refused():
    with pytest.raises(KeyError, match="which is not given"):
        validate_corrections([taught(2)], [], SimpleNamespace())


# -- balance


@pytest.mark.parametrize(
    ("n_wrong", "n_right", "share", "kept"),
    [(60, 30, 0.5, (30, 30)), (30, 60, 0.25, (20, 60)), (46, 54, 0.46, (46, 54)), (2, 1000, WRONG_SHARE, (2, 2))],
)
def test_a_set_is_thinned_to_the_share_of_wrong_solutions(n_wrong, n_right, share, kept):
    records = [taught(2 * (i < n_wrong), name=f"p0/s{i}") for i in range(n_wrong + n_right)]
    random.Random(0).shuffle(records)
    chosen = balance(records, share)
    assert (sum(r.critique.first_error > 0 for r in chosen), sum(r.critique.first_error == 0 for r in chosen)) == kept
    assert chosen == [r for r in records if r in chosen]  # in their order
    assert balance(records, share) == chosen


def test_the_seed_of_the_balance_decides_who_stays():
    records = [taught(2 * (i % 3 > 0), name=f"p0/s{i}") for i in range(60)]
    one, other = (balance(records, 0.5, seed) for seed in (0, 1))
    assert len(one) == len(other) == 40 and one != other


def test_one_kind_alone_cannot_be_balanced():
    with pytest.raises(ValueError, match="0 with and 1 without an error"):
        balance([taught(0)])
    with pytest.raises(ValueError, match="share of 1.0"):
        balance([taught(0), taught(2)], 1.0)


def test_the_papers_share_is_46_percent():
    assert pytest.approx(0.462, abs=5e-4) == WRONG_SHARE  # 9,061 of 19,614
