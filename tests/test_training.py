"""What all training shares: rows of one update are sorted by length, and that changes neither update nor loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprm_lib import data, models, policy, world
from mmprm_lib.training import ByLengthWithinUpdates


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 20), st.integers(0, 9), st.integers(0, 3))
def test_chance_says_which_rows_an_update_sees_and_length_only_their_order(lengths, window, seed, epoch):
    sampler, unsorted = (ByLengthWithinUpdates(given, window, seed) for given in (lengths, [0] * len(lengths)))
    sampler.set_epoch(epoch)
    unsorted.set_epoch(epoch)
    order, plain = list(sampler), list(unsorted)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(lengths)
    for start in range(0, len(order), window):
        part = order[start : start + window]
        assert set(part) == set(plain[start : start + window])
        assert [lengths[i] for i in part] == sorted(lengths[i] for i in part)


def test_an_epoch_has_an_order_of_its_own_and_a_seed_always_the_same():
    def orders(seed: int) -> list[list[int]]:
        sampler = ByLengthWithinUpdates([1] * 40, 8, seed)
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found.append(list(sampler))
        return found

    assert orders(0) == orders(0) != orders(1) and len(set(map(tuple, orders(0)))) == 3


@pytest.mark.parametrize("pack_size", [1, 2])
def test_one_update_in_several_forward_passes_is_the_same_update_with_less_padding(tmp_path, monkeypatch, pack_size):
    problems = data.from_world({"train": 8}, 0, tmp_path)
    pairs = [(p, world.solve(p)) for p in problems for _ in range(pack_size)]
    padded, collate = [], policy.collate

    def counted(encoder, batch):
        tensors = collate(encoder, batch)
        padded.append(tensors["input_ids"].numel())
        return tensors

    monkeypatch.setattr(policy, "collate", counted)
    found = {}
    for parts in (1, 4):
        padded.clear()
        model, history = policy.fine_tune(
            models.new_base(0), models.new_processor(), pairs, tmp_path / str(parts), learning_rate=1e-3, epochs=2,
            batch_size=8 * pack_size // parts, gradient_accumulation=parts, pack_size=pack_size,
        )  # fmt: skip
        losses = [row["loss"] for row in history if "loss" in row]
        found[parts] = losses, torch.cat([p.detach().flatten() for p in model.parameters()]), sum(padded)
    assert found[4][0] == pytest.approx(found[1][0], abs=1e-4)
    assert torch.allclose(found[4][1], found[1][1], atol=1e-4)
    if pack_size == 1:
        assert found[4][2] < 0.95 * found[1][2]
    else:  # packed rows follow one another, and nothing is padded
        assert found[4][2] == found[1][2]
