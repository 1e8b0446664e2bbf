"""Several processes at once: torchrun here, or on machines of a Ray cluster; and this process' way into the cluster.

The cluster is the one that RAY_ADDRESS names or that `ray start` has started on this machine, else a local one that
ends with this process. Its machines need the project's environment, and see the run's folder under the same path.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

START_S = 1800  # until places that others hold must be free
TAKEN = "EADDRINUSE"  # in what torchrun says where the port at which its processes meet is not free any more


def join() -> Any:
    """Ray, once this process is in the cluster. ImportError where Ray is missing."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"no Ray in this environment ({error}): make vllm-env makes one") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    return ray


def torchrun(n_processes: int, *arguments: str) -> str:
    """What `n_processes` of torchrun said; RuntimeError with the end of it, if one failed.

    They can read from a pipe that ends when this process does, however that comes.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_processes), *arguments]
    threads = max(1, (os.cpu_count() or 1) // n_processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    tether, mine = os.pipe()
    pipes = {"stdin": tether, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        done = subprocess.run(command, env=environment, check=False, **pipes)
    finally:
        os.close(tether)
        os.close(mine)
    if done.returncode:
        raise RuntimeError(f"training in {n_processes} processes failed:\n{done.stdout[-3000:]}")
    return done.stdout


def _meeting() -> tuple[str, int]:
    """The address of this machine, and a free port of it."""
    import ray

    with socket.socket() as found:
        found.bind(("", 0))
        return ray.util.get_node_ip_address(), found.getsockname()[1]


def torchrun_on(n_machines: int, n_processes: int, *arguments: str) -> None:
    """Nothing; as `torchrun`, with `n_processes` on each of `n_machines` of the cluster, which work as one.

    Each process has a GPU where the cluster has any, else a core. ValueError if the cluster has too few such machines;
    TimeoutError if others hold them for too long; what fails on one machine, or its loss, ends all and is raised.
    """
    ray = join()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if any(node.get("GPU") for node in nodes) else "CPU"
    takes = {"CPU", kind}  # a process on a GPU has a core, too
    if (there := sum(all(node.get(k, 0) >= n_processes for k in takes) for node in nodes)) < n_machines:
        what = " and ".join(f"{n_processes} {k}s" for k in sorted(takes))
        raise ValueError(f"n_machines is {n_machines}: {there} in the Ray cluster have {what} or more")
    for left in (2, 1, 0):
        try:
            return _together(ray, n_machines, n_processes, kind, arguments)
        except RuntimeError as error:
            if not left or TAKEN not in str(error):
                raise


def _together(ray: Any, n_machines: int, n_processes: int, kind: str, arguments: Sequence[str]) -> None:
    """Nothing; what `torchrun_on` does, once. RuntimeError with TAKEN if another process took the port meanwhile."""
    places = ray.util.placement_group([{"CPU": n_processes, kind: n_processes}] * n_machines, "STRICT_SPREAD")
    try:
        if not places.wait(START_S):
            raise TimeoutError(f"no place after {START_S} s: `ray status` shows who holds the machines")
        takes = {"num_cpus": n_processes, "num_gpus": n_processes if kind == "GPU" else 0, "max_retries": 0}
        at = [ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(places, i) for i in range(n_machines)]
        host, port = ray.get(ray.remote(_meeting).options(scheduling_strategy=at[0], **takes).remote())
        meet = ["--nnodes", str(n_machines), "--master-addr", host, "--master-port", str(port), "--node-rank"]
        work = ray.remote(torchrun)
        left = [
            work.options(scheduling_strategy=place, **takes).remote(n_processes, *meet, str(i), *arguments)
            for i, place in enumerate(at)
        ]
        while left:
            [done], left = ray.wait(left)
            ray.get(done)
    finally:  # which ends what still runs there
        ray.util.remove_placement_group(places)
