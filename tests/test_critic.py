"""The generative PRM: training reaches decoding, probabilities are the model's own, and some output is never scored."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import critic, critique, data, models, policy
from mmprm_lib.critic import COUNTS, Critic, critiques_to, step_scores, vote
from mmprm_lib.critic_training import START_WORDS, form_of, loss_weights, start_words, training_texts
from mmprm_lib.critique import FORMATS, INSTRUCTION, VERDICT_CUE, VERDICTS, TeacherCritique
from mmprm_lib.encoding import Encoder
from mmprm_lib.generation import Completion, TransformersGenerator
from mmprm_lib.schema import Critique, CritiqueStep
from mmprm_lib.steps import FORMATS as PRM_FORMATS
from mmprm_lib.steps import policy_prompt
from tests.doubles import problem, solution

FORM = FORMATS["critique"]
GOOD = ("Bar A is 3", "Bar B is 5", "Sum: 3 + 5 = 8")
BAD = ("Bar A is 3", "Bar B is 4", "Sum: 3 + 4 = 7")


def judged(verdicts, p=None, corrected=None, solution_id="p0/s0", parse="ok"):
    """A critique with so many verdicts, "+" or "-"."""
    words = [{"+": "correct", "-": "incorrect"}[v] for v in verdicts]
    steps = [
        CritiqueStep(intent=f"Read {k}", image=f"Bar is {k}", logic="8", verdict=word, p_correct=p and p[k])
        for k, word in enumerate(words)
    ]
    wrong = len(steps) if verdicts.endswith("-") else 0
    corrected = corrected or ("Bar B is 5" if wrong else None)
    found = dict(solution_id=solution_id, steps=steps, first_error=wrong, corrected_step=corrected, parse=parse)
    return Critique(**found)


def unreadable(why="failed: no step"):
    return Critique(solution_id="p0/s0", steps=[], first_error=None, corrected_step=None, parse=why)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return data.from_world({"train": 3}, 0, tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="module")
def solutions(problems):
    """A right and a wrong solution of every problem."""
    texts = [(p, kind, steps) for p in problems for kind, steps in (("s0", GOOD), ("s1", BAD))]
    return [solution(f"{p.problem_id}/{k}", s, problem_id=p.problem_id) for p, k, s in texts]


@pytest.fixture(scope="module")
def records(solutions):
    return [
        TeacherCritique(
            solution_id=s.solution_id, problem_id=s.problem_id, steps=s.steps, teacher="toy",
            critique=judged("+++" if s.steps == list(GOOD) else "+-", solution_id=s.solution_id),
        )
        for s in solutions
    ]  # fmt: skip


def tiny():
    processor = models.new_processor()
    sizes = dict(width=64, layers=2, vision_layers=1)
    return models.new_base(0, tokenizer=processor.tokenizer, **sizes), processor


def trained(records, problems, folder, **options):
    options = dict(learning_rate=5e-3, epochs=100.0, batch_size=6) | options
    return critic.train(*(pair := tiny()), records, problems, folder, **options)[0], pair[1]


@pytest.fixture(scope="module")
def learnt(records, problems, tmp_path_factory):
    """(model, processor) that knows the six critiques by heart."""
    return trained(records, problems, tmp_path_factory.mktemp("learnt"))


@pytest.fixture(scope="module")
def random():
    return tiny()


def new(model, processor, form="critique", batch_size=256):
    return Critic(TransformersGenerator(model, processor, batch_size), form)


def by_id(found):
    return {c.solution_id: c for c in found}


def scripted(pair, *texts):
    """A critic whose model writes these texts, one per call; what was asked is in `asked`."""
    found, asked, said = new(*pair), [], list(texts)

    def sample(requests, n, sampling, more):
        waiting = [(request, n) for request in requests]
        for request, n in waiting:  # grows
            asked.append((request, n, sampling))
            completions = [said.pop(0) for _ in range(n)]
            follow = [more(request, i, c) for i, c in enumerate(completions) if not c.error]
            waiting += [(f, 1) for f in follow if f is not None]
            yield request, completions

    found.generator = SimpleNamespace(sample=sample, fingerprint="toy")
    return found, asked


def say(text, *p_correct, finish="stop", coverage=1.0):
    probs = tuple((coverage * p, coverage * (1 - p)) for p in p_correct)
    return Completion(text, len(text.split()), finish, "", probs)


def words(verdict, *p_correct, **options):
    """What a model writes about a step, after "Intent:", up to the verdict."""
    return say(f" Read 0\nImage: b\nLogic: c\nJudgement: {verdict}", *p_correct, **options)


RIGHT = [words("Correct", 0.9)] * 3
WRONG = [words("Correct", 0.9), words("Incorrect", 0.1), say(" Bar B is 5")]


# -- training


def test_the_loss_is_on_the_critique_alone(problems, records, random):
    _, processor = random
    texts = training_texts(processor, records[1:2], problems, FORM)
    [row], _ = policy.text_rows(Encoder(PRM_FORMATS["judge"], processor, 4096), texts)
    kept = [t for t in row["labels"] if t != policy.IGNORED]
    assert processor.tokenizer.decode(kept) == critique.render(records[1].critique, steps=BAD) + "<|im_end|>"
    asked = processor.tokenizer.decode(row["input_ids"][: -len(kept)])
    assert asked.endswith(INSTRUCTION + "<|im_end|>\n<|im_start|>assistant\n")


def test_training_and_judging_see_the_same_tokens(problems, records, solutions, random):
    _, processor = random
    [(p, prompt, target)] = training_texts(processor, records[:1], problems, FORM)
    learnt = Encoder(PRM_FORMATS["judge"], processor, 4096)
    [row], _ = policy.text_rows(learnt, [(p, prompt, target)])
    asked, generator = [], new(*random).generator
    found = new(*random)
    found.generator = SimpleNamespace(sample=lambda requests, n, s, more: asked.extend(requests) or [], fingerprint="")
    list(found.critique(problems, solutions[:1]))
    entry = generator._prepare(asked[0], critic.Options().sampling)
    assert row["input_ids"][: len(entry.ids)] == entry.ids


def test_a_verdicts_first_token_has_its_weight_and_what_is_put_there_has_none(records, random):
    tokenizer = random[1].tokenizer
    ids = tokenizer(critique.render(records[1].critique, steps=BAD), add_special_tokens=False)["input_ids"]
    pairs = list(zip(ids, loss_weights(tokenizer, FORM, 3.0)(ids), strict=True))
    assert [tokenizer.decode([t]) for t, w in pairs if w == 3.0] == [" Correct", " Incorrect"]  # "+-"
    given = tokenizer.decode([t for t, w in pairs if w == 0.0])
    assert given == (
        "Step 1: Bar A is 3\nIntent: Bar A is 3\nJudgement:"
        "Step 2: Bar B is 4\nIntent: Bar B is 4\nJudgement:Correct Step:"
    )
    assert {w for _, w in pairs} == {0.0, 1.0, 3.0}
    ids = tokenizer(critique.render(records[1].critique, FORMATS["verdict_only"], BAD))["input_ids"]
    weights = loss_weights(tokenizer, FORMATS["verdict_only"])(ids)
    kept = tokenizer.decode([t for t, w in zip(ids, weights, strict=True) if w])
    assert kept == " Correct\n\n Incorrect\n\n Bar B is 5"


def test_what_is_said_of_a_wrong_step_may_weigh_more_but_not_its_verdict(records, random):
    tokenizer = random[1].tokenizer
    ids = tokenizer(critique.render(records[1].critique, steps=BAD), add_special_tokens=False)["input_ids"]
    weights = loss_weights(tokenizer, FORM, 3.0, 5.0)(ids)
    heavy = tokenizer.decode([t for t, w in zip(ids, weights, strict=True) if w == 5.0])
    assert heavy == " Read 1\nImage: Bar is 1\nLogic: 8\nStep:\n\n Bar B is 5"
    assert [tokenizer.decode([t]) for t, w in zip(ids, weights, strict=True) if w == 3.0] == [" Correct", " Incorrect"]
    right = tokenizer(critique.render(records[0].critique), add_special_tokens=False)["input_ids"]
    assert loss_weights(tokenizer, FORM, 3.0, 5.0)(right) == loss_weights(tokenizer, FORM, 3.0)(right)


def test_a_word_starts_as_another_one_if_it_is_wanted(random):
    model, processor = tiny()
    tokenizer, table = processor.tokenizer, model.get_input_embeddings().weight.data
    first = {text: tokenizer(text)["input_ids"][0] for text in (" Correct", " Yes", " Bar", "Bar", " is")}
    before = table.clone()
    start_words(model, tokenizer, START_WORDS)
    assert torch.equal(table[first[" Correct"]], before[first[" Yes"]])
    assert torch.equal(table[first[" Bar"]], before[first["Bar"]])
    assert torch.equal(table[first[" is"]], before[first[" is"]])
    with pytest.raises(ValueError, match="leave them out"):
        start_words(model, tokenizer, {" Bar": " Bar"})


def test_a_weight_of_one_is_plain_training_and_another_is_not(problems, records, tmp_path):
    def tuned(name, weigh):
        (model, processor), texts = tiny(), training_texts(random_processor, records[:4], problems, FORM)
        options = dict(learning_rate=1e-3, epochs=2.0, batch_size=2, gradient_accumulation=2)
        model, history = policy.tune(model, processor, texts, tmp_path / name, weigh=weigh, **options)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        return weights, [row["loss"] for row in history if "loss" in row]

    random_processor = models.new_processor()
    plain, losses = tuned("a", None)
    ones, same = tuned("b", lambda ids: [1.0] * len(ids))
    assert losses == pytest.approx(same, rel=1e-4) and torch.allclose(plain, ones, atol=2e-5)
    heavy, more = tuned("c", loss_weights(random_processor.tokenizer, FORM, 400.0))
    assert more[0] > losses[0] and not torch.allclose(plain, heavy, atol=2e-4)


def test_the_same_critic_is_not_trained_twice_and_another_one_is(problems, records, tmp_path, monkeypatch):
    def once(form="critique", some=records[:2], **options):
        return critic.train(
            *tiny(), some, problems, tmp_path, form, **{"learning_rate": 1e-3, "batch_size": 2} | options
        )

    model, history = once()
    assert form_of(tmp_path) == FORM
    with pytest.raises(FileNotFoundError, match="holds no critic"):
        form_of(tmp_path / "nothing")
    assert history[-1] == {"n_train": 2, "n_dropped": 0}
    monkeypatch.setattr(policy, "tune", lambda *a, **k: pytest.fail("it was trained again"))
    again, same = once()
    assert same == history and torch.equal(again.lm_head.weight, model.lm_head.weight)
    kept = (tmp_path / "training.json").read_text()
    changes = [{"learning_rate": 2e-3}, {"verdict_weight": 2.0}, {"form": "verdict_only"}, {"some": records[:1]}]
    changes += [{"word_init": True}, {"error_weight": 2.0}]
    for change in changes:
        (tmp_path / "training.json").write_text(kept)
        with pytest.raises(pytest.fail.Exception):
            once(**change)
    assert json.loads(kept)["history"] == history


def test_without_a_critique_the_critic_stays_as_it_is_and_is_saved(problems, tmp_path):
    model, processor = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same, history = critic.train(model, processor, [], problems, tmp_path, "verdict_only", learning_rate=1.0)
    assert history[1] == {"n_train": 0, "n_dropped": 0} and history[0]["loss"] != history[0]["loss"]
    kept, _ = models.load(tmp_path)
    assert form_of(tmp_path) == FORMATS["verdict_only"]
    for found in (same.state_dict(), kept.state_dict()):
        assert all(torch.equal(before[name], value) for name, value in found.items())


def test_both_weights_reach_the_training(problems, records, tmp_path, monkeypatch):
    class Caught(Exception):
        pass

    def tune(model, processor, texts, output_dir, weigh, **options):
        raise Caught({w for *_, target in texts for w in weigh(processor.tokenizer(target)["input_ids"])})

    monkeypatch.setattr(policy, "tune", tune)
    weights = {"verdict_weight": 3.0, "error_weight": 5.0}
    with pytest.raises(Caught) as caught:
        critic.train(*tiny(), records[1:2], problems, tmp_path, learning_rate=1e-3, **weights)
    assert caught.value.args[0] == {0.0, 1.0, 3.0, 5.0}


# -- judging


def test_a_trained_critic_writes_its_critiques_again(problems, solutions, records, learnt):
    judge = new(*learnt)
    found = by_id(judge.critique(problems, solutions))
    for record in records:
        mine, its = found[record.solution_id], record.critique
        assert (mine.parse, mine.first_error, mine.corrected_step) == ("ok", its.first_error, its.corrected_step)
        assert [s.model_dump(exclude={"p_correct"}) for s in mine.steps] == [
            s.model_dump(exclude={"p_correct"}) for s in its.steps
        ]
        assert [s.p_correct > 0.5 for s in mine.steps] == [s.verdict == "correct" for s in mine.steps]
    written = [critique.render(r.critique, steps=r.steps) for r in records]
    weigh = loss_weights(learnt[1].tokenizer, FORM)
    # what is put there costs nothing; blank lines and the end of the turn end what is generated, a token each
    n_tokens = sum(sum(weigh(learnt[1].tokenizer(text)["input_ids"])) + 1 for text in written)
    # three right solutions of three verdicts, three wrong ones of two: 15
    assert judge.counts == dict.fromkeys(COUNTS, 0) | dict(n_critiques=6, n_verdicts=15, n_tokens=n_tokens)


def test_p_correct_is_that_of_a_plain_forward_pass(problems, solutions, learnt):
    model, processor = learnt
    [found] = new(*learnt).critique(problems, solutions[1:2])
    target = critique.render(found, steps=BAD)
    whole = policy_prompt(problems[0], processor, INSTRUCTION) + target
    inputs = processor(text=[whole], images=[data.open_image(problems[0])], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    first = [processor.tokenizer(v)["input_ids"][0] for v in VERDICTS]
    n = len(processor.tokenizer(target)["input_ids"])
    places = [k for k, t in enumerate(inputs["input_ids"][0].tolist()) if t in first and k >= len(logits) - n]
    expected = [torch.softmax(logits[k - 1, first], -1)[0].item() for k in places]
    assert [s.p_correct for s in found.steps] == pytest.approx(expected, abs=1e-4) and len(expected) == 2


def test_neither_order_nor_batch_changes_a_critique(problems, solutions, learnt):
    options = dict(n_votes=2, temperature=1.5, step_tokens=40)
    whole = by_id(new(*learnt).critique(problems, solutions, **options))
    for batch_size, some in ((2, solutions[::-1]), (64, solutions[2:5])):
        for c in new(*learnt, batch_size=batch_size).critique(problems[::-1], some, **options):
            its = whole[c.solution_id]
            assert re.sub(r"[\d.]{6,}", "", c.model_dump_json()) == re.sub(r"[\d.]{6,}", "", its.model_dump_json())
            assert [s.p_correct for s in c.steps] == pytest.approx([s.p_correct for s in its.steps], abs=1e-4)


def test_the_same_steps_are_judged_once(problems, solutions, learnt):
    judge = new(*learnt)
    twin = solutions[0].model_copy(update={"solution_id": "twin"})
    found = by_id(judge.critique(problems, [solutions[0], twin]))
    assert found["twin"] == found[solutions[0].solution_id].model_copy(update={"solution_id": "twin"})
    assert (judge.counts["n_critiques"], judge.counts["n_reused"]) == (1, 1)
    cost = judge.counts["n_tokens"]
    [again] = judge.critique(problems, [twin])
    assert again == found["twin"] and judge.counts["n_tokens"] == cost
    next(judge.critique(problems, [twin], seed=1))  # another option is another question
    assert judge.counts["n_critiques"] == 2


def test_a_random_model_breaks_no_promise(problems, solutions, random):
    for form in ("critique", "verdict_only"):
        for options in ({}, {"judge_all": True}, {"n_votes": 3, "temperature": 1.0}):
            judge = new(*random, form, batch_size=8)
            found = list(judge.critique(problems, solutions, step_tokens=12, max_new_tokens=60, **options))
            assert sorted(c.solution_id for c in found) == sorted(s.solution_id for s in solutions)
            for c in found:
                assert c.parse == "ok" or (c.steps == [] and c.first_error is None)
                assert c.parse != "ok" or options.get("judge_all") or critique.fault_of(c, 3) is None
            assert judge.counts["n_tokens"] == judge.generator.n_generated_tokens
            assert judge.counts["n_critiques"] == 6 * options.get("n_votes", 1)


def test_all_steps_can_be_judged(problems, solutions, learnt):
    usual = by_id(new(*learnt).critique(problems, solutions))
    for c in new(*learnt).critique(problems, solutions, judge_all=True):
        if c.parse == "ok":  # what follows an error was never learnt
            assert len(c.steps) == 3 and c.corrected_step is None
            assert c.first_error == usual[c.solution_id].first_error
        if usual[c.solution_id].first_error == 0:
            assert c.parse == "ok" and [s.verdict for s in c.steps] == ["correct"] * 3


# -- the three phases, with a model that says what it is told


def test_steps_are_put_before_the_model_one_by_one(problems, solutions, random):
    judge, asked = scripted(random, *WRONG)
    [found] = judge.critique(problems, solutions[1:2])
    assert (found.first_error, found.corrected_step) == (2, "Bar B is 5")
    said = " Read 0\nImage: b\nLogic: c\nJudgement:"
    first = f"Step 1: Bar A is 3\nIntent:{said} Correct\n\n"
    second = f"Step 2: Bar B is 4\nIntent:{said} Incorrect\n\n"
    openings = ["Step 1: Bar A is 3\nIntent:", first + "Step 2: Bar B is 4\nIntent:", first + second + "Correct Step:"]
    assert [request.opening for request, _, _ in asked] == openings
    assert {request.instruction for request, _, _ in asked} == {INSTRUCTION} and asked[0][2].stop == ("\n\n", "\nStep:")
    assert len({request.key for request, _, _ in asked}) == 3


def test_a_judged_step_after_a_forced_correct_has_its_own_verdict(problems, solutions, random):
    judge, asked = scripted(random, *[words("Correct", p) for p in (0.9, 0.2, 0.6)])
    [found] = judge.critique(problems, solutions[:1], judge_all=True)
    assert [s.verdict for s in found.steps] == ["correct", "incorrect", "correct"] and found.first_error == 2
    assert asked[0][2].take == 0 and found.corrected_step is None


def test_a_cap_forces_the_verdict_and_the_critique_goes_on(problems, solutions, random):
    first = " Read 0\nImage: the bar and the bar and"
    verdict = say(" Incorrect", 0.25, coverage=0.4)
    judge, asked = scripted(random, say(first, finish="length"), verdict, say(" Bar A is 4"))
    [found] = judge.critique(problems, solutions[:1])
    assert asked[1][0].opening == f"Step 1: Bar A is 3\nIntent:{first}\nLogic: -\nStep: Bar A is 3\n{VERDICT_CUE}"
    assert asked[1][1] == 1
    assert (found.parse, found.first_error, found.corrected_step) == ("ok", 1, "Bar A is 4")
    assert found.steps[0].p_correct == pytest.approx(0.25)  # 0.1 / 0.4
    assert (judge.counts["n_forced"], judge.counts["n_low_coverage"], judge.counts["n_verdicts"]) == (1, 1, 1)
    assert asked[0][0].key != asked[1][0].key and asked[0][0].instruction == asked[1][0].instruction


def test_a_critique_that_is_long_enough_gets_its_verdicts_without_words(problems, solutions, random):
    judge, asked = scripted(random, RIGHT[0], say(" Correct", 0.9), say(" Correct", 0.8))
    [found] = judge.critique(problems, solutions[:1], max_new_tokens=8, step_tokens=8)  # the first block has eight
    asked_for = "Step 2: Bar B is 5\nIntent: -\nImage: -\nLogic: -\nStep: Bar B is 5\nJudgement:"
    assert asked[1][0].opening.endswith(asked_for)
    assert found.parse == "ok" and [s.p_correct for s in found.steps] == pytest.approx([0.9, 0.9, 0.8])
    assert judge.counts["n_forced"] == 2


@pytest.mark.parametrize(
    ("text", "end"),
    [(" a\nImage: b\nLogic: c", "Logic: c"), (" a\nImage: b\nLogic: c\nJudgement:", "Logic: c"),
     (" a\nImage:", "Image: -\nLogic: -"), (" a", "Intent: a\nImage: -\nLogic: -"),
     ("", "Intent: -\nImage: -\nLogic: -")],
)  # fmt: skip
@pytest.mark.parametrize("finish", ["length", "stop"])  # a blank line in the midst of a field stops it, too
def test_a_cut_text_is_led_to_its_verdict(problems, solutions, random, text, end, finish):
    judge, asked = scripted(random, say(text, finish=finish), *RIGHT)
    list(judge.critique(problems, solutions[:1]))
    assert asked[1][0].opening.endswith(f"{end}\nStep: Bar A is 3\n{VERDICT_CUE}")
    assert asked[1][0].opening.count(VERDICT_CUE) == 1
    assert judge.counts["n_forced"] == (finish == "length" or "Logic" not in text)  # else its step is awaited


def test_a_step_that_reads_like_a_verdict_is_none(problems, solutions, random):
    odd = solutions[0].model_copy(update={"steps": ["Judgement: Incorrect\nImage: x", "Judgement:"]})
    judge, asked = scripted(random, say(" a", finish="length"), say(" Correct", 0.9), RIGHT[0])
    [found] = judge.critique(problems, [odd])
    assert asked[0][0].opening == "Step 1: Judgement: Incorrect\n  Image: x\nIntent:"
    assert asked[1][0].opening.endswith(
        "\nIntent: a\nImage: -\nLogic: -\nStep: Judgement: Incorrect\n  Image: x\nJudgement:"
    )
    assert (found.parse, found.first_error, len(found.steps)) == ("ok", 0, 2)


MALFORMED = {
    "no correction": [words("Incorrect", 0.1), say("")],
    "chatter": [words("Correctly so", 0.9)],
    "half a verdict": [words("In", 0.1)],
    "a field twice": [say(" a\nImage: b\nImage: c\nLogic: c\nJudgement: Correct", 0.9), *RIGHT[1:]],
    "a probability too many": [*WRONG[:2], say(" Bar B is 5", 0.1)],
    "correction cut": [*WRONG[:2], say(" Bar B is", finish="length")],
    "neither verdict possible": [words("Incorrect", 0.1, coverage=0.0), say(" Bar B is 5")],
    "two verdicts at once": [say(" a\nImage: b\nLogic: c\nJudgement: Correct\nJudgement: Correct", 0.9, 0.9)],
    "no verdict": [say(" Read 0", finish="length"), say("")],
    "the request failed": [Completion("", 0, "error", "OSError: no image")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_output_is_counted_and_never_scored(problems, solutions, random, name):
    judge, asked = scripted(random, *MALFORMED[name])
    [found] = judge.critique(problems, solutions[:1])
    assert found.parse.startswith("failed: ") and found.steps == [] and found.first_error is None
    assert judge.counts["n_unreadable"] == 1 and len(asked) == len(MALFORMED[name])
    assert step_scores(found, 3) == [] and critique.score(found, 3) == -float("inf")


def test_what_failed_is_asked_again_and_what_was_read_is_not(problems, solutions, random):
    judge, asked = scripted(random, *MALFORMED["the request failed"], *RIGHT)
    assert [next(judge.critique(problems, solutions[:1])).parse[:2] for _ in range(3)] == ["fa", "ok", "ok"]
    assert len(asked) == 4


def test_an_empty_solution_is_unreadable_and_costs_nothing(problems, solutions, random):
    judge, asked = scripted(random)
    empty = solutions[0].model_copy(update={"steps": []})
    assert next(judge.critique(problems, [empty])).parse == "failed: the solution has no steps" and not asked
    with pytest.raises(KeyError, match="which is not given"):
        list(judge.critique(problems[1:], solutions[:1]))


def test_every_option_reaches_the_model(problems, solutions, random):
    options = dict(n_votes=2, temperature=0.6, top_p=0.95, step_tokens=50, max_new_tokens=99, seed=7)
    judge, asked = scripted(random, *[reply for reply in RIGHT for _ in range(2)])
    list(judge.critique(problems, solutions[:1], **options))
    _, n, s = asked[0]
    assert (n, s.temperature, s.top_p, s.max_new_tokens, s.seed, s.take) == (2, 0.6, 0.95, 50, 7, -1)
    assert (s.cue, s.choices) == (VERDICT_CUE, VERDICTS)
    for bad in ({"n_votes": 2}, {"n_votes": 0}, {"step_tokens": 0}, {"step_tokens": 2000}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            list(judge.critique(problems, solutions, **bad))


# -- votes


def test_a_vote_by_hand():
    chains = [
        judged("+-", [0.8, 0.4], "from the unsure one"), judged("+-", [0.6, 0.1], "from the sure one"),
        judged("+++", [0.9, 0.7, 0.8]), unreadable(),
    ]  # fmt: skip
    found = vote(chains)
    assert (found.first_error, found.corrected_step) == (2, "from the sure one")
    # (0.8 + 0.6 + 0.9) / 3 and (0.4 + 0.1 + 0.7) / 3; the third step is judged by nobody who agrees
    assert [s.p_correct for s in found.steps] == pytest.approx([2.3 / 3, 0.4])
    assert [s.p_correct for s in chains[1].steps] == [0.6, 0.1]  # as it was
    assert vote(chains[2:]).first_error == 0 and vote([unreadable(), unreadable()]).parse != "ok"
    assert vote([chains[0], chains[2]]).first_error == 0  # one each: none before all


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=7))
def test_a_vote_keeps_the_format(drawn):
    chains = [judged("+" * (k - 1) + "-", [p] * k) if k else judged("+++", [p] * 3) for k, p in drawn]
    found = vote(chains)
    assert critique.fault_of(found, 3) is None and all(0 <= s.p_correct <= 1 for s in found.steps)
    assert found.first_error in {c.first_error for c in chains}


# -- files and scores


def test_a_file_goes_on_where_it_stopped(problems, solutions, random, tmp_path):
    texts = [words("Correct", 0.9) for _ in solutions for _ in range(3)]
    judge, asked = scripted(random, *texts)
    path = tmp_path / "critiques.jsonl"
    whole = critiques_to(path, judge, problems, solutions)
    assert [c.solution_id for c in whole] == [s.solution_id for s in solutions]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    judge, asked = scripted(random, *texts)
    assert critiques_to(path, judge, problems, solutions) == whole and len(asked) == 6  # two solutions of three steps
    for changed in ({"seed": 1}, {"judge_all": True}, {"step_tokens": 9}):
        with pytest.raises(ValueError, match="holds records made under key"):
            critiques_to(path, judge, problems, solutions, **changed)
    with pytest.raises(ValueError, match="holds records made under key"):
        critiques_to(path, judge, problems, solutions[:3])


def test_the_fingerprint_names_weights_and_form(random):
    assert new(*random).fingerprint == new(*random).fingerprint != new(*random, "verdict_only").fingerprint


def test_step_scores_pad_what_was_not_judged():
    assert step_scores(judged("+-", [0.9, 0.2]), 4) == [0.9, 0.2, 0.0, 0.0]
    assert step_scores(judged("+-", [0.9, 0.2]), 3, pad=0.5) == [0.9, 0.2, 0.5]
    assert step_scores(judged("+++", [0.9, 0.8, 0.7]), 3) == [0.9, 0.8, 0.7]
    assert problem().scene is None
