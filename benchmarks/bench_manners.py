"""Steps labelled per second against how the papers' released code labels: `python benchmarks/bench_manners.py`.

All label every step of the same solutions with as many rollouts, at temperature 1, and judge every answer.
labels_vs_mm_prm: one prefix at a time, its rollouts as so many copies of one request, images prepared for every call.
labels_vs_visualprm: four solutions at a time, step after step; each round draws one continuation of the four prefixes,
and the next begins when the longest has ended; images prepared for every round.
Both run on transformers' `generate` here, which the papers' engines (vLLM, LMDeploy) are not: the manner alone is
compared. They are as fast for few solutions as for many, so they get few of them; the mean label of all three is shown.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import keep, place, versions

from mmprm_lib import data, models
from mmprm_lib.asking import Completion
from mmprm_lib.generation import Sampling, TransformersGenerator
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.rollouts import judge
from mmprm_lib.schema import Problem, Solution
from mmprm_lib.steps import neutralise, policy_prompt, prefix_text

AT_ONCE = 4  # solutions that VisualPRM's code takes together
Prefix = tuple[Problem, list[str]]


def continued(model, processor, prefixes: list[Prefix], max_new_tokens: int) -> list[bool]:
    """Whether one continuation of each prefix, all drawn in one call of `generate`, ends in the right answer."""
    texts = [policy_prompt(p, processor) + neutralise(prefix_text(steps), processor.tokenizer) for p, steps in prefixes]
    inputs = processor(text=texts, images=[data.open_image(p) for p, _ in prefixes], padding=True,
                       padding_side="left", return_tensors="pt").to(model.device)  # fmt: skip
    with torch.inference_mode():
        out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             max_new_tokens=max_new_tokens)  # fmt: skip
    new = processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ends = [Completion(text, 0, "stop") for text in new]
    return [judge(p, steps, end).label == "correct" for (p, steps), end in zip(prefixes, ends, strict=True)]


def rounds_of(manner: str, solutions: list[Solution], problems: dict[str, Problem], n: int) -> Iterator[list[Prefix]]:
    """The prefixes of each call of `generate`, in the paper's manner."""
    size = 1 if manner == "mm_prm" else AT_ONCE
    for start in range(0, len(solutions), size):
        part = solutions[start : start + size]
        for t in range(max(len(s.steps) for s in part)):
            prefixes = [(problems[s.problem_id], s.steps[: t + 1]) for s in part if t < len(s.steps)]
            yield from [prefixes * n] if manner == "mm_prm" else [prefixes] * n


def labelled_in_manner(manner: str, model, processor, solutions, problems, args) -> tuple[float, float]:
    """(labelled steps per second, mean of the labels)."""
    start, right = time.perf_counter(), []
    for prefixes in rounds_of(manner, solutions, problems, args.rollouts):
        right += continued(model, processor, prefixes, args.max_new_tokens)
    return sum(len(s.steps) for s in solutions) / (time.perf_counter() - start), float(np.mean(right))


def ours(generator, solutions, problems, args, seed: int, chosen: list[Solution]) -> tuple[float, float]:
    """(labelled steps per second, mean of the labels of `chosen`) of `labels_to`, every step of every solution."""
    options = Options(n_rollouts=args.rollouts, last_step="rollout")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sampling = Sampling(max_new_tokens=args.max_new_tokens, seed=seed)
        records = labels_to(Path(folder, "l.jsonl"), solutions, list(problems.values()), generator, options, sampling)
        found = {record.solution_id: [score or 0.0 for score in record.mc_score] for record in records}
    rate = sum(map(len, found.values())) / (time.perf_counter() - start)
    return rate, float(np.mean([score for s in chosen for score in found[s.solution_id]]))


def measure(model, processor, problems: list[Problem], args) -> dict[str, list[tuple[float, float]]]:
    """{"ours", "mm_prm", "visualprm"}: what every round found."""
    generator, known = TransformersGenerator(model, processor, args.batch), {p.problem_id: p for p in problems}
    with tempfile.TemporaryDirectory() as folder:
        sampling = Sampling(max_new_tokens=args.max_new_tokens)
        solutions = list(solutions_to(Path(folder, "s.jsonl"), problems, generator, args.n, sampling))
    found = {"ours": [], "mm_prm": [], "visualprm": []}
    chosen = solutions[:: max(1, len(solutions) // args.few)][: args.few]
    for seed in range(args.rounds):
        found["ours"].append(ours(generator, solutions, known, args, seed, chosen))
        for manner in ("mm_prm", "visualprm"):
            torch.manual_seed(seed)
            found[manner].append(labelled_in_manner(manner, model, processor, chosen, known, args))
        line = ", ".join(f"{name} {turns[-1][0]:.1f} (mean {turns[-1][1]:.3f})" for name, turns in found.items())
        print(f"  {line} steps/s", flush=True)
    return found


def main() -> None:
    """Nothing; prints the ratios, and puts them into the file named by --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="checkpoint folder, hub id, or 'embedded'")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--n", type=int, default=4, help="solutions per problem")
    parser.add_argument("--few", type=int, default=4, help="solutions that are labelled in the papers' manner")
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, processor = models.load(args.model)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(model, processor, data.from_world({"test": args.problems}, 0, Path(folder)), args)
    rates = {name: np.array([rate for rate, _ in turns]) for name, turns in found.items()}
    for manner, words in (("mm_prm", "a prefix at a time, as MM-PRM"), ("visualprm", "rounds of four, as VisualPRM")):
        ratios = rates["ours"] / rates[manner]
        result = {"value": float(np.median(ratios)), "baseline": f"{words}; transformers generate", "n": len(ratios),
                  "low": float(ratios.min()), "high": float(ratios.max()),
                  "steps_per_s": float(np.median(rates["ours"]))}  # fmt: skip
        print(f"labels_vs_{manner} {result['value']:.1f} [{result['low']:.1f}, {result['high']:.1f}] of {words}")
        keep(args.out, {f"labels_vs_{manner}": result})
    print(f"{args.model}, {args.problems} problems x {args.n} x {args.rollouts} rollouts; {place()}; {versions()}")


if __name__ == "__main__":
    main()
