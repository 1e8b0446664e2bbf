"""Every family of vision-language models goes through the whole line: exactly where a fast path is taken, else plainly.

A family whose processor needs a package that is missing here is skipped; `make test-vllm` has them all.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mmprm_lib import architecture, critic, data, encoding, images, models, policy, prm, scoring, steps
from mmprm_lib.critique import TeacherCritique
from mmprm_lib.generation import Request, Sampling, TransformersGenerator
from mmprm_lib.prompts import text_of
from mmprm_lib.schema import Critique, CritiqueStep, StepLabels
from tests import families
from tests.conftest import REPOSITORY
from tests.doubles import problem, solution

PARTS = ["Bar A is 3", "Sum: 7 + 8 = 16", "Bar <image> is 3\n", "Answer: 12"]
PACKED = {"llava", "internvl", "idefics3", "smolvlm"}  # families whose solutions may share a row in training
SLOTS = {"llava", "internvl"}  # families whose samples stand side by side in one cache
BARE_PROJECTOR = {"gemma3"}  # families whose projector holds no linear layer
SHARED = {*PACKED, "qwen2_5_vl", "qwen3_vl"}  # families whose solutions share the cache of their prompt


class Facts(NamedTuple):
    """What a family's template and processor make of "Which bar?" and of pictures of so many pixels."""

    prompt: str  # up to the open assistant turn
    chat: str  # of the chat PRM's prompt, all before the question
    pieces: tuple[str, str]  # of the chat PRM on the steps "a" and "b"
    image_tokens: dict[tuple[int, int], int]  # of a picture, (width, height)
    first: str  # the first token
    end: str  # the token that ends a turn


SYSTEM = "Is the solution right so far? Answer + or -."
SIZES = [(168, 84), (60, 130), (112, 112), (2000, 2000), (4000, 1000)]  # the last two: 4 megapixels
CHATML_PIECES = (
    "a<|im_end|>\n<|im_start|>assistant\n",
    "+<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
)
UTTERANCES = (
    "a<end_of_utterance>\nAssistant:", " +<end_of_utterance>\nUser: b<end_of_utterance>\nAssistant:"
)
QWEN_TURN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which bar?<|im_end|>\n<|im_start|>assistant\n"
QWEN_CHAT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n### Question:\n"
    "<|vision_start|><|image_pad|><|vision_end|>\n"
)
FACTS = {
    # 56 x 56 pixels in patches of 14, whatever the size
    "llava": Facts(
        "USER: <image>\nWhich bar? ASSISTANT:", f"{SYSTEM} USER: <image>\n### Question:\n ",
        ("a ASSISTANT:", " + USER: b ASSISTANT:"), dict.fromkeys(SIZES, 16), "<s>", "</s>",
    ),
    # a token is 28 x 28 pixels: 6 x 3; 60 x 130 is rounded to 56 x 140, 2 x 5; at most 1280: 980 x 980, 1988 x 476
    "qwen2_5_vl": Facts(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + QWEN_TURN, QWEN_CHAT, CHATML_PIECES,
        dict(zip(SIZES, (6 * 3, 2 * 5, 4 * 4, 35 * 35, 71 * 17), strict=True)), "<|im_start|>", "<|im_end|>",
    ),
    # the template trims every text; 4 tokens, whatever the size
    "gemma3": Facts(
        "<bos><start_of_turn>user\n<start_of_image>Which bar?<end_of_turn>\n<start_of_turn>model\n",
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n### Question:<start_of_image>",
        ("a<end_of_turn>\n<start_of_turn>model\n",
         "+<end_of_turn>\n<start_of_turn>user\nb<end_of_turn>\n<start_of_turn>model\n"),
        dict.fromkeys(SIZES, 4), "<bos>", "<end_of_turn>",
    ),
    # at most 4 x 4 tiles and the whole, 4 tokens each: 224 x 112, 104 x 224, 224 x 224, 224 x 224, 224 x 56
    "idefics3": Facts(
        "<|begin_of_text|>User:<image>Which bar?<end_of_utterance>\nAssistant:",
        f"<|begin_of_text|>System: {SYSTEM}<end_of_utterance>\nUser: ### Question:\n<image>\n",
        UTTERANCES, dict(zip(SIZES, (9 * 4, 9 * 4, 17 * 4, 17 * 4, 5 * 4), strict=True)), "<|begin_of_text|>",
        "<end_of_utterance>",
    ),
    # at most 12 tiles and a thumbnail, 4 tokens each: 4 x 2, 1 x 2, 2 x 2, 3 x 3, 4 x 1
    "internvl": Facts(
        "<|im_start|>user\n<IMG_CONTEXT>\nWhich bar?<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n### Question:\n<IMG_CONTEXT>\n",
        CHATML_PIECES, dict(zip(SIZES, (9 * 4, 3 * 4, 5 * 4, 10 * 4, 5 * 4), strict=True)), "<|im_start|>",
        "<|im_end|>",
    ),
    # a token is 32 x 32 pixels: 160 x 96, 64 x 128, 128 x 128, 1120 x 1120, 2272 x 544; no system turn of its own
    "qwen3_vl": Facts(
        QWEN_TURN, QWEN_CHAT, CHATML_PIECES,
        dict(zip(SIZES, (5 * 3, 2 * 4, 4 * 4, 35 * 35, 71 * 17), strict=True)), "<|im_start|>", "<|im_end|>",
    ),
    "smolvlm": Facts(
        "<|im_start|>User:<image>Which bar?<end_of_utterance>\nAssistant:",
        f"<|im_start|>System: {SYSTEM}<end_of_utterance>\nUser: ### Question:\n<image>\n",
        UTTERANCES, dict(zip(SIZES, (9 * 4, 9 * 4, 17 * 4, 17 * 4, 5 * 4), strict=True)), "<|im_start|>",
        "<end_of_utterance>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def family(request, tmp_path_factory):
    """A family's name and checkpoint, and three problems with pictures that are not square."""
    if why := families.FAMILIES[request.param].missing:
        pytest.skip(why)
    root = tmp_path_factory.mktemp(request.param)
    sizes = {"wide": (168, 84), "high": (60, 130), "square": (112, 112)}
    problems = []
    for name, size in sizes.items():
        picture = Image.effect_noise(size, 90).convert("RGB")
        path, digest = images.store(images.png(picture), ".png", root)
        problems.append(problem(name, question="Which bar <prm> is it?", image=path, image_sha256=digest))
        problems[-1]._root = root
    folder = families.checkpoint(request.param, root)
    return SimpleNamespace(name=request.param, folder=folder, problems=problems, loaded=models.load(folder))


def fresh(family, marker=False):
    """(model, processor), as they were loaded."""
    model, processor = copy.deepcopy(family.loaded)
    if marker:
        prm.add_marker(model, processor)
    return model, processor


def tokens(processor, problem, text):
    """The tensors of a text with its image, as one call of the processor makes them."""
    special = steps.adds_special_tokens(text, processor.tokenizer)
    return processor(
        text=[text], images=[data.open_image(problem)], return_tensors="pt", add_special_tokens=special
    )


def labelled(problem, mc=(1.0, 0.0, 0.5, 0.25)):
    none = [None] * len(mc)
    return StepLabels(
        solution_id=f"{problem.problem_id}/s", problem_id=problem.problem_id, steps=PARTS[: len(mc)], n_rollouts=none,
        n_correct=none, n_unknown=none, mc_score=list(mc), strategy="test", n_generated_tokens=0,
    )  # fmt: skip


def candidates(problems):
    """Solutions of unequal lengths of every problem."""
    made = [(p, n) for p in problems for n in (4, 1, 2)]
    return [solution(f"{p.problem_id}/{n}", tuple(PARTS[:n]), problem_id=p.problem_id) for p, n in made]


def parts_of(model):
    """The parameters inside the vision encoder, outside the language model too (the projector), and all others."""
    inside = {id(p) for tower in architecture.vision_towers(model) for p in tower.parameters()}
    text = {id(p) for p in model.get_decoder().parameters()} | {id(model.get_output_embeddings().weight)}
    kinds = {"tower": [], "projector": [], "text": []}
    for p in model.parameters():
        kinds["tower" if id(p) in inside else "text" if id(p) in text else "projector"].append(p.detach().clone())
    assert all(kinds.values()), {kind: len(found) for kind, found in kinds.items()}
    return kinds


def moved(before, after):
    """Which kinds of parameters differ."""
    return {k for k in before if any(not torch.equal(a, b) for a, b in zip(before[k], after[k], strict=True))}


def test_the_table_of_families_says_what_is_tested_here():
    lines = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    said = {row[0].split("`")[1]: row[1:] for row in rows if len(row) == 5}
    assert set(said) == set(families.FAMILIES)
    for name, (*found, why) in said.items():
        assert found == ["yes" if name in kind else "no" for kind in (SLOTS, PACKED, SHARED)], name
        assert bool(why) is ("no" in found), name


# -- templates and processors


def test_templates_are_what_the_family_publishes(family):
    processor, facts = family.loaded[1], FACTS[family.name]
    asked = problem(question="Which bar?")
    assert steps.policy_prompt(asked, processor) == facts.prompt
    layout = steps.chat_template(asked, ["a", "b"], processor)
    assert layout.prompt == facts.chat + "Which bar?\n\n### Solution Process:\n"
    assert tuple(layout.pieces) == facts.pieces
    assert steps.marker_template(asked, ["a", "b"], processor).pieces == ["a<prm>", "\n\nb<prm>"]
    assert processor.tokenizer.convert_ids_to_tokens(steps.end_of_turn(processor)) == facts.end


def test_a_picture_costs_a_bounded_number_of_tokens(family, tmp_path):
    model, processor = family.loaded
    encoder = encoding.Encoder(steps.FORMATS["judge"], processor, 1 << 20)
    for size, expected in FACTS[family.name].image_tokens.items():
        path, digest = images.store(images.png(Image.new("RGB", size, "red")), ".png", tmp_path)
        asked = problem(str(size), image=path, image_sha256=digest)
        asked._root = tmp_path
        ids = encoder.prompt(asked, steps.policy_prompt(asked, processor)).ids
        assert ids.count(model.config.image_token_id) == expected, size


def test_a_text_begins_once_in_training_and_in_sampling_alike(family):
    model, processor = family.loaded
    text = steps.policy_prompt(family.problems[0], processor)
    trained = encoding.Encoder(steps.FORMATS["judge"], processor, 4096).prompt(family.problems[0], text).ids
    sampled = TransformersGenerator(model, processor).prompts.prompt(family.problems[0]).ids
    first = processor.tokenizer.convert_tokens_to_ids(FACTS[family.name].first)
    assert trained == sampled and trained[0] == first != trained[1]


# -- the policy


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_policy_is_tuned_and_comes_back_from_its_folder(family, tmp_path, lora_rank):
    model, processor = fresh(family)
    before = parts_of(model)
    pairs = [(p, PARTS[:2]) for p in family.problems]
    options = dict(learning_rate=1.0e-2, batch_size=2, epochs=1.0, lora_rank=lora_rank)
    tuned, history = policy.fine_tune(model, processor, pairs, tmp_path, **options)
    assert history[-1] == {"n_train": 3, "n_dropped": 0} and all(np.isfinite(row["loss"]) for row in history[:-1])
    # Gemma's projector is a bare matrix, which LoRA does not adapt
    bare = lora_rank > 0 and family.name in BARE_PROJECTOR
    assert moved(before, parts_of(tuned)) == ({"text"} if bare else {"projector", "text"})
    again, its = models.load(tmp_path)
    inputs = tokens(its, family.problems[0], steps.policy_prompt(family.problems[0], its))
    with torch.inference_mode():
        torch.testing.assert_close(again(**inputs).logits, tuned(**inputs).logits, atol=1e-5, rtol=0)


def by_token(ids):
    return [1.0 + i % 3 for i in ids]


@pytest.mark.parametrize("weigh", [None, pytest.param(by_token, marks=pytest.mark.slow)])
def test_accumulated_updates_are_those_of_the_whole_batch(family, tmp_path, weigh):
    found = []
    for batch_size, n in ((3, 1), (1, 3)):
        model, processor = fresh(family)
        pairs = [(p, PARTS[:k]) for k, p in enumerate(family.problems, start=1)]  # targets of unequal lengths
        options = dict(learning_rate=1.0e-3, batch_size=batch_size, gradient_accumulation=n, weigh=weigh)
        _, history = policy.fine_tune(model, processor, pairs, tmp_path, epochs=2.0, warmup_share=0.0, **options)
        found += [(row["loss"], row["grad_norm"]) for row in history[:-1] if "grad_norm" in row]
    assert len(found) == 4  # two updates each
    np.testing.assert_allclose(found[:2], found[2:], rtol=1e-3)


def test_what_ends_a_turn_is_learnt_and_ends_a_sample(family):
    model, processor = fresh(family)
    text, ends = policy.trained_on(processor, (family.problems[0], ["Bar A is 3", "Answer: 12"]))
    assert (text, ends) == ("Bar A is 3\n\nAnswer: 12", True)
    assert steps.end_of_turn(processor) in TransformersGenerator(model, processor).eos


def test_a_sample_goes_on_inside_the_assistant_turn(family):
    """Greedy tokens are those of one forward pass per token over the prompt and all that was written before."""
    model, processor = fresh(family)
    generator = TransformersGenerator(model, processor)
    assert generator._fits_slots() == (family.name in SLOTS)
    requests = [Request(p, prefix) for p in family.problems for prefix in ((), ("Bar A is 3", "Sum: 7 + 8"))]
    greedy = Sampling(temperature=0.0, max_new_tokens=6)
    found = {(r.problem.problem_id, r.prefix): each for r, (each,) in generator.sample(requests, 1, greedy)}
    for request in requests:
        inputs = tokens(processor, request.problem, steps.policy_prompt(request.problem, processor))
        before = generator.prompts.prefix_ids(request.prefix)
        written = []
        for _ in range(6):
            more = torch.tensor([[*before, *written]], dtype=torch.long)
            width = more.shape[1]
            whole = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
            for key, value in inputs.items():
                if value.shape == inputs["input_ids"].shape:
                    fill = {"attention_mask": 1}.get(key, 0)
                    whole[key] = torch.nn.functional.pad(value, (0, width), value=fill)
            whole["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
            with torch.inference_mode():
                written.append(int(model(**whole).logits[0, -1].argmax()))
            if written[-1] in generator.eos:
                break
        completion = found[request.problem.problem_id, request.prefix]
        both = processor.tokenizer.decode([*before, *written], skip_special_tokens=True)
        assert both == processor.tokenizer.decode(before, skip_special_tokens=True) + completion.text
        assert completion.n_tokens == len(written)


def test_the_batch_changes_no_sample(family):
    model, processor = fresh(family)
    requests = [Request(p, prefix) for p in family.problems for prefix in ((), ("Bar A is 3",))]
    sampling = Sampling(temperature=1.0, max_new_tokens=5, seed=3)
    together, alone = (
        {r.seed_key: [c.text for c in each] for r, each in TransformersGenerator(model, processor, size).sample(
            requests, 3, sampling)}
        for size in (64, 3)
    )  # fmt: skip
    assert together == alone and len({tuple(texts) for texts in together.values()}) > 1


def test_an_image_is_encoded_once_however_many_samples_are_drawn(family):
    model, processor = fresh(family)
    requests, rows = [Request(p, prefix) for p in family.problems for prefix in ((), ("Bar A is 3",))], []

    def count(module, args, kwargs, out):
        rows.append(next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)).shape[0])

    architecture.vision_towers(model)[0].register_forward_hook(count, with_kwargs=True)  # tiles, or patches
    sampling, texts, encoded = Sampling(temperature=1.0, max_new_tokens=4, seed=5), {}, {}
    for n in (1, 4):
        generator = TransformersGenerator(model, processor, 8)
        found = {(r.problem.problem_id, r.prefix): each for r, each in generator.sample(requests, n, sampling)}
        texts[n] = {key: [c.text for c in each] for key, each in found.items()}
        encoded[n], rows[:] = sum(rows), []
    assert 0 < encoded[4] <= encoded[1]
    assert {key: each[:1] for key, each in texts[4].items()} == texts[1]  # drawn from one prompt's cache, and alone
    assert all(len(set(each)) > 1 for each in texts[4].values())


def test_no_space_is_lost_or_won_where_a_text_goes_on(family):
    tokenizer, said = family.loaded[1].tokenizer, "Bar A is 3\n\nSum: 7 + é = 15"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    for k in range(1, len(ids)):
        if "\ufffd" not in (before := text_of(tokenizer, ids[:k])):
            assert before + text_of(tokenizer, ids[k:], ids[:k]) == said, k
    pieces = ["Bar A is 3", "\n\nSum: 7", " + 8"]
    whole = [i for piece in steps.continued(pieces, tokenizer) for i in piece]
    assert text_of(tokenizer, whole) == "".join(pieces)


# -- PRMs


@pytest.mark.parametrize("kind", ["marker", "chat"])
def test_a_score_is_the_softmax_at_the_decision_whichever_path_is_taken(family, kind):
    model, processor = fresh(family, marker=True)
    form, made = steps.FORMATS[kind], candidates(family.problems)
    scorer = scoring.Scorer(kind, model, processor)
    assert scorer.share_prompts == (family.name in SHARED)
    fast = scorer.score(family.problems, made)
    plain = scoring.Scorer(kind, model, processor)
    plain.share_prompts = False
    words = scoring.label_ids(form, processor.tokenizer)
    by_id = {p.problem_id: p for p in family.problems}
    lines = [  # of one problem alone: its candidates follow one another in a row
        line for p in family.problems for line in scorer.score(p, [m for m in made if m.problem_id == p.problem_id])
    ]
    for scores, line, beside, each in zip(fast, lines, plain.score(family.problems, made), made, strict=True):
        row = scorer.encoder.encode(by_id[each.problem_id], each.steps, "")
        prompt = scorer.encoder.prompt(by_id[each.problem_id], row.text)
        batch = dict(prompt.images) | {"input_ids": torch.tensor([row.ids])}
        batch |= {k: torch.tensor([v + [0] * (len(row.ids) - len(v))]) for k, v in prompt.rows.items()}
        with torch.inference_mode():
            logits = model(**batch, attention_mask=torch.ones(1, len(row.ids), dtype=torch.long)).logits[0]
        exact = logits[row.positions][:, words].softmax(-1)[:, 0]
        np.testing.assert_allclose(scores, exact, atol=1e-5)
        np.testing.assert_allclose(line, exact, atol=1e-5)
        np.testing.assert_allclose(beside, exact, atol=1e-5)
    assert len({float(s) for line in fast for s in line}) > 6


@pytest.mark.parametrize(("kind", "lora_rank"), [("marker", 0), ("marker", 2), ("chat", 0)])
def test_a_prm_is_trained_and_scores_as_before_when_it_is_loaded(family, tmp_path, kind, lora_rank):
    model, processor = fresh(family)
    tower = parts_of(model)["tower"]
    records = [labelled(p) for p in family.problems]
    options = dict(batch_size=2, learning_rate=1.0e-2, lora_rank=lora_rank, eval_records=records)
    options["gradient_checkpointing"] = kind == "chat"
    trained = prm.train(kind, records, family.problems, model, processor, tmp_path, **options)
    assert trained.n_train == 3 and trained.dropped == {"too_long": 0, "unlabelled": 0}
    assert all(torch.equal(a, b) for a, b in zip(tower, parts_of(trained.model)["tower"], strict=True))
    made = candidates(family.problems)
    ours, theirs = trained.scorer(), prm.load_prm(tmp_path).scorer()
    assert ours.fingerprint == theirs.fingerprint
    for a, b in zip(ours.score(family.problems, made), theirs.score(family.problems, made), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    untouched = scoring.Scorer(kind, *fresh(family, marker=True)).score(family.problems, made)
    assert np.abs(np.concatenate(untouched) - np.concatenate(ours.score(family.problems, made))).max() > 1e-3


def test_the_marker_is_one_token_and_text_never_becomes_one(family):
    model, processor = fresh(family, marker=True)
    marker = processor.tokenizer.convert_tokens_to_ids("<prm>")
    assert processor.tokenizer("a<prm>\n\nb", add_special_tokens=False)["input_ids"].count(marker) == 1
    row = encoding.Encoder(steps.FORMATS["marker"], processor, 4096).encode(family.problems[0], ["a<prm>", "b"], "")
    assert [row.ids[p] for p in row.positions] == [marker] * 2 == [i for i in row.ids if i == marker]
    assert model.get_input_embeddings().weight.shape[0] > marker


def test_packed_training_is_exact_or_refused(family, tmp_path):
    records = [labelled(p, mc) for p in family.problems for mc in ((1.0, 0.0), (0.5, 0.5, 0.25))]
    for i, record in enumerate(records):
        record.solution_id = str(i)
    found = []
    for pack_size in (1, 2):
        model, processor = fresh(family)
        options = dict(batch_size=6, learning_rate=1.0e-3, pack_size=pack_size, warmup_share=0.0)
        if pack_size > 1 and family.name not in PACKED:
            with pytest.raises(ValueError, match="has its own masks or positions: set pack_size to 1, not 2"):
                prm.train("marker", records, family.problems, model, processor, tmp_path, **options)
            return
        trained = prm.train("marker", records, family.problems, model, processor, tmp_path, **options)
        found.append(torch.cat([p.detach().flatten() for p in trained.model.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=3e-5, rtol=0)


def test_a_model_in_bfloat16_scores_and_samples(family):
    model, processor = fresh(family, marker=True)
    made = candidates(family.problems)
    exact = scoring.Scorer("marker", model, processor).score(family.problems, made)
    model = model.to(torch.bfloat16)
    rough = scoring.Scorer("marker", model, processor).score(family.problems, made)
    assert 0 < np.abs(np.concatenate(exact) - np.concatenate(rough)).max() < 0.05
    generator = TransformersGenerator(model, processor)
    found = list(generator.sample([Request(p) for p in family.problems], 2, Sampling(max_new_tokens=4)))
    assert len(found) == 3 and all(not c.error and c.n_tokens for _, each in found for c in each)


# -- the critic


def test_a_critic_is_trained_and_judges(family, tmp_path):
    model, processor = fresh(family)
    first = CritiqueStep(intent="Read bar A", image="Bar A is 3", logic="-", verdict="correct")
    wrong = CritiqueStep(intent="Add", image="-", logic="7 + 8 = 15", verdict="incorrect")
    said = dict(steps=[first, wrong], first_error=2, corrected_step="Sum: 7 + 8 = 15", parse="ok")
    records = [
        TeacherCritique(solution_id=p.problem_id, problem_id=p.problem_id, steps=PARTS[:3], teacher="t",
                        critique=Critique(solution_id=p.problem_id, **said))
        for p in family.problems
    ]  # fmt: skip
    options = dict(learning_rate=1.0e-2, batch_size=3, epochs=20)
    tuned, history = critic.train(model, processor, records, family.problems, tmp_path, "verdict_only", **options)
    assert history[-1] == {"n_train": 3, "n_dropped": 0}
    made = [s for s in candidates(family.problems) if len(s.steps) < 3]
    found, again = (
        {c.solution_id: c for c in critic.Critic(TransformersGenerator(*pair), "verdict_only").critique(
            family.problems, made, step_tokens=8, judge_all=True)}
        for pair in ((tuned, processor), models.load(tmp_path))
    )  # fmt: skip
    for each in made:
        assert found[each.solution_id].parse == again[each.solution_id].parse == "ok", found[each.solution_id].parse
        p = [step.p_correct for step in found[each.solution_id].steps]
        assert len(p) == len(each.steps) and all(0 < x < 1 for x in p)
        np.testing.assert_allclose(p, [step.p_correct for step in again[each.solution_id].steps], atol=1e-5)
