"""A labelled solution of a foreign file, and how such files are read and written.

Files are read and written a row at a time, so that memory does not grow with them. A row that cannot be used is never
dropped in silence: it is listed, warned of, or, with `strict`, an error that names file, line and field.
"""

from __future__ import annotations

import codecs
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import ValidationError

from .data import BadRow
from .images import Rejected
from .rows import MAX_ROW, SPACE, elements, lines, opened
from .schema import Rate, Record, StepLabels, faults, fingerprint, write_bytes

OWN = "mmprm"  # the key of a row, which other programs pass over, for what the format itself has no place for
Mark = Literal[-1, 0, 1]
Parse = Callable[[dict[str, Any], str], Iterable["Labelled"]]
Group = Sequence["Labelled"]
Bad = list[BadRow] | None
VERDICTS = {True: "correct", False: "wrong", None: "unknown"}


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; write null where a number is not known")


class Labelled(Record):
    """A solution with labels of its steps, as a foreign file has it: the image may be missing, and the gold answer.

    images: paths as the file writes them. verdict: on the solution as a whole. marks: what a person said of each step
    (1 right, 0 neutral, -1 wrong, None not judged); `labels.truth` is the same list where no step is None, because it
    cannot hold None. scores: what a PRM gave. more: fields of the row that have no name here, as they were.
    """

    labels: StepLabels
    question: str
    images: list[str] = []
    answer: str | None = None
    policy: str = "unknown"
    verdict: Literal["correct", "wrong", "unknown"] = "unknown"
    marks: list[Mark | None] | None = None
    scores: list[Rate] | None = None
    more: dict[str, Any] = {}

    @property
    def record_id(self) -> str:
        """The id of the solution."""
        return self.labels.solution_id

    @property
    def steps(self) -> list[str]:
        """The steps of the solution."""
        return self.labels.steps


# -- fields of a row


def take(row: dict[str, Any], key: str, kind: type, *default: Any) -> Any:
    """row[key], or `default` if it is given and there is no such key. Rejected if it is missing or of another kind."""
    if key not in row:
        if default:
            return default[0]
        raise Rejected("missing_column", f"{key!r} is not among {sorted(map(str, row))}"[:300])
    if not isinstance(row[key], kind) or isinstance(row[key], bool) is not (kind is bool):
        raise Rejected("invalid_record", f"{key} is {str(row[key])[:100]!r}, wanted {kind.__name__}")
    return row[key]


def texts(value: Any, what: str) -> list[str]:
    """The list of texts; Rejected if it is none."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Rejected("bad_steps", f"{what} is no list of texts: {str(value)[:100]!r}")
    return value


def rate(value: Any, what: str) -> float | None:
    """The number in [0, 1], or None for null; Rejected if it is neither."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Rejected("bad_labels", f"{what} is {str(value)[:100]!r}, wanted a number from 0 to 1 or null")
    return float(value)


def paths_of(value: Any, what: str) -> list[str]:
    """The image paths of a value: null, a path, or a list of paths."""
    return [] if value is None else texts([value] if isinstance(value, str) else value, what)


def turns_of(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """(who, what) of each turn; what gpt says may be a list of numbers."""
    turns = take(row, "conversations", list)
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or "value" not in turn:
            raise Rejected("bad_steps", f"conversations[{i}] is {str(turn)[:100]!r}, wanted from and value")
        if turn["from"] != "gpt" or not isinstance(turn["value"], list):
            take(turn, "value", str)
    return [(turn["from"], turn["value"]) for turn in turns]


def after_first_zero(scores: Iterable[float | None], sampled: Iterable[bool]) -> list[float | None]:
    """The scores, with None for every zero after the first zero whose step was not surely `sampled` (early stop)."""
    found: list[float | None] = []
    for score, sure in zip(scores, sampled, strict=True):
        found.append(None if score == 0 and not sure and 0.0 in found else score)
    return found


def marks_of(example: Labelled) -> list[Mark | None]:
    """The marks, or else the truth, of each step; Rejected if there are neither."""
    marks = example.labels.truth if example.marks is None else example.marks
    if marks is None or len(marks) != len(example.steps):
        found = "no marks" if marks is None else f"{len(marks)} marks for {len(example.steps)} steps"
        raise Rejected("bad_labels", f"{found}: make some of its mc_score with marks_from_scores")
    return list(marks)


def labelled(
    row: dict[str, Any], name: str, question: str, steps: list[str], *, strategy: str,
    mc_score: list[float | None] | None = None, counts: Sequence[tuple[int, int, int] | None] | None = None,
    marks: list[Mark | None] | None = None, **fields: Any,
) -> Labelled:  # fmt: skip
    """The labelled solution of a row: `name` is its id unless the row has ours; Rejected where a field cannot be.

    counts: (rollouts, correct, unknown) per step, None where there are none. fields: those of Labelled.
    """
    own, empty = take(row, OWN, dict, {}), [None] * len(steps)
    n_tokens, fields = own.get("n_generated_tokens", 0), fields | {k: own[k] for k in BESIDE if k in own}
    columns = list(zip(*(c or (None, None, None) for c in counts), strict=True)) if counts else [empty] * 3
    whole = marks is not None and None not in marks
    try:
        labels = StepLabels(
            solution_id=own.get("solution_id", name), steps=steps, strategy=own.get("strategy", strategy),
            problem_id=own.get("problem_id", fingerprint([fields.get("images", []), question])),
            n_rollouts=list(columns[0]), n_correct=list(columns[1]), n_unknown=list(columns[2]),
            mc_score=empty if mc_score is None else mc_score, n_generated_tokens=n_tokens,
            truth=list(marks) if whole else None,
        )  # fmt: skip
        return Labelled(labels=labels, question=question, marks=marks, **fields)
    except ValidationError as error:
        raise Rejected("invalid_record", faults(error)[:300]) from error


# with what they are where nothing is known
BESIDE: dict[str, Any] = {"policy": "unknown", "verdict": "unknown", "answer": None, "images": []}


def beside(example: Labelled, kept: Iterable[str] = ()) -> dict[str, Any]:
    """What goes under the key OWN: ids, strategy, tokens, and what of BESIDE is known and not `kept` by the format.

    No list of steps is among it: a row whose steps are changed elsewhere would carry a list that no longer fits.
    """
    names = ("solution_id", "problem_id", "strategy", "n_generated_tokens")
    values = {name: getattr(example, name) for name in BESIDE if name not in kept}
    known = {name: value for name, value in values.items() if value != BESIDE[name]}
    return {name: getattr(example.labels, name) for name in names} | known


def hard_labels(example: Labelled, threshold: float) -> list[str]:
    """ "+" or "-" per step; Rejected if there is no step, or one without an mc_score."""
    scores = example.labels.mc_score
    if not scores:
        raise Rejected("bad_steps", "there is no step, and this format has no row without one; leave it out")
    if None in scores:
        at = f"step {scores.index(None) + 1} has no mc_score, and this format no null"
        raise Rejected("bad_labels", f"{at}; cut the solution there with labelled_prefix")
    return ["+" if score > threshold else "-" for score in scores if score is not None]


# -- files


class _Refused:
    """What becomes of rows that cannot be used: an error, an entry of `bad`, or a warning that counts them."""

    def __init__(self, path: Path, verb: str, strict: bool, bad: list[BadRow] | None) -> None:
        self.path, self.verb, self.strict, self.bad = path, verb, strict, bad
        self.reasons: Counter[str] = Counter()
        self.first = ""

    def add(self, number: int, name: str, why: Rejected) -> None:
        """Nothing; `number` counts from 1. ValueError if strict."""
        where = f"{self.path}:{number}" + f" ({name[:100]})" * bool(name)
        if self.strict:
            raise ValueError(f"{where}: {why}; correct it, or {self.verb} with strict=False") from why
        self.first = self.first or f"{where}: {why}"
        self.reasons[why.reason] += 1
        if self.bad is not None:
            self.bad.append(BadRow(number - 1, name[:100], why.reason, f"{where}: {why.detail}"))

    def tell(self) -> None:
        """Nothing; a warning if there is something to tell and nobody has taken the list."""
        if self.reasons and self.bad is None:
            what = ", ".join(f"{n} {reason}" for reason, n in sorted(self.reasons.items()))
            warnings.warn(f"{self.path}: rows left out: {what}; the first: {self.first}", stacklevel=3)


def read_rows(
    path: str | Path, parse: Parse, strict: bool = False, bad: list[BadRow] | None = None
) -> Iterator[Labelled]:
    """What `parse` makes of each row of a file: JSON lines or a JSON array, either may be .gz.

    `parse` gets the row and a name for it, `<file>:<line>` (in an array, the number of the element). A row that is
    refused is an error if `strict`, else it is added to `bad`; without `bad`, a warning at the end counts them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a .jsonl or .json file (.gz allowed)")
    return _read(path, parse, _Refused(path, "read", strict, bad))


def _read(path: Path, parse: Parse, refused: _Refused) -> Iterator[Labelled]:
    stem = path.name.removesuffix(".gz").removesuffix(".json").removesuffix(".jsonl")
    with opened(path) as file:
        first = file.peek(4096).lstrip(SPACE.encode() + codecs.BOM_UTF8)[:1]
        for number, raw in elements(path, file) if first == b"[" else lines(file):
            try:
                made = list(parse(_object(raw), f"{stem}:{number}"))
            except Rejected as why:
                refused.add(number, "", why)
            else:
                yield from made
    refused.tell()


def _object(raw: Any) -> dict[str, Any]:
    if raw is None:
        raise Rejected("broken_row", f"no JSON object, or a line of {MAX_ROW} bytes or more")
    try:
        value = json.loads(raw, parse_constant=_constant) if isinstance(raw, bytes) else raw
        # half a surrogate pair can be escaped in JSON, but not written; nor can what an array holds beyond JSON
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Rejected("broken_row", f"no JSON in UTF-8: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise Rejected("broken_row", f"expected an object, found {type(value).__name__}")
    return value


def write_rows(
    path: str | Path, groups: Iterable[Group], row: Callable[[Group, int], dict[str, Any]], array: bool = False,
    strict: bool = True, bad: list[BadRow] | None = None,
) -> int:  # fmt: skip
    """How many rows were written: one per group of solutions, to a file that is whole or not there at all.

    `row` gets the group and how many rows were written before. A group that the format cannot hold is an error if
    `strict`, else it is left out and added to `bad`, or counted in a warning. `array`: one JSON array, not JSON lines.
    """
    n, refused = 0, _Refused(Path(path), "write", strict, bad)

    def lines() -> Iterator[bytes]:
        nonlocal n
        for number, group in enumerate(groups, start=1):
            try:
                line = _encoded(row(group, n))
            except Rejected as why:
                refused.add(number, group[0].record_id if group else "", why)
                continue
            yield ((b",\n" if n else b"[\n") if array else b"") + line + (b"" if array else b"\n")
            n += 1
        if array:
            yield b"\n]\n" if n else b"[]\n"

    write_bytes(path, lines())
    refused.tell()
    return n


def _encoded(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Rejected("invalid_record", f"a field is no JSON: {str(error)[:200]}") from error
