"""Two machines on one: Linux namespaces with their own name, address, processes, shared memory and loopback, one cable.

with two_machines() as (first, second):
    first.run("ray", "start", ...)

Needs root. A machine ends with all that runs on it when the block ends or the tests are killed; nothing is left behind.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

KINDS = ("net", "pid", "mount", "uts")
# a machine's first process: when it can read no more, all others of the machine are ended, and its network is gone
INIT = """
set -e
ip link set lo up
hostname machine{number}
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /dev/shm
printf '127.0.0.1 localhost\n10.77.0.1 machine1\n10.77.0.2 machine2\n' > /tmp/ray/hosts
mount --bind /tmp/ray/hosts /etc/hosts
echo ready
read -r _
"""


class Machine:
    """One of the two. pid: its first process; address: IPv4, known to the other one; a context manager."""

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{number}"
        command = ["unshare", *(f"--{kind}" for kind in KINDS), "--fork", "--mount-proc", "--kill-child", "bash", "-c"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, INIT.format(number=number)], **pipes)

    def __enter__(self) -> Machine:
        if self.process.stdout.readline() != "ready\n":
            raise OSError("no namespaces can be made here")
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="utf-8") as file:
            self.pid = file.read().split()[0]
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self, *command: str, **options: object) -> subprocess.Popen:
        """A process on the machine; options of `subprocess.Popen`."""
        inside = ["nsenter", "--target", self.pid, *(f"--{kind}" for kind in KINDS), *command]
        return subprocess.Popen(inside, text=True, **options)

    def run(self, *command: str, seconds: int = 120, **options: object) -> str:
        """What the command said; AssertionError with it, if it fails."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with self.start(*command, **pipes, **options) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, f"{command}: {said[:2000]} ... {said[-2000:]}"
        return said


def missing() -> str:
    """Why there can be no such machines here; "" if there can."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "unshare, nsenter or ip is missing"
    done = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no namespaces can be made here: {done.stderr.strip()}"


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines that reach each other and nothing else."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(Machine(number)) for number in (1, 2))
        # the network of the first machine alone: inside of it the second one's process has no number
        cable = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second.pid]
        subprocess.run(["nsenter", "--target", first.pid, "--net", *cable], check=True)
        for one, other in ((first, second), (second, first)):
            # the address is the machine's, not the cable's, so that it has it also without the other one
            one.run("ip", "address", "add", f"{one.address}/32", "dev", "lo")
            one.run("ip", "link", "set", "eth0", "up")
            one.run("ip", "route", "add", f"{other.address}/32", "dev", "eth0", "src", one.address)
        yield first, second


def until(true, seconds: float = 60.0) -> None:
    """Nothing, as soon as `true()` is; AssertionError if it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)
