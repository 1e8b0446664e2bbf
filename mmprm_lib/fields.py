"""What the fields of a foreign row say: text without accidents, options, and how the gold is to be compared."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .images import Rejected
from .rows import elements, lines, opened

# "\times" written without escaping is a tab and "imes". A backspace before a letter can have come about in no other
# way; tabs and returns can, so that they need one of the commands behind them.
ESCAPES = [
    (r"[a-z]", "\a\b\v\f"),
    (r"(?:imes|ext|heta|riangle|frac)\b", "\t"),
    (r"(?:ight|ho|angle|m)\b", "\r"),
]
LETTER = {"\a": "a", "\b": "b", "\v": "v", "\f": "f", "\t": "t", "\r": "r"}


def clean(value: Any) -> str:
    """The value as text without control characters: unescaped LaTeX commands restored, the rest of them spaces."""
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, bool | dict | list) else str(value)
    for rest, characters in ESCAPES:
        text = re.sub(f"([{characters}])(?={rest})", lambda found: "\\" + LETTER[found[1]], text)
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else " " for c in text).strip()


def check_gold(gold: str) -> None:
    """Nothing; Rejected if the gold is empty, or lines of numbers "1." that number nothing."""
    if not gold.strip(" $."):
        raise Rejected("empty_gold", repr(gold))
    lines = gold.split("\n")
    if len(lines) > 1 and all(re.fullmatch(r"\s*\(?\d+[.)]\s*", line) for line in lines):
        raise Rejected("broken_gold", f"{gold!r} numbers {len(lines)} answers and gives none")


def choices_of(value: Any, gold: str) -> tuple[list[str], str]:
    """The options and the gold as a letter. Options are a list, the JSON text of one, or an object keyed by letters."""
    if value is None or value == "" or value == [] or value == "[]":
        return [], gold
    value = from_json(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value) if value[key] is not None]
    if isinstance(value, str) or not isinstance(value, Sequence) or not 2 <= len(value) <= 26:
        raise Rejected("bad_choices", repr(value)[:200])
    options = [re.sub(r"^\(?[A-Z][.):]\s+", "", clean(option)) for option in value]
    letter = gold.strip("$(). ")
    if re.fullmatch("[A-Z]", letter) and ord(letter) - ord("A") < len(options):
        return options, letter
    if options.count(gold) != 1:
        raise Rejected("bad_choices", f"answer {gold!r} is neither a letter nor one of {options}"[:300])
    return options, chr(ord("A") + options.index(gold))


def answer_type_of(question: str, gold: str, choices: list[str]) -> str:
    """How the gold is to be compared, judged by its looks: "choice", "number", "expression" or "text".

    choice: there are options, or the gold is a letter A to E and the question itself lists "A. ... B. ...".
    number: digits with sign, decimals, thousands, a percent or degree sign, or a fraction of whole numbers.
    """
    letter = gold.strip("$(). ")
    if choices or (re.fullmatch("[A-E]", letter) and re.search(r"\bA[.):].*\bB[.):]", question, re.DOTALL)):
        return "choice"
    plain = re.sub(r"\\number\{([^{}]*)\}|\\[,;!]|(?:\{\})?\^\{?\s*\\circ\s*\}?|[$°%]|\\%", r"\1", gold)
    plain = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", plain).strip()
    # "36." is a number that ends a sentence; "2.4." lists the statements 2 and 4
    plain = plain[:-1] if plain.endswith(".") and plain.count(".") == 1 else plain
    if re.fullmatch(r"[-+−]?\s?(\d{1,3}(,\d{3})+|\d*)(\.\d+)?(/\d+)?", plain) and re.search(r"\d", plain):
        return "number"
    words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+|\{[^{}]*\}", " ", gold))
    mathematical = re.search(r"[\\^+√π∠→()\[\]/:]|\d|.[=<>≤≥].|[A-Za-z]", gold) and not letter.isalpha()
    return "expression" if mathematical and len(words) < 2 else "text"


def from_json(text: str | bytes) -> Any:
    """The JSON value, or None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_rows(path: Path) -> Iterator[Any]:
    """The JSON values of the rows, None for a line that is no JSON; ValueError if an array as a whole is broken."""
    with opened(path) as file:
        if path.name.removesuffix(".gz").endswith(".json"):
            yield from (value for _, value in elements(path, file))
        else:
            yield from (None if line is None else from_json(line) for _, line in lines(file))
