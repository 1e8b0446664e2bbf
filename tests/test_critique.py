"""The text of critiques: written, read back byte for byte, and never guessed at; and the scores of solutions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmprm_lib.critique import (
    FIELDS,
    FORMATS,
    SCORES,
    VERDICT_CUE,
    Format,
    TeacherCritique,
    block,
    closing,
    fault_of,
    header,
    numbered,
    opening,
    parse,
    render,
    score,
    solution_score,
    verdict_ids,
)
from mmprm_lib.models import new_tokenizer
from mmprm_lib.schema import Critique, CritiqueStep

TEXT = """Step 1
Intent: Read bar A
Image: Bar A is 4
Logic: 4, Step: 4
Judgement: Correct

Step 2
Intent: Read bar B
Image: Bar B is 3
Logic: 3, Step: 5
Judgement: Incorrect

Correct Step: Bar B is 3"""
SHORT = "Step 1\nJudgement: Correct\n\nStep 2\nJudgement: Incorrect\n\nCorrect Step: Bar B is 3"


def step(verdict: str = "correct", p: float | None = None, **texts: str) -> CritiqueStep:
    """A judged step."""
    return CritiqueStep(**({"intent": "i", "image": "m", "logic": "l"} | texts), verdict=verdict, p_correct=p)


def critique(*steps: CritiqueStep, corrected: str | None = None) -> Critique:
    """A readable critique of the solution s, whose first error is where the steps say."""
    first = next((k for k, s in enumerate(steps, start=1) if s.verdict == "incorrect"), 0)
    return Critique(solution_id="s", steps=list(steps), first_error=first, corrected_step=corrected, parse="ok")


EXAMPLE = critique(
    step(intent="Read bar A", image="Bar A is 4", logic="4, Step: 4"),
    step("incorrect", intent="Read bar B", image="Bar B is 3", logic="3, Step: 5"),
    corrected="Bar B is 3",
)


# -- writing and reading


def test_a_critique_is_written_as_these_lines_and_read_back():
    assert render(EXAMPLE) == TEXT
    assert parse("s", TEXT, 3) == EXAMPLE
    assert parse("s", TEXT, 2) == EXAMPLE


def test_the_control_writes_verdicts_alone():
    assert render(EXAMPLE, FORMATS["verdict_only"]) == SHORT
    bare = critique(*(s.model_copy(update=dict.fromkeys(FIELDS, "")) for s in EXAMPLE.steps), corrected="Bar B is 3")
    assert parse("s", SHORT, 3, FORMATS["verdict_only"]) == bare
    assert parse("s", SHORT, 3).parse == "failed: step 1: no intent"
    assert parse("s", TEXT, 3, FORMATS["verdict_only"]).parse == "failed: step 1: intent is not of this form"


def test_a_form_of_one_field_has_that_field():
    text = render(EXAMPLE, Format(("image",)))
    assert text.startswith("Step 1\nImage: Bar A is 4\nJudgement: Correct\n\nStep 2\n")
    assert [s.image for s in parse("s", text, 2, Format(("image",))).steps] == ["Bar A is 4", "Bar B is 3"]


@pytest.mark.parametrize("fields", [("logic", "intent"), ("verdict",), ("image", "image")])
def test_unknown_or_unordered_fields_are_refused(fields):
    with pytest.raises(ValueError, match="choose some of"):
        Format(fields)


HARD = [
    r"\frac{1}{2} \theta \beta \rho \nu \times \angle \neq",
    r"\boxed{\sqrt{\{x\}}} {{}} {",
    "Judgement: Incorrect",
    "see above\nJudgement: Incorrect\n\nCorrect Step: none\nStep 2\nIntent: Image: Logic:",
    "two\n\n\nblank lines\n  and an indented one\n\ttab",
    "**Judgement:** Correct </step_1> <corrected_step_1> ### Step 3",
    '{"judgement": "Correct"}\r\n\\n',
    "中文 ∠ABC = 30° \x0b \x85 x",
]


@pytest.mark.parametrize("text", HARD)
def test_maths_tags_and_blank_lines_come_back_byte_for_byte(text):
    whole = critique(step(intent=text), step("incorrect", image=text, logic=text), corrected=text)
    assert parse("s", render(whole), 5) == whole


SPEECH = st.lists(
    st.sampled_from(
        ["Step 1", "Step 2\n", "Intent:", "Image:", "Judgement: Correct", "Correct Step:", "\n", "\n\n", "  "]
    )
    | st.text(max_size=6),
    max_size=6,
).map(lambda words: "".join(words).strip()).filter(bool)  # fmt: skip


@given(st.lists(st.tuples(SPEECH, SPEECH, SPEECH), min_size=1, max_size=4), SPEECH, st.booleans(), st.booleans())
def test_any_text_survives_in_any_field(texts, corrected, wrong, bare):
    form = FORMATS["verdict_only" if bare else "critique"]
    steps = [step(**({} if bare else dict(zip(FIELDS, t, strict=True)))) for t in texts]
    if bare:
        steps = [s.model_copy(update=dict.fromkeys(FIELDS, "")) for s in steps]
    if wrong:
        steps[-1] = steps[-1].model_copy(update={"verdict": "incorrect"})
    whole = critique(*steps, corrected=corrected if wrong else None)
    assert parse("s", render(whole, form), len(steps), form) == whole


@given(st.text(alphabet=st.sampled_from("Step 12\nIntent:Image:Logic:Judgement: Correct Incorrect\n"), max_size=200))
def test_what_is_read_keeps_the_format_whatever_the_text(text):
    found = parse("s", text, 2)
    if found.parse == "ok":
        assert fault_of(found, 2) is None and parse("s", render(found), 2) == found
    else:
        assert (found.steps, found.first_error, found.corrected_step) == ([], None, None)
        assert score(found, 2) == -math.inf


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Judgement:", "judgment:"),
        ("Step 1\n", "**Step 1**\n"),
        ("Step 1\n", "### Step 1:\n"),
        ("Intent:", "**Intent:**"),
        ("Image:", "- **Image**:"),
        ("Incorrect\n", "**Incorrect**.\n"),
        (": Correct\n", ":  correct \n"),
        ("Correct Step:", "\n\nCorrected step:"),
        ("\n\nStep 2", "\nStep 2"),
        ("Step 1\n", "\n \nStep 1\n\n"),
        ("Intent: Read bar A\nImage: Bar A is 4", "Image: Bar A is 4\nIntent: Read bar A"),
    ],
)
def test_what_cannot_be_mistaken_is_tolerated(old, new):
    assert old in TEXT
    assert parse("s", TEXT.replace(old, new), 2) == EXAMPLE


def test_a_line_without_tag_and_indentation_belongs_to_the_field_above():
    found = parse("s", TEXT.replace("Bar A is 4\n", "Bar A is 4\nas the grid shows\n"), 2)
    assert found.steps[0].image == "Bar A is 4\nas the grid shows"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("Judgement: Correct", "Judgement: Partly Correct", "step 1: the verdict is 'Partly Correct'"),
        ("Judgement: Correct", "Judgement:", "step 1: the verdict is ''"),
        ("Judgement: Correct\n", "", "step 2 follows step 0 without a verdict"),
        ("Judgement: Correct", "Judgement: Incorrect", "step 2 is judged after the first error"),
        ("Judgement: Incorrect", "Judgement: Correct", "a step is corrected, and none is wrong"),
        ("Correct Step: Bar B is 3", "", "the wrong step is not corrected"),
        ("Correct Step: Bar B is 3", "Correct Step:", "the corrected step is empty"),
        ("\n\nCorrect Step: Bar B is 3", "", "the wrong step is not corrected"),
        ("Image: Bar A is 4\n", "", "step 1: no image"),
        ("Image: Bar A is 4", "Image:", "step 1: image is empty"),
        ("Image: Bar A is 4", "Intent: Bar A is 4", "step 1: intent is twice"),
        ("Step 2\n", "Step 3\n", "step 3 follows step 1"),
        ("Step 2\n", "", "intent stands outside of a step, after step 1"),
        ("Step 1\n", "Sure!\nStep 1\n", "text 'before the first step' that is in no field: 'Sure!'"),
        ("Correct\n", "Correct\nwell\n", "text 'after judgement Correct' that is in no field: 'well'"),
        ("Step: Bar B is 3", "Step: Bar B is 3\n\nStep 3", "step follows the corrected step"),
        ("Judgement: Incorrect\n\n", "", "step 2 has no verdict"),
        (TEXT[TEXT.index("\n\nStep 2") :], "", "1 of 3 steps are judged"),
        (TEXT, "", "0 of 3 steps are judged"),
    ],
)
def test_what_breaks_the_format_is_a_failure_that_says_why(old, new, why):
    assert old in TEXT
    found = parse("s", TEXT.replace(old, new, 1), 3)
    assert found.parse == f"failed: {why}"
    assert (found.steps, found.first_error, found.corrected_step) == ([], None, None)


def test_more_steps_than_the_solution_has_are_a_failure():
    assert parse("s", TEXT, 1).parse == "failed: step 2 is judged, of 1"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (critique(step("incorrect")), "not corrected"),
        (critique(step(), corrected="x"), "none is wrong"),
        (critique(step("incorrect"), step(), corrected="x"), "step 2 is judged after"),
        (critique(step("unknown")), "step 1 has no verdict"),
        (critique(step(image=" ")), "step 1 has no image"),
        (parse("s", "hm", 1), "failed: text"),
        (critique(step()).model_copy(update={"first_error": 1}), "first_error is 1, the verdicts say 0"),
    ],
)
def test_what_breaks_the_format_is_not_written(bad, why):
    with pytest.raises(ValueError, match=why):
        render(bad)


def test_a_step_is_written_in_the_pieces_that_decoding_uses():
    whole = block(2, EXAMPLE.steps[1])
    assert whole.startswith(opening(2)) and opening(2) == "Step 2\nIntent:"
    assert whole.endswith("\nJudgement:") and whole + " Incorrect" in TEXT
    assert opening(2, FORMATS["verdict_only"]) == block(2, EXAMPLE.steps[1], FORMATS["verdict_only"])


# -- the question


def test_steps_are_numbered_for_a_teacher_and_head_the_blocks_of_a_critic():
    assert numbered(["Bar A is 4", "Answer: 4"]) == ["Step 1: Bar A is 4", "Step 2: Answer: 4"]
    assert header(2, "Answer: 4") == "Step 2: Answer: 4" and header(2) == "Step 2"
    assert opening(2, text="a\nb") == "Step 2: a\n  b\nIntent:"


@given(st.lists(SPEECH, max_size=3), st.lists(SPEECH, max_size=3))
def test_two_solutions_never_read_alike(one, two):
    assert (numbered(one) == numbered(two)) is (one == two)


@given(st.lists(SPEECH.filter(str.strip), min_size=5, max_size=5))
def test_a_step_that_is_restated_changes_nothing_in_what_is_read(steps):
    text = render(EXAMPLE, steps=steps)
    assert header(1, steps[0]) in text and parse("s", text, 5) == parse("s", render(EXAMPLE), 5)


def test_a_step_stands_before_the_words_about_it_and_once_more_right_before_its_verdict():
    text = render(EXAMPLE, steps=["Bar A is 4", "Bar B is\n5"])
    assert "Logic: 3, Step: 5\nStep: Bar B is\n  5\nJudgement: Incorrect" in text and text.count("\nStep: ") == 2
    assert closing(text="Bar B is\n5") == "Step: Bar B is\n  5\nJudgement:" and closing() == "Judgement:"
    bare = render(EXAMPLE, FORMATS["verdict_only"], steps=["Bar A is 4", "Bar B is 5"])
    assert bare.startswith("Step 1: Bar A is 4\nJudgement:") and "\nStep: " not in bare  # nothing stands between


@pytest.mark.parametrize("text", ["Step: Bar A is 4\n" + TEXT, TEXT + "\nStep: Bar A is 4"])
def test_a_step_once_more_outside_of_a_block_is_a_failure(text):
    assert parse("s", text, 3).parse.startswith("failed: ")


# -- tokens


def test_the_verdict_is_one_token_of_the_embedded_model():
    tokenizer = new_tokenizer()
    ids = verdict_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["ĠCorrect", "ĠIncorrect"]
    for word in ("Intent", "Image", "Logic", "Judgement", "Correct", "Step", "\n\n"):
        assert len(tokenizer(word)["input_ids"]) == 1, word
    written = tokenizer(TEXT)["input_ids"]
    cue = tokenizer(VERDICT_CUE)["input_ids"]
    places = [i for i in range(len(written)) if written[i : i + len(cue)] == cue]
    assert [written[i + len(cue)] for i in places] == list(ids)


class Words:
    """A tokenizer that cuts where it is told; the ids are the pieces themselves."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = sorted(pieces, key=len, reverse=True)

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        """The pieces of a text, characters where none fits."""
        ids = []
        while text:
            ids.append(next((p for p in self.pieces if text.startswith(p)), text[0]))
            text = text[len(ids[-1]) :]
        return {"input_ids": ids}


def test_words_of_several_tokens_may_be_verdicts_if_they_begin_differently():
    assert verdict_ids(Words(" Correct", " In", "correct", ":")) == (" Correct", " In")


def test_a_tokenizer_on_which_no_one_token_decides_is_refused():
    with pytest.raises(ValueError, match="begin with tokens"):
        verdict_ids(Words(" ", "Correct", "Incorrect"))
    with pytest.raises(ValueError, match="across the cue"):
        verdict_ids(Words(": C", " Correct", " Incorrect"))


# -- scores

SPEC = [(1, 0.050, 0.006), (2, 0.510, 0.128), (4, 0.740, 0.370), (8, 0.855, 0.855)]


@pytest.mark.parametrize(("place", "observed", "padded"), SPEC)
def test_late_errors_cost_little_unless_the_rest_is_padded(place, observed, padded):
    # 0.97 before and 0.05 at the error, 8 steps: at 2, (0.97 + 0.05) / 2 = 0.51 and 1.02 / 8 = 0.1275
    p = [0.97] * (place - 1) + [0.05]
    assert solution_score(p, 8) == pytest.approx(observed, abs=5.1e-4)
    assert solution_score(p, 8, "padded") == pytest.approx(padded, abs=5.1e-4)


def test_the_scores_of_a_hand_case():
    p = [0.9, 0.8, 0.4]
    assert solution_score(p, 4) == pytest.approx(0.7)  # 2.1 / 3
    assert solution_score(p, 4, "padded") == pytest.approx(0.525)  # 2.1 / 4
    assert solution_score(p, 4, "min") == 0.4
    assert solution_score(p, 4, "product") == pytest.approx(0.288)  # 0.9 * 0.8 * 0.4
    assert solution_score(p, 4, "lexicographic") == pytest.approx(0.35)  # wrong: 0 + 0.7 / 2
    assert solution_score(p, 4, "lexicographic", wrong=False) == pytest.approx(1.35)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 4), st.booleans())
def test_scores_are_finite_and_padding_changes_nothing_where_all_is_judged(p, unjudged, wrong):
    for how in SCORES:
        assert 0 <= solution_score(p, len(p) + unjudged, how, wrong) <= (1.5 if how == "lexicographic" else 1)
    assert solution_score(p, len(p)) == pytest.approx(solution_score(p, len(p), "padded"))


@given(st.lists(st.floats(0, 1), min_size=1), st.lists(st.floats(0, 1), min_size=1))
def test_no_solution_with_an_error_comes_before_one_without(wrong, right):
    low, high = (solution_score(p, 100, "lexicographic", w) for p, w in ((wrong, True), (right, False)))
    assert low < high


def test_every_way_to_score_gives_another_number():
    assert len({round(solution_score([0.9, 0.7, 0.3], 5, how), 6) for how in SCORES}) == len(SCORES) == 5


@pytest.mark.parametrize(
    ("p", "n", "how", "why"),
    [([0.5], 1, "median", "not known"), ([], 3, "mean", "0 judged steps"), ([0.5] * 3, 2, "mean", "3 judged steps of"),
     ([1.2], 1, "mean", "outside"), ([math.nan], 1, "min", "outside")],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(p, n, how, why):
    with pytest.raises(ValueError, match=why):
        solution_score(p, n, how)


def test_a_critique_that_could_not_be_read_never_wins():
    read = critique(step(p=0.0), step("incorrect", p=0.0), corrected="x")
    assert score(read, 4, "lexicographic") == 0.0
    assert score(parse("s", "hm", 4), 4) == -math.inf < score(read, 4)
    assert score(critique(step(p=0.9), step()), 2) == -math.inf  # a probability was not read
    assert score(critique(step(p=0.9), step(p=0.4)), 2, "lexicographic") == pytest.approx(1.325)  # its verdicts count


# -- the record


def test_a_teachers_critique_is_of_its_own_solution():
    fields = dict(solution_id="s", problem_id="p", steps=["a", "b"], teacher="t")
    assert TeacherCritique(**fields, critique=EXAMPLE).n_tokens == 0
    with pytest.raises(ValidationError, match="not of 's2'"):
        TeacherCritique(**fields | {"solution_id": "s2"}, critique=EXAMPLE)
    with pytest.raises(ValidationError, match="2 steps are judged of 1"):
        TeacherCritique(**fields | {"steps": ["a"]}, critique=EXAMPLE)
