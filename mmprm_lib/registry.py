"""Published benchmarks as data: assets/benchmarks.yaml, checked; a row of one as our fields; what shares a source.

No code of a benchmark is run. A row becomes the fields of a problem by the templates and column names of its entry; how
its answers are compared is named there too, and done by grading.py.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .grading import RULES
from .images import Rejected
from .schema import write_bytes

PATH = Path(__file__).parent / "assets" / "benchmarks.yaml"
COLUMNS = ("id", "question", "answer", "image", "choices", "answer_type", "grading")  # what `fields_of` gives
_TAG = re.compile(r"\s*<(?:image|img)[ _]?\d*>\s*")  # a picture's place in the text; a problem here has one picture
_UNPINNED = re.compile(r"(?m)^(?P<before> +dataset_id: (?P<name>\S+)\n +revision: )null$")  # an entry's two lines
_FAILED = (KeyError, IndexError, ValueError, TypeError, AttributeError, SyntaxError)  # of a template or a literal


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Columns(_Strict):
    """Where a row keeps what: id and question are templates, the others names of columns."""

    id: str
    question: str
    answer: str
    images: Annotated[list[str], Field(min_length=1)]
    choices: str = ""


class Kind(_Strict):
    """How one kind of answer is compared, and what is asked for; places, tolerances and unit name columns."""

    rule: str
    answer_type: Literal["", "number", "expression", "choice", "text"] = ""
    ask: str = ""
    tolerance: float | None = None
    places: str = ""
    tolerances: str = ""
    unit: str = ""

    @model_validator(mode="after")
    def _rule_is_known(self) -> Kind:
        if self.rule not in RULES:
            raise ValueError(f"rule {self.rule!r} is none of grading.RULES: {', '.join(RULES)}")
        return self


class Benchmark(_Strict):
    """An entry of benchmarks.yaml; the comments at its top say what each field means."""

    title: str
    paper: str
    dataset_id: str
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None
    configs: list[str] = [""]
    splits: Annotated[list[str], Field(min_length=1)]
    n: Annotated[int, Field(gt=0)]
    use: Literal["selection", "steps"] = "selection"
    columns: Columns
    choices: Literal["", "list", "literal", "inline"] = ""
    kind: str = ""
    kinds: dict[str, Kind]
    ask_unit: str = ""
    group: str = ""
    variant: str = ""
    group_size: int = 0
    where: dict[str, list[str]] = {}
    aggregate: Literal["accuracy", "worst_case", "we_math", "macro_f1"]
    built_from: list[str]
    also: list[str] = []
    licence: str
    may_not: Annotated[list[str], Field(min_length=1)]
    urls: Annotated[list[str], Field(min_length=1)]
    differs: list[str]
    not_verified: list[str]


class Training(_Strict):
    """A set that models are trained on, and the sources of its questions."""

    title: str
    dataset_ids: list[str]
    also: list[str]
    note: str


class Registry(_Strict):
    """The whole file."""

    benchmarks: dict[str, Benchmark]
    training: dict[str, Training]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _names_exist(self) -> Registry:
        for name, entry in {**self.benchmarks, **self.training}.items():
            unknown = set(entry.also) - set(self.sources)
            unknown |= set(getattr(entry, "built_from", [])) - set(self.benchmarks)
            if unknown:
                raise ValueError(f"{name} names {sorted(unknown)}, which the file does not have")
        return self


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The checked content of assets/benchmarks.yaml; ValueError (pydantic's) names the field that is wrong."""
    return Registry.model_validate(yaml.safe_load(PATH.read_text(encoding="utf-8")))


def benchmark(name: str) -> Benchmark:
    """The entry called `name`; ValueError with the known names if there is none."""
    if name not in registry().benchmarks:
        raise ValueError(f"benchmark {name!r} is unknown: use one of {', '.join(registry().benchmarks)}")
    return registry().benchmarks[name]


def table() -> pd.DataFrame:
    """One row per benchmark: name, title, data set, revision, problems, aggregate, licence, may_not, built_from."""
    rows = [
        (name, e.title, e.dataset_id, e.revision or "resolved at load time", e.n, e.aggregate, e.licence,
         "; ".join(e.may_not), ", ".join([*e.built_from, *e.also]))
        for name, e in registry().benchmarks.items()
    ]  # fmt: skip
    names = ["name", "title", "dataset_id", "revision", "n", "aggregate", "licence", "may_not", "built_from"]
    return pd.DataFrame(rows, columns=names)


# --- a row as our fields ----------------------------------------------------------------------------------------------
def wanted(entry: Benchmark, row: Mapping[str, Any]) -> bool:
    """Whether a row is part of the benchmark: each column of `where` has one of its values."""
    return all(str(row.get(column)) in values for column, values in entry.where.items())


def fields_of(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's values under the names of COLUMNS; Rejected if a column is missing or says nothing that the entry knows.

    `row` has its split under "split". An image is a list of those that are there, so that several can be counted.
    """
    entry = benchmark(name)
    columns = entry.columns
    names = [columns.answer, *([columns.choices] if columns.choices else [])]
    if missing := [column for column in names if column not in row]:
        raise Rejected("missing_column", f"{', '.join(missing)} not among {sorted(map(str, row))}"[:500])
    if not any(column in row for column in columns.images):
        raise Rejected("missing_column", f"{', '.join(columns.images)} not among {sorted(map(str, row))}"[:500])
    try:
        kind = _kind(entry, row)
        answer, alternatives = _answer(row[columns.answer], kind)
        grading = {"benchmark": name, "rule": kind.rule, **_numbers(kind, row)}
        places = (("group", entry.group), ("variant", entry.variant))
        grading |= {key: text.format_map(row) for key, text in places if text}
        ask = " ".join(filter(None, [_unit(entry, row), kind.ask.format_map(row)]))
        grading |= {"ask": ask} if ask else {}
        question = _TAG.sub(" ", columns.question.format_map(row)).strip()
        return {
            "id": columns.id.format_map(row),
            "question": f"{question}\n{ask}" if ask else question,
            "answer": answer,
            "image": [row[column] for column in columns.images if row.get(column) is not None],
            "choices": _options(entry, row),
            "answer_type": kind.answer_type or None,
            "grading": grading | ({"alternatives": alternatives} if alternatives else {}),
        }
    except _FAILED as error:
        if isinstance(error, Rejected):
            raise
        raise Rejected("invalid_record", f"{type(error).__name__}: {error}"[:300]) from error


def _kind(entry: Benchmark, row: Mapping[str, Any]) -> Kind:
    value = entry.kind.format_map(row)
    found = entry.kinds.get(value) or entry.kinds.get(value.split("/")[0])
    if found is None:
        raise Rejected("invalid_record", f"kind of answer {value!r} is none of {', '.join(entry.kinds)}")
    return found


def _answer(value: Any, kind: Kind) -> tuple[Any, list[str]]:
    """The gold and, of MMMU's open questions, the other golds; of a list the first, as OlympiadBench's judge does."""
    if kind.rule == "open" and str(value).strip().startswith("["):
        first, *others = map(str, ast.literal_eval(value) if isinstance(value, str) else value)
        return first, others
    return (value[0] if isinstance(value, list) else value), []


def _numbers(kind: Kind, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the rule needs beside the gold."""
    found: dict[str, Any] = {} if kind.tolerance is None else {"tolerance": kind.tolerance}
    if kind.places:
        found["places"] = int(row[kind.places])
    if kind.tolerances and row.get(kind.tolerances):
        found["tolerances"] = [float(part) if part.strip() else 1e-8 for part in str(row[kind.tolerances]).split(",")]
    if kind.unit and row.get(kind.unit):
        found["unit"] = str(row[kind.unit])
    return found


def _unit(entry: Benchmark, row: Mapping[str, Any]) -> str:
    return f"The unit is {row[entry.ask_unit]}." if entry.ask_unit and row.get(entry.ask_unit) else ""


def _options(entry: Benchmark, row: Mapping[str, Any]) -> list[str] | None:
    """The options of a row, of a list, of the text of a Python list, or of "A. x; B. y"; None without any."""
    value = row.get(entry.columns.choices) if entry.choices else None
    if entry.choices == "literal" and isinstance(value, str):
        value = ast.literal_eval(value)
    if entry.choices == "inline" and isinstance(value, str):
        value = [part.strip(" ;\n") for part in re.split(r"(?:^|[;\s])\s*[A-J]\s*[.:)]\s*", value)[1:]]
    return [_TAG.sub(" ", str(option)).strip() for option in value] if value else None


# --- what shares a source ---------------------------------------------------------------------------------------------
def origins(name: str) -> set[str]:
    """All that the problems of an entry come from, itself included: names of entries and of sources."""
    known = registry()
    entry = known.benchmarks.get(name) or known.training.get(name)
    if entry is None:
        return {name}
    found = {name, *entry.also}
    for other in getattr(entry, "built_from", []):
        found |= origins(other)
    return found


def entry_of(source: str) -> str:
    """The entry that a problem's `source` or a data set's id belongs to, the id itself if the file does not know it.

    Of a data set in several entries, a benchmark's name wins only where it is given as such.
    """
    name = source.partition("@")[0]
    known = registry()
    if name in known.benchmarks or name in known.training:
        return name
    for key, training in known.training.items():
        if name in training.dataset_ids:
            return key
    return next((key for key, entry in known.benchmarks.items() if entry.dataset_id == name), name)


def shared_sources(training: str, tested: str) -> list[str]:
    """What a training set and a benchmark both come from, by the file alone; empty says nothing about what it omits.

    Either may be the name of an entry, a data set's id, or a problem's `source`.
    """
    common = origins(entry_of(training)) & origins(entry_of(tested))
    return sorted(common)


def document() -> str:
    """The registry as Markdown: docs/benchmarks.md, which `python -m mmprm_lib.registry` prints."""
    lines = [
        "# Benchmarks", "",
        "Written by `python -m mmprm_lib.registry` from `mmprm_lib/assets/benchmarks.yaml`. 01_data takes one by name:",
        "", "```yaml", "# params/mine/01_data.yaml", "source: hub", "benchmark: dynamath", "n_train: 0", "n_dev: 0",
        "n_test: 1000000", "```", "",
        "All of it is test problems, each with what grades it; 06_best_of_n then reports the benchmark's own number.",
        "Where no revision is pinned, the branch is resolved to its commit, which the manifest records; set `revision`",
        "to it for a rerun, or pin all at what the hub has now: `.venv/bin/python -m mmprm_lib.registry --pin`.",
        "VisualProcessBench is read by 05_visualprocessbench (`benchmark_path`). Those of the papers:",
        "`make sweep SWEEP=paper_benchmarks`; `params/paper_contamination` compares them with MM-K12.", "",
        "| name | data set | revision | problems | number | licence |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in table().itertuples():
        lines.append(f"| {row.name} | {row.dataset_id} | {row.revision} | {row.n} | {row.aggregate} | {row.licence} |")
    for name, entry in registry().benchmarks.items():
        rules = dict.fromkeys(f"{kind or 'all'}: {rule.rule}" for kind, rule in entry.kinds.items())
        parts = {
            "Paper": entry.paper, "Graded by": ", ".join(rules), "May not": "; ".join(entry.may_not),
            "Made of": ", ".join([*entry.built_from, *entry.also]), "Differs": "; ".join(entry.differs),
            "Not verified": "; ".join(entry.not_verified), "Sources": ", ".join(f"<{url}>" for url in entry.urls),
        }  # fmt: skip
        lines += ["", f"## {name}: {entry.title}", "", *(f"- {key}: {text}" for key, text in parts.items() if text)]
    return "\n".join(lines) + "\n"


# --- revisions --------------------------------------------------------------------------------------------------------
def pin(commit_of: Callable[[str], str], path: Path = PATH) -> tuple[dict[str, str], dict[str, str]]:
    """(pinned, failed): data set -> commit, or why there is none, of the entries in `path` without a revision.

    `commit_of` gives a data set's commit. The file is written anew with the commits in it, and else as it was; one that
    cannot be had costs itself alone. What is pinned stays.
    """
    text = path.read_text(encoding="utf-8")
    pinned, failed = {}, {}
    for name in dict.fromkeys(found["name"] for found in _UNPINNED.finditer(text)):
        try:
            commit = commit_of(name)
            if not re.fullmatch("[0-9a-f]{40}", commit):
                raise ValueError(f"{commit[:60]!r} is no commit")
            pinned[name] = commit
        except Exception as error:  # noqa: BLE001 - of whatever HTTP client the hub's library uses
            failed[name] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    text = _UNPINNED.sub(lambda found: found["before"] + pinned.get(found["name"], "null"), text)
    Registry.model_validate(yaml.safe_load(text))
    write_bytes(path, [text.encode()])
    return pinned, failed


def hub_commit(dataset_id: str, revision: str = "main") -> str:
    """The commit that a branch or tag of a data set on the hub stands for now."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(dataset_id, revision=revision).sha or revision


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 if a revision could not be had; prints docs/benchmarks.md, or with --pin what became of the revisions."""
    parser = argparse.ArgumentParser(prog="python -m mmprm_lib.registry", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pin", action="store_true", help="write the hub's present commits where the file has none")
    if not parser.parse_args(arguments).pin:
        print(document(), end="")
        return 0
    pinned, failed = pin(hub_commit)
    for name, commit in pinned.items():
        print(f"{name}: pinned at {commit}")
    for name, why in failed.items():
        print(f"{name}: not pinned, {why}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
