"""The records that stages hand to one another, and the one way to read, write and append them.

A record file is JSON lines in UTF-8, one record a line; the first field of a record is its id. Every field is checked
on the way in and on the way out: nothing is converted silently (`"3"` is no int), nothing unknown is carried along.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, KeysView
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from .fingerprints import fingerprint as fingerprint
from .fingerprints import sha256_of as sha256_of

Id = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """What all records share: strict types, no unknown field, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True, allow_inf_nan=False)

    @property
    def record_id(self) -> str:
        """The id: the value of the first field."""
        return getattr(self, next(iter(type(self).model_fields)))


R = TypeVar("R", bound=Record)


class Problem(Record):
    """A question about an image with a verifiable answer; `image` is relative to the folder of the records file.

    `grading`: of a published benchmark's row, what grading.py needs (benchmark, group, variant, rule and its numbers).
    """

    problem_id: Id
    question: str
    image: Id
    image_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    answer: Id
    answer_type: Literal["number", "expression", "choice", "text"]
    choices: list[str] = []
    source: str
    split: str
    scene: dict[str, Any] | None = None
    grading: dict[str, Any] | None = None
    _root: Path | None = PrivateAttr(default=None)

    @field_validator("image")
    @classmethod
    def _stays_below(cls, image: str) -> str:
        path = PurePosixPath(image)
        if path.is_absolute() or ".." in path.parts or "\0" in image:
            raise ValueError(f"image path {image!r} leaves the folder of the records; give a path below it")
        return image

    @property
    def image_path(self) -> Path:
        """Where the image lies on this machine. ValueError if the record has no folder, or a link leads out of it."""
        if self._root is None:
            raise ValueError(f"problem {self.problem_id!r} has no folder yet: read it with read_records, or set _root")
        root = self._root.resolve()
        path = (root / self.image).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"image {self.image!r} of problem {self.problem_id!r} leads out of {root}; copy it there")
        return path

    def __eq__(self, other: object) -> bool:
        # pydantic would compare _root too, and the same problem read from two folders is the same problem
        return isinstance(other, Problem) and self.model_dump() == other.model_dump()


class Solution(Record):
    """One sampled solution; `reason` says why a verdict is unknown."""

    solution_id: Id
    problem_id: Id
    steps: list[str]
    answer: str | None
    verdict: Literal["correct", "wrong", "unknown"]
    policy: str
    seed: int
    n_tokens: Count
    finish_reason: Literal["stop", "length", "error"]
    reason: str = ""


class StepLabels(Record):
    """Monte Carlo labels, one entry per step in every list; None is "not sampled", never 0.

    `n_rollouts` counts every rollout drawn, `n_unknown` those whose answer could not be judged, and
    mc_score = n_correct / (n_rollouts - n_unknown), None where nothing is known. A published file that
    keeps the ratio alone has None counts and an mc_score. A label that was inferred, not counted (an earlier step
    of one that a correct rollout passed), has an mc_score alone, too. `low` and `high` are the interval of each
    label where the strategy gives one, with what confidence its options say.
    """

    solution_id: Id
    problem_id: Id
    steps: list[str]
    n_rollouts: list[Count | None]
    n_correct: list[Count | None]
    n_unknown: list[Count | None]
    mc_score: list[Rate | None]
    strategy: str
    n_generated_tokens: Count
    truth: list[Literal[-1, 0, 1]] | None = None
    low: list[Rate | None] | None = None
    high: list[Rate | None] | None = None

    @model_validator(mode="after")
    def _lists_agree(self) -> StepLabels:
        for name in ("n_rollouts", "n_correct", "n_unknown", "mc_score", "truth", "low", "high"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.steps):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.steps)} steps")
        for t, counts in enumerate(zip(self.n_rollouts, self.n_correct, self.n_unknown, self.mc_score, strict=True)):
            _check_counts(t, *counts)
        return self


def _check_counts(t: int, n: int | None, k: int | None, unknown: int | None, score: float | None) -> None:
    """Nothing; ValueError when the counts of step t (0-based) and its score contradict one another."""
    if n is None or k is None or unknown is None:
        if not n is k is unknown is None:
            raise ValueError(f"step {t}: n_rollouts {n}, n_correct {k}, n_unknown {unknown}: all three or none")
        return
    if k + unknown > n:
        raise ValueError(f"step {t}: n_correct {k} + n_unknown {unknown} is more than n_rollouts {n}")
    expected = k / (n - unknown) if n > unknown else None
    if (expected is None) != (score is None) or (expected is not None and abs(expected - score) > 1e-6):
        raise ValueError(f"step {t}: mc_score {score} should be {k} / ({n} - {unknown}) = {expected}")


class Scores(Record):
    """The step scores that one PRM gave to one solution, in [0, 1], in the order of its steps."""

    solution_id: Id
    prm: str
    step_scores: list[Rate]


class CritiqueStep(Record):
    """What a critic says of one step; `p_correct` is the probability of the verdict "correct", None if not read."""

    intent: str
    image: str
    logic: str
    verdict: Literal["correct", "incorrect", "unknown"]
    p_correct: Rate | None = None


class Critique(Record):
    """A generative PRM's critique. `first_error` counts steps from 1; 0 is "none found", None is "unreadable"."""

    solution_id: Id
    steps: list[CritiqueStep]
    first_error: Count | None
    corrected_step: str | None
    parse: Annotated[str, Field(pattern=r"^(ok|failed: .+)$")]


def faults(error: ValidationError, most: int = 3) -> str:
    """What is wrong with a record, field by field, on one line: names that a file gives its fields escaped and cut."""
    found = (f"{'.'.join(map(str, e['loc']))[:60] or 'record'}: {e['msg'][:200]}" for e in error.errors()[:most])
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in "; ".join(found))


def _line(record: Record) -> bytes:
    """One line of a record file. Checked again, because a list inside a record can be changed past its checks."""
    type(record).model_validate(record.model_dump())
    return record.model_dump_json().encode() + b"\n"


def _parse(path: Path, number: int, line: bytes, model: type[R]) -> R:
    """The record on a line (counted from 1); ValueError with `file:line`, the field and what is wrong with it."""
    try:
        record = model.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(f"{path}:{number}: not a {model.__name__} record: {faults(error, 5)}") from None
    if isinstance(record, Problem):
        record._root = path.parent
    return record


def _parsed(path: Path, model: type[R]) -> Iterator[tuple[int, R]]:
    """(where its line begins, the record), one at a time."""
    start = 0
    with open(path, "rb") as file:  # bytes, because text mode would also break a line at a lone "\r"
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield start, _parse(path, number, line, model)
            start += len(line)


def read_records(path: str | os.PathLike[str], model: type[R]) -> list[R]:
    """The records of a file, in its order; problems know the folder that their images lie under.

    FileNotFoundError if there is no such file; ValueError with file:line at the first line that is no such record.
    """
    return [record for _, record in _parsed(Path(path), model)]


def write_bytes(path: str | os.PathLike[str], data: Iterable[bytes]) -> None:
    """Nothing; the file holds all the chunks afterwards, or, if anything fails, what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in data:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Nothing; writes the file whole or not at all. ValueError if two records share an id."""

    def lines() -> Iterator[bytes]:
        seen: set[str] = set()
        for record in records:
            if record.record_id in seen:
                raise ValueError(f"{path}: two records have the id {record.record_id!r}; make ids unique first")
            seen.add(record.record_id)
            yield _line(record)

    write_bytes(path, lines())


class RecordLog(Generic[R]):
    """A record file that grows one whole line at a time and survives a kill at any instant.

    `key` is the fingerprint of everything that shapes the records; it is kept beside the file (`.key`), and a
    file of another key is refused, so that settings never mix. One writer at a time. A line is handed to the
    operating system as it is appended (a killed process loses nothing) and forced to disk at the end. Of the records,
    only the ids and where their lines begin are held in memory (`offsets`).
    """

    def __init__(self, path: str | os.PathLike[str], model: type[R], key: str) -> None:
        self.path, self.model, self.key = Path(path), model, key
        self.offsets: dict[str, int] = {}
        self._file: Any = None

    @property
    def done(self) -> KeysView[str]:
        """The ids of the records in the file."""
        return self.offsets.keys()

    def __enter__(self) -> RecordLog[R]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed in __exit__
        try:
            self._lock()
            for name in (self.path.name, self.path.with_suffix(".key").name):
                for left_over in self.path.parent.glob(f".{escape(name)}.????????.part"):
                    left_over.unlink()  # of a process that was killed: nobody else writes here while we hold the lock
            self._check_key()
            self._cut_broken_end()
            self.offsets = {record.record_id: start for start, record in _parsed(self.path, self.model)}
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                os.fsync(file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                raise BlockingIOError  # another process has just put a new file in its place
        except BlockingIOError:
            raise RuntimeError(f"{self.path} is being written by another process; wait for it or stop it") from None

    def _check_key(self) -> None:
        key_path = self.path.with_suffix(".key")
        found = key_path.read_text().strip() if key_path.exists() else None
        if found != self.key and self.path.stat().st_size == 0:
            write_bytes(key_path, [self.key.encode() + b"\n"])
        elif found != self.key:
            raise ValueError(
                f"{self.path} holds records made under key {found}, this run has key {self.key}: the parameters, the "
                f"model or the data changed. Delete {self.path.name} and {key_path.name}, or use another run_name."
            )

    def _cut_broken_end(self) -> None:
        """Nothing; a last line without its newline, or that is no JSON, is what a crash left behind."""
        start, span, data = self.path.stat().st_size, 1 << 15, b""
        while start and data.count(b"\n") < 2:  # the last whole line and what follows it; the file may be huge
            start, span = max(0, start - span), 2 * span
            with open(self.path, "rb") as file:
                file.seek(start)
                data = file.read()
        end = data.rfind(b"\n") + 1
        last = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
        try:
            json.loads(data[last:end] or b"0")
        except ValueError:
            end = last
        except RecursionError:
            pass  # whole, and no record: that is told by the line's number
        if end < len(data):
            os.ftruncate(self._file.fileno(), start + end)

    def append(self, record: R) -> None:
        """Nothing; the record is in the file. ValueError if its id is there already or it is of another kind."""
        if self._file is None:
            raise RuntimeError(f"{self.path} is not open: use `with RecordLog(...) as log:`")
        name, size = record.record_id, os.fstat(self._file.fileno()).st_size
        if type(record) is not self.model or name in self.offsets:
            raise ValueError(f"{self.path}: {type(record).__name__} {name!r} is of another kind or already there")
        line = _line(record)
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OSError(f"{self.path}: the disk did not take {name!r} ({error}); free some space and rerun") from None
        if written != len(line):
            os.ftruncate(self._file.fileno(), size)
            raise OSError(f"{self.path}: the disk took only a part of record {name!r}; free some space and rerun")
        self.offsets[name] = size

    def records(self) -> list[R]:
        """The records in the file so far, in the order of writing."""
        return read_records(self.path, self.model)
