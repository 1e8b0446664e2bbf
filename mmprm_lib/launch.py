"""PRM training in one process or in several, a GPU each: the same call, made by torchrun in each of them.

`train` runs `python -m torch.distributed.run --standalone --nproc-per-node N -m mmprm_lib.launch FOLDER`, whose folder
holds the arguments; torchrun's own options (--nnodes, --rdzv-endpoint, ...) spread the same command over machines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import models, prm
from .prm import TrainedPRM
from .run import write_json
from .schema import Problem, Solution, StepLabels, read_records, write_records

RECORDS = {"StepLabels": StepLabels, "Solution": Solution}


def train(
    n_processes: int, kind: str, records: Sequence[StepLabels | Solution], problems: Sequence[Problem],
    start: str | Path, output_dir: str | Path, *, start_options: Mapping[str, Any] | None = None,
    eval_records: Sequence[StepLabels | Solution] = (), **settings: Any,
) -> TrainedPRM:  # fmt: skip
    """`prm.train` from the checkpoint at `start` (`start_options` go to `models.load`), in `n_processes`.

    `batch_size` is that of each process, so an update takes as many times the rows. RuntimeError with what the
    processes said if one fails; ValueError for fewer than one.
    """
    if n_processes < 1:
        raise ValueError(f"n_processes is {n_processes}: give at least 1")
    options = dict(start_options or {})
    if n_processes == 1:
        model, processor = models.load(start, **options)
        return prm.train(
            kind, records, problems, model, processor, output_dir, eval_records=eval_records or None, **settings
        )
    roots = {str(p._root.resolve()) for p in problems if p._root is not None}
    if len(roots) != 1:
        raise ValueError(f"the problems' images lie in {len(roots)} folders: give problems of one file")
    with tempfile.TemporaryDirectory(prefix="mmprm_train_") as name:
        folder = Path(name)
        for what, part in (("records", records), ("eval_records", eval_records), ("problems", problems)):
            write_records(folder / f"{what}.jsonl", list(part))
        job = {"kind": kind, "start": str(start), "options": options, "output_dir": str(Path(output_dir).resolve())}
        job |= {"records": type(records[0]).__name__, "root": roots.pop(), "settings": settings}
        write_json(folder / "job.json", job)
        _torchrun(n_processes, folder)
    return prm.load_prm(output_dir, **options)


def _torchrun(n_processes: int, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    threads = max(1, (os.cpu_count() or 1) // n_processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run([*command, "-m", "mmprm_lib.launch", str(folder)], env=environment, check=False, **pipes)
    if done.returncode:
        raise RuntimeError(f"training in {n_processes} processes failed:\n{done.stdout[-3000:]}")


def work(folder: Path) -> None:
    """Nothing; one process' share of the job in `folder`. The first process saves the PRM."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    problems, kind = read_records(folder / "problems.jsonl", Problem), RECORDS[job["records"]]
    for problem in problems:
        problem._root = Path(job["root"])
    records, validation = (read_records(folder / f"{name}.jsonl", kind) for name in ("records", "eval_records"))
    model, processor = models.load(job["start"], **job["options"])
    prm.train(
        job["kind"], records, problems, model, processor, job["output_dir"], eval_records=validation or None,
        **job["settings"],
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
