"""Names for contents: the sha256 of files, and short fingerprints of values, also of those too long to be held."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel


def sha256_of(source: str | os.PathLike[str] | bytes) -> str:
    """The sha256 of bytes, or of the file at a path, as 64 hex digits."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(obj: Any) -> str:
    """16 hex digits that name a value: sha256 of its canonical JSON. 1 and 1.0 differ, the order of keys is free."""
    return hashlib.sha256(_canonical(obj).encode()).hexdigest()[:16]


def fingerprint_of_many(items: Iterable[Any], before: Sequence[Any] = (), after: Sequence[Any] = ()) -> str:
    """fingerprint([*before, list(items), *after]), one item at a time; fingerprint(list(items)) without these two."""
    name, whole = hashlib.sha256(), before or after
    name.update(("[" * bool(whole) + "".join(_canonical(value) + "," for value in before) + "[").encode())
    for i, item in enumerate(items):
        name.update(("," * bool(i) + _canonical(item)).encode())
    name.update(("]" + "".join("," + _canonical(value) for value in after) + "]" * bool(whole)).encode())
    return name.hexdigest()[:16]


def _canonical(obj: Any) -> str:
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """A JSON value for what json does not know: records, data classes, sets, bytes, numbers of numpy."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot name a {type(value).__name__} by its content; pass plain values, records or bytes")
