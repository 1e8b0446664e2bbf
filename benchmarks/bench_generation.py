"""Throughput of TransformersGenerator against the best raw `model.generate`: `python benchmarks/bench_generation.py`.

Both draw the same number of solutions for the same problems at temperature 1, and both are timed with everything they
need: opening images, the processor, decoding of text. Raw `generate` gets `num_return_sequences` and the best of
several batch sizes. Tokens are counted up to and with the end token. Rounds alternate, so that other load hits both.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import keep, place, versions

from mmprm_lib import data, models
from mmprm_lib.generation import Request, Sampling, TransformersGenerator
from mmprm_lib.steps import policy_prompt


def raw_generate(model, processor, problems: list, n: int, batch_size: int, max_new_tokens: int) -> int:
    """How many tokens `model.generate` drew, n samples per problem, batch_size sequences at once."""
    tokens, size, eos = 0, max(1, batch_size // n), processor.tokenizer.eos_token_id
    for start in range(0, len(problems), size):
        part = problems[start : start + size]
        texts, images = [policy_prompt(p, processor) for p in part], [data.open_image(p) for p in part]
        inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                 max_new_tokens=max_new_tokens, num_return_sequences=n)  # fmt: skip
        new = out[:, inputs["input_ids"].shape[1] :]
        processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        ended = (new == eos).int().cumsum(-1)
        tokens += int((ended - (new == eos).int() == 0).sum())
    return tokens


def ours(model, processor, problems: list, n: int, batch_size: int, max_new_tokens: int, seed: int) -> int:
    """How many tokens the Generator drew for the same work."""
    generator = TransformersGenerator(model, processor, batch_size)
    for _ in generator.sample([Request(p) for p in problems], n, Sampling(max_new_tokens=max_new_tokens, seed=seed)):
        pass
    return generator.n_generated_tokens


def speed(work, *args) -> float:
    """Tokens per second of one call."""
    start = time.perf_counter()
    return work(*args) / (time.perf_counter() - start)


def measure(model, processor, problems: list, n: int, max_new_tokens: int, rounds: int, sizes: list[int]) -> dict:
    """{batch size: tokens/s of every round} for raw generate and for ours; the first, warming call is not counted."""
    common = (model, processor, problems, n)
    speed(raw_generate, *common, sizes[0], max_new_tokens)
    found = {"raw": {s: [] for s in sizes}, "ours": {s: [] for s in sizes}}
    for seed in range(rounds):
        for size in sizes:
            found["raw"][size].append(speed(raw_generate, *common, size, max_new_tokens))
            found["ours"][size].append(speed(ours, *common, size, max_new_tokens, seed))
            rates = [found[kind][size][-1] for kind in ("raw", "ours")]
            print(f"  batch {size}: raw {rates[0]:,.0f} ours {rates[1]:,.0f} tokens/s", flush=True)
    return found


def ratio(found: dict) -> dict[str, float | str]:
    """generate_vs_raw for bench.json: ours at its best batch size over raw at its best; low, high over the rounds."""
    best = {kind: max(rates.values(), key=np.median) for kind, rates in found.items()}
    rounds = np.array(best["ours"]) / np.array(best["raw"])
    size = max(found["raw"], key=lambda s: np.median(found["raw"][s]))
    ours, raw = (float(np.median(best[kind])) for kind in ("ours", "raw"))
    return {"value": ours / raw, "baseline": f"transformers generate, batch {size}", "low": float(rounds.min()),
            "high": float(rounds.max()), "n": len(rounds), "tokens_per_s": ours}  # fmt: skip


def main() -> None:
    """Nothing; prints the rates and the ratio, and puts it into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random", help="checkpoint folder, hub id, 'embedded', or 'random' weights")
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--n", type=int, default=8, help="samples per problem")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.model == "random":
        model, processor = models.new_base(0), models.new_processor()
    else:
        model, processor = models.load(args.model)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        problems = data.from_world({"test": args.problems}, 0, Path(folder))
        found = measure(model, processor, problems, args.n, args.max_new_tokens, args.rounds, args.sizes)
    result = ratio(found)
    low, high = result["low"], result["high"]
    print(f"generate_vs_raw {result['value']:.2f} [{low:.2f}, {high:.2f}] against {result['baseline']}")
    print(f"{args.model}, {args.problems} problems x {args.n}; {place()}; {versions()}")
    keep(args.out, {"generate_vs_raw": result})


if __name__ == "__main__":
    main()
