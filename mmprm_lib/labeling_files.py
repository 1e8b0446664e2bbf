"""Record files that a kill at any moment cannot spoil, written and read with no more than ids and places in memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar, overload

from .fingerprints import fingerprint_of_many
from .run import progress
from .schema import Problem, Record, RecordLog, write_bytes

R = TypeVar("R", bound=Record)


class Records(Sequence[R]):
    """The records of a file as a sequence that holds none of them: each is read, and checked, when it is asked for.

    `places`: where their lines begin, in the order of the sequence; without it the file's own order. The file must not
    change meanwhile. IndexError beyond the end.
    """

    def __init__(self, path: str | Path, model: type[R], places: Iterable[int] | None = None) -> None:
        self.path, self.model = Path(path), model
        self.places = array("Q", _places(self.path) if places is None else places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> Records[R]: ...

    def __getitem__(self, index: int | slice) -> R | Records[R]:
        if isinstance(index, slice):
            return Records(self.path, self.model, self.places[index])
        return next(iter(Records(self.path, self.model, [self.places[index]])))

    def __iter__(self) -> Iterator[R]:
        for line in lines_at(self.path, self.places):
            yield self.model.model_validate_json(line)


def _places(path: Path) -> Iterator[int]:
    place = 0
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                yield place
            place += len(line)


def lines_at(path: Path, places: Iterable[int]) -> Iterator[bytes]:
    """The lines of a file that begin at these bytes, in this order."""
    here = 0
    with open(path, "rb") as file:
        for place in places:
            if place != here:
                file.seek(place)
            line = file.readline()
            here = place + len(line)
            yield line


def rewrite(log: RecordLog[R], names: Sequence[str]) -> array[int]:
    """Where the records of these ids begin, after the file of an open log holds them alone, in this order.

    The file is replaced whole or not at all. Close the log next: its places are no longer those of the file.
    """
    places: array[int] = array("Q")
    if list(log.offsets) == list(names):
        return array("Q", log.offsets.values())

    def lines() -> Iterator[bytes]:
        place = 0
        for line in lines_at(log.path, (log.offsets[name] for name in names)):
            places.append(place)
            place += len(line)
            yield line

    try:
        write_bytes(log.path, lines())
    except OSError as error:
        raise OSError(f"{log.path} was not put in order ({error}); nothing is lost: free some space, rerun") from error
    return places


def resumed(
    path: Path, model: type[R], key: str, order: Sequence[str], make: Callable[[set[str]], Iterator[R]],
    keep: bool = True,
) -> Sequence[R]:  # fmt: skip
    """The records of `make`, in `order`, as a list, or, with keep=False, as `Records` that stay in the file.

    `make` is given the ids that are in the file already and makes the others. They are appended as they come, and put
    in order when all are there: a killed run goes on where it stopped. ValueError if the file was made under another
    `key`; RuntimeError if another process writes it, or if `make` left out a record; OSError if the disk is full.
    """
    if len(set(order)) < len(order):
        twice = next(name for name, n in Counter(order).items() if n > 1)
        raise ValueError(f"{path}: two records would have the id {twice!r}; make ids unique first")
    with RecordLog(path, model, key) as log, closing(r for r in make(set(log.done))) as new:
        left = len(order) - len(log.done)
        for record in progress(new, total=left, desc=path.stem) if left else new:
            log.append(record)
        if missing := next((name for name in order if name not in log.done), None):
            n = sum(name not in log.done for name in order)
            raise RuntimeError(f"{path}: {n} records are missing, the first is {missing!r}; run this again")
        records = Records(path, model, rewrite(log, order))
    return list(records) if keep else records


def read_one(path: Path, model: type[R], place: int) -> R:
    """The record whose line begins at this byte."""
    return Records(path, model, [place])[0]


def named(problems: Iterable[Problem]) -> str:
    """A fingerprint of all that shapes a text or a verdict in the problems; where their images lie does not."""
    return fingerprint_of_many(p.model_dump(exclude={"image", "source", "split"}) for p in problems)
