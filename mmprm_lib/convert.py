"""InternVL checkpoints with code of their own, for transformers' class: python -m mmprm_lib.convert SOURCE TARGET

VisualPRM-8B, VisualPRM-8B-v1_1 and MM-PRM-8B are published for a class of their own, without a processor. SOURCE is
such a folder. Its code is never run: names and shapes of the weights are those of InternVL's published modelling code
(modeling_intern_vit.py, modeling_internlm2.py and modeling_internvl_chat.py of OpenGVLab/InternVL), and what that code
can do and transformers' InternVLForConditionalGeneration cannot is refused.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, InternVLConfig, ProcessorMixin
from transformers.utils import is_torchvision_available

from .convert_config import new_config, read_config, shapes
from .convert_tokens import CONTEXT, END_OF_TURN, read_tokenizer
from .untrusted import check_index, read_object

MARK = ".mmprm-convert"  # in a folder that is being made: what an attempt left behind may go
SHARD_BYTES = 2 * 10**9  # of a file that is written, and of the tensors that are held at a time
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # of InternVL's load_image
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n{{ SYSTEM }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Names of the weights: (theirs, transformers'). A fused projection has {} where q, k and v stand.
VISION = [
    (r"embeddings\.class_embedding", "embeddings.cls_token"),
    (r"embeddings\.position_embedding", "embeddings.position_embeddings"),
    (r"embeddings\.patch_embedding\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"encoder\.layers\.(\d+)\.ls([12])", r"encoder.layer.\1.lambda_\2"),
    (r"encoder\.layers\.(\d+)\.norm1\.(\w+)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"encoder\.layers\.(\d+)\.norm2\.(\w+)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc[12]\.\w+)", r"encoder.layer.\1.mlp.\2"),
    (r"encoder\.layers\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.projection_layer.\2"),
    (r"encoder\.layers\.(\d+)\.attn\.([qk]_norm\.\w+)", r"encoder.layer.\1.attention.\2"),
    (r"encoder\.layers\.(\d+)\.attn\.qkv\.(\w+)", r"encoder.layer.\1.attention.{}_proj.\2"),
]
INTERNLM2 = [
    (r"output\.weight", "lm_head.weight"),
    (r"model\.norm\.weight", "model.norm.weight"),
    (r"model\.tok_embeddings\.weight", "model.embed_tokens.weight"),
    (r"model\.layers\.(\d+)\.attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"model\.layers\.(\d+)\.ffn_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"model\.layers\.(\d+)\.feed_forward\.w1\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (r"model\.layers\.(\d+)\.feed_forward\.w3\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (r"model\.layers\.(\d+)\.feed_forward\.w2\.weight", r"model.layers.\1.mlp.down_proj.weight"),
    (r"model\.layers\.(\d+)\.attention\.wo\.(\w+)", r"model.layers.\1.self_attn.o_proj.\2"),
    (r"model\.layers\.(\d+)\.attention\.wqkv\.(\w+)", r"model.layers.\1.self_attn.{}_proj.\2"),
]
PROJECTOR = [(rf"{i}\.(\w+)", rf"{name}.\1") for i, name in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2"))]


def convert(source: str | Path, target: str | Path, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """What was made: the number of tensors and of bytes, and the system message; `target` is a folder of safetensors,
    configuration and processor that the Auto classes load.

    Some `shard_bytes` are held at a time, twice while they are written; `target` is there only when it is complete.
    ValueError or FileNotFoundError naming what is missing, unknown, of another shape, or cannot be expressed;
    FileExistsError where `target` is there already, or `target`.part, unless an attempt of this function left it.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise FileExistsError(f"{target} is there already: name a new folder")
    if not is_torchvision_available():
        raise ValueError("the processor needs torchvision: pip install the release that belongs to your torch")
    theirs = read_config(source)
    files = weight_files(source)
    config = new_config(theirs, tied=not {"language_model.lm_head.weight", "language_model.output.weight"} & {
        name for file in files for name in _names(file)})  # fmt: skip
    processor = new_processor(source, theirs, config)
    part = _new_part(target, source)
    n, size = write_weights(files, config, part, shard_bytes)
    config.save_pretrained(part)
    processor.save_pretrained(part)
    ends = [processor.tokenizer.convert_tokens_to_ids(END_OF_TURN), processor.tokenizer.eos_token_id]
    options = {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": processor.tokenizer.pad_token_id}
    GenerationConfig(bos_token_id=processor.tokenizer.bos_token_id, **options).save_pretrained(part)
    (part / MARK).unlink()
    part.rename(target)
    return {"tensors": n, "bytes": size, "system_message": config.system_message}


def _new_part(target: Path, source: Path) -> Path:
    """The folder `target`.part, new and marked; FileExistsError if it is there and no attempt of ours left it."""
    part = target.with_name(f"{target.name}.part")
    if part.is_symlink() or part.exists():
        ours = part.is_dir() and not part.is_symlink() and ((part / MARK).is_file() or not any(part.iterdir()))
        if not ours or part.resolve() in (source.resolve(), *source.resolve().parents):
            raise FileExistsError(f"{part} is there already, and is no rest of an earlier attempt: move it elsewhere")
        shutil.rmtree(part)
    part.mkdir(parents=True)
    (part / MARK).touch()
    return part


def new_processor(source: Path, theirs: dict[str, Any], config: InternVLConfig) -> ProcessorMixin:
    """The processor: tiles and a thumbnail as InternVL cuts them, its turns with its system message, its tokens.

    Sets the id of the image token in `config`. Where the conversation begins without a system turn, the template writes
    the system message, as InternVL's own chat does.
    """
    from transformers import InternVLProcessor, InternVLVideoProcessor  # these need torchvision
    from transformers.models.got_ocr2 import GotOcr2ImageProcessor

    tokenizer = read_tokenizer(source, config.text_config.model_type, config.text_config.vocab_size)
    config.image_token_id = tokenizer.convert_tokens_to_ids(CONTEXT)
    side = {"height": theirs["vision_config"]["image_size"], "width": theirs["vision_config"]["image_size"]}
    least, most = (theirs["min_dynamic_patch"], theirs["max_dynamic_patch"]) if theirs["dynamic_image_size"] else (1, 1)
    pixels = GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=least, max_patches=most, **IMAGENET)
    return InternVLProcessor(
        pixels, tokenizer, InternVLVideoProcessor(size=side, **IMAGENET), image_seq_length=config.image_seq_length,
        chat_template=CHAT_TEMPLATE.replace("SYSTEM", json.dumps(config.system_message)),
    )  # fmt: skip


def weight_files(source: Path) -> list[Path]:
    """The safetensors files of a checkpoint; ValueError or FileNotFoundError where they are of another kind, or some
    are missing.
    """
    check_index(source)
    index = source / "model.safetensors.index.json"
    names = sorted(set(read_object(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    missing = [name for name in names if not (source / name).is_file()]
    if missing and list(source.glob("*.bin")):
        raise ValueError(f"{source} holds its weights as .bin files, which are pickles and not read: get safetensors")
    if missing:
        raise FileNotFoundError(f"{source} holds no {', '.join(missing)}: fetch it")
    return [source / name for name in names]


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file ({error}): fetch it again") from error


def new_name(name: str, text_type: str) -> str:
    """transformers' name of one of their weights, with {} where q, k and v of a fused one go; "" if it is unknown."""
    whose, _, rest = name.partition(".")
    if whose == "language_model" and text_type == "qwen2":
        return name
    rules = {"vision_model": VISION, "mlp1": PROJECTOR, "language_model": INTERNLM2}.get(whose, [])
    ours = {"vision_model": "vision_tower", "mlp1": "multi_modal_projector", "language_model": whose}.get(whose)
    for pattern, new in rules:
        if found := re.fullmatch(pattern, rest):
            return f"{ours}.{found.expand(new)}"
    return ""


def parted(name: str, tensor: torch.Tensor, groups: int, head: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of q, k and v of a fused projection; of one without {} in its name, itself.

    Its rows are `groups` groups of query heads, one key head and one value head, of `head` rows each: in InternLM2 one
    group for every key head; in InternViT one for all, where a "head" is all heads.
    """
    if "{}" not in name:
        yield name, tensor
        return
    if tensor.shape[0] % (groups * head):
        raise ValueError(f"{name.format('qkv')} has {tensor.shape[0]} rows, no multiple of {groups} x {head}")
    grouped = tensor.reshape(groups, -1, head, *tensor.shape[1:])
    for letter, piece in (("q", grouped[:, :-2]), ("k", grouped[:, -2]), ("v", grouped[:, -1])):
        yield name.format(letter), piece.reshape(-1, *tensor.shape[1:]).clone()


def write_weights(files: list[Path], config: InternVLConfig, folder: Path, shard_bytes: int) -> tuple[int, int]:
    """(number of tensors, bytes) written into `folder`, with their index; ValueError unless it is all, and no more."""
    wanted, placed, held, total = shapes(config), {}, {}, 0
    for name, tensor in converted(files, config):
        if wanted.get(name) != tuple(tensor.shape):
            needed = f"{wanted[name]} is needed" if name in wanted else "the configuration has no such weight"
            raise ValueError(f"{name} is {tuple(tensor.shape)}: {needed}; weights and config.json do not fit")
        if name in placed or name in held:
            raise ValueError(f"{name} is there twice: {files[0].parent} holds weights of two checkpoints")
        held[name] = tensor
        total += tensor.nbytes
        if sum(each.nbytes for each in held.values()) >= shard_bytes:
            placed |= _written(held, folder, len(set(placed.values())))
            held = {}
    placed |= _written(held, folder, len(set(placed.values()))) if held else {}
    if missing := sorted(set(wanted) - set(placed)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        names = ", ".join(missing[:3]) + more
        raise ValueError(f"{files[0].parent} holds no {names}: a shard is missing or of another model")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return len(placed), total


def converted(files: list[Path], config: InternVLConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """(transformers' name, tensor) of every weight in the files; ValueError for one whose name nobody knows."""
    text, vision = config.text_config, config.vision_config
    fused = {"language_model": (text.num_key_value_heads, text.hidden_size // text.num_attention_heads)}
    fused["vision_tower"] = (1, vision.hidden_size)
    for file in files:
        names = _names(file)
        with safe_open(file, "pt") as tensors:
            for theirs in names:
                if not (name := new_name(theirs, text.model_type)):
                    raise ValueError(f"{file.name} holds {theirs[:100]!r}, which is no weight of InternVL")
                yield from parted(name, tensors.get_tensor(theirs), *fused.get(name.partition(".")[0], (1, 1)))


def _written(tensors: dict[str, torch.Tensor], folder: Path, n: int) -> dict[str, str]:
    file = f"model-{n + 1:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
    return dict.fromkeys(tensors, file)


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line: 0 if it is done, 2 if it cannot be, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.convert", description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", help="the folder of an InternVL checkpoint, as it is published")
    parser.add_argument("target", help="a new folder")
    options = parser.parse_args(arguments)
    try:
        made = convert(options.source, options.target)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.target}: {made['tensors']:,} tensors, {made['bytes'] / 1e9:.2f} GB")
    print(f"system message (formats: system_file: checkpoint): {made['system_message']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
