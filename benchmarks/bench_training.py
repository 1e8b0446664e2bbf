"""Labelled steps per second in training a marker PRM, packed against padded: `python benchmarks/bench_training.py`.

training_packed: the solutions of a problem in one row, image, question and common beginnings computed once, against a
row for every solution, padded to the longest of its batch; the embedded model and the world's problems.
training_packed_wide: the same with 1,024 image tokens. Both calls train on the same solutions for one epoch, with all
that training needs; rounds alternate in which comes first.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from bench_generation import keep, place
from wide import labelled, wide

from mmprm_lib import data, models, prm


def speed(make, records: list, problems: list, pack_size: int, batch_size: int) -> float:
    """Labelled steps per second of one epoch of training."""
    model, processor = make()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prm.train("marker", records, problems, model, processor, folder, batch_size=batch_size, pack_size=pack_size)
        return sum(len(r.steps) for r in records) / (time.perf_counter() - start)


def measure(make, records: list, problems: list, n: int, batch_size: int, rounds: int) -> dict[str, float | str | int]:
    """The ratio of packed to padded, for bench.json: the median over rounds, with the least and the greatest."""
    found = {n: [], 1: []}
    for turn in range(rounds):
        for size in sorted(found, reverse=bool(turn % 2)):
            found[size].append(speed(make, records, problems, size, batch_size))
        print(f"  packed {found[n][-1]:,.1f} padded {found[1][-1]:,.1f} steps/s", flush=True)
    ratios = np.array(found[n]) / np.array(found[1])
    return {
        "value": float(np.median(ratios)), "baseline": "padded batches, a row per solution", "n": len(ratios),
        "low": float(ratios.min()), "high": float(ratios.max()), "steps_per_s": float(np.median(found[n])),
    }  # fmt: skip


def main() -> None:
    """Nothing; prints the ratios, and puts them into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=100, help="with 1,024 image tokens a twentieth of them")
    parser.add_argument("--n", type=int, default=4, help="solutions per problem, and per row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = data.from_world({"train": args.problems}, 0, Path(folder))
        few = problems[: max(2, args.problems // 20)]
        result = {
            "training_packed": measure(models.load, labelled(problems, args.n), problems, args.n, 32, args.rounds),
            "training_packed_wide": measure(wide, labelled(few, args.n), few, args.n, args.n, args.rounds),
        }
    for name, values in result.items():
        print(f"{name} {values['value']:.2f} [{values['low']:.2f}, {values['high']:.2f}] of {values['baseline']}")
    print(f"{args.problems} problems x {args.n}; {place()}; torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    keep(args.out, result)


if __name__ == "__main__":
    main()
