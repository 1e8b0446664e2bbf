"""Training in one process or in several, a GPU each: the same call, made by torchrun in each of them.

With `n_processes` above 1 torchrun runs `python -m mmprm_lib.launch FOLDER` as often, whose folder holds the arguments;
with `n_machines` above 1 so many machines of a Ray cluster do so together, and the folder lies beside the output, on a
file system that they share. `batch_size` is that of each process, so an update takes as many times the rows. With
`fsdp` the processes share one copy of weights, gradients and moments; the first of each machine reads the checkpoint,
and what is saved has the type that the weights started with.
`start_options` go to `models.load`. RuntimeError with what the processes said if one fails; ValueError for fewer than
one, and for more machines than there are.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from . import critic_training, machines, models, policy, prm
from .critique import TeacherCritique
from .prm import TrainedPRM
from .run import write_json
from .schema import Problem, Record, Solution, StepLabels, read_records, write_bytes, write_records

RECORDS: dict[str, type[Record]] = {kind.__name__: kind for kind in (StepLabels, Solution, TeacherCritique)}
Tuned = tuple[Any, Any, list[dict]]  # model, processor, history


def train(
    kind: str, records: Sequence[StepLabels | Solution], problems: Sequence[Problem], start: str | Path,
    output_dir: str | Path, *, n_processes: int = 1, n_machines: int = 1,
    start_options: Mapping[str, Any] | None = None, eval_records: Sequence[StepLabels | Solution] = (), **settings: Any,
) -> TrainedPRM:  # fmt: skip
    """The PRM of `prm.train` from the checkpoint at `start`, trained in `n_processes`."""
    options = dict(start_options or {})
    if _alone((n_machines, n_processes), settings):
        model, processor = models.load(start, **options)
        return prm.train(
            kind, records, problems, model, processor, output_dir, eval_records=eval_records or None, **settings
        )
    job = {"what": "prm", "start": str(start), "options": options, "settings": {"kind": kind, **settings}}
    _torchrun((n_machines, n_processes), job, output_dir, problems, {"records": records, "eval_records": eval_records})
    return prm.load_prm(output_dir, **options)


def tune_policy(
    pairs: Sequence[policy.Pair], start: str | Path, output_dir: str | Path, *, n_processes: int = 1,
    n_machines: int = 1, start_options: Mapping[str, Any] | None = None, **settings: Any,
) -> Tuned:  # fmt: skip
    """(model, processor, history) of `policy.fine_tuned` from the checkpoint at `start`, in `n_processes`."""
    job = {"what": "policy", "start": str(start), "options": dict(start_options or {}), "settings": settings}
    if _alone((n_machines, n_processes), settings):
        return _policy(job, output_dir, pairs)
    problems = {p.problem_id: p for p, _ in pairs}
    lines = [json.dumps([p.problem_id, steps]) for p, steps in pairs]
    _torchrun((n_machines, n_processes), job, output_dir, list(problems.values()), {}, lines)
    return _saved(job, output_dir)


def train_critic(
    records: Sequence[TeacherCritique], problems: Iterable[Problem], start: str | Path, output_dir: str | Path,
    form: str = "critique", *, n_processes: int = 1, n_machines: int = 1,
    start_options: Mapping[str, Any] | None = None, **settings: Any,
) -> Tuned:  # fmt: skip
    """(model, processor, history) of `critic_training.train` from the checkpoint at `start`, in `n_processes`."""
    settings = {"form": form, **settings}
    job = {"what": "critic", "start": str(start), "options": dict(start_options or {}), "settings": settings}
    if _alone((n_machines, n_processes), settings):
        return _critic(job, output_dir, records, problems)
    known = {p.problem_id: p for p in problems}
    wanted = [known[name] for name in dict.fromkeys(r.problem_id for r in records)]
    _torchrun((n_machines, n_processes), job, output_dir, wanted, {"records": records})
    return _saved(job, output_dir)


def _alone(sizes: tuple[int, int], settings: Mapping[str, Any]) -> bool:
    if min(sizes) < 1:
        raise ValueError(f"n_machines is {sizes[0]}, n_processes is {sizes[1]}: give at least 1")
    if sizes == (1, 1) and settings.get("fsdp"):
        raise ValueError("fsdp shares a model among processes: set n_processes to 2 or more")
    return sizes == (1, 1)


def _policy(job: Mapping[str, Any], output_dir: str | Path, pairs: Sequence[policy.Pair]) -> Tuned:
    model, processor = models.load(job["start"], **job["options"])
    trust = {"trust_remote_code": job["options"].get("trust_remote_code", False)}
    model, history = policy.fine_tuned(model, processor, pairs, output_dir, **trust, **job["settings"])
    return model, processor, history


def _critic(
    job: Mapping[str, Any], output_dir: str | Path, records: Sequence[TeacherCritique], problems: Iterable[Problem]
) -> Tuned:
    model, processor = models.load(job["start"], **job["options"])
    trust = {"trust_remote_code": job["options"].get("trust_remote_code", False)}
    model, history = critic_training.train(
        model, processor, records, problems, output_dir, **trust, **job["settings"]
    )
    return model, processor, history


def _saved(job: Mapping[str, Any], output_dir: str | Path) -> Tuned:
    """What the processes have left in the output folder."""
    history = json.loads((Path(output_dir) / "training.json").read_text(encoding="utf-8"))["history"]
    return *models.load(output_dir, **job["options"] | {"revision": None}), history


def _torchrun(
    sizes: tuple[int, int], job: Mapping[str, Any], output_dir: str | Path, problems: Sequence[Problem],
    tables: Mapping[str, Sequence[Record]], pairs: Sequence[str] = (),
) -> None:  # fmt: skip
    """Nothing; the job, written into a folder, is done by `work` in all processes. sizes: machines, processes each."""
    roots = {str(p._root.resolve()) for p in problems if p._root is not None}
    if len(roots) != 1:
        raise ValueError(f"the problems' images lie in {len(roots)} folders: give problems of one file")
    named = {"output_dir": str(Path(output_dir).resolve()), "root": roots.pop()}
    named |= {"tables": {name: type(rows[0]).__name__ for name, rows in tables.items() if rows}}
    out = Path(named["output_dir"])
    near = out.parent if sizes[0] > 1 else None  # where the other machines find it, too
    if near:
        near.mkdir(parents=True, exist_ok=True)
        for left in near.glob(f".train_????????.{glob.escape(out.name)}"):  # by a run for this output that was killed
            shutil.rmtree(left)
    models.release_gpu()  # the first process gets the GPU that this one has used
    with tempfile.TemporaryDirectory(prefix=".train_", suffix=f".{out.name}", dir=near) as name:
        folder = Path(name)
        for table, rows in {**tables, "problems": problems}.items():
            write_records(folder / f"{table}.jsonl", list(rows))
        write_bytes(folder / "pairs.jsonl", [f"{line}\n".encode() for line in pairs])
        write_json(folder / "job.json", {**job, **named})
        if near:
            machines.torchrun_on(*sizes, "-m", "mmprm_lib.launch", name)
        else:
            machines.torchrun(sizes[1], "--standalone", "-m", "mmprm_lib.launch", name)


def _end_with_the_caller() -> None:
    """Nothing; from now on this process ends when the caller's end of its standard input is closed."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(folder: Path) -> None:
    """Nothing; one process' share of the job in `folder`. The first process saves what was trained."""
    from accelerate import PartialState

    _end_with_the_caller()  # else it would train on beside the next call
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if job["settings"].get("fsdp"):  # transformers and accelerate read these: weights for a machine's first process
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
        job["options"]["device"] = "cpu"
    # the processes know each other before anything is read; one may read and hash a large checkpoint for all
    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=2))
    problems = {p.problem_id: p for p in read_records(folder / "problems.jsonl", Problem)}
    for problem in problems.values():
        problem._root = Path(job["root"])
    tables = {name: read_records(folder / f"{name}.jsonl", RECORDS[kind]) for name, kind in job["tables"].items()}
    if job["what"] == "policy":
        lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        _policy(job, job["output_dir"], [(problems[name], steps) for name, steps in map(json.loads, lines)])
    elif job["what"] == "critic":
        _critic(job, job["output_dir"], tables["records"], problems.values())
    else:
        model, processor = models.load(job["start"], **job["options"])
        kind, settings = job["settings"].pop("kind"), {**job["settings"], "eval_records": tables.get("eval_records")}
        rows = tables["records"]
        prm.train(kind, rows, list(problems.values()), model, processor, job["output_dir"], **settings)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
