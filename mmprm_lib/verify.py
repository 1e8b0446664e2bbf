"""What `make verify` uses: notebooks are run again beside their results, and both runs must state the same numbers.

python -m mmprm_lib.verify --only 05 06 [--profile tiny] [--run-name NAME]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from mmprm_lib import provenance, runner, stages
from mmprm_lib.run import read_manifest
from mmprm_lib.runner import NotebookError
from mmprm_lib.stages import Stage

SUFFIX = "-verify"  # of the run name of the second run
COMPARED = (".jsonl", ".csv")  # records and tables; figures are drawn from these
SHOWN = 10  # differences that are printed


def again(stage: Stage) -> Stage:
    """The same stage under a run name of its own, its folder empty, and with what it reads laid beside it.

    FileNotFoundError if there is no finished run of it; ValueError if that run is out of date.
    """
    manifest = read_manifest(stage.folder)
    if manifest is None:
        raise FileNotFoundError(f"{stage.folder} holds no finished run: make run ONLY={stage.name[:2]} comes first")
    if reason := stages.why_run(stage):
        raise ValueError(f"{stage.folder} is out of date ({reason}): make run ONLY={stage.name[:2]} comes first")
    name = f"{stage.params['run_name']}{SUFFIX}"
    given = {"run_name": name}
    second = dataclasses.replace(stage, given=stage.given | given, params=stage.params | given)
    shutil.rmtree(second.folder, ignore_errors=True)
    if second.stages != stage.stages:  # the notebook names no other run to read
        for needed in {Path(path).parts[0] for path in manifest["inputs"]}:
            shutil.copytree(stage.stages / needed, second.stages / needed, dirs_exist_ok=True)
    return second


def differences(first: Path, second: Path) -> list[str]:
    """What two results folders of one notebook state differently, a line each: metrics, then records and tables."""
    a, b = (read_metrics(folder) for folder in (first, second))
    lines = [f"{key}: {a.get(key)} and {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    outputs = [(read_manifest(folder) or {"outputs": {}})["outputs"] for folder in (first, second)]
    for name in sorted({*outputs[0], *outputs[1]}):
        one, other = (found.get(name, {}).get("sha256") for found in outputs)
        if one != other and Path(name).suffix in COMPARED:
            lines.append(f"{name}: {one and one[:12]} and {other and other[:12]}")
    return lines


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics that a results folder holds."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def verify(profile: str, only: list[str] | None = None, run_name: str | None = None) -> int:
    """The exit code: 0 if every chosen notebook states the same numbers again, 1 if one does not, or failed.

    The second run is removed where nothing differs, and stays to be looked at where something does.
    """
    chosen, _ = stages.plan(profile, only, run_name)
    failed = False
    for stage in chosen:
        second = again(stage)
        print(f"  {stage.name}: running again", flush=True)
        try:
            runner.execute(second)
        except NotebookError as error:
            print(error, file=sys.stderr, flush=True)
            failed = True
            continue
        found = differences(stage.folder, second.folder)
        said = f"{len(found)} differences" if found else f"the same, {len(read_metrics(stage.folder))} metrics"
        print(f"  {stage.name}: {said}", flush=True)
        for line in found[:SHOWN]:
            print(f"      {line}", flush=True)
        if found:
            failed = True
        else:
            shutil.rmtree(second.folder)
    root = provenance.results_root() / f"{chosen[0].params['run_name']}{SUFFIX}" if chosen else None
    if root is not None and not failed:
        shutil.rmtree(root, ignore_errors=True)
    return int(failed)


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line: 0 the same, 1 something differs, 2 there is nothing to compare with."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.verify", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", default="tiny", help="a folder of params/ (default: tiny)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="only the notebooks whose names begin so")
    parser.add_argument("--run-name", help="the run to compare with (default: what the parameters say)")
    options = parser.parse_args(arguments)
    try:
        return verify(options.profile, options.only, options.run_name)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
