"""A run of a profile without the run: everything is resolved, nothing is loaded, and what is missing is told.

python -m mmprm_lib.runner --profile NAME --dry-run calls this module: models, data sets, files, inputs of earlier
notebooks, packages, chat templates, memory and disk; and what every notebook will cost.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmprm_lib import estimates, provenance, registry, released, stages, sweep, workload
from mmprm_lib.estimates import Estimate
from mmprm_lib.modelcheck import Found, find, on_hub
from mmprm_lib.run import read_manifest
from mmprm_lib.stages import Stage
from mmprm_lib.steps import FORMATS

# What a notebook reads whatever its parameters say; what they name comes on top.
INPUTS = {
    "02_policy": ("01_data",), "03_mc_labeling": ("01_data",), "04_prm_training": ("01_data", "03_mc_labeling"),
    "06_best_of_n": ("01_data",), "07_generative_prm": ("01_data", "03_mc_labeling", "05_visualprocessbench"),
    "08_refined_best_of_n": ("01_data",), "12_labeling_cost": ("01_data", "02_policy", "05_visualprocessbench"),
    "point_prm": ("01_data", "05_visualprocessbench", "06_best_of_n"),
}  # fmt: skip
MADE = re.compile(r"((?:results/.+/)?\d\d_[a-z_]+)/?(.*)$")  # what a notebook makes
FILES = ("path", "solutions_path", "benchmark_path")
# whose processors have a part for videos, which transformers builds on torchvision
WITH_TORCHVISION = re.compile(r"qwen2.5-vl|qwen3-vl|internvl|smolvlm", re.IGNORECASE)
FAR = ("", "the hub")  # where a model lies that is still to be fetched
UNIT = 2**30 / 1e9  # GB in a GiB


class Machine(NamedTuple):
    """What is at hand: memory of each GPU (none: the CPU's memory) and free disk, in GB."""

    gpus: tuple[float, ...]
    memory: float
    disk: float


def machine() -> Machine:
    """The machine that this process runs on; the disk is the one that results are written to."""
    import torch

    gpus = [torch.cuda.get_device_properties(i).total_memory / 1e9 for i in range(torch.cuda.device_count())]
    place = provenance.results_root()
    while not place.exists():
        place = place.parent
    return Machine(tuple(gpus), provenance.machine()["memory_gb"] * UNIT, shutil.disk_usage(place).free / 1e9)


class Told(NamedTuple):
    """What was found out about one stage: its cost (None: not known), what is there, and what is missing."""

    stage: Stage
    cost: Estimate | None
    there: list[str]
    missing: list[str]


def names_of(stage: Stage) -> list[str]:
    """The models and files that a stage's parameters name: texts, and the values of dicts such as `prms`."""
    p = stage.params
    # where a server samples, `policy` is a name there; where a benchmark is read, nobody samples
    read = not (estimates.is_served(p) or p.get("benchmark_path"))
    texts = [p["policy"]] if "policy" in p and read else []
    texts += [p[n] for n in ("critic", "prm", "candidates", "labels", "start") if n in p]
    texts += list(p["prms"].values()) if isinstance(p.get("prms"), dict) else []
    if "model" in p:  # of 04, all are started from the policy if it says so, and the judge is the base
        texts.append("02_policy/policy" if p["model"] == "policy" else p["model"])
    texts += ["02_policy/policy"] * (p.get("init") == "policy")
    return list(dict.fromkeys(text for text in texts if text))


def needed_stages(stage: Stage) -> dict[str, str]:
    """The notebooks that must have run before, as folders of the run that is read or `results/<run>/<notebook>`: the
    output that is read, "" if it is no one output.
    """
    found = dict.fromkeys(INPUTS.get(stage.name, ()), "")
    if stage.name[:2] == "05" and not stage.params["benchmark_path"]:
        found["01_data"] = ""
    for name in names_of(stage):
        if made := MADE.match(name):
            found[made[1]] = made[2]
    return found


def inputs(stage: Stage, planned: list[Stage]) -> Iterator[tuple[bool, str]]:
    """(there, words) for every notebook whose outputs a stage reads: made in this run, made before, or missing."""
    for name, output in needed_stages(stage).items():
        # what a path names by results/ lies in this machine's results, which may be elsewhere
        folder = stage.stages / name if "/" not in name else provenance.results_root() / name.removeprefix("results/")
        manifest = read_manifest(folder)
        if any(other.folder == folder and other.name < stage.name for other in planned):
            yield True, f"{name}: this run makes it"
        elif manifest is None:
            yield False, f"{folder.name} of run {folder.parent.name!r} has not run, and this run does not make it: " + (
                _remedy(folder.parent.name, folder.name))  # fmt: skip
        elif output and not any(output == made or output.startswith(f"{made}/") for made in manifest["outputs"]):
            yield False, f"{folder.name} of run {folder.parent.name!r} wrote no {output}"
        else:
            yield True, f"{name}: of run {folder.parent.name!r}"


def _remedy(run_name: str, notebook: str) -> str:
    """The command that makes a notebook's outputs in a run: of the profile of that name, else of some profile."""
    if (provenance.project_root() / "params" / run_name / f"{notebook}.yaml").is_file():
        return f"make run PROFILE={run_name} ONLY={notebook[:2]}"
    return f"make run PROFILE=... RUN_NAME={run_name} ONLY={notebook[:2]}, with a profile that has it"


def files(stage: Stage) -> Iterator[tuple[bool, str]]:
    """(there, words) for every file of the user's that a stage reads."""
    for key in FILES:
        name = stage.params.get(key)
        if name and (key != "path" or stage.params["source"] == "files"):
            there = (provenance.project_root() / Path(name).expanduser()).is_file()
            yield there, f"{key} {name}" + ("" if there else ": there is no such file")
    formats = stage.params.get("formats", {})
    released.check_choices(formats)
    for name, choices in formats.items():
        if text := released.system_file(choices):
            there = (provenance.project_root() / text).is_file()
            yield there, f"system_file {text}" + ("" if there else f": write the system message of {name} into it")


def services(stage: Stage) -> Iterator[tuple[bool, str]]:
    """(there, words) for packages, keys and servers that a stage's parameters call for."""
    p = stage.params
    wanted = [("vllm", p.get("engine") == "vllm", "make vllm-env"), ("ray", p.get("n_workers"), "make vllm-env")]
    with_video = [name for name in names_of(stage) if WITH_TORCHVISION.search(estimates.BASES.get(name, name))]
    wanted.append(("torchvision", with_video, "pip install torchvision, the release of the lock's torch"))
    for package, needed, remedy in wanted:
        if needed:
            there = importlib.util.find_spec(package) is not None
            yield there, f"package {package}" + ("" if there else f" is missing: {remedy}")
    if "base_url" in p.get("teacher", ()):
        key = p["teacher"].get("api_key_env", "OPENAI_API_KEY")
        there = bool(os.environ.get(key, "").strip())
        yield there, f"key {key}" + ("" if there else " is not set in the environment")
        yield from _server(p["teacher"]["base_url"])
    if estimates.is_served(p):
        yield from _server(p["engine"])


def _server(url: str) -> Iterator[tuple[bool, str]]:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=10):  # noqa: S310
            yield True, f"server {url}"
    except urllib.error.HTTPError:
        yield True, f"server {url}"  # it answers, if only that it wants a key
    except (OSError, ValueError) as error:
        yield False, f"server {url} cannot be reached ({error})"


def kinds_of(stage: Stage) -> list[str]:
    """The forms of PRM that a stage trains or reads plain models in; those that `formats` states are none of them."""
    names = [*stage.params.get("prms", ()), *(["judge"] if stage.name[:2] == "04" else [])]
    names = [name for name in names if name not in stage.params.get("formats", {})]
    found = [max((k for k in FORMATS if name == k or name.startswith(f"{k}_")), key=len, default="") for name in names]
    found += {"12": ["marker"], "po": ["marker"], "07": ["critique"]}.get(stage.name[:2], [])
    return [kind for kind in dict.fromkeys(found) if kind]


def formats_of(stage: Stage, model: str) -> dict[str, Mapping[str, Any]]:
    """What `formats` states for the scorers that are read from a model: scorer -> its choices."""
    prms = stage.params.get("prms", {})
    return {name: each for name, each in stage.params.get("formats", {}).items() if prms.get(name) == model}


def data_set(stage: Stage) -> Iterator[tuple[bool, str]]:
    """(there, words) for the data set that 01 reads: of the hub, or a folder laid out like one; the registry names that
    of a benchmark.
    """
    if stage.params.get("source") != "hub":
        return
    name, revision, known = stage.params["dataset_id"], stage.params["revision"], stage.params["benchmark"]
    if known:
        try:
            entry = registry.benchmark(known)
        except ValueError as error:
            yield False, str(error)
            return
        name, revision = name or entry.dataset_id, revision or entry.revision or "main"
    if name and (stage.source.parent / name).is_dir():  # as the notebook sees it, which runs in its own folder
        yield True, f"data set {name}: a folder"
        return
    where, fault = on_hub(name, revision, "dataset")
    yield not fault, fault or f"data set {name}: in {where}"


def sweeps(stage: Stage, run: workload.Run) -> Iterator[tuple[bool, str]]:
    """(there, words) for the sweeps whose points a stage reads."""
    for key in [key for key in stage.params if key.endswith("sweep") or key == "sweep_name"]:
        name = stage.params[key]
        try:
            points, done = sweep.points(name), sweep.finished(name)
        except ValueError as error:
            yield False, str(error)
            continue
        words = f"sweep {name}: {len(done)} of {len(points)} points are there"
        if len(done) == len(points):
            yield True, words
            continue
        left = [point.stage for point in points if point.name not in done]
        cost = _cost(left[0], {**run, **stages.run_of(left[0], [])}, estimates.KNOWN.get)[0]
        hours = f", {cost.gpu_hours * len(left):,.0f} GPU hours" if cost else ""
        yield False, f"{words}: make sweep SWEEP={name} first ({len(left)} points{hours})"


def counts(stage: Stage, run: workload.Run) -> Iterator[tuple[bool, str]]:
    """(False, words) where the numbers of problems leave a stage without any."""
    if stage.name[:2] in ("03", "04", "07") and "03_mc_labeling" in run and "01_data" in run:
        train, dev = workload.n_labelled(run)
        if not train:
            sft = run.get("02_policy", {}).get("n_sft", 0)
            taken = f"02 trains on n_sft = {sft:,} of " if sft else ""
            yield False, f"no train problem is left to label: {taken}n_train = {run['01_data']['n_train']:,}"
        if not dev and stage.name[:2] == "04":
            yield False, "no dev problem is labelled: set n_dev in 01_data and n_label_dev in 03_mc_labeling"


def _cost(stage: Stage, run: workload.Run, shape_of: estimates.ShapeOf) -> tuple[Estimate | None, str]:
    try:
        return estimates.estimate(stage.name, run, shape_of), ""
    except (ValueError, KeyError) as error:
        return None, f"its cost is not known: {error}"


def fits(cost: Estimate, have: Machine) -> tuple[bool, str]:
    """Whether the memory is there, in words; without a GPU the CPU's memory counts."""
    need = f"{cost.n_gpus} x {cost.memory_gb:.1f} GB" if cost.n_gpus > 1 else f"{cost.memory_gb:.1f} GB"
    need += f", one of {cost.alone_gb:.1f} GB" if cost.alone_gb > cost.memory_gb else ""
    if not have.gpus:
        enough = max(cost.memory_gb * cost.n_gpus, cost.alone_gb) <= have.memory
        return enough, f"memory: needs {need}, no GPU, {have.memory:.0f} GB at hand"
    enough = sum(gpu >= cost.memory_gb for gpu in have.gpus) >= cost.n_gpus and max(have.gpus) >= cost.alone_gb
    at_hand = ", ".join(f"{gpu:.0f} GB" for gpu in have.gpus)
    return enough, f"GPU memory: needs {need}, at hand: {at_hand}"


def look(stage: Stage, planned: list[Stage], everything: list[Stage], have: Machine,
         model: Callable[..., Found]) -> Told:  # fmt: skip
    """All that can be found out about one stage; `model` is `modelcheck.find`, which may remember its answers."""
    run, p = stages.run_of(stage, everything), stage.params
    lines = [*inputs(stage, planned), *files(stage), *data_set(stage), *services(stage), *counts(stage, run)]
    lines += sweeps(stage, run)
    shapes = {}
    for name in [name for name in names_of(stage) if not MADE.match(name) and not name.endswith(".jsonl")]:
        revision = p.get("revision", "") if name == p.get("model") else ""
        asked = (name, revision, p.get("trust_remote_code", False), tuple(kinds_of(stage)))
        found = model(*asked, formats_of(stage, name))
        shapes[name] = found.shape
        lines += [(False, fault) for fault in found.faults] or [(True, f"model {name}: {found.where}")]
    cost, unknown = _cost(stage, run, lambda name: shapes[name] if name in shapes else model(name).shape)
    lines += [(False, unknown)] if unknown else [fits(cost, have)] if cost and cost.memory_gb else []
    return Told(stage, cost, [words for ok, words in lines if ok], [words for ok, words in lines if not ok])


def run(profile: str, only: list[str] | None = None, run_name: str | None = None) -> int:
    """The exit code: 0 if nothing is missing, else 1; prints what every notebook costs and what is there or missing."""
    planned, left_out = stages.plan(profile, only, run_name)
    everything = stages.plan(profile, None, run_name)[0] if only else planned
    have, seen = machine(), {}

    def model(*asked) -> Found:
        if (key := repr(asked)) not in seen:
            seen[key] = find(*asked)
        return seen[key]

    print(f"profile {profile}, dry run: nothing is loaded, trained or written; hours are those of one A100")
    if left_out and not only:
        print(f"  no parameters in params/{profile}/ for: {', '.join(left_out)}")
    told = []
    for stage in planned:
        told.append(look(stage, planned, everything, have, model))
        _print(told[-1])
    n_missing = sum(len(each.missing) for each in told)
    hours, disk = (sum(getattr(t.cost, key) for t in told if t.cost) for key in ("gpu_hours", "disk_gb"))
    far = {each.name: each.shape.n_weights for each in seen.values() if each.shape and each.where in FAR}
    fetched = sum(far.values()) * 2 / 1e9  # in 16 bits, as hubs keep them
    scratch = max((t.cost.scratch_gb for t in told if t.cost), default=0.0)
    disk += fetched + scratch
    parts = f"{fetched:,.1f} GB of it for models to fetch" + (f", {scratch:,.1f} for checkpoints" if scratch else "")
    print(f"in all: {hours:,.1f} GPU hours, {disk:,.1f} GB of disk, {parts}")
    if disk > have.disk:
        n_missing += 1
        print(f"  MISSING  disk: {have.disk:,.0f} GB are free")
    print(f"{n_missing} things are missing" if n_missing else "nothing is missing")
    return int(n_missing > 0)


def _print(told: Told) -> None:
    print(f"{told.stage.name}: {told.cost.words() if told.cost else 'cost not known'}", flush=True)
    for words in told.there:
        print(f"  ok       {words}")
    for words in told.missing:
        print(f"  MISSING  {words}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line: 0 nothing missing, 1 something is, 2 the parameters are wrong."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.dryrun", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--only", nargs="+", metavar="NN")
    parser.add_argument("--run-name")
    options = parser.parse_args(arguments)
    try:
        return run(options.profile, options.only, options.run_name)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
