"""What `make run` uses: the notebooks of a profile, in order, through papermill; vouched results are not made again.

python -m mmprm_lib.runner --profile tiny [--only 03 04] [--run-name NAME] [--force] [--dry-run]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from mmprm_lib import estimates, provenance
from mmprm_lib.cleaning import clean
from mmprm_lib.run import read_manifest, write_json
from mmprm_lib.stages import Stage, expected_seconds, minutes, plan, run_of, why_run

MEMORY_GB = 8.0  # that a notebook is given: those of the embedded world stay below
AT_ONCE = 2  # notebooks side by side, each with its share of the cores


class NotebookError(RuntimeError):
    """A notebook failed; the message says which cell, with what error, and where the notebook with the error lies."""


@contextlib.contextmanager
def kernel_of_this_python(threads: int | None = None) -> Iterator[None]:
    """Inside, the kernel `python3` is this interpreter, whatever kernels the user has installed elsewhere.

    `threads`: that its numerical libraries use, where the caller's environment names no number.
    """
    before = {name: os.environ.get(name) for name in ("JUPYTER_PATH", "MMPRM_BATCH")}
    with tempfile.TemporaryDirectory(prefix="mmprm_kernel_") as folder:
        path = os.pathsep.join(filter(None, [str(provenance.PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        spec = {
            # jupyter_client interrupts a kernel before it ends it, which an idle one would report as an error
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=50"],
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            # figures are shown in the notebook even where the caller asked for another backend
            "env": {"PYTHONPATH": path, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        }
        if threads and not os.environ.get("OMP_NUM_THREADS"):
            spec["env"]["OMP_NUM_THREADS"] = str(threads)
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

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> None:
        last = re.split(r"[\r\n]", text.rstrip())[-1]
        if re.search(r"\d(%\||it \[)", last):
            print(f"      {self.name[:2]} {last.strip()}", flush=True)

    def flush(self) -> None:
        pass


def discard(folder: Path, force: bool) -> None:
    """Nothing; removes what an outdated finished run wrote, by its manifest, so that no records are mixed. A killed run
    has no manifest: its records and checkpoints stay to go on from, unless `force` removes all that has a key.
    """
    manifest = read_manifest(folder)
    names = list(manifest["outputs"]) if manifest else []
    if force:
        names += [path.with_suffix(".jsonl").name for path in folder.glob("*.key")]
        trained = [path for what in ("checkpoint-*", "prm.json", "training.json") for path in folder.glob(f"*/{what}")]
        names += [path.relative_to(folder).as_posix() for path in trained]
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
    # papermill's jsonschema compiles grammars of web addresses with it, for 2 seconds, and no notebook needs them
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    stage.folder.mkdir(parents=True, exist_ok=True)
    (stage.folder / "manifest.json").unlink(missing_ok=True)
    started, failure = time.monotonic(), ""
    try:
        with kernel_of_this_python(threads_of(stage)):
            papermill.execute_notebook(
                stage.source,
                stage.executed,
                parameters=stage.given,
                kernel_name="python3",
                cwd=stage.source.parent,
                progress_bar=False,
                stdout_file=_ProgressLines(stage.name),
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


def at_once(machine: dict[str, Any]) -> int:
    """How many notebooks may run side by side: two if cores and memory bear them; one where a GPU does the work."""
    enough = machine["cores"] >= AT_ONCE and machine["memory_gb"] >= AT_ONCE * MEMORY_GB
    return AT_ONCE if enough and not has_gpu() else 1


def has_gpu() -> bool:
    """Whether NVIDIA's driver shows a GPU; asked without torch, whose import takes seconds."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def threads_of(stage: Stage) -> int | None:
    """The threads of a stage that may run beside others: its share of the cores, also when it happens to run alone.

    Sums in another order round otherwise, and so would the weights that they train. None: as many as there are cores.
    """
    return max(1, provenance.machine()["cores"] // AT_ONCE) if stage.beside and not has_gpu() else None


def startable(waiting: list[Stage], running: Collection[Stage], most: int) -> Stage | None:
    """The first waiting stage that may start now; None if all have to wait for one that is running.

    A stage may start if nothing that it comes after is waiting or running, and no more than `most` run at once, all of
    which are said to bear others beside them.
    """
    open_names = {stage.name for stage in (*waiting, *running)}
    for stage in waiting:
        before = {other.name for other in (*waiting, *running) if other.name < stage.name}
        free = before.isdisjoint(open_names if stage.after is None else stage.after)
        if free and (not running or (len(running) < most and stage.beside and all(s.beside for s in running))):
            return stage
    return None


def run(profile: str, only: list[str] | None = None, run_name: str | None = None, force: bool = False) -> int:
    """The exit code: 0 if every notebook of the profile has results that its manifest vouches for, 1 if one failed.

    What is running when one fails is finished, and all results are kept, so that the next call goes on there.
    """
    waiting, left_out = plan(profile, only, run_name)
    reasons = {stage.name: "--force" if force else why_run(stage) for stage in waiting}
    _announce(profile, waiting, reasons, left_out)
    most, failed, running = at_once(provenance.machine()), False, {}
    with ThreadPoolExecutor(most) as pool:
        while running or (waiting and not failed):
            while not failed and (stage := startable(waiting, running.values(), most)):
                waiting.remove(stage)
                # asked again: what ran before may have changed its inputs, or made a lost one again as it was
                if reason := "--force" if force else why_run(stage):
                    print(f"  {stage.name}: running ({reason})", flush=True)
                    discard(stage.folder, force)
                    running[pool.submit(_in_its_own_process, profile, stage)] = stage
                else:
                    print(f"  {stage.name}: up to date", flush=True)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                running.pop(future)
                failed |= not future.result()
    if failed:
        print("Earlier results are kept; run again to go on here.", file=sys.stderr, flush=True)
    return int(failed)


def _in_its_own_process(profile: str, stage: Stage) -> bool:
    """Whether a stage was done; it runs in a process of its own, which ends with this one."""
    command = [sys.executable, "-m", "mmprm_lib.runner", "--profile", profile, "--one", stage.name]
    code = subprocess.run([*command, "--run-name", stage.params["run_name"]]).returncode
    if code not in (0, 1):
        print(f"\n{stage.name}: its process ended with {code} (out of memory, or killed)", file=sys.stderr, flush=True)
    return code == 0


def end_with_parent() -> None:
    """Nothing; ends this process as soon as the one that started it is gone, so that no kernel works on unseen."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the kernel that it drives ends by the same rule

    threading.Thread(target=watch, daemon=True).start()


def run_one(profile: str, name: str, run_name: str | None) -> int:
    """The exit code of one stage: 0 done, 1 failed."""
    end_with_parent()
    stage = next(stage for stage in plan(profile, [name], run_name)[0] if stage.name == name)
    try:
        seconds = execute(stage)
    except NotebookError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    print(f"  {stage.name}: done in {seconds:.0f} s", flush=True)
    return 0


def dry_run(profile: str, only: list[str] | None, run_name: str | None) -> int:
    """The exit code of `mmprm_lib.dryrun`, in a process of its own: it needs transformers, which no run waits for."""
    command = [sys.executable, "-m", "mmprm_lib.dryrun", "--profile", profile]
    command += ["--only", *only] if only else []
    return subprocess.run(command + (["--run-name", run_name] if run_name else [])).returncode


def _announce(profile: str, stages: list[Stage], reasons: dict[str, str], left_out: list[str]) -> None:
    """Nothing; prints which notebooks will run and how long that takes."""
    waiting = [stage for stage in stages if reasons[stage.name]]
    known = [expected_seconds(stage) for stage in waiting]
    cost = f", about {minutes(_together(waiting))} as measured before" if any(known) else ""
    cost += ", some of unknown length" if None in known else ""
    print(f"profile {profile}: {len(waiting)} of {len(stages)} notebooks to run{cost}")
    for stage, seconds in zip(waiting, known, strict=True):
        if seconds is None:
            print(f"  {stage.name}: {_estimated(stage, stages)}", flush=True)
    if left_out:
        print(f"  no parameters in params/{profile}/ for: {', '.join(left_out)}")


def _estimated(stage: Stage, stages: list[Stage]) -> str:
    """What a stage that nobody has timed will cost, in words; --dry-run says more."""
    try:
        return "estimated " + estimates.estimate(stage.name, run_of(stage, stages), estimates.KNOWN.get).words()
    except (ValueError, KeyError) as error:
        return f"its cost is not known: {error}"


def _together(stages: list[Stage]) -> float:
    """Seconds that stages take as they were measured, those that run beside others sharing the machine evenly."""
    alone, beside = ([expected_seconds(s) or 0.0 for s in stages if s.beside is kind] for kind in (False, True))
    return sum(alone) + max(sum(beside) / at_once(provenance.machine()), max(beside, default=0.0))


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line: 0 done, 1 a notebook failed, 2 the parameters are wrong, nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.runner", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", default="tiny", help="a folder of params/ (default: tiny)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="only the notebooks whose names begin so")
    parser.add_argument("--run-name", help="folder of results/ (default: what the parameters say, else the profile)")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    parser.add_argument("--dry-run", action="store_true", help="say what it costs and what is missing; run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what `run` calls for each
    options = parser.parse_args(arguments)
    try:
        if options.dry_run:
            return dry_run(options.profile, options.only, options.run_name)
        if options.one:
            return run_one(options.profile, options.one, options.run_name)
        return run(options.profile, options.only, options.run_name, options.force)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
