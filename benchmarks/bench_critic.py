"""Step scores per second of a critic that notebook 07 has trained: `python benchmarks/bench_critic.py --critic FOLDER`.

The baseline asks for the same pieces of the same critiques (the words about a step, its verdict, the next step, ...) as
requests of their own, each of which computes the image, the question and all that was written before anew. Both read
the same solutions of the embedded world, and rounds alternate, so that other load hits both.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import keep, place

from mmprm_lib import data, evaluation, models
from mmprm_lib.critic import Critic
from mmprm_lib.critic_training import form_of
from mmprm_lib.generation import TransformersGenerator


class Anew:
    """A generator in which nothing goes on: what `more` asks for is a new request."""

    def __init__(self, generator) -> None:
        self.generator, self.fingerprint = generator, generator.fingerprint

    def sample(self, requests, n, sampling, more):
        """As TransformersGenerator's, wave by wave."""
        while requests:
            later = []
            for request, completions in self.generator.sample(requests, n, sampling):
                if not completions[0].error:
                    later += [f for i, c in enumerate(completions) if (f := more(request, i, c)) is not None]
                yield request, completions
            requests, n = later, 1


def speed(model, processor, form, problems: list, solutions: list, batch_size: int, anew: bool) -> float:
    """Step scores per second of one call."""
    generator = TransformersGenerator(model, processor, batch_size)
    critic = Critic(Anew(generator) if anew else generator, form)
    start = time.perf_counter()
    for _ in critic.critique(problems, solutions):
        pass
    return critic.counts["n_verdicts"] / (time.perf_counter() - start)


def main() -> None:
    """Nothing; prints the rates and the ratio, and puts it into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--critic", type=Path, required=True, help="a critic's folder, as notebook 07 saves it")
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, processor = models.load(args.critic)
    with tempfile.TemporaryDirectory() as folder:
        problems = data.from_world({"test": args.problems}, 0, Path(folder))
        solutions = evaluation.writer_solutions(problems, "w", 1, 0, slip=0.1, misconception=0.5, neutral=0.1)
        work = (model, processor, form_of(args.critic), problems, solutions, args.batch_size)
        speed(*work, False)  # warms up
        rates = np.array([[speed(*work, False), speed(*work, True)] for _ in range(args.rounds)])
    ours, theirs = np.median(rates, axis=0)
    rounds = rates[:, 0] / rates[:, 1]
    print(f"{ours:,.1f} step scores/s, {theirs:,.1f} where every piece is asked anew; {place()}")
    result = {"value": float(ours / theirs), "baseline": "every piece of a critique asked anew",
              "low": float(rounds.min()), "high": float(rounds.max()), "n": len(rounds),
              "scores_per_s": float(ours)}  # fmt: skip
    print(f"critic_vs_anew {result['value']:.2f} [{result['low']:.2f}, {result['high']:.2f}]")
    keep(args.out, {"critic_vs_anew": result})


if __name__ == "__main__":
    main()
