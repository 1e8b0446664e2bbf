"""Throughput of VllmGenerator against vLLM itself: `python benchmarks/bench_vllm.py`, where vLLM is installed.

vllm_vs_raw: tokens/s of the Generator over those of `LLM.generate` of the very same engine, which gets all prompts at
once, n samples each. Both are timed with all they need: prompts, images, decoding of text. Rounds alternate; each draws
with seeds of its own, on prompts whose cache is warm for both.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import vllm
from bench_generation import speed
from common import keep, place, versions

from mmprm_lib import data
from mmprm_lib.engine import VllmGenerator
from mmprm_lib.generation import Request, Sampling
from mmprm_lib.steps import policy_prompt


def raw(generator: VllmGenerator, problems: list, n: int, max_new_tokens: int, seed: int) -> int:
    """How many tokens `LLM.generate` drew."""
    prompts = [
        {"prompt": policy_prompt(p, generator.processor), "multi_modal_data": {"image": data.open_image(p)}}
        for p in problems
    ]
    params = vllm.SamplingParams(n=n, temperature=1.0, max_tokens=max_new_tokens, seed=seed)
    found = generator._llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.token_ids) for request in found for output in request.outputs)


def ours(generator: VllmGenerator, problems: list, n: int, max_new_tokens: int, seed: int) -> int:
    """How many tokens the Generator drew for the same work."""
    before = generator.n_generated_tokens
    for _ in generator.sample([Request(p) for p in problems], n, Sampling(max_new_tokens=max_new_tokens, seed=seed)):
        pass
    return generator.n_generated_tokens - before


def main() -> None:
    """Nothing; prints the rates and the ratio, and puts it into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="checkpoint folder, hub id, or 'embedded'")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--n", type=int, default=8, help="samples per problem")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {"ours": [], "raw": []}
    with tempfile.TemporaryDirectory() as folder, VllmGenerator(args.model, max_model_len=2048) as generator:
        problems = data.from_world({"test": args.problems}, 0, Path(folder))
        for seed in range(args.rounds + 1):  # the first warms up
            for work in (ours, raw) if seed % 2 else (raw, ours):
                rate = speed(work, generator, problems, args.n, args.max_new_tokens, seed)
                if seed:
                    found[work.__name__].append(rate)
            if seed:
                print(f"  raw {found['raw'][-1]:,.0f} ours {found['ours'][-1]:,.0f} tokens/s", flush=True)
    ratios = np.array(found["ours"]) / np.array(found["raw"])
    result = {"value": float(np.median(ratios)), "baseline": "vLLM's LLM.generate, all prompts at once",
              "low": float(ratios.min()), "high": float(ratios.max()), "n": len(ratios),
              "tokens_per_s": float(np.median(found["ours"]))}  # fmt: skip
    print(f"vllm_vs_raw {result['value']:.2f} [{result['low']:.2f}, {result['high']:.2f}] of {result['baseline']}")
    print(f"{args.model}, {args.problems} problems x {args.n}; {place()}; {versions()}")
    keep(args.out, {"vllm_vs_raw": result})


if __name__ == "__main__":
    main()
