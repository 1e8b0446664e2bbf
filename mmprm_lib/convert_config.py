"""The configuration of an InternVL checkpoint, for transformers' class: what that cannot compute is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import InternVLConfig, InternVLForConditionalGeneration

from .parameters import shown
from .untrusted import check_layers, read_object, reason

MAX_TILES = 1000  # of a picture; published checkpoints have 6 to 40
# The system message of a template where config.json has none (conversation.py of OpenGVLab/InternVL).
SYSTEM = {
    "internvl2_5": "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
}
FAILED = (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
# What must stand in config.json, because transformers' class computes nothing else; None: or nothing.
FIXED = {
    "model_type": ("internvl_chat",), "template": tuple(SYSTEM), "ps_version": ("v2",), "select_layer": (-1, None),
    "pad2square": (False, None), "use_thumbnail": (True,), "use_backbone_lora": (0, None), "use_llm_lora": (0, None),
}  # fmt: skip
TEXT = {"Qwen2ForCausalLM": "qwen2", "InternLM2ForCausalLM": "llama"}  # InternLM2 computes what Llama computes
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
TEXT_KEYS = (*SIZES, "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps")
PICTURE_KEYS = ("downsample_ratio", "dynamic_image_size", "min_dynamic_patch", "max_dynamic_patch")
MORE_TEXT_KEYS = ("attention_dropout", "use_sliding_window", "sliding_window", "max_window_layers")
VISION_KEYS = {key: key for key in (*SIZES, "image_size", "patch_size", "layer_norm_eps", "norm_type")} | {
    "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm",
}  # fmt: skip


def read_config(source: Path) -> dict[str, Any]:
    """config.json of an InternVL checkpoint; ValueError for what transformers' class cannot compute."""
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no config.json: it must be the folder of an InternVL checkpoint")
    theirs = read_object(source / "config.json")
    check_layers(theirs, source / "config.json")
    for key, allowed in FIXED.items():
        if theirs.get(key) not in allowed:
            needed = " or ".join(repr(value) for value in allowed if value is not None)
            given = shown(theirs.get(key))
            raise ValueError(f"{source}: {key} of config.json is {given}; only {needed} can be converted")
    text, vision = (theirs.get(key) for key in ("llm_config", "vision_config"))
    text, vision = (part if isinstance(part, dict) else {} for part in (text, vision))
    missing = [f"llm_config.{key}" for key in TEXT_KEYS if key not in text]
    missing += [f"vision_config.{key}" for key in VISION_KEYS if key not in vision]
    if missing := missing + [key for key in PICTURE_KEYS if key not in theirs]:
        raise ValueError(f"{source}: config.json states no {', '.join(missing)}")
    kinds = text.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds else None
    if not isinstance(kind, str) or kind not in TEXT:
        raise ValueError(f"{source}: the language model is {ascii(kind)[:100]}; {' and '.join(TEXT)} can be converted")
    if text.get("rope_pos_id_version", "default") != "default":
        raise ValueError(f"{source}: rope_pos_id_version {shown(text['rope_pos_id_version'])} cannot be converted")
    if theirs.get("force_image_size") not in (None, vision["image_size"]):
        raise ValueError(f"{source}: force_image_size is not the {shown(vision['image_size'])} pixels of vision_config")
    _check_pictures(source, theirs, vision["image_size"], vision["patch_size"])
    return theirs


def _check_pictures(source: Path, theirs: dict[str, Any], size: Any, patch: Any) -> None:
    """Nothing; ValueError for what no picture can be cut by.

    InternVL's class takes 0.5, False, 1 and 6 for keys that are not there, while load_image of its model cards always
    cuts, into 12 tiles at most: a checkpoint that does not say leaves it open which its weights have learnt.
    """
    ratio, dynamic, least, most = (theirs[key] for key in PICTURE_KEYS)
    if not all(type(pixels) is int and pixels > 0 for pixels in (size, patch)) or size % patch:
        said = f"config.json has tiles of {shown(size)} pixels and patches of {shown(patch)}"
        raise ValueError(f"{source}: {said}, which must fit")
    if type(ratio) not in (int, float) or not 0 < ratio <= 1 or (size // patch * ratio) % 1 or (1 / ratio) % 1:
        said = f"downsample_ratio of config.json is {shown(ratio)}"
        raise ValueError(f"{source}: {said}; 1 / n of {size // patch} is needed")
    if not isinstance(dynamic, bool):
        raise ValueError(f"{source}: dynamic_image_size of config.json is {shown(dynamic)}; only True or False can be")
    if not all(type(n) is int for n in (least, most)) or not 1 <= least <= most <= MAX_TILES:
        said = f"min_dynamic_patch and max_dynamic_patch of config.json are {shown(least)} and {shown(most)}"
        raise ValueError(f"{source}: {said}; they must be whole, from 1 to {MAX_TILES}, the least first")


def new_config(theirs: dict[str, Any], tied: bool) -> InternVLConfig:
    """The configuration of transformers' class; `tied`: the checkpoint has no output matrix of its own.

    ValueError for a value that the class does not take.
    """
    with _told():
        return _config(theirs, tied)


@contextmanager
def _told() -> Iterator[None]:
    """Within the block, whatever transformers' class says to a value that it does not take is a ValueError."""
    try:
        yield
    except FAILED as error:
        said = f"config.json has a value that the class does not take ({reason(error)}): fetch it again"
        raise ValueError(said) from error


def _config(theirs: dict[str, Any], tied: bool) -> InternVLConfig:
    tied = tied and theirs["llm_config"].get("tie_word_embeddings", False)
    text, vision, dtype = theirs["llm_config"], theirs["vision_config"], theirs.get("torch_dtype", "bfloat16")
    ours = {key: text[key] for key in (*TEXT_KEYS, *MORE_TEXT_KEYS) if key in text}
    ours |= {key: text.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    scaling = text.get("rope_scaling") or {}
    rope = {"rope_type": scaling.get("rope_type", scaling.get("type", "default"))}
    rope |= {"rope_theta": float(text.get("rope_theta", 10000.0))}
    rope |= {"factor": scaling["factor"]} if "factor" in scaling else {}
    ours |= {"model_type": TEXT[text["architectures"][0]], "rope_parameters": rope, "tie_word_embeddings": tied}
    if ours["model_type"] == "llama":
        ours["attention_bias"] = text.get("bias", True)
    side = vision["image_size"] // vision["patch_size"]
    return InternVLConfig(
        text_config=ours, vision_config={new: vision[key] for key, new in VISION_KEYS.items()},
        downsample_ratio=theirs["downsample_ratio"], image_seq_length=int((side * theirs["downsample_ratio"]) ** 2),
        tie_word_embeddings=tied, dtype=dtype, architectures=["InternVLForConditionalGeneration"],
        system_message=theirs.get("system_message") or SYSTEM[theirs["template"]],
    )  # fmt: skip


def shapes(config: InternVLConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all weights of transformers' class, by the names that its published checkpoints have."""
    with _told(), torch.device("meta"):
        found = InternVLForConditionalGeneration(config).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if config.tie_word_embeddings:
        del found["lm_head.weight"]
    body, head = ("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")
    for old, new in (body, head, ("model.", "")):
        found = {new + name.removeprefix(old) if name.startswith(old) else name: s for name, s in found.items()}
    return found
