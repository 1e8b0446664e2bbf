"""What a notebook costs before it runs: GPU hours, GPU memory and disk, from its parameters by plain arithmetic.

A forward pass takes 2 FLOPs a weight and token, training 6 (Kaplan et al., arXiv 2001.08361, section 2.1). Everything
that is assumed stands below as a constant with its source; an estimate is good to a factor of two or three, which is
what the choice between a laptop, a GPU and a cluster needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmprm_lib.workload import Run, Text, root, settings, text_of, work

PEAK_FLOPS = 312e12  # bf16, of the GPU that hours are counted in: an A100 (NVIDIA's data sheet)
TRAINING_SHARE = 0.35  # of the peak in training: 0.3 to 0.5 is reported of models this size (PaLM, appendix B)
READING_SHARE = 0.35  # in forward passes over whole texts, which are products of large matrices as training is
# in generation, which waits for memory: an assumption, some 900 and 3,000 tokens/s of an 8B model on an A100
WRITING_SHARE = {"transformers": 0.045, "vllm": 0.15}
ACTIVATION_BYTES = 34  # a token, layer and unit of width (Korthikanti et al., arXiv 2205.05198, equation 1, one device)
KEPT_BYTES = 2  # of these with gradient checkpointing: the input of each layer in 16 bits
LONG = 4  # times its mean length, a long solution that the KV cache must hold
GB = 1e9
BENCHMARKS = Path(__file__).parent / "assets" / "benchmarks.yaml"


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision-language model that its cost hangs on.

    Weights in all and in the vision tower; layers, width and vocabulary of the decoder; width of its keys (heads x head
    size); tokens of one image, of a photograph or scan of usual size.
    """

    n_weights: int
    n_vision: int
    layers: int
    width: int
    vocab: int
    kv_width: int
    image_tokens: int


# Counted from the published configurations (tests/test_estimates.py). A picture of 640 x 480 pixels is 12 tiles and a
# thumbnail of 256 tokens each to InternVL (MM-PRM's script allows 6), one token for 28 x 28 pixels to Qwen2.5-VL, for
# 32 x 32 to Qwen3-VL.
KNOWN = {
    "embedded": Shape(2_356_608, 634_240, 8, 128, 613, 128, 16),
    "OpenGVLab/InternVL2_5-8B": Shape(8_075_365_376, 304_012_288, 32, 4096, 92_553, 1024, 3328),
    "OpenGVLab/InternVL3-1B-hf": Shape(938_193_024, 304_012_288, 24, 896, 151_674, 128, 3328),
    "OpenGVLab/InternVL3-2B-hf": Shape(2_088_957_440, 304_012_288, 28, 1536, 151_674, 256, 3328),
    "OpenGVLab/InternVL3-8B-hf": Shape(7_944_373_760, 304_012_288, 28, 3584, 151_674, 512, 3328),
    "OpenGVLab/InternVL3-38B-hf": Shape(38_388_164_992, 5_536_496_000, 64, 5120, 151_674, 1024, 3328),
    "OpenGVLab/InternVL3-78B-hf": Shape(78_408_318_336, 5_536_496_000, 80, 8192, 151_674, 1024, 3328),
    "Qwen/Qwen2.5-VL-3B-Instruct": Shape(3_754_622_976, 631_975_680, 36, 2048, 151_936, 256, 391),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(8_292_166_656, 631_975_680, 28, 3584, 152_064, 512, 391),
    "Qwen/Qwen2.5-VL-32B-Instruct": Shape(33_452_718_336, 636_401_664, 64, 5120, 152_064, 1024, 391),
    "Qwen/Qwen2.5-VL-72B-Instruct": Shape(73_410_777_344, 636_401_664, 80, 8192, 152_064, 1024, 391),
    "Qwen/Qwen3-VL-8B-Instruct": Shape(8_767_123_696, 415_891_440, 36, 4096, 151_936, 1024, 300),
}
# What the folders that params/released names were fine-tuned from: as large, and with its needs.
BASES = {
    "models/VisualPRM-8B-hf": "OpenGVLab/InternVL2_5-8B", "models/MM-PRM-8B-hf": "OpenGVLab/InternVL2_5-8B",
    "models/VisualPRM-8B-v1_1-hf": "OpenGVLab/InternVL2_5-8B",  # by its card; its tokenizer's files look like Qwen2's
    "models/bis-qwen2_5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct", "models/VL-PRM-7B": "Qwen/Qwen2.5-VL-7B-Instruct",
}  # fmt: skip
KNOWN |= {name: KNOWN[base] for name, base in BASES.items()}
ShapeOf = Callable[[str], Shape | None]


class Estimate(NamedTuple):
    """What a notebook takes; hours are those of one A100, memory is that of each of `n_gpus` (or of the CPU), disk that
    of the results without what is fetched from a hub.

    `alone_gb`: where `n_gpus` train together, the memory of the one that generates and scores. `scratch_gb`: disk for
    the checkpoints of a training, of which there are two for a moment and none at its end.
    """

    written: float = 0.0  # tokens generated
    read: float = 0.0  # tokens in forward passes: prompts, and texts that are scored
    trained: float = 0.0  # tokens in forward and backward passes
    calls: float = 0.0  # requests to a teacher behind an endpoint
    gpu_hours: float = 0.0
    memory_gb: float = 0.0
    n_gpus: int = 1
    disk_gb: float = 0.0
    alone_gb: float = 0.0
    scratch_gb: float = 0.0

    def words(self) -> str:
        """The estimate in one line."""
        parts = [f"{_short(n)} tokens {what}" for n, what in
                 ((self.written, "generated"), (self.read, "read"), (self.trained, "trained on")) if n]  # fmt: skip
        parts += [f"{_short(self.calls)} teacher calls"] if self.calls else []
        idle = self.memory_gb and not (self.written or self.read or self.trained)  # a model, and nothing known to do
        hours = f"{self.gpu_hours:,.0f}" if self.gpu_hours >= 10 else f"{self.gpu_hours:.1f}"
        parts += ["GPU hours not known" if idle else f"{hours} GPU hours"]
        many = f"{self.n_gpus} x " if self.n_gpus > 1 else ""
        parts += [f"{many}{self.memory_gb:.1f} GB of GPU memory"]
        parts += [f"one GPU of {self.alone_gb:.1f} GB"] if self.alone_gb > self.memory_gb else []
        parts += [f"{self.disk_gb:.1f} GB of disk"]
        return ", ".join(parts + [f"{self.scratch_gb:,.1f} GB for checkpoints meanwhile"] * (self.scratch_gb >= 0.05))


def _short(n: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if n >= size:
            return f"{n / size:.1f} {name}"
    return f"{n:,.0f}"


def models_of(name: str, run: Run) -> list[str]:
    """The base models that a notebook loads or trains, the one that decides its size first; [] if it loads none."""
    p, policy = run[name], "02_policy/policy"
    if name == "01_data" or "sweep" in " ".join(p):
        return []
    trained = {
        "02_policy": lambda: [p["model"]],
        "04_prm_training": lambda: [policy] * (p["init"] == "policy") + [p["model"]],
        "07_generative_prm": lambda: [p["model"], p["policy"], p["prm"]],
        "08_refined_best_of_n": lambda: [p["critic"], p["policy"]],
        "12_labeling_cost": lambda: [p["start"], policy],
        "point_prm": lambda: [p["start"]],
    }
    if name in trained:
        found = trained[name]()
    else:
        sampled = [] if p.get("benchmark_path") or "policy" not in p or is_served(p) else [p["policy"]]
        found = [*sampled, *p.get("prms", {}).values()]
    return list(dict.fromkeys(root(where, run) for where in found))


def is_served(p: Mapping[str, Any]) -> bool:
    """Whether a server samples, whose GPUs are not this run's affair."""
    return str(p.get("engine", "")).startswith(("http://", "https://"))


def n_processes(p: Mapping[str, Any]) -> int:
    """How many processes train together, on all machines."""
    return p.get("n_processes", 1) * p.get("n_machines", 1)


def training_gb(shape: Shape, p: Mapping[str, Any], row: float, weight_bytes: int, logits: bool) -> float:
    """GB of each device in training: weights, gradients, AdamW's two moments, activations, and logits if any are taken.

    Without LoRA, gradients and moments are kept of all weights but a frozen vision tower's, in the type of the weights;
    with LoRA of its own matrices alone, in 32 bits. `fsdp` keeps what learns in 32 bits and shares it out; what is no
    layer's, the embeddings and the head, and two layers at a time are whole in 16 bits. `gradient_checkpointing` keeps
    the input of every layer and computes one at a time.
    """
    fixed, whole = frozen_weights(shape, p), 2 * shape.vocab * shape.width
    state = learning_gb(shape, p, weight_bytes) * GB + fixed * weight_bytes
    if p.get("fsdp"):
        layer = (shape.n_weights - shape.n_vision - whole) / shape.layers
        state = state / n_processes(p) + whole * (2 if p.get("lora_rank") else 4) + 2 * layer * 2
    tokens = p["batch_size"] * row
    kept = tokens * shape.width * shape.layers
    one = ACTIVATION_BYTES * tokens * shape.width
    acts = kept * KEPT_BYTES + one if p.get("gradient_checkpointing") else kept * ACTIVATION_BYTES
    return (state + acts + (tokens * shape.vocab * 8 if logits else 0)) / GB


def frozen_weights(shape: Shape, p: Mapping[str, Any]) -> int:
    """The number of weights that do not learn: all with LoRA, else those of a frozen vision tower."""
    if p.get("lora_rank", 0):
        return shape.n_weights
    return shape.n_vision if p.get("freeze_vision", True) else 0


def learning_gb(shape: Shape, p: Mapping[str, Any], weight_bytes: int) -> float:
    """GB of the weights that learn with gradients and AdamW's two moments; also the most that a checkpoint takes."""
    if rank := p.get("lora_rank", 0):
        # 7 matrices a layer, of some 2 to 8 times the width on both sides
        return 16 * rank * shape.layers * 22 * shape.width / GB
    each = 4 if p.get("fsdp") else weight_bytes
    return (shape.n_weights - frozen_weights(shape, p)) * 4 * each / GB


def generation_gb(shape: Shape, p: Mapping[str, Any], text: Text, weight_bytes: int) -> float:
    """GB of a device in generation: weights, and the KV cache of the sequences that are decoded at once.

    vLLM keeps its cache within what it is given: one long sequence must find room.
    """
    at_once = 1 if p.get("engine") == "vllm" else p["generation_batch"]
    length = shape.image_tokens + text.question + min(p.get("max_new_tokens", 10**9), LONG * text.solution)
    cache = at_once * length * 2 * shape.layers * shape.kv_width * weight_bytes
    return (shape.n_weights * weight_bytes + cache) / GB


def _weight_bytes(name: str, p: Mapping[str, Any]) -> int:
    return 2 if p.get("weights") == "bfloat16" or (p.get("bf16") and name[:2] in ("03", "05", "06")) else 4


def memory_gb(name: str, run: Run, shapes: Mapping[str, Shape]) -> tuple[float, float]:
    """(GB of each device in training, GB of one that generates and scores) at the most demanding moment of a notebook;
    0 for what it does not do. The first of `shapes` is trained, the largest generates and scores.
    """
    p, text = settings(name, run), text_of(run)
    largest = max(shapes.values(), key=lambda shape: shape.n_weights, default=None)
    if largest is None:
        return 0.0, 0.0
    bytes_of, trained = _weight_bytes(name, p), next(iter(shapes.values()))
    at_once = p.get("generation_batch") or p.get("judge_batch") or p.get("score_batch") or p.get("batch_size", 1)
    alone = generation_gb(largest, {**p, "generation_batch": at_once}, text, bytes_of) if name != "point_prm" else 0.0
    if name[:2] not in ("02", "04", "07", "12") and name != "point_prm":
        return 0.0, alone
    row = (trained.image_tokens + text.question) / p.get("pack_size", 1) + text.solution
    if name[:2] == "07":
        row += text.judged * text.n_steps
    return training_gb(trained, p, row, bytes_of, name[:2] in ("02", "07")), alone


def sized(run: Run) -> Run:
    """The same parameters, with no more problems in 01 than the benchmark has that it takes by its name."""
    p = run.get("01_data", {})
    if not p.get("benchmark"):
        return run
    # `registry` checks this file; it is slow to import, and what is needed here is a number
    known = yaml.safe_load(BENCHMARKS.read_text(encoding="utf-8"))["benchmarks"]
    n = known.get(p["benchmark"], {}).get("n", p["n_test"])
    return {**run, "01_data": {**p, "n_test": min(p["n_test"], n)}}


def estimate(name: str, run: Run, shape_of: ShapeOf) -> Estimate:
    """What a notebook takes, with the parameters of `run`; ValueError naming a model whose size is not known."""
    run = sized(run)
    shapes = {model: shape_of(model) for model in models_of(name, run)}
    if unknown := [model for model, shape in shapes.items() if shape is None]:
        raise ValueError(f"the size of {', '.join(unknown)} is not known without its files; --dry-run looks for them")
    main = max(shapes.values(), key=lambda shape: shape.n_weights, default=Shape(0, 0, 0, 0, 0, 0, 0))
    p, done = settings(name, run), work(name, run, main.image_tokens)
    flops = done.written * 2 / WRITING_SHARE.get(p.get("engine", "transformers"), WRITING_SHARE["vllm"])
    flops += done.read * 2 / READING_SHARE
    flops += done.trained * (4 if p.get("lora_rank") else 6) / TRAINING_SHARE  # LoRA: no gradients of the weights
    n_kept = {"02": 1, "04": len(p.get("prms", ())), "12": 1}.get(name[:2], 0)
    n_kept = len(p["epochs"]) if name[:2] == "07" else n_kept
    kept = n_kept * main.n_weights * _weight_bytes(name, p)  # saved in the type that they started with
    training, alone = memory_gb(name, run, shapes)
    several = n_processes(p) > 1 and training > 0
    scratch = 2 * learning_gb(main, p, _weight_bytes(name, p)) if training and p.get("save_steps") else 0.0
    return Estimate(
        done.written, done.read, done.trained, done.calls, flops * main.n_weights / PEAK_FLOPS / 3600,
        training if several else max(training, alone), max(n_processes(p), p.get("n_workers", 0), 1),
        (done.n_bytes + kept) / GB, alone if several else 0.0, scratch,
    )  # fmt: skip
