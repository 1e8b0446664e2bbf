"""A small model with as many image tokens as the large ones have: what benchmarks of scoring and training share."""

from collections.abc import Sequence

import torch
from transformers import LlavaForConditionalGeneration

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
    return LlavaForConditionalGeneration(config).eval(), processor


def labelled(problems: Sequence[Problem], n: int, repeats: int = 1) -> list[StepLabels]:
    """`n` worked solutions of each problem with made-up labels, their steps `repeats` times over, so that they are as
    long as is wanted.
    """
    pairs = policy.corpus(problems, n, 0, slip=0.2, misconception=0.5, background=0.1)
    records = []
    for i, (problem, steps) in enumerate(pairs):
        steps = [f"{turn + 1}. {step}" for turn in range(repeats) for step in steps] if repeats > 1 else steps
        known = {"n_rollouts": [8] * len(steps), "n_correct": [(i + t) % 9 for t in range(len(steps))]}
        records.append(
            StepLabels(
                solution_id=f"{problem.problem_id}/{i}", problem_id=problem.problem_id, steps=steps, **known,
                n_unknown=[0] * len(steps), mc_score=[c / 8 for c in known["n_correct"]], strategy="exhaustive",
                n_generated_tokens=0,
            )
        )  # fmt: skip
    return records
