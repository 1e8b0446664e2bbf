"""Rows of JSON files, one at a time: whatever stands in a file, no more than a row of MAX_ROW is held."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

CHUNK = 2**16  # characters of a JSON array that are read at a time
MAX_ROW = 2**26  # bytes of a line, characters of an element; a longer one is a broken file, not data
SPACE = " \t\r\n"
_BLANK = re.compile(f"[{SPACE}]*")


_DECODER = json.JSONDecoder()


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

    A comma after the last element is passed over, and so is what JSON does not know of an element: NaN, Infinity.
    """
    file, text, at, wanted, number = io.TextIOWrapper(binary, "utf-8-sig"), "", 0, "[", 0
    try:
        while True:
            at = _BLANK.match(text, at).end()
            if at == len(text):
                text, at = file.read(CHUNK), 0
                if not text:
                    raise ValueError("the file ends before the array does")
            elif text[at] == "]" and wanted != "[":
                return
            elif not wanted:
                number += 1
                value, text, at = _element(file, text, at)
                yield number, value
                wanted = ","
            elif text[at] == wanted:
                at, wanted = at + 1, ""
            else:
                raise ValueError(f"found {text[at : at + 20]!r}, wanted {wanted!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, element {number}: no JSON array in UTF-8: {str(error)[:200]}") from error


def _element(file: io.TextIOWrapper, text: str, at: int) -> tuple[Any, str, int]:
    """The value that begins at a place of `text`, what was read so far, and where in it the value ends."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text, at)
            if end < len(text):  # else a number might go on
                return value, text, end
        except json.JSONDecodeError:
            if len(text) - at > MAX_ROW:
                raise
        # twice the length each time, so that a long one is not tried often
        more = file.read(max(CHUNK, len(text) - at))
        if not more:
            raise ValueError("the file ends within it")
        text, at = text[at:] + more, 0
