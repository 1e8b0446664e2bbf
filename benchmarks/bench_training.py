"""Labelled steps per second in training a marker PRM, packed against padded: `python benchmarks/bench_training.py`.

training_packed: the solutions of a problem in one row, image, question and common beginnings computed once, against a
row for every solution, padded to the longest of its batch, in the order that chance gives (Trainer's default); model,
batches and epochs as in params/tiny, on the world's problems and solutions that the policy `--model` samples for them.
training_packed_by_length: the same against batches of like length, which is what the library does without packing.
training_packed_wide: against these, with 1,024 image tokens. All calls train on the same solutions, with all that
training needs; rounds alternate in which comes first.
"""

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import keep, place, versions
from wide import labelled, made_up, wide

from mmprm_lib import data, models, prm
from mmprm_lib.generation import Sampling, TransformersGenerator
from mmprm_lib.labeling import solutions_to

TINY = {"batch_size": 16, "gradient_accumulation": 2, "epochs": 2}  # as in params/tiny/04_prm_training.yaml
BASELINES = {"by_length": "padded batches of like length", "": "padded batches, a row per solution"}


def by_chance():
    """Within the block rows come in the order that chance gives."""
    def sampler(trainer, rows=None):
        rows = trainer.train_dataset if rows is None else rows
        return torch.utils.data.RandomSampler(rows, generator=torch.Generator().manual_seed(0))

    return mock.patch.object(prm.StepTrainer, "_get_train_sampler", sampler)


def sampled(policy: str, problems: list, n: int, folder: str) -> list:
    """`n` solutions of each problem from a policy, as params/tiny labels them, with made-up labels."""
    generator, by_id = TransformersGenerator(*models.load(policy), 512), {p.problem_id: p for p in problems}
    found = solutions_to(Path(folder, "s.jsonl"), problems, generator, n, Sampling(max_new_tokens=128))
    return made_up([(by_id[s.problem_id], s.steps) for s in found if s.steps])


def speed(make, records: list, problems: list, **options) -> float:
    """Labelled steps per second of training with these options of `prm.train`."""
    model, processor = make()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prm.train("marker", records, problems, model, processor, folder, **options)
        return sum(len(r.steps) for r in records) * options.get("epochs", 1) / (time.perf_counter() - start)


def measure(make, records: list, problems: list, n: int, rounds: int, chance: bool = True, **options) -> dict:
    """{baseline: the ratio of packed to it, for bench.json}: median over rounds, the least and the greatest."""
    works = {"packed": (n, nullcontext), "by_length": (1, nullcontext)} | ({"": (1, by_chance)} if chance else {})
    found = {name: [] for name in works}
    for turn in range(rounds):
        for name in sorted(works, reverse=bool(turn % 2)):
            size, order = works[name]
            with order():
                found[name].append(speed(make, records, problems, pack_size=size, **options))
        line = ", ".join(f"{name or 'padded'} {rates[-1]:,.1f}" for name, rates in found.items())
        print(f"  {line} steps/s", flush=True)
    result = {}
    for name in found.keys() - {"packed"}:
        ratios = np.array(found["packed"]) / np.array(found[name])
        result[name] = {
            "value": float(np.median(ratios)), "baseline": BASELINES[name], "n": rounds, "low": float(ratios.min()),
            "high": float(ratios.max()), "steps_per_s": float(np.median(found["packed"])),
        }  # fmt: skip
    return result


def main() -> None:
    """Nothing; prints the ratios, and puts them into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="a policy, e.g. of make run")
    parser.add_argument("--problems", type=int, default=200, help="with 1,024 image tokens a fortieth of them")
    parser.add_argument("--n", type=int, default=4, help="solutions per problem, and per row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = data.from_world({"train": args.problems}, 0, Path(folder))
        few = problems[: max(2, args.problems // 40)]
        found = sampled(args.model, problems, args.n, folder)
        tiny = measure(models.load, found, problems, args.n, args.rounds, **TINY)
        large = measure(wide, labelled(few, args.n), few, args.n, args.rounds, chance=False, batch_size=args.n)
    result = {f"training_packed{'_' if name else ''}{name}": tiny[name] for name in sorted(tiny)}
    result["training_packed_wide"] = large["by_length"]
    for name, values in result.items():
        print(f"{name} {values['value']:.2f} [{values['low']:.2f}, {values['high']:.2f}] of {values['baseline']}")
    print(f"{args.problems} problems x {args.n}; {place()}; {versions()}")
    keep(args.out, result)


if __name__ == "__main__":
    main()
