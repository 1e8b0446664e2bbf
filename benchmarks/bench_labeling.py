"""What labeling costs beside the generator: `python benchmarks/bench_labeling.py`.

label_vs_generate: tokens/s of `labels_to` (bookkeeping, checking and writing included) over those of the bare generator
on the very same requests. Rounds alternate in which of the two comes first, so that other load hits both.

label_bookkeeping: a run of `--solutions` simulated solutions, whose generator costs nothing worth mentioning, and the
share of time that everything else would take beside a generator of `--tokens-per-s`; and how much memory grows with a
solution, from the highest resident memory of runs of a tenth and of the whole, each in a process of its own. Every
fourth problem asks for an expression, whose equality only math-verify can tell.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import keep, place, versions

from mmprm_lib import data, models
from mmprm_lib.decoding import uniforms
from mmprm_lib.generation import Completion, Request, Sampling, TransformersGenerator
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.schema import Problem


class Listed:
    """A generator that writes down the requests that it is given, in their order."""

    def __init__(self, inner: TransformersGenerator) -> None:
        self.inner, self.name, self.fingerprint, self.requests = inner, inner.name, inner.fingerprint, []

    def sample(self, requests, n: int, sampling: Sampling) -> Iterator:
        """As the generator itself."""

        def listed() -> Iterator[Request]:
            for request in requests:
                self.requests.append(request)
                yield request

        return self.inner.sample(listed(), n, sampling)


def measure(model, processor, problems: list[Problem], args: argparse.Namespace) -> dict[str, list[float]]:
    """{"labels", "raw"}: tokens/s of every round; "_cpu": by this process's CPU time. Warming up is not counted."""
    options, generator = Options(n_rollouts=args.rollouts), TransformersGenerator(model, processor, args.batch)
    listed, found = Listed(generator), {"labels": [], "raw": [], "labels_cpu": [], "raw_cpu": []}

    def sampling(seed: int) -> Sampling:
        return Sampling(max_new_tokens=args.max_new_tokens, seed=seed)

    def label(seed: int, mine=generator) -> None:
        with tempfile.TemporaryDirectory() as folder:
            labels_to(Path(folder, "l.jsonl"), solutions, problems, mine, options, sampling(seed))

    def raw(seed: int) -> None:
        for _ in generator.sample(listed.requests, args.rollouts, sampling(seed)):
            pass

    with tempfile.TemporaryDirectory() as folder:
        solutions = solutions_to(Path(folder, "s.jsonl"), problems, generator, args.n, sampling(0))
    label(0, listed)
    works = {"labels": label, "raw": raw}
    for seed in range(1, args.rounds + 1):
        for name in sorted(works, reverse=bool(seed % 2)):
            start, cpu, before = time.perf_counter(), time.process_time(), generator.n_generated_tokens
            works[name](seed)
            tokens = generator.n_generated_tokens - before
            found[name].append(tokens / (time.perf_counter() - start))
            found[f"{name}_cpu"].append(tokens / (time.process_time() - cpu))
        print(f"  labels {found['labels'][-1]:,.0f} raw {found['raw'][-1]:,.0f} tokens/s", flush=True)
    return found


def ratio(found: dict[str, list[float]]) -> dict[str, float | str | int]:
    """label_vs_generate: the median of the rounds' ratios, with the least and the greatest of them."""
    ratios = np.array(found["labels"]) / np.array(found["raw"])
    cpu = np.array(found["labels_cpu"]) / np.array(found["raw_cpu"])  # tells more where other jobs share the cores
    return {
        "value": float(np.median(ratios)), "baseline": "the generator alone, same requests", "low": float(ratios.min()),
        "high": float(ratios.max()), "n": len(ratios), "labels_tokens_per_s": float(np.median(found["labels"])),
        "by_cpu_time": float(np.median(cpu)),
    }  # fmt: skip


# -- the simulation


class Simulated:
    """A generator of texts like a policy's, some 60 tokens a rollout, that knows how long it took to make them."""

    name, fingerprint = "simulated", "simulated"

    def __init__(self, window: int = 64) -> None:
        self.window, self.seconds, self.n_generated_tokens = window, 0.0, 0
        line = "The second bar is {} units high, and the third one is {} units lower than that."
        self.steps = [line.format(20 + i, i) for i in range(7)]

    def sample(self, requests, n: int, sampling: Sampling) -> Iterator:
        """Every request with its completions, a window at a time."""
        requests, window = iter(requests), []
        while True:
            window = [r for _, r in zip(range(self.window), requests, strict=False)]
            if not window:
                return
            for request in window:
                start = time.perf_counter()
                completions = self._completions(request, n, sampling)
                self.seconds += time.perf_counter() - start
                yield request, completions

    def _completions(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        draws = uniforms(sampling.seed, request.seed_key, 0, n)
        steps = self.steps[len(request.prefix) :]
        found = []
        right, wrong = request.problem.answer, "{}"
        if request.problem.answer_type == "expression":
            right, wrong = f"\\boxed{{(x+{right[8:-4]})/2}}", "\\boxed{{x/2+{}}}"
        for draw in draws.tolist():
            answer = right if draw < 0.6 else wrong.format(int(draw * 20))
            cut = [f"{step} So {draw:.3f}." if not request.prefix else step for step in steps]
            text = "\n\n".join([*cut, f"Answer: {answer}"])
            n_tokens = len(text) // 4  # as of a common tokenizer
            self.n_generated_tokens += n_tokens
            found.append(Completion(text, n_tokens, "stop"))
        return found


def simulate(folder: Path, n: int, n_rollouts: int) -> dict[str, float]:
    """Seconds of bookkeeping, tokens, and the highest resident memory in bytes, of one run in this process."""
    problems = [
        Problem(problem_id=f"p{i}", question="How high is the bar?", image="none.png", image_sha256="0" * 64,
                answer=f"\\frac{{x+{i % 97}}}{{2}}" if i % 4 == 3 else str(i % 97), source="simulated", split="train",
                answer_type="expression" if i % 4 == 3 else "number")
        for i in range(n // 4)
    ]  # fmt: skip
    generator, start = Simulated(), time.perf_counter()
    solutions = solutions_to(folder / "s.jsonl", problems, generator, 4, keep=False)
    labels_to(folder / "l.jsonl", solutions, problems, generator, Options(n_rollouts=n_rollouts), keep=False)
    seconds = time.perf_counter() - start - generator.seconds
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "tokens": generator.n_generated_tokens, "peak": peak, "n": n}


def in_its_own_process(n: int, n_rollouts: int) -> dict[str, float]:
    """`simulate` in a fresh process, whose memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--simulate", str(n), "--rollouts", str(n_rollouts), "--folder", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def bookkeeping(n: int, n_rollouts: int, tokens_per_s: float) -> dict[str, float | str | int]:
    """label_bookkeeping: the share of time beside a generator of `tokens_per_s`, and bytes per solution."""
    few, many = (in_its_own_process(part, n_rollouts) for part in (n // 10, n))
    share = [run["seconds"] / (run["seconds"] + run["tokens"] / tokens_per_s) for run in (few, many)]
    return {
        "value": share[1], "baseline": f"all the time, with a generator of {tokens_per_s:,.0f} tokens/s",
        "low": min(share), "high": max(share), "n": n, "n_rollouts": n_rollouts, "tokens": many["tokens"],
        "seconds": many["seconds"], "peak_bytes": many["peak"],
        "bytes_per_solution": (many["peak"] - few["peak"]) / (many["n"] - few["n"]),
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random", help="checkpoint folder, hub id, 'embedded', or 'random' weights")
    parser.add_argument("--problems", type=int, default=64, help="of the generator's half; 0 leaves it out")
    parser.add_argument("--n", type=int, default=4, help="solutions per problem")
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--solutions", type=int, default=100_000, help="of the simulation; 0 leaves it out")
    parser.add_argument("--tokens-per-s", type=float, default=10_000, help="of the generator that is simulated")
    parser.add_argument("--simulate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measured(args: argparse.Namespace) -> dict[str, list[float]]:
    """`measure` with the model and the problems that the command line names."""
    if args.model == "random":
        model, processor = models.new_base(0), models.new_processor()
    else:
        model, processor = models.load(args.model)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        return measure(model, processor, data.from_world({"test": args.problems}, 0, Path(folder)), args)


def main() -> None:
    """Nothing; prints what was measured, and puts it into the file named by --out."""
    args = arguments()
    if args.simulate:
        print(json.dumps(simulate(args.folder, args.simulate, args.rollouts)))
        return
    result = {"label_vs_generate": ratio(measured(args))} if args.problems else {}
    if args.solutions:
        result["label_bookkeeping"] = bookkeeping(args.solutions, args.rollouts, args.tokens_per_s)
    for name, values in result.items():
        print(f"{name} {values['value']:.3f} [{values['low']:.3f}, {values['high']:.3f}] of {values['baseline']}")
    print(json.dumps(result.get("label_bookkeeping", {})))
    print(f"{args.model}, {args.problems} problems x {args.n} x {args.rollouts} rollouts; {place()}; {versions()}")
    keep(args.out, result)


if __name__ == "__main__":
    main()
