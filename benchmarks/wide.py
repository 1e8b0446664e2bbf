"""A small model with as many image tokens as the large ones have: what benchmarks of scoring and training share."""

from collections.abc import Sequence

import torch
import transformers as hf

from mmprm_lib import models, policy
from mmprm_lib.schema import Problem, StepLabels

SIDE = 32  # patches of an image along one side: 1,024 image tokens


def wide(width: int = 256, layers: int = 6, vision_layers: int = 4) -> tuple:
    """(model, processor): random weights, 1,024 image tokens, a marker-free tokenizer."""
    processor = models.new_processor()
    size = SIDE * models.PATCH
    processor.image_processor.size = {"height": size, "width": size}
    config = models.new_config(processor.tokenizer, width, layers, vision_layers)
    config.vision_config.image_size, config.image_seq_length = size, SIDE**2
    torch.manual_seed(0)
    return hf.LlavaForConditionalGeneration(config).eval(), processor


def labelled(problems: Sequence[Problem], n: int, repeats: int = 1) -> list[StepLabels]:
    """`n` worked solutions of each problem with made-up labels, their steps `repeats` times over, so that they are as
    long as is wanted.
    """
    pairs = policy.corpus(problems, n, 0, slip=0.2, misconception=0.5, background=0.1)
    if repeats > 1:
        pairs = [(q, [f"{turn + 1}. {step}" for turn in range(repeats) for step in steps]) for q, steps in pairs]
    return made_up(pairs)


def made_up(pairs: Sequence[tuple[Problem, list[str]]]) -> list[StepLabels]:
    """A record of each problem and steps, with labels of eight rollouts that nobody drew."""
    records = []
    for i, (problem, steps) in enumerate(pairs):
        known = {"n_rollouts": [8] * len(steps), "n_correct": [(i + t) % 9 for t in range(len(steps))]}
        records.append(
            StepLabels(
                solution_id=f"{problem.problem_id}/{i}", problem_id=problem.problem_id, steps=steps, **known,
                n_unknown=[0] * len(steps), mc_score=[c / 8 for c in known["n_correct"]], strategy="exhaustive",
                n_generated_tokens=0,
            )
        )  # fmt: skip
    return records


# Qwen2.5-VL as published: width, inner width, layers, heads, key heads, vocabulary; "tiny" is for its test
QWEN = {
    "tiny": (64, 96, 2, 2, 1, 2048), "3b": (2048, 11_008, 36, 16, 2, 151_936), "7b": (3584, 18_944, 28, 28, 4, 152_064),
}  # fmt: skip
QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]


def qwen(size: str, image_tokens: int = SIDE**2, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """(model, processor) of a Qwen2.5-VL of published size with random weights, made where it is to stay.

    Every image is resized to `image_tokens` tokens. The tokenizer is the embedded one, with as many entries as the
    published one, most of which no text spells: whatever is sampled can be decoded. Its processor needs torchvision.
    """
    width, inner, layers, heads, kv_heads, vocab = QWEN[size]
    tokenizer = models.new_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": QWEN_TOKENS})
    tokenizer.add_tokens([f"<unused{n}>" for n in range(vocab - len(tokenizer))])
    pixels = image_tokens * 28 * 28
    processor = hf.Qwen2_5_VLProcessor(
        hf.models.qwen2_vl.Qwen2VLImageProcessor(min_pixels=pixels, max_pixels=pixels), tokenizer,
        hf.Qwen2VLVideoProcessor(),
        chat_template=models.CHAT_TEMPLATE.replace("<image>", "<|vision_start|><image><|vision_end|>"),
    )  # fmt: skip
    eye = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    if size == "tiny":
        eye = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "fullatt_block_indexes": [1]}
    tied = size != "7b"
    section = [width // heads // 8, *[3 * (width // heads) // 16] * 2]
    text = dict(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=32_768, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1.0e6, "mrope_section": section},
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    image, start, end, video = tokenizer.convert_tokens_to_ids(["<image>", *QWEN_TOKENS])
    config = hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=eye | {"out_hidden_size": width}, tie_word_embeddings=tied,
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), processor
