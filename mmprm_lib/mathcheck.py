"""math-verify behind guards: equality of two LaTeX expressions as True, False or unknown, from any thread or process.

math-verify's own time limits are signals, which fail in threads and cannot stop one long operation inside an integer
power. So it runs in a worker process that the kernel ends when it has used its CPU time, and that answers only what it
computed within its memory. Nothing is evaluated as Python: only the LaTeX grammar is used (math-verify's other path,
for plain expressions, calls sympy's parse_expr).
"""

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

TIMEOUT_S = 5.0  # CPU seconds for one comparison, so that a busy machine does not change a verdict
START_S = 120.0  # wall seconds for the worker to import math-verify
MEMORY = 3 << 30  # bytes of address space of the worker; a verdict "different" that took a third of it is not believed
MAX_CHARS = 300
MAX_RULES, MAX_CHECKS = 3000, 100  # comparisons of parts within one verdict, and how many of them by math-verify
_TOO_LONG = "comparison took more than"
_OUT_OF_MEMORY = 77  # exit status of the worker
Judgement = tuple[bool | None, str]  # (equal, reason why unknown)

_WHITE = re.compile(r"[0-9A-Za-z\s+\-*/^_=<>().,;:|!%'\\{}\[\]&°]*")
_HUGE = re.compile(
    r"\d\s*[)}]*\s*\^\s*[({]*\s*-?\d+\s*[)}]*\s*\^|"  # towers of powers
    r"\d\s*[)}]*\s*\^\s*[({]*\s*-?\d{5,}|"  # exponents of five digits
    r"\d\s*[)}]*\^\s*[({]+\s*[\d\s(]+!|\d{5,}[)}\s]*!|!\s*[)}]*\s*!")  # factorials in exponents, large or repeated
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|arcsin|arccos|arctan|sinh|cosh|tanh|max|min"
_NAMES = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![a-z])")


class CheckerError(RuntimeError):
    """The checker itself is out of order, not the answer: never cached, so that asking again may succeed."""


class TooMuchError(RuntimeError):
    """An answer of so many parts that comparing them all is not worth it: unknown."""


class Effort:
    """What one verdict may cost: MAX_RULES comparisons, MAX_CHECKS of them by math-verify, none after one too slow."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s, self.rules, self.checks = timeout_s, MAX_RULES, MAX_CHECKS

    def rule(self) -> None:
        """Nothing; counts a comparison. TooMuchError beyond the last."""
        self.rules -= 1
        if self.rules < 0:
            raise TooMuchError(f"more than {MAX_RULES} comparisons of parts of the answer")

    def check(self, candidate: str, gold: str) -> Judgement:
        """As `same_expression`. TooMuchError beyond the last."""
        if self.checks < 1:
            raise TooMuchError(f"more than {MAX_CHECKS} expressions to compare, or one took more than its time")
        same, why = same_expression(candidate, gold, self.timeout_s)
        self.checks = 0 if why.startswith(_TOO_LONG) else self.checks - 1
        return same, why


class _Worker:
    """One child process that compares expressions: JSON lines in, JSON lines out."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from mmprm_lib.mathcheck import _serve; _serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # an interrupt of the notebook is not for the worker
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
        if self.read(START_S) != "ready":
            self.close()
            raise CheckerError(f"the math-verify worker did not start within {START_S:g} s: check `import math_verify`")

    def read(self, seconds: float) -> object:
        """The next answer, or None at the end of the process or of the time."""
        line, end = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                if not (chunk := self.process.stdout.read(65536)):
                    return None
                line += chunk
        return json.loads(line)

    def ask(self, candidate: str, gold: str | None, seconds: float) -> object:
        """[equal or None, reason], for no gold [value or None, reason], or None where none came.

        The wall limit is for a worker that hangs without CPU.
        """
        try:
            self.process.stdin.write(json.dumps([candidate, gold, seconds]).encode() + b"\n")
        except BrokenPipeError:
            return None
        return self.read(6 * seconds + 5)

    def exit_code(self) -> int | None:
        """Status of a worker that has ended (negative: the signal), None for one that hangs."""
        try:
            return self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Ends the process and closes its pipes."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


_lock = threading.Lock()
_worker: _Worker | None = None


def _after_fork() -> None:
    """A forked child starts its own worker: two processes on one pair of pipes would read each other's answers."""
    global _lock, _worker
    _lock, _worker = threading.Lock(), None


def _stop() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
    _worker = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_stop)


def _latex(text: str) -> str:
    """The expression as math-verify's LaTeX: function names as commands, a run of capitals (a length AC) a symbol."""
    if re.search(r"sin|cos|tan|cot", text):  # a number in degrees there; elsewhere a degree is a unit
        text = re.sub(r"(\d+(?:\.\d+)?)°", r"(\1\\pi/180)", text)
    text = _NAMES.sub(r"\\\1", text).replace("°", r"^\circ").replace("**", "^")
    text = re.sub(r"\^\((-?[\w+\- ]+)\)", r"^{\1}", text)
    symbol = lambda m: f"z_{{{''.join(str(ord(c)) for c in m[1])}}}"  # noqa: E731
    return re.sub(r"(?<![\\A-Za-z{])([A-Z]{2,})(?![A-Za-z])", symbol, text)


@lru_cache(maxsize=65536)
def same_expression(candidate: str, gold: str, timeout_s: float = TIMEOUT_S) -> Judgement:
    """(True or False, ""), or (None, why) where math-verify cannot or must not judge; CheckerError if it cannot start.

    candidate, gold: cleaned LaTeX without $; the order matters (math-verify treats assignments and intervals by side).
    """
    same, reason = _asked(candidate, gold, timeout_s)
    return same, reason


@lru_cache(maxsize=65536)
def value_of(expression: str, timeout_s: float = TIMEOUT_S) -> float | None:
    """The number that a cleaned LaTeX expression without unknowns stands for, None for anything else (also a failure).

    CheckerError if the worker cannot start.
    """
    return _asked(expression, None, timeout_s)[0]


def _asked(candidate: str, gold: str | None, timeout_s: float) -> list | tuple:
    """The worker's answer to a comparison, or with gold None to the question for a value: (what, why nothing)."""
    global _worker
    for text in (candidate, gold or ""):
        if len(text) > MAX_CHARS:
            return None, f"expression of {len(text)} characters (limit {MAX_CHARS})"
        if not _WHITE.fullmatch(text) or "__" in text:
            return None, f"characters that are not mathematics: {text[:60]!r}"
        if _HUGE.search(text) or max(map(len, re.findall(r"\d+", text)), default=0) > 40:
            return None, f"number too large to compute: {text[:60]!r}"
    with _lock:
        if _worker is None:
            _worker = _Worker()
        try:
            answer = _worker.ask(_latex(candidate), None if gold is None else _latex(gold), timeout_s)
        except BaseException:  # an interrupted read would leave its answer for the next question
            _stop()
            raise
        if answer is None:
            code = _worker.exit_code()
            _stop()
            if code is not None and code >= 0 and code != _OUT_OF_MEMORY:
                raise CheckerError(f"the math-verify worker ended with status {code}")
            return None, f"{_TOO_LONG} {timeout_s:g} s or too much memory: {candidate[:60]!r}"
    return answer


def _peak() -> int:
    """Most bytes of memory that this process ever held.

    Not getrusage's ru_maxrss where Linux tells better: a child inherits that from the process that started it, so that
    beside a loaded model every worker looked as if it had run out of memory.
    """
    import resource

    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _comparer() -> Callable[[str, str | None], tuple[bool | float | None, str]]:
    """What compares two expressions in the worker, or gives the value of one (gold None)."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # units=False: units are compared before; here "3m" is 3 times m
    config = [LatexExtractionConfig(normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False))]

    def read(text: str):  # a list of one sympy expression, or [] where the grammar fails
        return parse(f"${text}$", config, fallback_mode="no_fallback", extraction_mode="first_match",
                     parsing_timeout=None)

    def value(found: list) -> float | None:  # None with an unknown in it, and for what is no real number
        if not found or not getattr(found[0], "is_number", False):
            return None
        number = complex(found[0].evalf())
        return number.real if number.imag == 0 and abs(number.real) < float("inf") else None

    def compare(candidate: str, gold: str | None) -> tuple[bool | float | None, str]:
        if gold is None:
            return value(read(candidate)), ""
        g, c = read(gold), read(candidate)
        if not g or not c:
            return None, f"cannot parse {(candidate if g else gold)[:60]!r}"
        same = verify(g, c, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
        if same and (x := value(g)) is not None and (y := value(c)) is not None:
            same = abs(x - y) <= 2e-6 * max(abs(x), abs(y))  # verify rounds to six places: 2e-22 and 1e-22 are 0 to it
        return same, ""

    return compare


def _serve() -> None:
    """The worker's loop. SIGPROF's default action ends the process, also inside one long operation in C."""
    import resource
    import signal

    compare = _comparer()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # nothing a library prints can be taken for an answer
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        candidate, gold, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = compare(candidate, gold)
        except Exception as error:  # noqa: BLE001
            # any failure inside sympy or the parser is unknown, with its name as the reason
            answer = None, f"math-verify failed: {type(error).__name__}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        if not answer[0] and _peak() > MEMORY // 3:
            os._exit(_OUT_OF_MEMORY)  # sympy swallows MemoryError and says "different"
        print(json.dumps(answer), file=out, flush=True)
