"""The blocks of README.md that state numbers, from the committed results: `python -m mmprm_lib.readme` rewrites them.

A block stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`. Every number in one has its n and, where there
is one, its 95 % interval. A notebook that has not finished has no manifest; the block then says that it was not run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmprm_lib.provenance import project_root
from mmprm_lib.run import read_manifest
from mmprm_lib.schema import write_bytes

REFERENCE = "results/tiny"  # the reference run
UNITS = {  # of the speeds in bench.json
    "tokens_per_s": "tokens/s", "labels_tokens_per_s": "tokens/s", "scores_per_s": "step scores/s",
    "steps_per_s": "labelled steps/s",
}  # fmt: skip
MARKER = re.compile(r"<!-- (begin|end): ([a-z_]+) -->")
BEST_OF_N, BENCHMARK, LABELING = "06_best_of_n", "05_visualprocessbench", "03_mc_labeling"
CRITIC, REFINED, COST = "07_generative_prm", "08_refined_best_of_n", "12_labeling_cost"
ABLATIONS = {CRITIC, REFINED, COST}  # read from results/ablations, where they run at full size, once they have
# what a row of the result says, the key of metrics.json, and what its n counts; {n} and {aggregator} are parameters
ROWS = {
    BEST_OF_N: [
        ("one solution, drawn blindly (pass@1)", "pass_at_1", "problems"),
        ("majority vote of {n}", "majority_at_{n}", "problems"),
        ("vote of {n}, weighted by the PRM", "weighted_at_{n}", "problems"),
        ("Best-of-{n} by the outcome model (ORM)", "orm_at_{n}", "problems"),
        ("**Best-of-{n} by the soft-label marker PRM, {aggregator} of steps**", "prm_{aggregator}_at_{n}", "problems"),
        ("ceiling: one of {n} is right (pass@{n})", "pass_at_{n}", "problems"),
        ("PRM minus pass@1, paired", "prm_{aggregator}_at_{n}_minus_pass_at_1", "problems"),
        ("PRM minus majority vote, paired", "prm_{aggregator}_at_{n}_minus_majority_at_{n}", "problems"),
    ],
    BENCHMARK: [
        ("**macro F1 of the hard-label marker PRM's steps, pooled**", "macro_f1_pooled", "steps"),
        ("AUROC of the hard-label marker PRM's steps", "auroc", "steps"),
        ("first-error F1 of the hard-label marker PRM", "first_error_f1", "solutions"),
        ("macro F1 of guessing by the labels' shares alone", "baseline_prior_macro_f1", "steps"),
    ],
    LABELING: [("macro F1 of Monte Carlo labels against the truth", "label_macro_f1_vs_truth", "steps")],
    CRITIC: [
        ("macro F1 of the generative PRM's verdicts, pooled", "verdict_macro_f1", "steps"),
        ("the same minus the hard-label marker PRM, paired", "verdict_minus_discriminative_macro_f1", "steps"),
        ("the same minus a critic that writes verdicts alone, paired", "verdict_minus_verdict_only_macro_f1", "steps"),
        ("corrections of wrong steps that are right", "correction_accuracy", "corrections"),
    ],
    REFINED: [
        ("Refined Best-of-{n} by the generative PRM", "refined_bon_at_{n}", "problems"),
        ("**Refined minus plain Best-of-{n}, the same critic, paired**", "refined_minus_bon", "problems"),
        ("Refined minus cut and sampled again, paired", "refined_minus_cut_resample", "problems"),
    ],
    COST: [
        ("tokens of adaptive hard labels over those of 16 rollouts", "adaptive_token_share", "problems"),
        ("their macro F1 minus that of 16 rollouts, paired", "adaptive_minus_exhaustive_f1__step_truth", "steps"),
        ("macro F1 of a PRM learnt from labels of 16 rollouts", "prm_macro_f1_pooled__exhaustive", "steps"),
        ("macro F1 of a PRM learnt from adaptive labels of as many tokens", "prm_macro_f1_pooled__adaptive", "steps"),
    ],
}


def blocks(root: Path) -> dict[str, str]:
    """The text of every block, by its name, from the results and assets below `root`."""
    reference = root / REFERENCE
    return {
        "result": result(reference),
        "figure": figure(reference),
        "cost": cost(reference),
        "notebooks": notebooks(root),
        "base": base(root / "mmprm_lib" / "assets" / "base" / "skills.json"),
        "bench": bench(root / "results" / "bench" / "bench.json"),
    }


def result(reference: Path) -> str:
    """A table of the measures of every notebook that has some; one line for each notebook without results.

    Those in ABLATIONS are read from the studies at full size where these have been run.

    ValueError if a finished notebook lacks a metric of the table.
    """
    lines, missing = [], []
    for stage, rows in ROWS.items():
        folder = reference.parent / "ablations" / stage
        if stage not in ABLATIONS or read_manifest(folder) is None:
            folder = reference / stage
        manifest = read_manifest(folder)
        if manifest is None:
            missing.append(stage)
            continue
        metrics = read_json(folder / "metrics.json")
        names = {"n": manifest["params"].get("headline_n"), "aggregator": manifest["params"].get("aggregator")}
        for text, key, unit in rows:
            key = key.format(**names)
            if key not in metrics:
                raise ValueError(f"{folder}/metrics.json has no {key!r}: run the notebook again")
            signed = "_minus_" in key
            lines.append([stage[:2], text.format(**names), *estimate(metrics[key], signed), unit])
    shown = [(place, text, value, interval, f"{n} {unit}") for place, text, value, interval, n, unit in lines]
    head = ("notebook", "measure", "value", "95 % interval", "n")
    return "\n\n".join([*([markdown(head, shown)] if shown else []), *map(not_run, missing)])


def figure(reference: Path) -> str:
    """The Best-of-N figure as an image link, relative to README.md; else the first figure of that notebook."""
    folder = reference / BEST_OF_N
    if read_manifest(folder) is None:
        return not_run(BEST_OF_N)
    found = [folder / "figure_best_of_n.png", *sorted(folder.glob("figure_*.png"))]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        return f"Notebook {BEST_OF_N} drew no figure."
    words = path.stem.removeprefix("figure_").replace("_", " ")
    return f"![{words}: test problems answered correctly]({REFERENCE}/{BEST_OF_N}/{path.name})"


def cost(reference: Path) -> str:
    """One sentence: time, peak memory, disk and generated tokens of the whole reference run, and its machine."""
    manifests = [found for path in sorted(reference.glob("[0-9]*")) if (found := read_manifest(path))]
    if not manifests:
        return "The reference run has not been run: its time, memory and disk are not known."
    machine = manifests[-1]["machine"]
    peak = max(manifest["machine"]["peak_memory_gb"] for manifest in manifests)
    tokens = sum(manifest["generated_tokens"] for manifest in manifests)
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"Notebooks {', '.join(manifest['notebook'][:2] for manifest in manifests)} of the reference run took "
        f"{duration(sum(map(seconds, manifests)))} on {machine['cores']} cores with {machine['memory_gb']:.0f} GB "
        f"({gpus}), {peak:.1f} GB of memory at most, {size(sum(map(disk, manifests)))} of results on disk, and "
        f"{tokens:,} generated tokens."
    )


def notebooks(root: Path) -> str:
    """A table of the notebooks: what each asks (its title), and time, peak memory and disk of the reference run."""
    rows = []
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        manifest, executed = read_manifest(root / REFERENCE / path.stem), f"{REFERENCE}/{path.stem}/{path.name}"
        measured = ("not run yet", "", "")
        if manifest is not None:
            memory = f"{manifest['machine']['peak_memory_gb']:.1f} GB"
            measured = (duration(seconds(manifest)), memory, size(disk(manifest)))
        written = f"[executed]({executed})" if manifest is not None and (root / executed).is_file() else ""
        rows.append((f"[{path.stem}](notebooks/{path.name})", title(path), *measured, written))
    return markdown(("notebook", "what it asks", "time", "memory", "disk", "result"), rows)


def base(path: Path) -> str:
    """A table of the measured skills of the embedded base and what its training cost, from its skills.json."""
    if not path.is_file():
        return "The base that lies in `mmprm_lib/assets/base` has no `skills.json`: its skills have not been measured."
    facts = read_json(path)
    rows = [(name.replace("_", " "), f"{value:.3f}") for name, value in facts["skills"].items()]
    told = (
        f"Trained in {duration(facts['seconds'])} on {facts['threads']} CPU thread(s), {facts['updates']:,} batches of "
        f"{facts['batch']}, {facts['parameters']:,} parameters, seed {facts['seed']}. Measured on scenes of the test "
        f"split, n = {facts['n']} rows of each skill, no interval computed:"
    )
    return f"{told}\n\n{markdown(('skill', 'value'), rows)}"


def bench(path: Path) -> str:
    """A table of throughput ratios from bench.json: their range over the rounds, the speed of ours, and where it was
    measured; below the table alone, if that was one machine with one set of packages.
    """
    if not path.is_file():
        return "`make bench` has no committed result yet."
    measured, rows = sorted(read_json(path).items()), []
    places = list(dict.fromkeys(place(found) for _, found in measured))
    for key, found in measured:
        value, low, high = (f"{found[name]:.{2 if found['value'] >= 0.1 else 4}f}" for name in ("value", "low", "high"))
        row = (f"`{key}`", value, f"{low} to {high}", found["baseline"], speed(found))
        rows.append((*row, str(places.index(place(found)) + 1))[: 5 + (len(places) > 1)])
    head = ("ratio", "value", "range over the rounds", "against", "our speed", "measured on")[: 5 + (len(places) > 1)]
    told = [f"{i}. {where}" for i, where in enumerate(places, 1)] if len(places) > 1 else [f"On {places[0]}."]
    return "\n\n".join([markdown(head, rows), "\n".join(told)])


def place(found: Mapping[str, Any]) -> str:
    """Machine and packages that a row of bench.json was measured with."""
    return f"{found.get('machine', 'a machine that is not told')}; {found.get('versions', 'versions not told')}"


def speed(found: Mapping[str, Any]) -> str:
    """The speed in a row of bench.json, and its share of the chip's peak, as far as they stand there; else a dash."""
    parts = [f"{found[key]:,.{0 if found[key] >= 100 else 1}f} {unit}" for key, unit in UNITS.items() if key in found]
    parts += [f"{found['of_peak']:.1%} of the chip's peak"] if "of_peak" in found else []
    return ", ".join(parts) or "-"


def not_run(stage: str) -> str:
    """The honest line for a notebook without results."""
    return f"Notebook {stage} of the reference run has not been run yet: there is no number to show."


def estimate(metric: Mapping[str, float | None], signed: bool = False) -> tuple[str, str, str]:
    """Value, interval and n of a metric as texts; a dash for what is not known."""
    form = "{:+.3f}" if signed else "{:.3f}"
    value, low, high, n = (metric[name] for name in ("value", "low", "high", "n"))
    interval = "-" if low is None or high is None else f"{form.format(low)} to {form.format(high)}"
    return "-" if value is None else form.format(value), interval, "-" if n is None else f"{n:,}"


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [tuple(head), *(tuple(text.replace("|", r"\|") for text in row) for row in rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def title(notebook: Path) -> str:
    """What a notebook asks: its first heading without its number and name ("02 Policy: a model" gives "a model")."""
    first = "".join(read_json(notebook)["cells"][0]["source"]).splitlines()[0]
    name, _, asked = first.removeprefix("# ").partition(": ")
    return asked or name


def seconds(manifest: Mapping[str, Any]) -> float:
    """Wall time of a notebook; with the start of its kernel where the runner measured it."""
    return float(manifest.get("wall_seconds", manifest["seconds"]))


def disk(manifest: Mapping[str, Any]) -> int:
    """Bytes of what a notebook wrote, the records that are not committed with them."""
    return sum(output["bytes"] for output in manifest["outputs"].values())


def duration(seconds: float) -> str:
    """Seconds as a reader wants them: "42 s", "7 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(n_bytes: int) -> str:
    """Bytes as a reader wants them, in decimal units: "0.3 MB", "41 MB", "1.2 GB"."""
    if n_bytes >= 10**9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 10**7 else f"{n_bytes / 1e6:.1f} MB"


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def fill(text: str, found: Mapping[str, str]) -> str:
    """The text with every block replaced; ValueError if a block is unknown, stands twice, is missing or not closed."""
    parts, at, names = [], 0, []
    markers = list(MARKER.finditer(text))
    for begin, end in zip(markers[::2], [*markers[1::2], None], strict=False):
        if end is None or (begin[1], end[1]) != ("begin", "end") or begin[2] != end[2]:
            raise ValueError(f"block {begin[2]!r}: put one `<!-- end: {begin[2]} -->` after its beginning")
        if begin[2] not in found or begin[2] in names:
            raise ValueError(f"block {begin[2]!r} is unknown or stands twice; there are: {', '.join(found)}")
        names.append(begin[2])
        parts += [text[at : begin.end()], f"\n{found[begin[2]]}\n"]
        at = end.start()
    if missing := sorted(set(found) - set(names)):
        raise ValueError(f"README.md has no block {', '.join(missing)}: put its two markers where it belongs")
    return "".join([*parts, text[at:]])


def main() -> int:
    """0; rewrites README.md of the project where its blocks are out of date."""
    path = project_root() / "README.md"
    old = path.read_text(encoding="utf-8")
    new = fill(old, blocks(project_root()))
    if new != old:
        write_bytes(path, [new.encode()])
    print("README.md is up to date" if new == old else "README.md rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
