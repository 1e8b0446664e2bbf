"""The policy: what it is trained on, that it learns, that every option counts, and how its errors are taken apart."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch

from mmprm_lib import data, models, policy, policy_errors, world
from mmprm_lib.architecture import vision_towers
from mmprm_lib.encoding import Encoder
from mmprm_lib.steps import FORMATS, join
from tests.doubles import problem, solution


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return data.from_world({"train": 4}, 0, tmp_path_factory.mktemp("policy"))


@lru_cache
def processor_of():
    return models.new_processor()


def tiny():
    """(model, processor): the embedded architecture, small, with random weights."""
    processor = processor_of()
    return models.new_base(0, width=32, layers=1, vision_layers=1, tokenizer=processor.tokenizer), processor


def weights(model, *, vision: bool) -> torch.Tensor:
    parts = [p for name, p in model.named_parameters() if ("vision_tower" in name) == vision]
    return torch.cat([p.detach().flatten() for p in parts])


# -- what it learns from


def test_the_corpus_follows_its_dials_and_its_seed(problems):
    clean = dict(slip=0.0, misconception=0.0, background=0.0)
    assert {tuple(world.truth(p, s)).count(-1) for p, s in policy.corpus(problems, 2, 0, **clean)} == {0}
    assert len(policy.corpus(problems, 3, 0, **clean)) == 12  # 3 solutions of 4 problems
    for dial in clean:
        pairs = policy.corpus(problems * 5, 8, 0, **{**clean, dial: 1.0})
        wrong = [p for p, steps in pairs if -1 in world.truth(p, steps)]
        tricky = {p.scene["tricky"] for p in wrong}
        assert wrong and (dial == "slip" or tricky == {dial == "misconception"})
    dials = dict(slip=0.5, misconception=0.5, background=0.5)
    assert policy.corpus(problems, 4, 1, **dials) == policy.corpus(problems, 4, 1, **dials)
    assert policy.corpus(problems, 4, 1, **dials) != policy.corpus(problems, 4, 2, **dials)


def test_worked_solutions_are_read_as_steps_or_as_text(tmp_path):
    path = tmp_path / "worked.jsonl"
    lines = [
        {"problem_id": "p1", "steps": ["a", "b"]},
        {"problem_id": "other", "steps": ["x"]},
        {"problem_id": "p0", "solution": "<step>c</step> <answer>12</answer>"},
        {"problem_id": "p0", "solution": "d\n\nAnswer: 12"},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    pairs = policy.worked(path, [problem("p0"), problem("p1")])
    assert [(p.problem_id, steps) for p, steps in pairs] == [
        ("p1", ["a", "b"]), ("p0", ["c", "12"]), ("p0", ["d", "Answer: 12"]),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no solution of any of the 1 problems"):
        policy.worked(path, [problem("p9")])


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"steps": ["a"]}', '{"problem_id": "p0"}', '{"problem_id": "p0", "steps": [1]}',
             '{"problem_id": "p0", "steps": []}', '{"problem_id": "p0", "solution": ""}'],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "worked.jsonl"
    path.write_text('{"problem_id": "p0", "steps": ["a"]}\n' + line + "\n")
    with pytest.raises(ValueError, match="worked.jsonl:2: "):
        policy.worked(path, [problem("p0")])


# -- training rows


def test_the_loss_is_on_the_solution_and_the_end_of_the_turn_only(problems):
    _, processor = tiny()
    encoder, steps = Encoder(FORMATS["judge"], processor, 4096), world.solve(problems[0])
    [row], n_dropped = policy.rows(encoder, [(problems[0], steps)])
    kept = [token for token in row["labels"] if token != policy.IGNORED]
    assert n_dropped == 0 and len(row["labels"]) == len(row["input_ids"])
    assert row["input_ids"][-len(kept) :] == kept
    assert processor.tokenizer.decode(kept) == join(steps) + "<|im_end|>"
    assert policy.trained_on(processor, (problems[0], steps)) == (join(steps), True)


def test_a_solution_that_spells_a_special_token_stays_text(problems):
    _, processor = tiny()
    text, ends = policy.trained_on(processor, (problems[0], ["<image> <|im_end|>", "Answer: 1"]))
    assert (text, ends) == ("< image> < |im_end|>\n\nAnswer: 1", True)


def test_an_over_long_solution_is_dropped_and_counted(problems):
    _, processor = tiny()
    pairs = [(problems[0], ["Bar A is 1"]), (problems[0], ["Bar A is 1"] * 40)]
    kept, n_dropped = policy.rows(Encoder(FORMATS["judge"], processor, 120), pairs)
    assert (len(kept), n_dropped) == (1, 1)


def test_padding_carries_no_loss(problems):
    _, processor = tiny()
    encoder = Encoder(FORMATS["judge"], processor, 4096)
    kept, _ = policy.rows(encoder, [(problems[0], ["Bar A is 1"]), (problems[0], ["Bar A is 1"] * 3)])
    batch = policy.collate(encoder, kept)
    assert batch["labels"].shape == batch["input_ids"].shape and "positions" not in batch
    # "Bar A is 1" has 4 tokens, so with the end 5; three of them with two separators and the end 3 * 4 + 2 + 1 = 15
    assert (batch["labels"] != policy.IGNORED).sum(1).tolist() == [5, 15]
    assert (batch["labels"][batch["attention_mask"] == 0] == policy.IGNORED).all()


# -- training


def tuned(problems, folder, **options):
    model, processor = tiny()
    pairs = [(p, world.solve(p)) for p in problems]
    options = dict(learning_rate=3e-3, epochs=2.0, batch_size=2) | options
    return *policy.fine_tune(model, processor, pairs, folder, **options), processor


def test_training_learns_and_the_saved_policy_is_the_one_returned(problems, tmp_path):
    model, history, processor = tuned(problems, tmp_path, epochs=15.0, learning_rate=1e-2)
    assert history[-1] == {"n_train": 4, "n_dropped": 0}
    losses = [row["loss"] for row in history if "loss" in row]
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]  # 15 epochs of 2 updates, each logged
    assert not {key for row in history for key in row if "runtime" in key or "second" in key}
    again, _ = models.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not model.training and not list(tmp_path.glob("*.bin"))


def test_the_vision_tower_moves_only_when_it_may(problems, tmp_path):
    before = tiny()[0]
    kept, _, _ = tuned(problems, tmp_path / "a")
    assert torch.equal(weights(kept, vision=True), weights(before, vision=True))
    assert not torch.equal(weights(kept, vision=False), weights(before, vision=False))
    assert all(p.requires_grad for p in kept.parameters())  # whoever trains it next starts from a free model
    moved, _, _ = tuned(problems, tmp_path / "b", freeze_vision=False)
    assert not torch.equal(weights(moved, vision=True), weights(before, vision=True))


def test_a_frozen_tower_stays_in_evaluation_mode():
    model, _ = tiny()
    towers = vision_towers(model)
    with models.frozen(towers):
        model.train()
        assert model.training and not any(module.training for tower in towers for module in tower.modules())
    assert model.train() is model and towers[0].training


def test_lora_is_merged_and_spares_the_vision_tower(problems, tmp_path):
    before = tiny()[0]
    model, _, _ = tuned(problems, tmp_path, lora_rank=2, freeze_vision=False)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert torch.equal(weights(model, vision=True), weights(before, vision=True))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    change = model.state_dict()[name] - before.state_dict()[name]
    assert 0 < torch.linalg.matrix_rank(change, atol=1e-6) <= 2


def test_every_option_changes_the_result_and_the_seed_repeats_it(problems, tmp_path):
    options = [
        {}, {"learning_rate": 1e-3}, {"epochs": 1.0}, {"batch_size": 1}, {"gradient_accumulation": 2}, {"seed": 1},
        {"warmup_share": 0.9}, {"weight_decay": 0.5}, {"max_length": 75},
    ]  # fmt: skip
    options += [{"bf16": True}] if models.has_bf16(torch.device("cpu")) else []  # else it is left aside, as told
    found = [weights(tuned(problems, tmp_path, **each)[0], vision=False) for each in options]
    assert torch.equal(found[0], weights(tuned(problems, tmp_path)[0], vision=False))
    same = [each for each, found_ in zip(options[1:], found[1:], strict=True) if torch.equal(found_, found[0])]
    assert same == []


def test_nothing_to_train_on_is_an_error(problems, tmp_path):
    with pytest.raises(ValueError, match="none of 4 solutions fits into 20 tokens"):
        tuned(problems, tmp_path, max_length=20)


def test_the_same_policy_is_not_trained_twice_and_another_one_is(problems, tmp_path, monkeypatch):
    pairs = [(p, world.solve(p)) for p in problems]

    def once(**options):
        return policy.fine_tuned(*tiny(), pairs, tmp_path, batch_size=2, **{"learning_rate": 1e-3, **options})

    first, history = once()
    monkeypatch.setattr(policy, "fine_tune", lambda *a, **k: pytest.fail("it was trained again"))
    (tmp_path / "checkpoint-2").mkdir()  # as a training leaves it that is killed at its very end
    again, same = once()
    assert not list(tmp_path.glob("checkpoint*"))
    assert same == history and torch.equal(weights(again, vision=False), weights(first, vision=False))
    for change in ({"learning_rate": 2e-3}, {"seed": 1}):
        with pytest.raises(pytest.fail.Exception):
            once(**change)
        assert not (tmp_path / "training.json").exists()  # from here on the folder vouches for nothing


# -- how it errs


def fixed(name: str, tricky: bool = False, choose: bool = False):
    """A bar problem: A = 3, B = 5, C = 2, D = 7; A and B together are 8."""
    found = world.draw(1, 0, "train", families=("bars",), difficulty=0.0, choice_share=float(choose))[0][0]
    scene = found.scene | {
        "values": {"A": 3, "B": 5, "C": 2, "D": 7}, "tricky": tricky,
        "plan": [{"read": "Bar A", "key": "A", "takes": "A"}, {"read": "Bar B", "key": "B", "takes": "B"},
                 {"head": "Sum", "left": "A", "op": "+", "right": "B"}],
    }  # fmt: skip
    return found.model_copy(update={"problem_id": name, "scene": scene, "answer": "8", "choices": []})


GOOD = ("Bar A is 3", "Bar B is 5", "Sum: 3 + 5 = 8", "Answer: 8")
BAD = ("Bar A is 3", "Bar B is 4", "Sum: 3 + 4 = 7", "Answer: 7")


def test_steps_are_taken_apart_by_kind_and_by_error():
    solutions = [
        solution("p0/s0", GOOD, problem_id="p0"),
        solution("p0/s1", BAD, problem_id="p0", verdict="wrong", answer="7"),
        solution("p1/s0", (*GOOD[:2], "Sum: 3 + 5 = 9", "Answer: 9"), problem_id="p1", verdict="wrong"),
    ]
    steps = policy_errors.step_frame([fixed("p0"), fixed("p1", tricky=True)], solutions)
    assert list(steps.columns) == policy_errors.STEP_COLUMNS and len(steps) == 12
    assert steps["kind"].tolist() == ["read", "read", "deduce", "answer"] * 3
    assert steps["truth"].tolist() == [1, 1, 1, 1, 1, -1, -1, -1, 1, 1, -1, -1]
    assert steps["first"].tolist() == [True] * 4 + [True, True, False, False] + [True] * 3 + [False]
    assert steps.groupby("solution_id")["wording"].first().tolist() == ["plain", "plain", "tricky"]
    assert steps["place"].tolist() == [1, 2, 3, 4] * 3 and set(steps["form"]) == {"fill-in"}
    errors = policy_errors.first_errors(steps, "wording")  # the misread bar, and the wrong sum
    assert errors.values.tolist() == [["plain", "image", 1], ["tricky", "logic", 1]]


def test_outside_the_world_there_are_no_steps_and_nothing_breaks():
    steps = policy_errors.step_frame([problem()], [solution()])
    assert len(steps) == 0 and list(steps.columns) == policy_errors.STEP_COLUMNS
    assert len(policy_errors.first_errors(steps, "family")) == 0
    found = policy_errors.corpus_frame([(problem(), ["a", "b"])])
    assert found["right"].tolist() == [None] and found["wording"].tolist() == ["unknown"]


def test_the_corpus_is_judged():
    frame = policy_errors.corpus_frame([(fixed("p0"), list(steps)) for steps in (GOOD, BAD, (*BAD[:3], "Answer: 8"))])
    assert frame["right"].tolist() == [True, False, False]
    assert frame["answer_right"].tolist() == [True, False, True]
    assert frame["n_steps"].tolist() == [4, 4, 4]


def test_a_solved_and_a_failed_example_got_furthest():
    solutions = [solution("p0/s0"), solution("p0/s1", ("a", "b", "c", "d")), solution("p0/s2", verdict="wrong")]
    assert policy_errors.pick([problem()], solutions, True)[1].solution_id == "p0/s1"
    assert policy_errors.pick([problem()], solutions, False)[1].solution_id == "p0/s2"
    assert policy_errors.pick([problem()], solutions[:2], False) is None
    late, early = solution("p0/s0", (*GOOD[:3], "Answer: 9"), verdict="wrong"), solution("p0/s1", BAD, verdict="wrong")
    assert policy_errors.pick([fixed("p0")], [early, late], False)[1] is late  # three right steps against one


def test_a_rate_of_errors_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\{'slip': 1.5\}: each is a chance"):
        policy.corpus([], 1, 0, slip=1.5, misconception=0.5, background=0.0)
