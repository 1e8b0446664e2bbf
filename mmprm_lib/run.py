"""What a notebook uses of the run layer: parameters, checked; artifacts, by name and hash; a manifest, written last.

params = check_parameters("03_mc_labeling", globals())
run = Run("03_mc_labeling", params)
problems = read_records(run.input("01_data/problems.jsonl"), Problem)
...
run.finish()
"""

from __future__ import annotations

import builtins
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mmprm_lib import parameters, provenance
from mmprm_lib.schema import write_bytes

T = TypeVar("T")
PROGRESS_INTERVAL_S = 30.0  # papermill keeps every refresh of a bar as an output of its own


def check_parameters(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The declared parameters of notebooks/<notebook>.ipynb with the values that `namespace` (globals()) holds.

    One ValueError lists all that is wrong, before anything runs: a missing or unknown name, a wrong type, a value out
    of range.
    """
    return parameters.check(parameters.declared(notebook_path(notebook)), namespace, notebook)


def notebook_path(notebook: str) -> Path:
    """The source of a notebook, by its name without the suffix."""
    return provenance.below(provenance.project_root() / "notebooks", f"{notebook}.ipynb")


class _Bar(tqdm):
    """A bar of this process alone.

    tqdm's own lock is shared with forked processes, and one that is killed while it holds the lock stops all others
    for ever; its monitor is a thread, which a fork may catch at any moment.
    """

    monitor_interval = 0


_Bar.set_lock(threading.RLock())


def progress(items: Iterable[T], total: int | None = None, desc: str = "") -> Iterable[T]:
    """The same items, with a bar on stdout: lively where someone watches, every 30 s under papermill and in logs."""
    interval = 0.5 if is_interactive() else PROGRESS_INTERVAL_S
    return _Bar(
        items, total=total, desc=desc, mininterval=interval, maxinterval=interval, file=sys.stdout, dynamic_ncols=False
    )


def is_interactive() -> bool:
    """Whether someone watches: a terminal, or a kernel that neither the runner nor papermill drives."""
    if os.environ.get("MMPRM_BATCH"):
        return False
    shell = getattr(builtins, "get_ipython", lambda: None)()
    if shell is None:
        return sys.stdout.isatty()
    history = getattr(shell, "user_ns", {}).get("In", [])
    return not any(cell.lstrip().startswith("# Parameters") for cell in history)


class Run:
    """One run of one notebook: results/<run_name>/<notebook>/.

    Creating it deletes the old manifest, because the folder no longer vouches for anything; records stay, so that a
    `RecordLog` goes on where a killed run stopped. `finish()` writes metrics.json and then, last, manifest.json.
    Inputs come from finished stages of the same run, or of the run that the parameter `reads` names (an ablation reads
    what the default made); every path stays below the run's folders.
    """

    def __init__(self, notebook: str, params: Mapping[str, Any]) -> None:
        self.notebook, self.params = notebook, dict(params)
        self.run_name = str(params["run_name"])
        self.reads = str(params.get("reads") or self.run_name)
        for name in (self.run_name, self.reads):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", name):
                raise ValueError(f"run_name {name!r}: use letters, digits, dot, dash, underscore, and / for folders")
        self.stages = provenance.results_root() / self.reads
        self.folder = provenance.results_root() / self.run_name / notebook
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "manifest.json").unlink(missing_ok=True)
        self._started = time.monotonic()
        # taken now: what is edited while a long run works did not make its results
        self._code = provenance.code_state(notebook_path(notebook))
        self._git = provenance.git_state()
        self._inputs: dict[str, Any] = {}
        self._external: dict[str, Any] = {}
        self._outputs: set[str] = set()
        self._metrics: dict[str, Any] = {}
        self._models: dict[str, Any] = {}
        self._data: dict[str, Any] = {}
        self._generated_tokens, self._speeds = 0, {}

    def input(self, name: str) -> Path:
        """The path of another notebook's output, `"01_data/problems.jsonl"`; its hash is recorded.

        FileNotFoundError if that notebook has not finished or wrote no such thing; ValueError if it was changed since.
        """
        path = provenance.below(self.stages, name)
        stage, _, rest = Path(name).as_posix().partition("/")
        remedy = f"run notebooks/{stage}.ipynb first (run_name: {self.reads})"
        if not path.exists() or not rest:
            raise FileNotFoundError(f"{path} is missing: {remedy}")
        manifest = read_manifest(self.stages / stage)
        if manifest is None:
            raise FileNotFoundError(f"{path} is not vouched for, {stage} did not finish: {remedy}")
        outputs = manifest["outputs"]
        parents = [parent.as_posix() for parent in Path(rest).parents]
        if rest not in outputs and not any(parent in outputs for parent in parents):
            raise FileNotFoundError(f"{path} is left over, {stage} did not write it in its last run: {remedy}")
        found = provenance.content(path)
        if rest in outputs and found["sha256"] != outputs[rest]["sha256"]:
            raise ValueError(f"{path} was changed after {stage} wrote it: {remedy}")
        self._inputs[name] = found
        return path

    def external(self, path: str | os.PathLike[str]) -> Path:
        """The path of a user's own file or folder, relative to the project's root or absolute; its hash is recorded."""
        found = (provenance.project_root() / Path(path).expanduser()).resolve()
        if not found.exists():
            raise FileNotFoundError(f"{found} is missing: correct the path {str(path)!r} in the parameters")
        self._external[str(path)] = provenance.content(found)
        return found

    def output(self, name: str) -> Path:
        """The path for an output of this run, a file or a folder; it must be there when the run finishes."""
        path = provenance.below(self.folder, name)
        if name in ("manifest.json", "metrics.json", f"{self.notebook}.ipynb"):
            raise ValueError(f"{name} is written by the run layer; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._outputs.add(Path(name).as_posix())
        return path

    def metric(
        self, key: str, value: float, n: int | None = None, low: float | None = None, high: float | None = None
    ) -> None:
        """Nothing; records a number with the count that it rests on and its 95 % interval. NaN is kept as null."""
        if not re.fullmatch(r"[A-Za-z0-9_.=-]+", key):
            raise ValueError(f"metric {key!r}: use letters, digits, `_`, `.`, `=` and `-` only")
        numbers = {
            "value": _number(value),
            "n": None if n is None else int(n),
            "low": _number(low),
            "high": _number(high),
        }
        if numbers["low"] is not None and numbers["high"] is not None and numbers["low"] > numbers["high"]:
            raise ValueError(f"metric {key}: low {low} is above high {high}; pass them in order")
        self._metrics[key] = numbers

    def table(self, frame: Any, name: str) -> Any:
        """The same data frame; writes it as table_<name>.csv (an index that is no plain count is a column of it)."""
        named = frame.index.name is not None or frame.index.dtype == object or frame.index.nlevels > 1
        index = bool(named or list(frame.index) != list(range(len(frame))))
        write_bytes(self.output(f"table_{name}.csv"), [frame.to_csv(index=index, lineterminator="\n").encode()])
        return frame

    def figure(self, figure: Any, name: str) -> None:
        """Nothing; writes figure_<name>.png and .pdf, free of dates, and leaves the figure open to be shown."""
        figure.savefig(self.output(f"figure_{name}.png"), dpi=120, bbox_inches="tight", metadata={"Software": None})
        metadata = {"CreationDate": None, "Creator": None, "Producer": None}
        figure.savefig(self.output(f"figure_{name}.pdf"), bbox_inches="tight", metadata=metadata)

    def count(self, generated_tokens: int) -> None:
        """Nothing; adds to the number of tokens that models generated in this run."""
        self._generated_tokens += int(generated_tokens)

    def speed(self, key: str, value: float) -> None:
        """Nothing; records a number that hangs on the machine's speed: in the manifest, for metrics repeat exactly."""
        self._speeds[key] = _number(round(value, 2))

    def model(self, name: str, fingerprint: str, revision: str = "") -> None:
        """Nothing; records a model that shaped the results: the hash of its weights, and its revision on a hub."""
        self._models[name] = {"fingerprint": fingerprint, "revision": revision}

    def data(self, name: str, fingerprint: str, revision: str = "") -> None:
        """Nothing; records a data set that shaped the results: the hash of its rows, and its revision on a hub."""
        self._data[name] = {"fingerprint": fingerprint, "revision": revision}

    def finish(self) -> None:
        """Nothing; checks that all outputs are there, drops older figures, writes metrics.json, then the manifest."""
        missing = [name for name in sorted(self._outputs) if not (self.folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{self.notebook} promised {', '.join(missing)} and did not write it; run its cells again"
            )
        for path in [*self.folder.glob("table_*"), *self.folder.glob("figure_*")]:
            if path.name not in self._outputs:
                path.unlink()
        write_json(self.folder / "metrics.json", dict(sorted(self._metrics.items())))
        outputs = {name: provenance.content(self.folder / name) for name in sorted({*self._outputs, "metrics.json"})}
        write_json(self.folder / "manifest.json", self._manifest(outputs))
        print(f"{len(outputs)} outputs and {len(self._metrics)} metrics -> results/{self.run_name}/{self.notebook}")

    def _manifest(self, outputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "notebook": self.notebook,
            "params": self.params,
            **self._git,
            "code": self._code,
            "inputs": self._inputs,
            "external": self._external,
            "outputs": outputs,
            "models": self._models,
            "data": self._data,
            "seeds": {name: value for name, value in self.params.items() if "seed" in name},
            "packages": provenance.packages(),
            "machine": provenance.machine(),
            "seconds": round(time.monotonic() - self._started, 2),
            "generated_tokens": self._generated_tokens,
            "speeds": self._speeds,
        }


def _number(value: float | None) -> float | None:
    """A float that JSON can hold; None for None and NaN. ValueError for an infinite one."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        raise ValueError("a metric is infinite; report a finite number, or NaN where it is not defined")
    return float(value)


def write_json(path: Path, value: Any) -> None:
    """Nothing; writes a value as indented JSON, whole or not at all."""
    write_bytes(path, [json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode(), b"\n"])


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder; None if there is none, which means that the stage did not finish."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
