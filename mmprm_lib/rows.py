"""Rows of JSON files, one at a time: whatever stands in a file, no more than a row of MAX_ROW is held."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHUNK = 2**16  # characters of a JSON array that are read at a time
MAX_ROW = 2**26  # bytes of a line, characters of an element; a longer one is a broken file, not data
SPACE = " \t\r\n"
_BLANK = re.compile(f"[{SPACE}]*")


_DECODER = json.JSONDecoder()
_ROUGH = json.JSONDecoder(parse_int=len)  # to find where an element ends, whatever its numbers
TOKEN = 16  # characters; a literal or an escape that is cut at the end of what was read is no error yet


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked if it is a .gz; ValueError where it cannot be unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the packed file is broken or ends too early: fetch it again ({error})") from error


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank with their numbers from 1; None for one of MAX_ROW bytes or more, passed over."""
    number = 0
    while line := file.readline(MAX_ROW):
        number += 1
        if line.endswith(b"\n") or len(line) < MAX_ROW:
            if line.strip():
                yield number, line
            continue
        while (more := file.readline(MAX_ROW)) and not more.endswith(b"\n"):
            pass
        yield number, None


def lines_of(path: str | Path) -> Iterator[tuple[int, bytes | None]]:
    """As `lines`, of the file at `path`."""
    with open(path, "rb") as file:
        yield from lines(file)


def elements(path: Path, binary: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array with their numbers from 1, held one at a time; ValueError where the array breaks.

    A comma after the last element is passed over, and so is what JSON does not know of an element: NaN, Infinity. One
    with a number of more digits than Python reads is None.
    """
    file, text, at, wanted, number, n_read = io.TextIOWrapper(binary, "utf-8-sig"), "", 0, "[", 0, 0

    def read(n: int) -> str:
        nonlocal n_read
        n_read += len(more := file.read(n))
        return more

    try:
        while True:
            at = _BLANK.match(text, at).end()
            place = n_read - len(text) + at
            if at == len(text):
                text, at = read(CHUNK), 0
                if not text:
                    raise ValueError("the file ends before the array does")
            elif text[at] == "]" and wanted != "[":
                return
            elif not wanted:
                number += 1
                value, text, at = _element(read, text, at)
                yield number, value
                wanted = ","
            elif text[at] == wanted:
                at, wanted = at + 1, ""
            else:
                raise ValueError(f"found {text[at : at + 20]!r}, wanted {wanted!r}")
    except (ValueError, RecursionError) as error:
        why = str(error)[:200]
        if isinstance(error, json.JSONDecodeError):
            place, why = n_read - len(error.doc) + error.pos, error.msg
        where = f"{path}, element {number}, character {place + 1} of the file"
        if isinstance(error, UnicodeDecodeError):
            where = f"{path}, byte {binary.tell() - len(error.object) + error.start + 1}"
            why = f"{error.reason} {error.object[error.start]:#x}"
        remedy = "mend it, or write one row a line in a .jsonl file, where a broken row costs itself alone"
        raise ValueError(f"{where}: no JSON array in UTF-8: {why}; {remedy}") from error


def _element(read: Callable[[int], str], text: str, at: int) -> tuple[Any, str, int]:
    """The value that begins at a place of `text`, what was read so far, and where in it the value ends."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text, at)
            if end < len(text):  # else a number might go on
                return value, text, end
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos + TOKEN > len(text)
            if not cut or len(text) - at > MAX_ROW:
                raise
        except ValueError:  # a number of thousands of digits
            _, end = _ROUGH.raw_decode(text, at)
            if end < len(text):
                return None, text, end
        # twice the length each time, so that a long one is not tried often
        more = read(max(CHUNK, len(text) - at))
        if not more:
            raise json.JSONDecodeError("the file ends within it", text, at)
        text, at = text[at:] + more, 0
