"""Solutions of ten thousand steps through every stage: bounded in time and size, refused by name, or counted."""

import io
import time

import pytest
from PIL import Image

from mmprm_lib import interchange, labeling, models, schema, steps
from mmprm_lib.critic import Critic
from mmprm_lib.drawing import MAX_ROWS, rows_shown, solution_with_scores
from mmprm_lib.encoding import Encoder
from mmprm_lib.foreign import Labelled
from mmprm_lib.generation import TransformersGenerator
from mmprm_lib.plots_critique import critique_card
from mmprm_lib.plots_evaluation import candidate_board
from mmprm_lib.schema import Critique, CritiqueStep
from mmprm_lib.scoring import Scorer
from tests.doubles import ToyGenerator, problem, say, solution

N = 10_000
LONG = tuple(f"Step: so {i} and {i + 1}" for i in range(N))


@pytest.fixture(scope="module")
def base():
    return models.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    Image.new("RGB", (9, 9), "red").save(folder / "a.png")
    made = problem(image="a.png", image_sha256=schema.sha256_of((folder / "a.png").read_bytes()))
    made._root = folder
    return made


def linear(call):
    """What call(N) gives, in the CPU time that is right for four times as many as N / 4; 16 times is quadratic."""
    call(10)
    start = time.process_time()
    call(N // 4)
    middle = time.process_time()
    found = call(N)
    assert time.process_time() - middle < 12 * (middle - start)
    return found


@pytest.mark.parametrize("kind", ["marker", "chat"])
def test_encoding_takes_time_in_proportion_to_the_steps(base, asked, kind):
    model, processor = base
    if steps.MARKER not in processor.tokenizer.get_vocab():
        processor.tokenizer.add_tokens([steps.MARKER], special_tokens=True)
    encoder = Encoder(steps.FORMATS[kind], processor, max_length=10**9)
    encoded = linear(lambda n: encoder.encode(asked, list(LONG[:n]), "s"))
    assert len(encoded.positions) == (1 if kind == "orm" else N)


@pytest.mark.parametrize(("kind", "history"), [("judge", "plus"), ("chat", "plus"), ("chat", "predicted")])
def test_scoring_names_a_solution_that_is_too_long_before_anything_is_computed(base, asked, kind, history, monkeypatch):
    scorer = Scorer(kind, *base, history=history)
    monkeypatch.setattr(scorer.head, "forward", lambda **inputs: pytest.fail("nothing is to be computed"))
    given = [solution("p0/short"), solution("p0/long", LONG)]
    with pytest.raises(ValueError, match=r"p0/long: \d+ tokens, but the model takes 16384: leave it out or shorten it"):
        scorer.score(asked, given)


def test_labels_of_each_of_so_many_steps_are_refused_before_anything_is_drawn(tmp_path):
    generator = ToyGenerator(lambda request, sample, sampling: say("Answer: 12"))
    given = [solution("p0/s0"), solution("p0/s1", LONG[: labeling.MAX_STEPS]), solution("p0/s2", LONG)]
    said = r"'p0/s2' has 10000 steps, and rollouts go on from each of 1000 at most: merge them"
    for options in (labeling.Options(), labeling.Options("adaptive"), labeling.Options(early_stop=True)):
        with pytest.raises(ValueError, match=said):
            labeling.labels_to(tmp_path / "labels.jsonl", given, [problem()], generator, options)
        with pytest.raises(ValueError, match=said):
            list(labeling.label(given[2:], [problem()], generator, options))
    assert generator.n_read == 0 and not (tmp_path / "labels.jsonl").exists()
    (record,) = labeling.label(given[1:2], [problem()], generator, labeling.Options(n_rollouts=1))
    assert record.n_rollouts == [1] * labeling.MAX_STEPS
    merged = steps.split(steps.join(list(LONG)), 12)  # what sampling does with a text of so many
    assert len(merged) == 12 and steps.join(merged) == steps.join(list(LONG))


def test_a_critique_that_does_not_fit_the_context_is_counted_and_not_cut(base, asked):
    generator = TransformersGenerator(*base, batch_size=4)
    generator.context = 400
    critic = Critic(generator)
    given = [solution("p0/one", (" ".join(LONG),)), solution("p0/long", (" ".join(LONG[:40]), *LONG))]
    found = {c.solution_id: c for c in critic.critique([asked], given)}
    for name in ("p0/one", "p0/long"):
        assert found[name].parse.startswith("failed: ValueError: p0: ") and found[name].steps == []
        assert found[name].parse.endswith("tokens do not fit the model's context of 400")
    assert critic.counts["n_critiques"] == critic.counts["n_unreadable"] == 2 and critic.counts["n_tokens"] == 0


def labelled(n):
    marks = [1] * n
    labels = schema.StepLabels(
        solution_id="s", problem_id="p", steps=list(LONG[:n]), n_rollouts=[4] * n, n_correct=[4] * n,
        n_unknown=[0] * n, mc_score=[1.0] * n, strategy="x", n_generated_tokens=3, truth=marks,
    )  # fmt: skip
    return Labelled(labels=labels, question="q", images=["a.png"], answer="1", marks=marks, scores=[1.0] * n)


@pytest.mark.parametrize("name", [name for name in interchange.FORMATS if name != "omegaprm"])
def test_foreign_rows_of_so_many_steps_come_back_as_they_were(tmp_path, name):
    read, write = interchange.FORMATS[name]

    def through(n):
        write(tmp_path / "rows.jsonl", [labelled(n)], strict=False, bad=(bad := []))
        return list(read(tmp_path / "rows.jsonl", strict=True)), bad

    (found,), bad = linear(through)
    assert found.steps == list(LONG) and bad == []


def test_cards_show_a_part_and_say_of_how_many():
    assert rows_shown(3) == range(3) and rows_shown(N, 7000) == range(6980, 7020)
    assert rows_shown(N, N - 1) == range(N - MAX_ROWS, N) and rows_shown(41, 40) == range(1, 41)
    image, scores = Image.new("RGB", (9, 9), "red"), [0.5] * N
    given = solution("p0/s0", LONG)
    judged = [CritiqueStep(intent="a", image="b", logic="c", verdict=v, p_correct=0.5)
              for v in ["correct"] * 7000 + ["incorrect"]]  # fmt: skip
    critique = Critique(solution_id="p0/s0", steps=judged, first_error=7001, corrected_step="d", parse="ok")
    for figure, part, last in (
        (solution_with_scores(image, problem(), LONG, scores, [1] * N), "steps 1 to 40 of 10000", "40  "),
        (critique_card(image, problem(), given, critique, [1] * N), "steps 6981 to 7020 of 10000", "7001  "),
        (candidate_board(image, problem(), [given], [scores], [0.5], {"PRM": 0}), "", ""),
    ):
        texts = {text.get_text() for axes in figure.axes for text in axes.texts}
        assert not part or {part, last} <= texts
        figure.savefig(io.BytesIO(), format="png")
        assert max(figure.get_size_inches()) < 60 and len(texts) < 200
