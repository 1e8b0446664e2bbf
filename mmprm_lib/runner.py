"""What `make run` uses: the notebooks of a profile, in order, through papermill; vouched results are not made again.

python -m mmprm_lib.runner --profile tiny [--only 03 04] [--run-name NAME] [--force]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmprm_lib import parameters, provenance
from mmprm_lib.cleaning import clean
from mmprm_lib.run import read_manifest, write_json


class NotebookError(RuntimeError):
    """A notebook failed; the message says which cell, with what error, and where the notebook with the error lies."""


@dataclass(frozen=True)
class Stage:
    """A notebook of a profile: `given` is its YAML file's content, `params` every declared parameter with its value."""

    name: str
    source: Path
    given: dict[str, Any]
    params: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its results go: results/<run_name>/<name>/."""
        return provenance.below(provenance.results_root(), self.params["run_name"]) / self.name

    @property
    def stages(self) -> Path:
        """The folder of the run whose outputs it reads: its own, or that of the parameter `reads`."""
        name = self.params.get("reads") or self.params["run_name"]
        return provenance.below(provenance.results_root(), name)

    @property
    def executed(self) -> Path:
        """The executed notebook."""
        return self.folder / f"{self.name}.ipynb"


def plan(profile: str, only: list[str] | None = None, run_name: str | None = None) -> tuple[list[Stage], list[str]]:
    """The stages of a profile in order, and the names of the notebooks that it has no parameters file for.

    `only` keeps the notebooks whose names begin with one of its entries ("03"). One ValueError lists everything wrong
    in any parameters file, before anything runs.
    """
    root = provenance.project_root()
    folder = provenance.below(root / "params", profile)
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in (root / "params").glob("*/")))
        raise ValueError(f"profile {profile!r} has no folder {folder}; there are: {known}")
    sources = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    unknown = [start for start in only or [] if not any(source.name.startswith(start) for source in sources)]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)} fits none of: {', '.join(source.stem for source in sources)}")
    stages, left_out, errors = [], [], []
    for source in sources:
        if only and not source.name.startswith(tuple(only)):
            continue
        path = folder / f"{source.stem}.yaml"
        if not path.is_file():
            left_out.append(source.stem)
            continue
        try:
            stages.append(_stage(source, path, run_name or None, profile))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    return stages, left_out


def _stage(source: Path, path: Path, run_name: str | None, profile: str) -> Stage:
    """The stage of a notebook with the parameters of a YAML file, checked against the notebook's declaration."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path}: must be `name: value` lines, is a {type(given).__name__}")
    given = {"run_name": profile, **given, **({"run_name": run_name} if run_name else {})}
    params = parameters.resolve(parameters.declared(source), given, f"{source.stem} in {path}")
    return Stage(source.stem, source, given, params)


def why_run(stage: Stage) -> str:
    """Why a stage must run, in a few words; empty if its manifest vouches for its results.

    It vouches if parameters, code cells, library modules, assets, lock and inputs are what they were, and every output
    and the executed notebook are there unchanged.
    """
    manifest = read_manifest(stage.folder)
    if manifest is None:
        return "not run yet" if not stage.executed.exists() else "did not finish"
    if manifest["params"] != stage.params:
        names = {*manifest["params"], *stage.params}
        changed = sorted(name for name in names if manifest["params"].get(name) != stage.params.get(name))
        return f"parameters changed: {', '.join(changed)}"
    changed = _changed_code(manifest["code"], provenance.code_state(stage.source))
    if changed:
        return f"code changed: {', '.join(changed)}"
    recorded = [(stage.stages / name, found) for name, found in manifest["inputs"].items()]
    recorded += [(provenance.project_root() / name, found) for name, found in manifest["external"].items()]
    changed = [path.name for path, found in recorded if not provenance.same_content(path, found)]
    if changed:
        return f"inputs changed: {', '.join(changed)}"
    outputs = {**manifest["outputs"], stage.executed.name: manifest.get("executed", {"sha256": "", "bytes": -1})}
    gone = [name for name, found in outputs.items() if not provenance.same_content(stage.folder / name, found)]
    return f"outputs missing or changed: {', '.join(gone[:4])}" if gone else ""


def _changed_code(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of the code differs: "notebook", "lock", and the names of library modules."""
    changed = [name for name in ("notebook", "lock") if before.get(name) != now[name]]
    old, new = before.get("library", {}), now["library"]
    return changed + sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def expected_seconds(stage: Stage) -> float | None:
    """How long a stage took before with this run name, or in the reference run; None if nobody knows."""
    for folder in (stage.folder, provenance.project_root() / "results" / stage.params["run_name"] / stage.name):
        manifest = read_manifest(folder)
        if manifest is not None:
            return float(manifest.get("wall_seconds", manifest["seconds"]))
    return None


def minutes(seconds: float) -> str:
    """Seconds as a reader wants them: "42 s", "7 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def kernel_of_this_python() -> Iterator[None]:
    """Inside, the kernel `python3` is this interpreter, whatever kernels the user has installed elsewhere."""
    before = {name: os.environ.get(name) for name in ("JUPYTER_PATH", "MMPRM_BATCH")}
    with tempfile.TemporaryDirectory(prefix="mmprm_kernel_") as folder:
        path = os.pathsep.join(filter(None, [str(provenance.PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            # figures are shown in the notebook even where the caller asked for another backend
            "env": {"PYTHONPATH": path, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        }
        write_json(Path(folder) / "kernels" / "python3" / "kernel.json", spec)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before["JUPYTER_PATH"]]))
        os.environ["MMPRM_BATCH"] = "1"
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class _ProgressLines:
    """A file for papermill's copy of a notebook's stdout that passes on the progress bars alone."""

    def write(self, text: str) -> None:
        last = re.split(r"[\r\n]", text.rstrip())[-1]
        if re.search(r"\d(%\||it \[)", last):
            print(f"      {last.strip()}", flush=True)

    def flush(self) -> None:
        pass


def discard(folder: Path, force: bool) -> None:
    """Nothing; removes what an outdated finished run wrote, by its manifest, so that no records are mixed. A killed run
    has no manifest: its records stay to go on from, unless `force` removes every keyed record file.
    """
    manifest = read_manifest(folder)
    names = list(manifest["outputs"]) if manifest else []
    if force:
        names += [path.with_suffix(".jsonl").name for path in folder.glob("*.key")]
    for path in (folder / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
            path.with_suffix(".key").unlink(missing_ok=True)


def execute(stage: Stage) -> float:
    """Seconds that it took; runs a notebook through papermill into its results folder and cleans the executed copy.

    NotebookError if a cell fails, the kernel dies, or the notebook ends without `run.finish()`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    stage.folder.mkdir(parents=True, exist_ok=True)
    (stage.folder / "manifest.json").unlink(missing_ok=True)
    started, failure = time.monotonic(), ""
    try:
        papermill.execute_notebook(
            stage.source,
            stage.executed,
            parameters=stage.given,
            kernel_name="python3",
            cwd=stage.source.parent,
            progress_bar=False,
            stdout_file=_ProgressLines(),
            coalesce_streams=True,
        )
    except papermill.PapermillExecutionError as error:
        failure = f"cell In [{error.exec_count}] raised {error.ename}: {error.evalue}"
    except DeadKernelError as error:
        failure = f"the kernel died (out of memory, or killed): {error}"
    seconds = time.monotonic() - started
    clean(stage.executed)
    if not failure and read_manifest(stage.folder) is None:
        failure = "it ended without run.finish(), or another notebook name was given to Run"
    if failure:
        where = f"The notebook with the error: {stage.executed}"
        raise NotebookError(f"{stage.name} failed after {minutes(seconds)}: {failure}\n{where}")
    _vouch(stage, seconds)
    return seconds


def _vouch(stage: Stage, seconds: float) -> None:
    """Nothing; adds the executed notebook, which the notebook itself could not hash, to the manifest."""
    manifest = read_manifest(stage.folder) or {}
    executed = provenance.content(stage.executed)
    write_json(stage.folder / "manifest.json", {**manifest, "wall_seconds": round(seconds, 2), "executed": executed})


def run(profile: str, only: list[str] | None = None, run_name: str | None = None, force: bool = False) -> int:
    """The exit code: 0 if every notebook of the profile has results that its manifest vouches for, 1 if one failed.

    The results of the notebooks before a failure are kept, so that the next call goes on there.
    """
    stages, left_out = plan(profile, only, run_name)
    reasons = {stage.name: "--force" if force else why_run(stage) for stage in stages}
    _announce(profile, stages, reasons, left_out)
    with kernel_of_this_python():
        for stage in stages:
            # asked again: what ran before may have changed its inputs, or made a lost one again as it was
            reason = "--force" if force else why_run(stage)
            if not reason:
                print(f"  {stage.name}: up to date", flush=True)
                continue
            print(f"  {stage.name}: running ({reason})", flush=True)
            discard(stage.folder, force)
            try:
                seconds = execute(stage)
            except NotebookError as error:
                print(f"\n{error}\nEarlier results are kept; run again to go on here.", file=sys.stderr, flush=True)
                return 1
            print(f"  {stage.name}: done in {seconds:.0f} s", flush=True)
    return 0


def _announce(profile: str, stages: list[Stage], reasons: dict[str, str], left_out: list[str]) -> None:
    """Nothing; prints which notebooks will run and how long that takes."""
    waiting = [stage for stage in stages if reasons[stage.name]]
    known = [expected_seconds(stage) for stage in waiting]
    cost = f", about {minutes(sum(s or 0 for s in known))} as measured before" if any(known) else ""
    cost += ", some of unknown length" if None in known else ""
    print(f"profile {profile}: {len(waiting)} of {len(stages)} notebooks to run{cost}")
    if left_out:
        print(f"  no parameters in params/{profile}/ for: {', '.join(left_out)}")


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line: 0 done, 1 a notebook failed, 2 the parameters are wrong, nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.runner", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", default="tiny", help="a folder of params/ (default: tiny)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="only the notebooks whose names begin so")
    parser.add_argument("--run-name", help="folder of results/ (default: what the parameters say, else the profile)")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    options = parser.parse_args(arguments)
    try:
        return run(options.profile, options.only, options.run_name, options.force)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
