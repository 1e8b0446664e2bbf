"""PRMs: the objective by hand, one template for both sides, scores of a solution alone, every training option."""

import copy
import gc
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmprm_lib import data, encoding, models, objective, packing, prm, scoring, steps
from mmprm_lib.schema import Solution, StepLabels

FORMS = steps.FORMATS


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return data.from_world({"train": 8}, 0, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection():
    """Trainer collects garbage after each run: a second each time, were everything imported so far looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@cache
def untouched():
    return models.new_base(0, width=64, layers=2, vision_layers=1), models.new_processor()


def fresh(marker=True):
    model, processor = copy.deepcopy(untouched())
    if marker:
        prm.add_marker(model, processor)
    return model, processor


def solution(problem, parts, name=None, verdict="correct"):
    return Solution(
        solution_id=name or f"{problem.problem_id}/{len(parts)}",
        problem_id=problem.problem_id,
        steps=parts,
        answer=None,
        verdict=verdict,
        policy="test",
        seed=0,
        n_tokens=1,
        finish_reason="stop",
    )


def labelled(problem, parts, mc, truth=None, name=None):
    none = [None] * len(parts)
    return StepLabels(
        solution_id=name or problem.problem_id,
        problem_id=problem.problem_id,
        steps=parts,
        n_rollouts=none,
        n_correct=none,
        n_unknown=none,
        mc_score=mc,
        strategy="test",
        n_generated_tokens=0,
        truth=truth,
    )


def records(problems):
    """Separable at a glance: "Bar A is 3" is right, "7 + 8 = 15" is wrong."""
    parts = ["Bar A is 3", "7 + 8 = 15", "Bar A is 3", "Answer: 3"]
    return [labelled(p, parts[: 2 + i % 3], [1.0, 0.0, 0.9, None][: 2 + i % 3]) for i, p in enumerate(problems)]


# ---- the objective


def test_a_soft_label_reaches_the_loss_as_it_is():
    # p = 3/4: -(0.3 ln 0.75 + 0.7 ln 0.25) = 0.3 * 0.28768 + 0.7 * 1.38629 = 1.05671
    loss = prm.step_loss(torch.tensor([[[math.log(3), 0.0]]]), torch.tensor([[0.3]]))
    assert loss.item() == pytest.approx(1.05671, abs=1e-5)


def test_the_loss_is_a_mean_over_the_labelled_steps_of_the_whole_batch():
    logits = torch.zeros(2, 3, 2)  # every cross-entropy is ln 2
    labels = torch.tensor([[1.0, objective.IGNORED, objective.IGNORED], [0.0, 0.3, 1.0]])
    assert prm.step_loss(logits, labels).item() == pytest.approx(math.log(2))
    assert prm.step_loss(logits, labels, n_labelled=8).item() == pytest.approx(4 * math.log(2) / 8)
    assert prm.step_loss(logits, torch.full((2, 3), objective.IGNORED)).item() == 0.0


def test_three_classes_and_weights():
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2]] * 3]))  # +, -, =
    labels = torch.tensor([[1.0, 0.0, 0.5]])
    # -(ln 0.5 + ln 0.3 + ln 0.2) / 3 = (0.6931 + 1.2040 + 1.6094) / 3
    assert prm.step_loss(logits, labels).item() == pytest.approx(1.16885, abs=1e-4)
    # weight 2 on "-": (0.6931 + 2.4079 + 1.6094) / 3
    assert prm.step_loss(logits, labels, None, torch.tensor([1.0, 2.0, 1.0])).item() == pytest.approx(1.57017, abs=1e-4)


def test_balance_gives_the_wrong_steps_their_share():
    # one wrong in five at balance 0.5: 0.5 / 0.8 and 0.5 / 0.2; mean 0.8 * 0.625 + 0.2 * 2.5 = 1
    assert objective.class_weights([1, 1, 1, 1, 0], 2, 0.5).tolist() == pytest.approx([0.625, 2.5])
    assert objective.class_weights([1, 0.5, 1, 0.5, 0], 3, 0.5).tolist() == pytest.approx([0.625, 2.5, 0.625])
    assert objective.class_weights([1, 0], 2, None) is None
    for balance, labels in ((1.0, [1, 0]), (0.5, [1, 1])):
        with pytest.raises(ValueError, match="balance"):
            objective.class_weights(labels, 2, balance)


def test_labels_of_each_kind(problems):
    record = labelled(problems[0], ["a", "b", "c", "d"], [0.3, 0.0, 0.25, None])
    assert objective.decision_labels(FORMS["marker"], record, "soft") == [0.3, 0.0, 0.25, None]
    assert objective.decision_labels(FORMS["marker"], record, "hard") == [1.0, 0.0, 1.0, None]
    assert objective.decision_labels(FORMS["chat"], record, "hard", threshold=0.25) == [1.0, 0.0, 0.0, None]
    # 0.3 > 0, then down, up, unknown
    assert objective.decision_labels(FORMS["chat_advantage"], record, "hard") == [1.0, 0.0, 1.0, None]
    same = labelled(problems[0], ["a", "b"], [0.5, 0.5])
    assert objective.decision_labels(FORMS["chat_advantage"], same, "hard") == [1.0, 0.5]
    assert objective.decision_labels(FORMS["orm"], same) == [0.5]
    with pytest.raises(ValueError, match="no soft label"):
        objective.decision_labels(FORMS["chat_advantage"], same, "soft")


def test_an_orm_learns_the_verdict(problems):
    made = [solution(problems[0], ["a"], verdict=v) for v in ("correct", "wrong", "unknown")]
    assert [objective.decision_labels(FORMS["orm"], s) for s in made] == [[1.0], [0.0], [None]]
    with pytest.raises(ValueError, match="needs step labels"):
        objective.decision_labels(FORMS["marker"], made[0])


def test_validation_compares_with_the_truth_where_there_is_one(problems):
    with_truth = labelled(problems[0], ["a", "b", "c"], [1.0, 1.0, 0.0], truth=[1, -1, 0])
    without = labelled(problems[0], ["a", "b", "c"], [0.1, 0.0, None])
    made = objective.examples(FORMS["marker"], [with_truth, without], problems, "soft", 0.5)
    assert [example.right for example in made] == [[True, False, None], [True, False, None]]
    with pytest.raises(ValueError, match="is not among the 1 given"):
        objective.examples(FORMS["marker"], [labelled(problems[0], [], [])], problems[1:2], "soft", 0.0)


def test_metrics_by_hand():
    # right 0.9, 0.4; wrong 0.6, 0.1: 3 of 4 pairs in order; Brier (0.01 + 0.36 + 0.36 + 0.01) / 4; both F1 = 1/2
    m = objective.validation_metrics([0.9, 0.4, 0.6, 0.1], [True, True, False, False])
    assert (m["n"], m["auroc"], m["macro_f1"]) == (4, 0.75, 0.5)
    assert m["brier"] == pytest.approx(0.185)
    assert [(b["n"], b["share_right"]) for b in m["bins"]] == [(1, 0.0), (1, 1.0), (1, 0.0), (1, 1.0)]


def test_metrics_of_the_perfect_the_clueless_and_the_empty():
    perfect = objective.validation_metrics([1.0, 0.0], [True, False])
    assert (perfect["auroc"], perfect["macro_f1"], perfect["brier"]) == (1.0, 1.0, 0.0)
    chance = objective.validation_metrics([0.5] * 4, [True, False] * 2)
    assert (chance["auroc"], chance["brier"], len(chance["bins"])) == (0.5, 0.25, 1)
    assert objective.validation_metrics([0.7], [True])["auroc"] is None
    assert objective.validation_metrics([], [])["n"] == 0


# ---- tokens and scores


def test_label_words_are_single_tokens_or_an_error():
    _, processor = fresh(marker=False)
    tokenizer = processor.tokenizer
    ids = scoring.label_ids(FORMS["marker"], tokenizer)
    assert [tokenizer.decode([i]).strip() for i in ids] == ["Yes", "No"]
    assert [tokenizer.decode([i]) for i in scoring.label_ids(FORMS["chat_advantage"], tokenizer)] == ["+", "-", "="]
    with pytest.raises(ValueError, match="no single tokens for the labels"):
        scoring.label_ids(steps.Format("marker", labels=("Certainly", "No")), tokenizer)


def test_a_scorer_without_the_marker_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has no <prm> token"):
        scoring.Scorer("marker", *fresh(marker=False))


def test_markers_and_labels_agree_even_where_a_step_spells_a_marker(problems, monkeypatch):
    model, processor = fresh()
    parts = ["a<prm>b", "<image>", "c"]
    encoder = encoding.Encoder(FORMS["marker"], processor, 512)
    row = encoder.encode(problems[0], parts, "s1")
    marker, image = (processor.tokenizer.convert_tokens_to_ids(t) for t in ("<prm>", "<image>"))
    assert [row.ids[p] for p in row.positions] == [marker] * 3
    assert (row.ids.count(marker), row.ids.count(image)) == (3, 16)
    monkeypatch.setattr(steps, "neutralise", lambda text, _: text)
    with pytest.raises(ValueError, match="s1: 4 decisions after tokenising for 3 labels"):
        encoder.encode(problems[0], parts, "s1")


@pytest.mark.parametrize("kind", list(FORMS))
def test_training_and_scoring_see_the_same_tokens(problems, kind, monkeypatch):
    model, processor = fresh()
    record = labelled(problems[0], ["a", "b c"], [1.0, 1.0])
    encoder = encoding.Encoder(FORMS[kind], processor, 512)
    (row,), dropped = prm.training_rows(
        encoder, objective.examples(FORMS[kind], [record], problems, "hard", 0.0), "plus"
    )
    batch = prm.collate_labelled(encoder, [row])
    seen = []
    scorer = scoring.Scorer(kind, model, processor)
    scorer.share_prompts = False
    monkeypatch.setattr(scorer.head, "forward", lambda **b: seen.append(b) or torch.zeros(*b["positions"].shape, 2))
    scorer.score(problems, [record])
    for key in ("input_ids", "attention_mask", "positions", "pixel_values"):
        assert torch.equal(batch[key], seen[0][key]), key


@pytest.mark.parametrize("kind", list(FORMS))
def test_a_score_depends_on_the_solution_alone(problems, kind):
    model, processor = fresh()
    made = [
        solution(p, parts, f"{i}/{j}")
        for i, p in enumerate(problems[:3])
        for j, parts in enumerate((["a", "b", "c"], [], ["d e f"]))
    ]
    together = scoring.Scorer(kind, model, processor).score(problems, made)
    assert [len(s) for s in together] == ([1, 0, 1] if kind == "orm" else [3, 0, 1]) * 3
    alone = scoring.Scorer(kind, model, processor, batch_size=1)
    back = scoring.Scorer(kind, model, processor, batch_tokens=150).score(problems[::-1], made[::-1])[::-1]
    alone.share_prompts = False
    by_problem = scoring.Scorer(kind, model, processor)  # whose candidates follow one another in a row
    line = [scores for i in range(3) for scores in by_problem.score(problems, made[3 * i : 3 * i + 3])]
    for a, b, c, d in zip(together, alone.score(problems, made), back, line, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
        np.testing.assert_allclose(a, c, atol=2e-6)
        np.testing.assert_allclose(a, d, atol=2e-6)
        assert ((a >= 0) & (a <= 1)).all()


def test_the_token_budget_counts_a_shared_prompt_once(problems):
    model, processor = fresh()
    made = [solution(problems[0], ["a", "b"], str(j)) for j in range(6)]
    row = scoring.Scorer("marker", model, processor).encoder.encode(problems[0], ["a", "b"], "")
    budget = row.n_prompt + 6 * (len(row.ids) - row.n_prompt)
    assert budget < 6 * len(row.ids)
    for tokens, passes in ((budget, [6]), (budget - 1, [5, 1]), (1, [1] * 6)):
        scorer = scoring.Scorer("marker", model, processor, batch_tokens=tokens)
        encoded = {j: row for j in range(6)}
        assert [len(group) for group in scorer._batches(list(range(6)), encoded, made)] == passes
    two = [row, row._replace(problem=problems[1])]  # another image under the same words is another prompt
    made = [solution(p, ["a", "b"], str(j)) for j, p in enumerate(problems[:2])]
    scorer = scoring.Scorer("marker", model, processor, batch_tokens=2 * len(row.ids) - 1)
    assert [len(group) for group in scorer._batches([0, 1], dict(enumerate(two)), made)] == [1, 1]


def test_a_long_prompt_whose_candidates_fill_a_pass_stands_alone_in_it(problems):
    model, processor = fresh()
    scorer = scoring.Scorer("marker", model, processor)
    made = [solution(p, ["a", "b"], f"{i}/{j}") for i, p in enumerate(problems[:2]) for j in range(6)]
    encoded = {i: scorer.encoder.encode(problems[i // 6], m.steps, "") for i, m in enumerate(made)}
    n, new = encoded[6].n_prompt, max(len(row.ids) - row.n_prompt for row in encoded.values())
    scorer.batch_tokens = 12 * new + 2 * max(n, encoded[0].n_prompt)  # all would fit
    assert n > new
    assert [len(group) for group in scorer._batches(list(range(12)), encoded, made)] == [6, 6]
    scorer.batch_tokens *= 4  # six are far from filling a quarter of it
    assert [len(group) for group in scorer._batches(list(range(12)), encoded, made)] == [12]
    batch = scorer.encoder.collate_in_line([encoded[i] for i in range(6)])
    assert batch["input_ids"].shape == (1, sum(len(encoded[i].ids) - encoded[i].n_prompt for i in range(6)))


def test_the_score_is_the_softmax_of_two_logits_at_the_marker(problems):
    model, processor = fresh()
    made = solution(problems[0], ["Bar A is 3", "Answer: 3"])
    (scores,) = scoring.Scorer("marker", model, processor).score(problems[0], [made])
    text = "".join([(layout := steps.marker_template(problems[0], made.steps, processor)).prompt, *layout.pieces])
    inputs = processor(
        text=[text], images=[data.open_image(problems[0])], return_tensors="pt", add_special_tokens=False
    )
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    at = inputs["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids("<prm>")
    z = logits[at][:, scoring.label_ids(FORMS["marker"], processor.tokenizer)]
    np.testing.assert_allclose(scores, torch.sigmoid(z[:, 0] - z[:, 1]), atol=2e-6)


class Wide(TorchDispatchMode):
    """Counts the tensors that are as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.found = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        parts = out if isinstance(out, list | tuple) else [out]
        self.found += sum(isinstance(t, torch.Tensor) and self.vocabulary in t.shape[1:] for t in parts)
        return out


def test_scoring_computes_no_logit_but_those_of_the_label_words(problems):
    model, processor = fresh()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    scorer = scoring.Scorer("marker", model, processor)
    with Wide(vocabulary) as wide:
        scorer.score(problems, records(problems))
    assert wide.found == 0
    ids = torch.tensor([processor.tokenizer.encode("Sum: 3")])
    with Wide(vocabulary) as wide, torch.inference_mode():
        model(input_ids=ids)
    assert wide.found > 0  # as of the whole head


def test_the_image_matters(problems):
    model, processor = fresh()
    other = problems[0].model_copy(update={"image": problems[1].image, "image_sha256": problems[1].image_sha256})
    scorer = scoring.Scorer("marker", model, processor)
    made = solution(problems[0], ["Bar A is 3"])
    assert scorer.score(problems[0], [made])[0] != scorer.score(other, [made])[0]


def test_one_pass_gives_what_growing_prefixes_give(problems):
    model, processor = fresh()
    scorer = scoring.Scorer("chat", model, processor)
    parts = ["a", "b", "c"]
    (whole,) = scorer.score(problems[0], [solution(problems[0], parts)])
    growing = [scorer.score(problems[0], [solution(problems[0], parts[:t])])[0][-1] for t in (1, 2, 3)]
    np.testing.assert_allclose(whole, growing, atol=2e-6)


def test_predicted_history_shows_the_verdicts_made(problems):
    model, processor = fresh()
    scorer = scoring.Scorer("chat", model, processor, history="predicted")
    seen = []
    scorer._pass = lambda p, s, histories: seen.append(histories) or [np.array([0.2, 0.9, 0.1], np.float32)]
    scorer.score(problems[0], [solution(problems[0], ["a", "b", "c"])])
    assert seen == [[["+", "+", "+"]], [["-", "+", "+"]], [["-", "+", "+"]]]  # 0.2 is "-", 0.9 is "+"
    # at a threshold a step is right, as in benchmark.py, in 64 bits: 0.7 in 32 bits is a little less than 0.7
    for threshold, shown in ((0.9, "--"), (0.7, "-+"), (0.5, "++"), (0.51, "-+")):
        scorer, seen = scoring.Scorer("chat", model, processor, history="predicted", threshold=threshold), []
        scorer._pass = lambda p, s, histories, seen=seen: seen.append(histories) or [np.array([0.5, 0.75], np.float32)]
        scorer.score(problems[0], [solution(problems[0], ["a", "b", "c"])])
        assert seen[-1] == [[*shown, "+"]]
    assert scorer._shown(["a"], np.array([0.7], np.float32)) == ["+"]
    scorer.threshold = 0.7
    assert scorer._shown(["a"], np.array([0.7], np.float32)) == ["-"]  # 0.699999988 < 0.7
    with pytest.raises(ValueError, match="history is 'true'"):
        scoring.Scorer("chat", model, processor, history="true")


def test_the_threshold_of_a_predicted_history_is_in_the_fingerprint():
    model, processor = fresh()
    marks = {
        h: [scoring.Scorer("chat", model, processor, history=h, threshold=t).fingerprint for t in (0.5, 0.85)]
        for h in ("plus", "predicted")
    }
    assert marks["plus"][0] == marks["plus"][1] and len({*marks["predicted"], marks["plus"][0]}) == 3


def test_three_way_scores_stay_in_the_unit_interval():
    # P(+) - P(-) = 0.5 - 0.3 = 0.2 in [-1, 1] is 0.6 in [0, 1]
    assert scoring.probabilities(torch.log(torch.tensor([0.5, 0.3, 0.2]))).item() == pytest.approx(0.6)


def test_an_over_long_solution_is_an_error_that_names_it(problems):
    model, processor = fresh()
    with pytest.raises(ValueError, match=r"long: \d+ tokens, but the model takes 64"):
        scoring.Scorer("marker", model, processor, max_length=64).score(
            problems[0], [solution(problems[0], ["7 " * 60], "long")]
        )
    with pytest.raises(ValueError, match="is not among the 1 given"):
        scoring.Scorer("marker", model, processor).score(problems[1], [solution(problems[0], ["a"])])


def test_bf16_is_close_and_has_its_own_fingerprint(problems):
    model, processor = fresh()
    made = [solution(problems[0], ["a", "b"])]
    full, half = (scoring.Scorer("marker", model, processor, bf16=b) for b in (False, True))
    assert 0 < np.abs(full.score(problems, made)[0] - half.score(problems, made)[0]).max() < 0.05
    assert full.fingerprint != half.fingerprint


def test_score_records_keep_ids_and_order(problems):
    made = [solution(p, ["a", "b"], f"s{i}") for i, p in enumerate(problems[:3])]
    lines = list(scoring.Scorer("marker", *fresh(), name="mine").score_records(problems, made, chunk=2))
    assert [(line.solution_id, line.prm, len(line.step_scores)) for line in lines] == [
        (f"s{i}", "mine", 2) for i in range(3)
    ]


# ---- training


@pytest.mark.parametrize("init", ["mean", " Yes"])
def test_the_marker_starts_from_known_rows(init):
    model, processor = fresh(marker=False)
    old = model.get_input_embeddings().weight.detach().clone()
    prm.add_marker(model, processor, init)
    row = model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids("<prm>")]
    expected = old.mean(0) if init == "mean" else old[processor.tokenizer.encode(" Yes")[-1]]
    torch.testing.assert_close(row, expected)
    with torch.no_grad():
        row.fill_(7)
    prm.add_marker(model, processor, init)  # a marker that is there is left alone
    assert row[0] == 7 and len(processor.tokenizer) == len(old) + 1


def test_records_that_cannot_be_trained_on_are_counted(problems):
    _, processor = fresh()
    made = [
        labelled(problems[0], ["a"], [0.3]),
        labelled(problems[1], ["7 " * 80], [1.0]),
        labelled(problems[2], ["a"], [None]),
    ]
    encoder = encoding.Encoder(FORMS["marker"], processor, 100)
    rows, dropped = prm.training_rows(encoder, objective.examples(FORMS["marker"], made, problems, "soft", 0.0))
    assert dropped == {"too_long": 1, "unlabelled": 1}
    assert prm.collate_labelled(encoder, rows)["labels"].tolist() == [[pytest.approx(0.3)]]


def test_train_history_shows_labels_or_plus(problems):
    _, processor = fresh()
    encoder = encoding.Encoder(FORMS["chat"], processor, 512)
    made = objective.examples(
        FORMS["chat"], [labelled(problems[0], ["a", "b", "c"], [0.0, None, 0.5])], problems, "hard", 0.0
    )
    texts = [encoder.tokenizer.decode(prm.training_rows(encoder, made, h)[0][0]["input_ids"]) for h in ("true", "plus")]
    assert ["assistant\n-<" in t for t in texts] == [True, False]
    assert [t.count("assistant\n+<") for t in texts] == [1, 2]  # the unlabelled step counts as right
    with pytest.raises(ValueError, match="train_history is 'both'"):
        prm.training_rows(encoder, made, "both")


def run(problems, path, model_and_processor=None, kind="marker", **options):
    model, processor = model_and_processor or fresh(marker=False)
    options = {"batch_size": 4, "learning_rate": 3.0e-3, **options}
    return prm.train(kind, records(problems), problems, model, processor, path, **options)


def test_training_learns_keeps_its_best_epoch_and_survives_saving(problems, tmp_path):
    trained = run(problems, tmp_path, epochs=8, eval_records=records(problems))
    epochs = [row for row in trained.history if "auroc" in row]
    assert len(epochs) == 8 and min(row["brier"] for row in epochs) == trained.metrics["brier"]
    assert trained.metrics["auroc"] > 0.95
    again = prm.evaluate(trained.scorer(), objective.examples(trained.form, records(problems), problems, "soft", 0.0))
    assert again["brier"] == pytest.approx(trained.metrics["brier"], abs=1e-6)  # the best epoch's weights are back
    names = {p.name for p in tmp_path.iterdir()}
    assert {"model.safetensors", "prm.json"} <= names and not any(
        n.endswith((".bin", ".pt", ".pth", ".pkl")) for n in names
    )
    loaded = prm.load_prm(tmp_path)
    assert (loaded.form, loaded.best_epoch, loaded.n_train) == (trained.form, trained.best_epoch, 8)
    ours, theirs = trained.scorer(), loaded.scorer()
    assert ours.fingerprint == theirs.fingerprint
    for a, b in zip(ours.score(problems, records(problems)), theirs.score(problems, records(problems)), strict=True):
        np.testing.assert_array_equal(a, b)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[0, 0] += 1
    assert loaded.scorer().fingerprint != ours.fingerprint


def test_a_folder_without_a_prm_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="prm.json is missing"):
        prm.load_prm(tmp_path)


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.state_dict().values()])


@pytest.mark.parametrize("pack_size", [1, 2])
def test_activations_computed_again_change_nothing(problems, tmp_path, monkeypatch, pack_size):
    again, enable = [], prm.StepHead.gradient_checkpointing_enable

    def counted(self, **options):
        again.append(options["gradient_checkpointing_kwargs"])
        enable(self, **options)

    monkeypatch.setattr(prm.StepHead, "gradient_checkpointing_enable", counted)
    base = weights(run(problems, tmp_path, pack_size=pack_size))
    assert again == []
    other = weights(run(problems, tmp_path, pack_size=pack_size, gradient_checkpointing=True))
    assert again == [{"use_reentrant": False}]
    torch.testing.assert_close(other, base, atol=2e-5, rtol=0)


def test_accumulation_changes_nothing_and_every_option_something(problems, tmp_path):
    base = weights(run(problems, tmp_path))
    torch.testing.assert_close(
        weights(run(problems, tmp_path, batch_size=2, gradient_accumulation=2)), base, atol=2e-5, rtol=0
    )
    torch.testing.assert_close(weights(run(problems, tmp_path)), base, atol=0, rtol=0)
    changes = [{"labels": "hard"}, {"balance": 0.9}, {"seed": 1}, {"marker_init": " Yes"}, {"freeze_vision": False}]
    changes += [
        {"weight_decay": 0.5},
        {"warmup_share": 0.9},
        {"learning_rate": 1e-3},
        {"labels": "hard", "threshold": 0.95},
    ]
    seen = [base] + [weights(run(problems, tmp_path, **change)) for change in changes]
    for i, a in enumerate(seen):
        assert all(not torch.equal(a, b) for b in seen[:i]), changes[i - 1]


def test_a_frozen_tower_stays_as_it_was_and_out_of_training_mode(problems, tmp_path):
    model, processor = fresh(marker=False)
    before = {k: v.clone() for k, v in model.model.vision_tower.state_dict().items()}
    head = prm._head(FORMS["marker"], model, processor, 0, True, None).train()
    assert model.model.language_model.training and not any(m.training for m in model.model.vision_tower.modules())
    del head
    after = run(problems, tmp_path, (model, processor)).model.model.vision_tower.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_lora_is_merged_and_leaves_the_embedding_rows_alone(problems, tmp_path):
    model, processor = fresh(marker=False)
    old = model.get_input_embeddings().weight.detach().clone()
    trained = run(problems, tmp_path, (model, processor), lora_rank=4, epochs=3, eval_records=records(problems))
    assert not any("lora" in key for key in trained.model.state_dict())
    new = trained.model.get_input_embeddings().weight
    assert torch.equal(new[:-1], old) and not torch.equal(new[-1], old.mean(0))  # only the marker's row is trained
    again = prm.evaluate(trained.scorer(), objective.examples(trained.form, records(problems), problems, "soft", 0.0))
    assert again["brier"] == pytest.approx(trained.metrics["brier"], abs=1e-5)  # merged = unmerged
    assert prm.load_prm(tmp_path).scorer().fingerprint == trained.scorer().fingerprint


def test_nothing_to_train_on_is_an_error(problems, tmp_path):
    with pytest.raises(ValueError, match="none of 1 records can be trained on"):
        prm.train("marker", [labelled(problems[0], ["a"], [None])], problems, *fresh(marker=False), tmp_path)


def test_labels_weighted_by_counts_are_the_binomial_likelihood_of_the_rollouts():
    record = StepLabels(
        solution_id="p/s0", problem_id="p", steps=["a", "b", "c"], n_rollouts=[4, 4, 1], n_correct=[3, 1, 0],
        n_unknown=[0, 2, 0], mc_score=[0.75, 0.5, 0.0], strategy="exhaustive", n_generated_tokens=0,
    )  # fmt: skip
    form = steps.FORMATS["marker"]
    assert objective.decision_labels(form, record, "counts") == [0.75, 0.5, 0.0]
    assert objective.decision_weights(form, record, "counts") == [4.0, 2.0, 1.0]
    assert objective.decision_weights(form, record, "soft") is None
    logits = torch.tensor([[[0.2, -0.1], [1.0, 0.3], [-0.5, 0.4]]])
    found = objective.step_loss(logits, torch.tensor([[0.75, 0.5, 0.0]]), step_weights=torch.tensor([[4.0, 2.0, 1.0]]))
    log_p = logits.log_softmax(-1)[0]
    rollouts = [(3, 1), (1, 1), (0, 1)]  # right and wrong ones
    likelihood = sum(right * log_p[t, 0] + wrong * log_p[t, 1] for t, (right, wrong) in enumerate(rollouts))
    assert found.item() == pytest.approx(-likelihood.item() / 3, rel=1e-6)


def test_an_advantage_can_be_taught_to_two_words():
    record = StepLabels(
        solution_id="p/s0", problem_id="p", steps=["a", "b", "c"], n_rollouts=[4] * 3, n_correct=[3, 3, 1],
        n_unknown=[0] * 3, mc_score=[0.75, 0.75, 0.25], strategy="exhaustive", n_generated_tokens=0,
    )  # fmt: skip
    assert objective.decision_labels(steps.FORMATS["marker"], record, "advantage") == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="choose one of soft, hard, counts, advantage"):
        objective.decision_labels(steps.FORMATS["marker"], record, "firm")


def test_weights_of_decisions_have_mean_1_where_there_is_a_label_and_reach_the_loss():
    rows = [{"weights": [4.0, 2.0], "labels": [1.0, objective.IGNORED]}, {"weights": [1.0], "labels": [0.0]}]
    evened = prm._evened(rows)
    assert [row["weights"] for row in evened] == [[pytest.approx(1.6), pytest.approx(0.8)], [pytest.approx(0.4)]]
    batch = packing.with_labels({"positions": torch.zeros(2, 2)}, evened)
    assert torch.allclose(batch["step_weights"], torch.tensor([[1.6, 0.8], [0.4, 0.0]]))
    assert batch["labels"].tolist() == [[1.0, objective.IGNORED], [0.0, objective.IGNORED]]
    assert "step_weights" not in packing.with_labels({"positions": torch.zeros(1, 1)}, [{"labels": [1.0]}])
