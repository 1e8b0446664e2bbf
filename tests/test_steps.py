"""Steps as text: splitting as the papers do it, prefixes, neutral text, and the templates as literal strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib import models, steps
from mmprm_lib.schema import Problem

PROCESSOR = models.new_processor()
# a step may be anything without a blank line in it or at its edges
STEP = st.text(max_size=30).filter(lambda s: s.strip() and "\n\n" not in s and s[0] != "\n" and s[-1] != "\n")


def problem(question="What is 1 + 1?", choices=()):
    return Problem(
        problem_id="p1",
        question=question,
        image="a.png",
        image_sha256="0" * 64,
        answer="2",
        answer_type="number",
        choices=list(choices),
        source="test",
        split="test",
    )


@pytest.mark.parametrize("n, merged", [(12, 12), (13, 7), (14, 7), (20, 10), (25, 9), (1, 1)])
def test_max_steps_merges_in_groups_of_equal_size(n, merged):
    # 13 steps at 12: groups of ceil(13 / 12) = 2, so ceil(13 / 2) = 7; 25: groups of 3, so 9
    text = "\n\n".join(f"s{i}" for i in range(n))
    parts = steps.split(text, max_steps=12)
    assert len(parts) == merged
    assert steps.join(parts) == text


def test_max_steps_of_sixteen_is_the_released_shells():
    assert [len(steps.split("\n\n".join("abcdefghijklmnopqrstuvwxy"[:n]), 16)) for n in (13, 20, 24, 25)] == [
        13,
        10,
        12,
        13,
    ]
    with pytest.raises(ValueError, match="max_steps is 0"):
        steps.split("a", 0)


def test_text_is_split_at_blank_lines_and_not_stripped():
    assert steps.split(" a \n\nb\nc") == [" a ", "b\nc"]
    assert steps.split("") == []


def test_blank_segments_are_dropped_unless_asked_for():
    assert steps.split("a\n\n\n\nb\n\n") == ["a", "b"]
    assert steps.split("a\n\n\n\nb\n\n", keep_empty=True) == ["a", "", "b", ""]


def test_tags_win_over_blank_lines():
    text = "<step> one\n\nmore </step>ignored\n\n<step>two</step><answer>12</answer><step>cut"
    assert steps.split(text) == ["one\nmore", "two", "12"]
    assert steps.split("<step>never closed") == ["<step>never closed"]


@given(st.lists(STEP, max_size=6))
def test_split_undoes_join(parts):
    if not list(steps._bodies(steps.join(parts))):
        assert steps.split(steps.join(parts)) == parts


@given(st.lists(STEP.filter(lambda s: s == s.strip() and not steps.BLANK_LINES.search(s) and "<" not in s), min_size=1))
def test_split_undoes_tags(parts):
    assert steps.split("".join(f"<step>{part}</step>" for part in parts)) == parts


def test_prefix_ends_where_the_next_step_begins():
    assert steps.prefix_text([]) == ""
    assert steps.prefix_text(["a", "b"]) == "a\n\nb\n\n"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<image>", "<|im_end|>", "<|im_start|>", "<", "<|", "<|im_", ">", "im_end|>"]),
            st.text(max_size=5),
        )
    ).map("".join)
)
def test_neutral_text_has_no_special_token(text):
    tokenizer = PROCESSOR.tokenizer
    neutral = steps.neutralise(text, PROCESSOR)
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    assert not special & set(tokenizer.encode(neutral, add_special_tokens=False))
    assert steps.neutralise(neutral, PROCESSOR) == neutral


def test_neutralise_touches_only_what_it_must():
    assert steps.neutralise("a<image>b<|im_end|>", PROCESSOR) == "a< image>b< |im_end|>"
    assert steps.neutralise("1 < 2 <prm>", PROCESSOR) == "1 < 2 <prm>"  # no token of this tokenizer
    assert steps.neutralise("<image>", PROCESSOR.tokenizer) == "< image>"


def test_question_text_lists_the_options():
    assert steps.question_text(problem()) == "What is 1 + 1?"
    assert steps.question_text(problem(choices=["1", "2"])) == "What is 1 + 1?\n(A) 1 (B) 2"


def test_policy_prompt_opens_the_assistant_turn():
    assert steps.policy_prompt(problem("See <image>?"), PROCESSOR) == (
        "<|im_start|>user\n<image>See < image>?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_marker_template_is_the_policys_prompt_and_a_marker_after_each_step():
    prompt, pieces = steps.marker_template(problem(), ["a", "b <image>"], PROCESSOR)
    assert prompt == steps.policy_prompt(problem(), PROCESSOR)
    assert pieces == ["a<prm>", "\n\nb < image><prm>"]


def test_orm_template_has_one_marker():
    assert steps.orm_template(problem(), ["a", "b"], PROCESSOR).pieces == ["a\n\nb<prm>"]
    assert steps.orm_template(problem(), [], PROCESSOR).pieces == []


def test_judge_template_asks_in_words():
    prompt, pieces = steps.judge_template(problem(), ["a", "b"], PROCESSOR)
    assert "What is 1 + 1?\nJudge each statement.<|im_end|>" in prompt
    assert pieces == ["a True?", "\n\nb True?"]


@pytest.mark.parametrize("history", [None, ["-", "+", "-"]])
def test_chat_template_is_the_conversation_the_chat_template_renders(history):
    prompt, pieces = steps.chat_template(problem(), ["a", "b", "c"], PROCESSOR, history=history)
    shown = history or ["+", "+", "+"]
    text = lambda t: [{"type": "text", "text": t}]  # noqa: E731
    messages = [
        {"role": "system", "content": text(steps.CHAT_SYSTEM)},
        {
            "role": "user",
            "content": [
                *text("### Question:\n"),
                {"type": "image"},
                *text("\nWhat is 1 + 1?\n\n### Solution Process:\na"),
            ],
        },
        {"role": "assistant", "content": text(shown[0])},
        {"role": "user", "content": text("b")},
        {"role": "assistant", "content": text(shown[1])},
        {"role": "user", "content": text("c")},
    ]
    assert prompt + "".join(pieces) == PROCESSOR.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert all(
        piece.endswith("<|im_start|>assistant\n") for piece in pieces
    )  # the decision: the last role-header token


def test_chat_template_never_shows_the_last_verdict():
    layouts = [steps.chat_template(problem(), ["a", "b"], PROCESSOR, history=["+", last]) for last in "+-"]
    assert layouts[0] == layouts[1]
    with pytest.raises(ValueError, match="p1: 1 labels in the history of 2 steps"):
        steps.chat_template(problem(), ["a", "b"], PROCESSOR, history=["+"])


def test_chat_template_needs_turns_that_repeat():
    class Odd:
        tokenizer = PROCESSOR.tokenizer

        def apply_chat_template(self, messages, **options):
            return "always the same"

    with pytest.raises(ValueError, match="does not repeat its turns"):
        steps.chat_template(problem(), ["a"], Odd())
