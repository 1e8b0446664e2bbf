"""The embedded tokenizer, processor and architecture, and the loading of any checkpoint."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from mmprm_lib import models, world
from mmprm_lib.engine import VllmGenerator, readable

PROCESSOR = models.new_processor()
TOKENIZER = PROCESSOR.tokenizer
FINISHED = (models.EMBEDDED / "skills.json").exists()
needs_the_finished_base = pytest.mark.skipif(
    not FINISHED, reason="mmprm_lib/assets/base has no skills.json: it is no finished base; run `make base`"
)


@pytest.fixture(scope="module")
def base():
    """The architecture with random weights."""
    return models.new_base(seed=0)


def inputs_of(processor, text: str = "Bar A is 7", colour: str = "red") -> dict:
    """Tensors of a prompt with one image."""
    image = Image.new("RGB", (50, 80), colour)
    return dict(processor(images=image, text=f"<image>{text}", return_tensors="pt"))


# ---- tokenizer


def test_a_number_has_one_token_per_digit():
    assert TOKENIZER.tokenize("Sum: 12 + 305 = 317") == [
        *["Sum", ":", "Ġ1", "2", "Ġ+", "Ġ3", "0", "5", "Ġ=", "Ġ3", "1", "7"]
    ]
    assert TOKENIZER.tokenize("x1203y") == ["x", "1", "2", "0", "3", "y"]


@given(st.integers(0, 10**12))
def test_every_number_has_one_token_per_digit(number):
    assert len(TOKENIZER(str(number))["input_ids"]) == len(str(number))
    assert len(TOKENIZER(f" {number}")["input_ids"]) == len(str(number))


@settings(max_examples=200)
@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text", ["héllo\r\n\t  ☃ 你好 ¹²", "\x00", "a\n\n\nb ", r"\frac{1}{2}\boxed{-3.5}", "<prm><step>"]
)
def test_text_outside_the_world_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@pytest.mark.parametrize("word", ["Yes", "No", " Yes", " No", "+", "-", " +", " -", "=", " =", "A", " D", "\n\n"])
def test_verdicts_options_and_the_separator_are_single_tokens(word):
    assert len(TOKENIZER(word)["input_ids"]) == 1


def test_every_word_of_the_world_is_a_single_token():
    assert [word for word in world.vocabulary() if len(TOKENIZER(word)["input_ids"]) != 1] == []


def test_special_tokens_stand_first_and_end_of_turn_is_the_end():
    assert TOKENIZER.convert_tokens_to_ids(models.SPECIAL) == [0, 1, 2, 3]
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token, TOKENIZER.padding_side) == ("<|endoftext|>", "<|im_end|>", "left")


def test_a_prompt_as_text_and_as_tokens():
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is angle B?"}]}
    text = PROCESSOR.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>What is angle B?<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.tokenize(text) == [
        *["<|im_start|>", "user", "Ċ", "<image>", "What", "Ġis", "Ġangle", "ĠB", "?", "<|im_end|>", "Ċ"],
        *["<|im_start|>", "assistant", "Ċ"],
    ]


def test_a_turn_may_be_plain_text_and_is_closed():
    turns = [{"role": "system", "content": "Judge."}, {"role": "assistant", "content": "+"}]
    text = PROCESSOR.apply_chat_template(turns, tokenize=False)
    assert text == "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"


# ---- processor


def test_an_image_of_any_size_becomes_112_pixels_and_16_tokens():
    inputs = inputs_of(PROCESSOR)
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)
    assert (inputs["input_ids"] == 3).sum() == 16  # (112 / 28) ** 2


def test_white_paper_is_zero_and_black_ink_is_not():
    assert inputs_of(PROCESSOR, colour="white")["pixel_values"].abs().max() == 0
    black = inputs_of(PROCESSOR, colour="black")["pixel_values"]
    torch.testing.assert_close(black, torch.full_like(black, -1 / 0.35))  # (0 - image_mean) / image_std


# ---- architecture


def test_the_base_has_between_two_and_six_million_parameters(base):
    assert 2_000_000 <= base.num_parameters() <= 6_000_000
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    assert base.config.text_config.vocab_size == len(TOKENIZER)


def test_the_seed_draws_the_weights(base):
    same, other = models.new_base(seed=0), models.new_base(seed=1)
    rows = [model.get_input_embeddings().weight for model in (base, same, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_the_size_is_what_was_asked_for():
    small = models.new_base(width=64, layers=3, vision_layers=1)
    sizes = small.config.text_config.hidden_size, small.config.text_config.num_hidden_layers
    assert sizes == (64, 3) and small.config.vision_config.num_hidden_layers == 1
    assert small.num_parameters() < 1_000_000


def test_the_base_takes_a_larger_tokenizer():
    tokenizer = models.new_tokenizer()
    tokenizer.add_tokens(["<prm>"], special_tokens=True)
    model = models.new_base(width=32, layers=1, tokenizer=tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(TOKENIZER) + 1


def test_the_base_sees_and_stops_at_the_end_of_turn(base):
    with torch.inference_mode():
        red, blue = (base(**inputs_of(PROCESSOR, colour=colour)).logits[0, -1] for colour in ("red", "blue"))
    assert (red - blue).abs().max() > 1e-3
    assert base.generation_config.eos_token_id == 2 and base.generation_config.pad_token_id == 0


# ---- loading


def test_embedded_loads_through_the_auto_classes():
    model, processor = models.load("embedded")
    by_auto = AutoModelForImageTextToText.from_pretrained(models.EMBEDDED, dtype=torch.float32)
    assert type(model) is type(by_auto) is LlavaForConditionalGeneration
    assert type(processor) is type(AutoProcessor.from_pretrained(models.EMBEDDED)) is type(PROCESSOR)
    assert 2_000_000 <= model.num_parameters() <= 6_000_000
    assert not model.training and model.dtype == torch.float32 and processor.tokenizer.padding_side == "left"


def test_the_shipped_processor_is_the_one_the_code_makes():
    processor = AutoProcessor.from_pretrained(models.EMBEDDED)
    assert processor.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert processor.chat_template == PROCESSOR.chat_template
    mine, shipped = inputs_of(PROCESSOR), inputs_of(processor)
    assert all(torch.equal(mine[name], shipped[name]) for name in mine)


def test_the_dtype_is_what_was_asked_for():
    assert models.load("embedded", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_revision_and_remote_code_are_passed_on(monkeypatch):
    seen = []

    class Found:
        tokenizer = TOKENIZER

        @classmethod
        def from_pretrained(cls, source, **options):
            seen.append((source, {name: options.get(name) for name in ("revision", "trust_remote_code")}))
            return cls()

        def to(self, device):
            return self

        def eval(self):
            return self

    monkeypatch.setattr(models, "AutoProcessor", Found)
    monkeypatch.setattr(models, "AutoModelForImageTextToText", Found)
    models.load("owner/name")
    models.load("owner/name", revision="abc", trust_remote_code=True)
    assert seen == [
        *[("owner/name", {"revision": None, "trust_remote_code": False})] * 2,
        *[("owner/name", {"revision": "abc", "trust_remote_code": True})] * 2,
    ]


def test_a_missing_base_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "EMBEDDED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="make base"):
        models.load()


def test_weights_that_are_no_safetensors_are_refused(tmp_path, base):
    PROCESSOR.save_pretrained(tmp_path)
    base.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle would stand here")
    with pytest.raises(ValueError, match="holds no .safetensors file"):
        models.load(tmp_path)


def test_a_saved_model_gives_the_same_logits(tmp_path, base):
    base.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    again, processor = models.load(tmp_path)
    with torch.inference_mode():
        before = base(**inputs_of(PROCESSOR)).logits
        assert torch.equal(before, again(**inputs_of(processor)).logits)


# ---- what is shipped


def test_the_assets_are_small_and_hold_nothing_that_runs():
    files = [path for path in models.EMBEDDED.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md", ".yaml"}
    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    assert [path.name for path in files if path.suffix == ".safetensors"] == ["model.safetensors"]
    for path in models.EMBEDDED.glob("*.json"):
        assert "auto_map" not in json.loads(path.read_text(encoding="utf-8")), f"{path.name} asks for code"


@needs_the_finished_base
def test_the_shipped_weights_are_bf16():
    with safe_open(models.EMBEDDED / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


@needs_the_finished_base
def test_the_card_states_the_skills_that_a_base_must_have():
    facts = json.loads((models.EMBEDDED / "skills.json").read_text(encoding="utf-8"))
    skills, card = facts["skills"], (models.EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert skills["reading"] >= 0.97 and skills["arithmetic"] >= 0.97 and skills["judging_auroc"] >= 0.93
    assert all(f"| {name} | {value:.4f} |" in card for name, value in skills.items())
    assert f"seed {facts['seed']}" in card and f"{facts['parameters']:,} parameters" in card


def test_a_checkpoint_that_transformers_5_saved_gets_the_names_of_weights_that_vllm_reads(tmp_path):
    (tmp_path / "copy").mkdir()
    copy = readable(str(models.EMBEDDED), tmp_path / "copy")
    with safe_open(tmp_path / "copy" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert not any(name.startswith(("vision_tower.embeddings", "vision_tower.encoder")) for name in names)
    (ours, _), (theirs, _) = models.load(copy), models.load("embedded")
    states = [{k: v for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert readable(copy, tmp_path / "again") == copy and readable("owner/name", tmp_path) == "owner/name"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_the_engine_says_how_to_get_it():
    with pytest.raises(ImportError, match="make vllm-env"):
        VllmGenerator("embedded")
