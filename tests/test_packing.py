"""Packed rows: the same decisions as solutions that stand alone, for fewer tokens."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import architecture, models, policy, prm, world
from mmprm_lib.architecture import by_rows
from mmprm_lib.encoding import Encoded, Encoder
from mmprm_lib.objective import IGNORED, step_loss
from mmprm_lib.packing import (
    NO_PARENT,
    NO_TARGET,
    collate_packed,
    pack,
    packed_rows,
    packed_texts,
    shape_passes,
    visible,
)
from mmprm_lib.scoring import StepHead, label_ids
from mmprm_lib.steps import FORMATS

from .doubles import problem


def encoded(steps: list[list[int]], prompt: tuple[int, ...] = (1, 2, 3)) -> Encoded:
    """A solution whose steps are lists of tokens, a decision at the last of each."""
    ids, positions = list(prompt), []
    for step in steps:
        ids += step
        positions.append(len(ids) - 1)
    return Encoded(ids, positions, problem(), "prompt")


def test_a_shared_beginning_stands_in_the_row_once():
    row = pack([encoded([[5, 6], [7, 9]]), encoded([[5, 6], [8, 9]])])
    # prompt 1 2 3 5 (common, before the first decision), then 6, then 7 9 and 8 9
    assert row.ids == [1, 2, 3, 5, 6, 7, 9, 8, 9]
    assert row.places == [0, 1, 2, 3, 4, 5, 6, 5, 6]
    assert row.branches == [(0, 4, NO_PARENT), (4, 5, 0), (5, 7, 1), (7, 9, 1)]
    assert row.positions == [4, 6, 4, 8]


def test_a_token_sees_its_ancestors_only():
    row = pack([encoded([[5, 6], [7, 9]]), encoded([[5, 6], [8, 9]])])
    seen = visible(row, 10)
    assert seen[8].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 7, 8]  # not 7 9 of the other branch
    assert seen[6].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert seen[9].nonzero().flatten().tolist() == [9]  # padding


def test_solutions_of_two_problems_do_not_share_a_row():
    other = encoded([[4]])._replace(problem=problem("p1"))
    with pytest.raises(ValueError, match="one prompt"):
        pack([encoded([[4]]), other])


pieces = st.lists(st.integers(4, 6), min_size=1, max_size=3)


@given(st.lists(st.lists(pieces, max_size=4), min_size=1, max_size=5))
def test_every_decision_sees_exactly_its_own_solution(solutions):
    rows = [encoded(steps) for steps in solutions]
    row, positions = pack(rows), []
    seen = visible(row, len(row.ids))
    for alone in rows:
        for position in alone.positions:
            positions.append(position)
            at = row.positions[len(positions) - 1]
            path = seen[at].nonzero().flatten().tolist()
            assert [row.ids[i] for i in path] == alone.ids[: position + 1]
            assert [row.places[i] for i in path] == list(range(position + 1))
    assert len(positions) == len(row.positions)
    assert len(row.ids) <= sum(len(r.ids) for r in rows)


@pytest.fixture(scope="module")
def world_solutions(tmp_path_factory):
    """Two problems with three solutions each, two of which begin alike, and the random embedded model."""
    folder = tmp_path_factory.mktemp("packing")
    problems, solutions = [], {}
    for drawn, image in world.draw(2, 0, "train", choice_share=0.5):
        (folder / "images").mkdir(exist_ok=True)
        image.save(folder / drawn.image, "PNG", compress_level=1)
        drawn._root = folder
        right = world.solve(drawn)
        solutions[drawn.problem_id] = [right, [*right[:-1], "Answer: 1"], ["Look at the figure", *right]]
        problems.append(drawn)
    return problems, solutions


@pytest.mark.parametrize("kind", ["marker", "chat", "orm"])
def test_loss_and_gradient_are_those_of_solutions_that_stand_alone(kind, world_solutions):
    problems, solutions = world_solutions
    model, processor = models.new_base(layers=2), models.new_processor()
    form = FORMATS[kind]
    if kind != "chat":
        prm.add_marker(model, processor)
    encoder = Encoder(form, processor, 4096)
    rows = []
    for one in problems:
        for i, steps in enumerate(solutions[one.problem_id]):
            row = encoder.encode(one, steps, f"{one.problem_id}/{i}")
            labels = [(0.3 * i + 0.2 * t) % 1 for t in range(len(row.positions))]
            rows.append({"input_ids": row.ids, "row": row, "labels": labels})
    packed = packed_rows(rows, 3)
    assert len(packed) == 2 and sum(len(r["input_ids"]) for r in packed) < sum(len(r["input_ids"]) for r in rows)
    head = StepHead(model, label_ids(form, processor.tokenizer))
    found = {}
    for name, batch in (("alone", prm.collate_labelled(encoder, rows)), ("packed", collate_packed(encoder, packed))):
        head.zero_grad()
        labels = batch.pop("labels")
        with by_rows(model):
            loss = step_loss(head(**batch), labels)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])
        found[name] = (loss.item(), gradient, int((labels != IGNORED).sum()))
    assert found["alone"][2] == found["packed"][2]
    assert found["packed"][0] == pytest.approx(found["alone"][0], abs=1e-5)
    assert torch.allclose(found["packed"][1], found["alone"][1], atol=1e-5)
    assert found["alone"][1].abs().max() > 1e-3  # the tolerance is far below what is compared


@pytest.mark.parametrize("weigh", [None, lambda ids: [1.0 + t % 3 for t in range(len(ids))]], ids=["plain", "weighted"])
def test_fine_tuning_on_packed_texts_has_the_loss_and_gradient_of_texts_that_stand_alone(weigh, world_solutions):
    problems, solutions = world_solutions
    model, processor = models.new_base(layers=2), models.new_processor()
    encoder = Encoder(FORMATS["judge"], processor, 4096)
    pairs = [(one, steps) for one in problems for steps in solutions[one.problem_id]]
    rows, _ = policy.text_rows(encoder, policy.texts(processor, pairs), weigh)
    packed = packed_texts(rows, 2)  # three solutions of each problem: two rows of two, two of one
    assert [len(r["row"].branches) - 1 for r in packed] == [2, 1, 2, 1]
    assert all(len(r["labels"]) == len(r["input_ids"]) for r in packed)
    found = {}
    for name, batch in (("alone", rows), ("packed", packed)):
        batch = policy.collate(encoder, batch)
        weights, labels = batch.pop("weights", None), batch["labels"]
        model.zero_grad()
        with by_rows(model):
            out = model(**batch)
        losses = torch.nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        loss = losses.sum() if weights is None else (losses * weights[:, 1:]).sum()
        n = int((labels != NO_TARGET).sum())
        if weights is None:
            assert out.loss.item() == pytest.approx(loss.item() / n, rel=1e-5)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[name] = (loss.item() / n, gradient / n, n)
    assert found["alone"][2] == found["packed"][2]
    assert found["packed"][0] == pytest.approx(found["alone"][0], abs=1e-5)
    assert torch.allclose(found["packed"][1], found["alone"][1], atol=1e-5)
    assert found["alone"][1].abs().max() > 1e-3


def test_a_model_with_positions_of_its_own_takes_no_packed_rows(monkeypatch):
    monkeypatch.setattr(architecture, "full_attention", lambda _: False)
    with pytest.raises(ValueError, match="set pack_size to 1, not 4"):
        architecture.check_packing(object(), 4)
    architecture.check_packing(object(), 1)


@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 8), st.lists(st.integers(10, 200), min_size=1, max_size=40),
    st.integers(0, 9),
)  # fmt: skip
def test_passes_are_joined_while_they_have_no_more_tokens(size, n, pack_size, own, shared):
    arguments = SimpleNamespace(per_device_train_batch_size=size, gradient_accumulation_steps=n)
    alone = [{"input_ids": [0] * (shared + length)} for length in own]
    parts = [own[i : i + pack_size] for i in range(0, len(own), pack_size)]
    packed = [{"input_ids": [0] * (shared + sum(part))} for part in parts]
    shape_passes(arguments, alone, packed)
    rows, passes = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    at_once = max(1, size // max(1, round(len(alone) / len(packed))))
    assert rows * passes == at_once * n and n % passes == 0  # the update is the same, in whole passes
    before, now = (sum(len(r["input_ids"]) for r in part) / len(part) for part in (alone, packed))
    assert rows == at_once or rows * now <= size * before
    larger = [k for k in range(1, passes) if n % k == 0 and at_once * n / k * now <= size * before]
    assert not larger, f"{passes} passes, and {larger} had room"


def test_eight_solutions_of_one_prompt_take_one_pass_in_place_of_two():
    arguments = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    shape_passes(arguments, [{"input_ids": [0] * 100}] * 8, [{"input_ids": [0] * 180}] * 2)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 1)
