"""Tokens and step scores per second of a model of published size, and which share of the chip's peak that is:
`python benchmarks/bench_chip.py`, where a GPU and torchvision are.

A Qwen2.5-VL with random weights in bf16 and 1,024 tokens an image, so no sample ends before its last allowed token.
chip_generate: samples of `TransformersGenerator`; chip_vllm: the same of `VllmGenerator`; chip_scores: step scores of
candidates of some 200 tokens by a marker PRM. Each value is a share: the FLOPs that the work takes, as PyTorch counts
them, per second, over those of a product of two large matrices in the same run. `of_peak` is the same over the peak
that the chip's data sheet names, where it stands below. Every round of sampling has problems of its own, as long as the
others: vLLM keeps images and prompts that it has met, and would skip what is counted.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from bench_scoring import alone
from common import keep, place, versions
from torch.utils.flop_counter import FlopCounterMode
from wide import QWEN, labelled, qwen

from mmprm_lib import data, models, prm
from mmprm_lib.generation import Request, Sampling, TransformersGenerator
from mmprm_lib.scoring import Scorer

# dense bf16, FLOP/s, from NVIDIA's data sheets
PEAKS = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12}
Work = Callable[[int], float]  # the number of a round -> units of work done in it


def synchronised() -> float:
    """The time, when all that the GPU was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def product_flops(side: int, dtype: torch.dtype, repeats: int = 20) -> float:
    """FLOP/s of a product of two `side` x `side` matrices: the best of three rounds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(3):
        start = synchronised()
        for _ in range(repeats):
            a @ b
        best = max(best, repeats * 2 * side**3 / (synchronised() - start))
    return best


def counted(work: Work) -> float:
    """The FLOPs of one round, counted at every operation."""
    with FlopCounterMode(display=False) as counter:
        work(0)
    return float(counter.get_total_flops())


def measure(work: Work, rounds: int) -> tuple[list[float], list[float]]:
    """(units of work per second, seconds) of every round; a first one warms up."""
    work(0)
    speeds, seconds = [], []
    for turn in range(1, rounds + 1):
        start = synchronised()
        done = work(turn)
        seconds.append(synchronised() - start)
        speeds.append(done / seconds[-1])
    return speeds, seconds


def entry(flops: float, seconds: list[float], product: tuple[float, str], **more: float) -> dict[str, object]:
    """A row of bench.json: the share of `product` (its FLOP/s, in words), and of the chip's peak where it is known."""
    shares = flops / np.array(seconds) / product[0]
    peak = next((peak for name, peak in PEAKS.items() if name in place()), None)
    known = {"of_peak": float(flops / np.median(seconds) / peak)} if peak else {}
    return {"value": float(np.median(shares)), "baseline": f"{product[1]}, {product[0] / 1e12:,.1f} TFLOP/s",
            "low": float(shares.min()), "high": float(shares.max()), "n": len(shares), **known, **more}  # fmt: skip


def sampler(generator, problems: list, args: argparse.Namespace) -> Work:
    """Draws n samples of each of the round's own problems; gives the tokens drawn."""

    def work(turn: int) -> float:
        before, mine = generator.n_generated_tokens, problems[turn * args.problems : (turn + 1) * args.problems]
        sampling = Sampling(max_new_tokens=args.max_new_tokens, seed=turn)
        for _ in generator.sample([Request(p) for p in mine], args.n, sampling):
            pass
        return float(generator.n_generated_tokens - before)

    return work


def vllm_generator(model, processor, folder: Path) -> AbstractContextManager:
    """The same weights in vLLM; nothing (None) where there is none."""
    if find_spec("vllm") is None:
        return nullcontext()
    from mmprm_lib.engine import VllmGenerator

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    models.release_gpu()
    share = {"gpu_memory_utilization": 0.6} if torch.cuda.is_available() else {}  # the other model stays where it is
    return VllmGenerator(folder, max_model_len=4096, **share)


def generation(model, processor, problems: list, args: argparse.Namespace, product: tuple[float, str]) -> dict:
    """The rows of generation: by transformers, and by vLLM where it is."""
    draw = sampler(TransformersGenerator(model, processor), problems, args)
    flops = counted(draw)
    speeds, seconds = measure(draw, args.rounds)
    found = {"chip_generate": entry(flops, seconds, product, tokens_per_s=float(np.median(speeds)))}
    with (
        tempfile.TemporaryDirectory() as folder,
        nullcontext() if args.no_vllm else vllm_generator(model, processor, Path(folder)) as generator,
    ):
        if generator is not None:
            speeds, seconds = measure(sampler(generator, problems, args), args.rounds)
            found["chip_vllm"] = entry(flops, seconds, product, tokens_per_s=float(np.median(speeds)))
    return found


def scoring(model, processor, problems: list, args: argparse.Namespace, product: tuple[float, str]) -> dict:
    """The row of scoring; adds a marker to model and processor."""
    prm.add_marker(model, processor, "mean")
    scorer = Scorer("marker", model, processor, batch_tokens=32_768)
    by_id, records = {p.problem_id: p for p in problems}, labelled(problems, args.n, repeats=4)

    def shared(turn: int) -> float:
        return float(sum(map(len, scorer.score(problems, records))))

    def one_by_one(turn: int) -> float:
        return float(sum(map(len, alone(scorer, by_id, records[: args.n], False))))

    flops = counted(shared)
    speeds, seconds = measure(shared, args.rounds)
    speed, plain = (float(np.median(rates)) for rates in (speeds, measure(one_by_one, args.rounds)[0]))
    return {"chip_scores": entry(flops, seconds, product, scores_per_s=speed, times_alone=speed / plain)}


def main() -> None:
    """Nothing; prints speeds and shares, and puts them into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(QWEN), default="7b")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--n", type=int, default=16, help="samples and candidates per problem")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--image-tokens", type=int, default=1024)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that the speed is compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available() and args.size != "tiny":
        parser.error(f"no GPU for a {args.size} model: --size tiny runs on a CPU")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, processor = qwen(args.size, args.image_tokens, dtype)
    words = f"products of {args.side} x {args.side} matrices in {str(dtype)[6:]}"
    product = product_flops(args.side, dtype), words
    with tempfile.TemporaryDirectory() as folder:
        problems = data.from_world({"test": args.problems * (args.rounds + 1)}, 0, Path(folder))
        found = generation(model, processor, problems, args, product)
        found |= scoring(model, processor, problems[: args.problems], args, product)
    for name, row in found.items():
        told = {k: round(v, 3) for k, v in row.items() if isinstance(v, float) and k not in ("value", "low", "high")}
        print(f"{name} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}] of {row['baseline']}; {told}")
    weights = sum(p.numel() for p in model.parameters())
    print(f"Qwen2.5-VL, {weights:,} weights, {args.problems} problems x {args.n}; {place()}; {versions()}")
    keep(args.out, found)


if __name__ == "__main__":
    main()
