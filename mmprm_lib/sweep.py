"""What `make sweep` uses: one notebook at many points of its parameters, each a run of its own; and what came out.

python -m mmprm_lib.sweep NAME [--jobs 2], where params/sweeps/NAME.yaml says which notebook and which points:

    notebook: 12_labeling_cost
    base: {reads: tiny, n_problems: 40}   # of every point
    points:                               # a line is a point; a list of values is a point for each of them
      - {seed: [0, 1, 2], n_updates: 50}
      - {seed: 0, ks: [[1, 2], [1, 4]]}   # of a parameter that is a list itself: a list of lists
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mmprm_lib import parameters, provenance, runner, stages
from mmprm_lib.fingerprints import fingerprint
from mmprm_lib.run import read_manifest
from mmprm_lib.runner import MEMORY_GB, NotebookError
from mmprm_lib.stages import Stage

LONGEST = 60  # characters of the name of a point


class Point(NamedTuple):
    """A point of a sweep: `name` is its run name's last part, `varied` the parameters that tell it from others."""

    name: str
    varied: dict[str, Any]
    stage: Stage


def points(sweep: str) -> list[Point]:
    """The points of params/sweeps/<sweep>.yaml in order, every one checked against the notebook's declaration.

    ValueError naming the file for an unknown notebook, a wrong parameter, or a point that stands there twice.
    """
    root = provenance.project_root()
    path = provenance.below(root / "params" / "sweeps", f"{sweep}.yaml")
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ValueError(f"sweep {sweep!r} has no file {path}; there are: {known}")
    given = parameters.read_yaml(path)
    if not isinstance(given, dict) or set(given) - {"notebook", "base", "points"} or not given.get("points"):
        raise ValueError(f"{path}: write `notebook:`, `base:` and `points:`, a list of `{{name: value}}` lines")
    source = root / "notebooks" / f"{given.get('notebook')}.ipynb"
    if not source.is_file():
        raise ValueError(f"{path}: there is no notebook {source}")
    declared, found = parameters.declared(source), {}
    for line in given["points"]:
        if not isinstance(line, dict):
            raise ValueError(f"{path}: point {line!r} is no `{{name: value}}` line")
        for varied in _spread(line, declared):
            name = point_name(varied)
            if name in found:
                raise ValueError(f"{path}: point {varied} stands there twice")
            values = {**(given.get("base") or {}), **varied, "run_name": f"sweeps/{sweep}/{name}"}
            params = parameters.resolve(declared, values, f"{source.stem} at {varied} in {path}")
            found[name] = Point(name, varied, Stage(source.stem, source, values, params))
    return list(found.values())


def _spread(line: Mapping[str, Any], declared: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The points of one line: every combination of the values of its lists."""
    choices = []
    for name, value in line.items():
        is_list = name in declared and declared[name].kind is list
        many = isinstance(value, list) and (not is_list or all(isinstance(v, list) for v in value))
        choices.append([(name, v) for v in (value if many else [value])])
    yield from map(dict, itertools.product(*choices))


def point_name(varied: Mapping[str, Any]) -> str:
    """A name for a folder: `temperature-0.5_seed-1`; what is too long or no plain text ends in a fingerprint."""
    text = "_".join(f"{name}-{value}" for name, value in varied.items())
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
    return plain if plain == text and len(plain) <= LONGEST else f"{plain[:LONGEST]}-{fingerprint(dict(varied))[:8]}"


def finished(sweep: str) -> dict[str, Path]:
    """The folder of every finished point, by name: this machine's, else the reference that is kept in results/."""
    found = {}
    for point in points(sweep):
        reference = provenance.project_root() / "results" / point.stage.params["run_name"] / point.stage.name
        folders = [folder for folder in (point.stage.folder, reference) if read_manifest(folder)]
        found |= {point.name: folders[0]} if folders else {}
    return found


def grid(sweep: str) -> pd.DataFrame:
    """All points of a sweep in order: point, the varied parameters, and `done`, whether its results are there."""
    there = finished(sweep)
    return pd.DataFrame([{"point": p.name, **p.varied, "done": p.name in there} for p in points(sweep)])


def files(sweep: str) -> list[str]:
    """The manifests of the finished points: a notebook that reads the points names them by `Run.external`."""
    root = provenance.project_root()
    found = [folder / "manifest.json" for folder in finished(sweep).values()]
    return [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in found]


def table(sweep: str) -> pd.DataFrame:
    """The metrics of every finished point: a row per point and metric.

    Columns: point, the varied parameters, metric, value, n, low, high. A point that was not run has no rows.
    """
    rows, folders = [], finished(sweep)
    for point in points(sweep):
        if point.name in folders:
            metrics = json.loads((folders[point.name] / "metrics.json").read_text(encoding="utf-8"))
            rows += [{"point": point.name, **point.varied, "metric": key, **found} for key, found in metrics.items()]
    return pd.DataFrame(rows)


def tables(sweep: str, name: str) -> pd.DataFrame:
    """table_<name>.csv of every finished point, the point's name and varied parameters before its own columns."""
    parts, folders = [], finished(sweep)
    for point in points(sweep):
        if point.name in folders:
            part = pd.read_csv(folders[point.name] / f"table_{name}.csv")
            for place, (key, value) in enumerate({"point": point.name, **point.varied}.items()):
                part.insert(place, key, [value] * len(part))
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def jobs_of(cores: int, memory_gb: float) -> int:
    """How many points the machine bears at once: one a core, as far as the memory lasts."""
    return max(1, min(cores, int(memory_gb // MEMORY_GB)))


def run(sweep: str, jobs: int = 0) -> int:
    """The exit code: 0 if every point has results that its manifest vouches for, 1 if one failed.

    `jobs` points run at once (0: what the machine bears), each a process with its share of the cores. A failed point is
    told and costs itself alone; the next call runs it again, and no other.
    """
    machine = provenance.machine()
    everything = points(sweep)
    waiting = [(point, reason) for point in everything if (reason := stages.why_run(point.stage))]
    jobs = min(jobs or jobs_of(machine["cores"], machine["memory_gb"]), max(1, len(waiting)))
    print(f"sweep {sweep}: {len(waiting)} of {len(everything)} points to run, {jobs} at once", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, machine["cores"] // jobs))}

    def one(job: tuple[Point, str]) -> str:
        point, reason = job
        command = [sys.executable, "-m", "mmprm_lib.sweep", sweep, "--point", point.name]
        print(f"  {point.name}: running ({reason})", flush=True)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(f"  {point.name}: " + ("done" if done.returncode == 0 else f"failed\n{done.stderr[-2000:]}"), flush=True)
        return "" if done.returncode == 0 else point.name

    with ThreadPoolExecutor(jobs) as pool:
        failed = [name for name in pool.map(one, waiting) if name]
    if failed:
        print(f"{len(failed)} of {len(waiting)} points failed: {', '.join(failed)}; run again to try them", flush=True)
    return int(bool(failed))


def run_point(sweep: str, name: str) -> int:
    """The exit code of one point: 0 done, 1 failed."""
    point = next(p for p in points(sweep) if p.name == name)
    runner.end_with_parent()
    runner.discard(point.stage.folder, force=False)
    try:
        runner.execute(point.stage)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line: 0 done, 1 a point failed, 2 the sweep's file is wrong, nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.sweep", description=__doc__.split("\n", 1)[0])
    parser.add_argument("sweep", help="a file of params/sweeps, without .yaml")
    parser.add_argument("--jobs", type=int, default=0, help="points at once (default: what the machine bears)")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # what `run` calls for each
    options = parser.parse_args(arguments)
    try:
        return run_point(options.sweep, options.point) if options.point else run(options.sweep, options.jobs)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
