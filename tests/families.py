"""Tiny random checkpoints of real architectures, with their real processors, tokenizers of the real kind and templates.

Weights and hubs cannot be reached from the tests, so each family is built as its published checkpoints are: the classes
of model, processor, image processor and tokenizer are theirs, and the chat template writes what theirs writes for a
system turn, a user turn with an image, and an assistant turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as cores
from transformers.utils import is_num2words_available, is_torchvision_available

from mmprm_lib.world import vocabulary

TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
EYE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
SAID = "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + SAID + "{% if p['type'] == 'image' %}IMAGE{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = "{{ raise_exception('roles must alternate') }}"


@dataclass(frozen=True)
class Family:
    """How a family's checkpoint is made: `build` gives (model, processor); `needs` names a package beside the core."""

    name: str
    build: Callable[[], tuple[Any, Any]]
    needs: str = ""

    @property
    def missing(self) -> str:
        """Why the family cannot be built here; "" if it can."""
        found = {"torchvision": is_torchvision_available, "num2words": is_num2words_available, "": lambda: True}
        return "" if found[self.needs]() else f"the processor of {self.name} needs {self.needs}, which is not installed"


def trained(like: Tokenizer, special: list[str], bytes_as: str = "level") -> dict[str, Any]:
    """{"vocab", "merges"} of a small BPE trained on the words of the world, cut as the tokenizer `like` cuts text.

    bytes_as: "level" (GPT-2's alphabet) or "fallback" (<0x00> to <0xFF>, as sentencepiece does).
    """
    core = Tokenizer(cores.BPE(byte_fallback=bytes_as == "fallback", fuse_unk=True))
    core.normalizer, core.pre_tokenizer = like.normalizer, like.pre_tokenizer
    level = bytes_as == "level"
    special = special if level else [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if level else [chr(c) for c in range(33, 127)] + ["▁", "\n"]
    options = dict(vocab_size=1400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    trainer = trainers.BpeTrainer(special_tokens=special, **options)
    words = [*vocabulary(), " Correct", " Incorrect", "\n\n", "Step", " Judgement:", " system", " user", " assistant"]
    core.train_from_iterator([w for w in words for _ in range(2)], trainer)
    model = json.loads(core.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def qwen_tokenizer(special: list[str], **roles: str) -> Any:
    """Qwen2's tokenizer (byte-level BPE), small, with a family's special tokens; `roles` are names for some of them."""
    like = hf.Qwen2Tokenizer()._tokenizer
    words = trained(like, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special])
    return hf.Qwen2Tokenizer(
        **words, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, padding_side="left",
        extra_special_tokens={"start_token": "<|im_start|>"} | roles if roles else ["<|im_start|>", *special],
    )  # fmt: skip


def finished(model: Any, tokenizer: Any, ends: list[str]) -> Any:
    """The model with its generation settings, and noise where initialisation puts constants, so that scores differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


# -- LLaVA-1.5: CLIP, a two-layer projector, Llama with its sentencepiece-like tokenizer

LLAVA_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava() -> tuple[Any, Any]:
    """llava-hf/llava-1.5-7b-hf, small: crops to 56 x 56, patches of 14, the class token dropped: 16 image tokens."""
    words = trained(hf.LlamaTokenizer()._tokenizer, ["<unk>", "<s>", "</s>", "<pad>", "<image>"], "fallback")
    tokenizer = hf.LlamaTokenizer(
        **words, add_bos_token=True, pad_token="<pad>", extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )  # fmt: skip
    pixels = hf.models.clip.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = hf.LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    eye = dict(model_type="clip_vision_model", image_size=56, patch_size=14, projection_dim=32, **EYE)
    text = dict(model_type="llama", vocab_size=len(tokenizer), max_position_embeddings=4096, **TEXT)
    config = hf.LlavaConfig(
        vision_config=eye, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )  # fmt: skip
    return finished(hf.LlavaForConditionalGeneration(config), tokenizer, ["</s>"]), processor


# -- Qwen2.5-VL and Qwen3-VL: pixels as they are, three positions per token

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen/Qwen2.5-VL-7B-Instruct, small: patches of 14, merged 2 x 2, so a token is 28 x 28 pixels."""
    tokenizer = qwen_tokenizer(VISION)
    pixels = hf.models.qwen2_vl.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=1280 * 28 * 28)
    processor = hf.Qwen2_5_VLProcessor(
        pixels, tokenizer, hf.Qwen2VLVideoProcessor(),
        chat_template=QWEN_SYSTEM + CHATML.replace("IMAGE", QWEN_IMAGE),
    )  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1.0e6, "mrope_section": [4, 6, 6]}
    text = dict(vocab_size=len(tokenizer), rope_parameters=rope, max_position_embeddings=8192, **TEXT)
    eye = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64)
    eye |= dict(fullatt_block_indexes=[1], window_size=56)
    config = hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=eye, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    model = hf.Qwen2_5_VLForConditionalGeneration(config)
    return finished(model, tokenizer, ["<|im_end|>", "<|endoftext|>"]), processor


# -- Gemma 3: SigLIP, image tokens that see one another, sliding windows, a template that writes <bos>

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% set s = namespace(first='', n=0) %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set s.first = m['content'][0]['text'] + '\n\n' %}{% else %}"
    "{% if (m['role'] == 'user') != (s.n % 2 == 0) %}" + ALTERNATING + "{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ s.first }}{% set s.first = '' %}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<start_of_image>{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% set s.n = s.n + 1 %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3() -> tuple[Any, Any]:
    """google/gemma-3-4b-it, small: 56 x 56 pixels, 16 patches pooled to 4 image tokens; a window of 32 tokens."""
    turns = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turns]
    tokenizer = hf.GemmaTokenizer(
        **trained(hf.GemmaTokenizer()._tokenizer, special, "fallback"), add_bos_token=True, padding_side="left",
        extra_special_tokens={"boi_token": turns[2], "eoi_token": turns[3], "image_token": turns[4],
                              "sot_token": turns[0], "eot_token": turns[1]},
    )  # fmt: skip
    pixels = hf.models.gemma3.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(pixels, tokenizer, chat_template=GEMMA_TEMPLATE, image_seq_length=4)
    ids = tokenizer.convert_tokens_to_ids
    text = dict(vocab_size=len(tokenizer), head_dim=32, sliding_window=32, max_position_embeddings=4096, **TEXT)
    text |= dict(layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=32)
    eye = dict(image_size=56, patch_size=14, vision_use_head=False, **EYE)
    config = hf.Gemma3Config(
        text_config=text, vision_config=eye, mm_tokens_per_image=4, image_token_index=ids("<image_soft_token>"),
        boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"),
    )  # fmt: skip
    return finished(hf.Gemma3ForConditionalGeneration(config), tokenizer, ["<eos>", "<end_of_turn>"]), processor


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", llava),
        Family("qwen2_5_vl", qwen2_5_vl, "torchvision"),
        Family("gemma3", gemma3),
    )
}


@cache
def checkpoint(name: str, folder: Path) -> Path:
    """The folder of a family's checkpoint, saved as a hub checkpoint is."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name].build()
    model.save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    return folder / name
