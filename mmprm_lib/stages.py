"""The notebooks of a profile as stages of a run: their order and parameters, and whether their results still stand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm_lib import parameters, provenance
from mmprm_lib.run import read_manifest


@dataclass(frozen=True)
class Stage:
    """A notebook of a profile: `given` is its YAML file's content, `params` every declared parameter with its value.

    `after` names the notebooks that it waits for (None: all that stand before it), `beside` says whether others that
    say so, too, may run at the same time. Both stand in the notebook's metadata, under "mmprm".
    """

    name: str
    source: Path
    given: dict[str, Any]
    params: dict[str, Any]
    after: tuple[str, ...] | None = None
    beside: bool = False

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
    given = parameters.read_yaml(path) or {}
    if not isinstance(given, dict):
        raise ValueError(f"{path}: must be `name: value` lines, is a {type(given).__name__}")
    given = {"run_name": profile, **given, **({"run_name": run_name} if run_name else {})}
    params = parameters.resolve(parameters.declared(source), given, f"{source.stem} in {path}")
    place = json.loads(source.read_text(encoding="utf-8"))["metadata"].get("mmprm", {})
    after = tuple(place["after"]) if "after" in place else None
    return Stage(source.stem, source, given, params, after, bool(place.get("beside")))


def run_of(stage: Stage, planned: list[Stage]) -> dict[str, dict[str, Any]]:
    """The parameters of every notebook of the run that a stage reads, by name, and of the stage itself.

    From the planned stages of that run, else from the manifests of what has run, else from the profiles of the runs
    that it and those stages read, by `reads` or by a path below results/.
    """
    found = {other.name: other.params for other in planned if other.folder.parent == stage.stages}
    for path in sorted(stage.stages.glob("*/manifest.json")):
        found.setdefault(path.parent.name, (read_manifest(path.parent) or {})["params"])
    for params in [stage.params, *list(found.values())]:
        texts = json.dumps(params)
        for name in dict.fromkeys([params.get("reads") or "", *re.findall(r'"results/([^"]+?)/\d\d_', texts)]):
            if name and (provenance.project_root() / "params" / name).is_dir():
                for other in plan(name)[0]:
                    found.setdefault(other.name, other.params)
    return {**found, stage.name: stage.params}


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
