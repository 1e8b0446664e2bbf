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
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
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
    """How a family's checkpoint is made: `build` gives (model, processor); `needs` names packages beside the core."""

    name: str
    build: Callable[[], tuple[Any, Any]]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """Why the family cannot be built here; "" if it can."""
        found = {"torchvision": is_torchvision_available(), "num2words": is_num2words_available()}
        missing = " and ".join(package for package in self.needs if not found[package])
        return missing and f"the processor of {self.name} needs {missing}, which is not installed"


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


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen/Qwen3-VL-8B-Instruct, small: a token is 32 x 32 pixels; its tower speaks to several layers of the text."""
    tokenizer = qwen_tokenizer(VISION)
    pixels = hf.models.qwen2_vl.Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 1280 * 32 * 32}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    processor = hf.Qwen3VLProcessor(
        pixels, tokenizer, hf.Qwen3VLVideoProcessor(), chat_template=CHATML.replace("IMAGE", QWEN_IMAGE)
    )
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 5.0e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = dict(vocab_size=len(tokenizer), rope_parameters=rope, max_position_embeddings=8192, head_dim=32, **TEXT)
    eye = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64)
    eye |= dict(deepstack_visual_indexes=[0], num_position_embeddings=64)
    config = hf.Qwen3VLConfig(
        text_config=text, vision_config=eye, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    model = hf.Qwen3VLForConditionalGeneration(config)
    return finished(model, tokenizer, ["<|im_end|>", "<|endoftext|>"]), processor


# -- InternVL3 (the -hf classes): InternViT on tiles, pixel shuffle, Qwen2


def internvl() -> tuple[Any, Any]:
    """OpenGVLab/InternVL3-8B-hf, small: tiles of 56 x 56 pixels, at most 12 and a thumbnail, 4 tokens each."""
    roles = dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>")
    tokenizer = qwen_tokenizer([*roles.values(), "<video>"], **roles, video_token="<video>")
    pixels = hf.models.got_ocr2.GotOcr2ImageProcessor(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=12,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    processor = hf.InternVLProcessor(
        pixels, tokenizer, hf.InternVLVideoProcessor(size={"height": 56, "width": 56}), image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    text = dict(model_type="qwen2", vocab_size=len(tokenizer) + 40, max_position_embeddings=4096, **TEXT)  # spare rows
    config = hf.InternVLConfig(
        text_config=text, vision_config=dict(image_size=[56, 56], patch_size=[14, 14], **EYE), image_seq_length=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), tie_word_embeddings=False,
    )  # fmt: skip
    return finished(hf.InternVLForConditionalGeneration(config), tokenizer, ["<|im_end|>"]), processor


# -- Idefics3 and SmolVLM: an image cut into rows and columns, each with a token that names it


def utterances(begin: str) -> str:
    """Idefics' template, which opens a text by `begin` and an assistant turn by "Assistant:"."""
    return (
        begin + "{% for m in messages %}{{ m['role'] | capitalize }}"
        "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )


PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
AROUND = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *PLACES]


def idefics3() -> tuple[Any, Any]:
    """HuggingFaceM4/Idefics3-8B-Llama3, small: tiles of 56 x 56 pixels, at most 4 x 4 and the whole, 4 tokens each."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<pad>", *AROUND]
    like = hf.Qwen2Tokenizer()._tokenizer  # Llama 3 cuts text in the same way, and its bytes likewise
    core = hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(cores.BPE(**trained(like, special))))
    core._tokenizer.pre_tokenizer, core._tokenizer.decoder = like.pre_tokenizer, like.decoder
    core._tokenizer.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", core.convert_tokens_to_ids("<|begin_of_text|>"))]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>",
        pad_token="<pad>", padding_side="left", extra_special_tokens=AROUND,
    )  # fmt: skip
    pixels = hf.models.idefics3.Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * 56}, max_image_size={"longest_edge": 56}
    )
    processor = hf.Idefics3Processor(
        pixels, tokenizer, image_seq_len=4, chat_template=utterances("<|begin_of_text|>")
    )
    ids = tokenizer.convert_tokens_to_ids
    text = dict(model_type="llama", vocab_size=len(tokenizer), max_position_embeddings=4096, **TEXT)
    text |= dict(pad_token_id=ids("<pad>"), bos_token_id=ids("<|begin_of_text|>"), eos_token_id=ids("<|end_of_text|>"))
    config = hf.Idefics3Config(
        text_config=text, vision_config=dict(image_size=56, patch_size=14, **EYE), scale_factor=2,
        image_token_id=ids("<image>"), pad_token_id=ids("<pad>"),
    )  # fmt: skip
    return finished(hf.Idefics3ForConditionalGeneration(config), tokenizer, ["<end_of_utterance>"]), processor


def smolvlm() -> tuple[Any, Any]:
    """HuggingFaceTB/SmolVLM2-2.2B-Instruct, small: as Idefics3, with a tokenizer of GPT-2's kind."""
    tokenizer = qwen_tokenizer(AROUND)
    tokenizer.bos_token = "<|im_start|>"
    pixels = hf.models.smolvlm.SmolVLMImageProcessor(
        size={"longest_edge": 4 * 56}, max_image_size={"longest_edge": 56}
    )
    processor = hf.SmolVLMProcessor(
        pixels, tokenizer, hf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=utterances("<|im_start|>")
    )
    ids = tokenizer.convert_tokens_to_ids
    text = dict(model_type="llama", vocab_size=len(tokenizer), max_position_embeddings=4096, **TEXT)
    text |= dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=1, eos_token_id=2)
    config = hf.SmolVLMConfig(
        text_config=text, vision_config=dict(image_size=56, patch_size=14, **EYE), scale_factor=2,
        image_token_id=ids("<image>"), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return finished(hf.SmolVLMForConditionalGeneration(config), tokenizer, ["<end_of_utterance>"]), processor


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
        Family("qwen2_5_vl", qwen2_5_vl, ("torchvision",)),
        Family("gemma3", gemma3),
        Family("idefics3", idefics3),
        Family("internvl", internvl, ("torchvision",)),
        Family("qwen3_vl", qwen3_vl, ("torchvision",)),
        Family("smolvlm", smolvlm, ("torchvision", "num2words")),
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
