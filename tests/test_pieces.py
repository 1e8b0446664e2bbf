"""Texts with choices, written piece by piece: the same text as if it were written token by token under the rule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mmprm_lib.asking import Completion, Request
from mmprm_lib.decoding import ChoiceSampling, draw, uniforms
from mmprm_lib.pieces import Chain
from tests.doubles import problem

LOG = [math.log(0.6), math.log(0.2)]


def chain(before="", order=(7, 3), sample=0, **options):
    given = {"max_new_tokens": 12, "cue": "is:", "choices": ("y", "n"), "temperature": 0.0} | options
    return Chain(Request(problem(), key="k"), sample, ChoiceSampling(**given), before, order)


def test_a_text_goes_on_until_a_stop_string_its_end_or_its_length():
    mine = chain(stop=("\n",), temperature=0.7, top_p=0.9)
    request, how = mine.piece()
    assert request.key == "k|0|0" and (how.temperature, how.top_p, how.max_new_tokens) == (0.7, 0.9, 12)
    assert how.stop == ("\n", "is:") and type(how).__name__ == "Sampling"
    assert mine.wrote("a is:", 4) is None and mine.due
    assert mine.choose(LOG) in (0, 1) and mine.wrote("a is:y", 5) is None and not mine.due
    request, how = mine.piece()
    assert request.key == "k|0|5" and how.max_new_tokens == 7
    assert mine.wrote("a is:y.\nb", 8) == Completion("a is:y.", 8, "stop", "", ((pytest.approx(0.6), 0.2),))
    assert chain().wrote("done", 3, "stop") == Completion("done", 3, "stop")
    assert chain().wrote("a is:", 12) == Completion("a is:", 12, "length")  # no room for the choice
    assert chain().wrote("cut", 3, "length").finish_reason == "length"  # the context was full


def test_a_cue_or_a_stop_string_may_have_begun_before_the_piece():
    assert chain(before="it i").piece()[1].stop == ("is:", "s:")
    assert chain(before="it i").piece(exact=False)[1].stop == ("is:",)
    mine = chain(stop=("\n\nB",), before="\n\n")  # what was there before is no part of the text
    assert mine.piece()[1].stop == ("\n\nB", "is:")
    mine.wrote("a\n\n", 2)
    assert mine.piece()[1].stop == ("\n\nB", "is:", "\nB", "B")


def test_patience_counts_from_the_last_choice():
    mine = chain(patience=5)
    assert mine.piece()[1].max_new_tokens == 5
    mine.wrote("is:", 2)
    mine.choose(LOG)
    mine.wrote("is:y", 3)
    assert mine.piece()[1].max_new_tokens == 5 and mine.wrote("is:y and so", 8).finish_reason == "length"
    assert chain(patience=50).piece()[1].max_new_tokens == 12


@pytest.mark.parametrize("order", [(7, 3), (3, 7)])
def test_the_choice_is_the_one_that_whole_logits_give(order):
    """As `draw` takes it from all logits, every other token at -inf, with the random number of this token."""
    seen = set()
    for sample in range(40):
        mine = chain(order=order, sample=sample, temperature=0.8, seed=5)
        mine.wrote("is:", 3)
        logits = torch.full((1, 9), -torch.inf)
        logits[0, list(order)] = torch.tensor(LOG)
        uniform = torch.tensor(uniforms(5, "k", sample, 12)[3:4])
        chosen = mine.choose(LOG)
        assert order[chosen] == int(draw(logits, uniform, mine.sampling))
        seen.add(chosen)
    assert seen == {0, 1}
    assert chain(order=order).choose(LOG) == 0 and chain(order=order).choose(LOG[::-1]) == 1  # greedy
    forced = chain(order=order, take=1)
    assert forced.choose(LOG) == 1 and forced.probs == [(pytest.approx(0.6), pytest.approx(0.2))]


def token_by_token(mine, wanted, odds):
    """What the rule says, a letter a token: at place k the model writes wanted[k], or the choice that odds[k] names."""
    text, probs, limit, s = "", 0, mine.limit, mine.sampling
    while True:
        if (mine.before + text).endswith(s.cue):
            text += s.choices[odds[len(text)]]
            probs += 1
            limit = min(s.max_new_tokens, len(text) + s.patience) if s.patience else limit
        else:
            text += wanted[len(text)]
        if stops := [text.index(stop) for stop in s.stop if stop in text]:
            return text[: min(stops)], len(text), "stop", probs
        if len(text) >= limit:
            return text, len(text), "length", probs


def piece_by_piece(mine, wanted, odds):
    """The same from an engine that writes on until it has written one of the stop strings."""
    done = None
    while done is None:
        text = mine.text
        if mine.due:
            text += mine.sampling.choices[mine.choose([-1.0, -2.0] if odds[len(text)] == 0 else [-2.0, -1.0])]
            done = mine.wrote(text, len(text))
            continue
        how, begun, reason = mine.piece()[1], len(text), ""
        while not any(stop in text[begun:] for stop in how.stop):
            if len(text) - begun == how.max_new_tokens:
                reason = "length"
                break
            text += wanted[len(text)]
        done = mine.wrote(text, len(text), reason)
    return done.text, done.n_tokens, done.finish_reason, len(done.choice_probs)


WORDS = st.text("ab", min_size=1, max_size=3)


@given(
    before=st.text("ab", max_size=3), cue=WORDS, stop=st.lists(WORDS, max_size=2), patience=st.integers(0, 6),
    most=st.integers(1, 12), wanted=st.text("ab", min_size=12, max_size=12),
    odds=st.lists(st.integers(0, 1), min_size=12, max_size=12),
)  # fmt: skip
@example(before="a", cue="aba", stop=["bb"], patience=0, most=12, wanted="ba" * 6, odds=[1] * 12)
def test_pieces_make_the_text_that_the_rule_makes(before, cue, stop, patience, most, wanted, odds):
    options = {"cue": cue, "stop": tuple(stop), "patience": patience, "max_new_tokens": most, "choices": ("a", "b")}
    made = [write(chain(before, **options), wanted, odds) for write in (token_by_token, piece_by_piece)]
    assert made[0] == made[1]
