"""Step scores per second of `Scorer` against the two plain ways: `python benchmarks/bench_scoring.py`.

A problem's candidates, some 200 tokens each, through a marker PRM that sees 1,024 image tokens.
scoring_vs_alone: each candidate in a forward pass of its own, which computes the whole vocabulary at every position, as
MM-PRM scores; scoring_vs_per_step: a forward pass for every step, on all before it, as a loop over steps does. Images
are opened and prepared once for all three. The scores of all three are compared: they differ by rounding alone.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import keep, place, versions
from wide import labelled, wide

from mmprm_lib import data, prm
from mmprm_lib.scoring import Scorer


def alone(scorer: Scorer, problems: dict, records: list, by_step: bool) -> list[np.ndarray]:
    """The step scores of each record from forward passes of one row: one a record, or one a step."""
    vlm, encoder, labels = scorer.head.vlm, scorer.encoder, scorer.head.labels
    found = []
    for record in records:
        row = encoder.encode(problems[record.problem_id], record.steps, record.solution_id)
        ends = [p + 1 for p in row.positions] if by_step else [len(row.ids)]
        logits = []
        for end in ends:
            batch = encoder.collate([row._replace(ids=row.ids[:end], positions=[p for p in row.positions if p < end])])
            at = batch.pop("positions")[0]
            with torch.inference_mode():
                out = vlm(**{k: v.to(vlm.device) for k, v in batch.items()}, use_cache=False).logits[0]
            logits.append(out[at[-1:] if by_step else at][:, labels])
        found.append(torch.cat(logits).float().softmax(-1)[:, 0].cpu().numpy())
    return found


def timed(work, *args) -> tuple[float, list[np.ndarray]]:
    """Step scores per second of one call, and the scores."""
    start = time.perf_counter()
    scores = work(*args)
    return sum(map(len, scores)) / (time.perf_counter() - start), scores


def measure(scorer: Scorer, problems: list, records: list, rounds: int) -> tuple[dict[str, list[float]], float]:
    """({"shared", "alone", "per_step"}: step scores per second of every round, largest difference of two scores)."""
    by_id = {p.problem_id: p for p in problems}
    works = {
        "shared": lambda: scorer.score(problems, records),
        "alone": lambda: alone(scorer, by_id, records, False),
        "per_step": lambda: alone(scorer, by_id, records[:4], True),  # slow, and as fast for few as for many
    }
    scorer.score(problems, records)  # warms up, and prepares the images
    found, apart = {name: [] for name in works}, 0.0
    for turn in range(rounds):
        scores = {}
        for name in sorted(works, reverse=bool(turn % 2)):
            speed, scores[name] = timed(works[name])
            found[name].append(speed)
        pairs = [(a, b) for name in works for a, b in zip(scores["shared"], scores[name], strict=False)]
        apart = max(apart, *(float(np.abs(a - b).max()) for a, b in pairs))
        print("  " + ", ".join(f"{name} {rates[-1]:,.1f}" for name, rates in found.items()) + " scores/s", flush=True)
    return found, apart


def main() -> None:
    """Nothing; prints the ratios, and puts them into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--n", type=int, default=16, help="candidates per problem")
    parser.add_argument("--rounds", type=int, default=3)
    # attention over 1,200 tokens is 6 % of the work of an 8B model, 45 % at a width of 256, and 20 % at this one
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, processor = wide(args.width, args.layers, vision_layers=2)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    prm.add_marker(model, processor, "mean")
    scorer = Scorer("marker", model, processor)
    with tempfile.TemporaryDirectory() as folder:
        problems = data.from_world({"test": args.problems}, 0, Path(folder))
        records = labelled(problems, args.n, repeats=4)
        row = scorer.encoder.encode(problems[0], records[0].steps, "")
        found, apart = measure(scorer, problems, records, args.rounds)
    for name, words in (("alone", "each candidate alone, whole vocabulary"), ("per_step", "a forward pass per step")):
        ratios = np.array(found["shared"]) / np.array(found[name])
        low, high = float(ratios.min()), float(ratios.max())
        result = {"value": float(np.median(ratios)), "baseline": words, "low": low, "high": high, "n": len(ratios),
                  "scores_per_s": float(np.median(found["shared"])), "largest_difference": apart}  # fmt: skip
        print(f"scoring_vs_{name} {result['value']:.2f} [{low:.2f}, {high:.2f}] against {words}")
        keep(args.out, {f"scoring_vs_{name}": result})
    print(f"the scores differ by {apart:.1e} at most; {args.problems} problems x {args.n} candidates; the first has "
          f"{len(row.ids):,} tokens, {len(row.positions)} steps")
    print(f"{place()}; {versions()}")


if __name__ == "__main__":
    main()
