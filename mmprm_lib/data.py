"""Problems from the embedded world, from local files and from the hub; what is wrong with a row; what two splits share.

Every loader returns (problems, bad rows): a row that cannot be used is named with its reason, never dropped in silence.
Images are copied, named by their content, so that a folder of records stands by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image
from pydantic import ValidationError

from . import registry, world
from .fields import answer_type_of, check_gold, choices_of, clean, json_rows
from .images import Rejected, decode, inside, open_image, png, prune, read_bytes, store
from .rows import MAX_ROW
from .schema import Problem, faults
from .splits import counts, examples, frame, guess_floor, overlap, overlap_table, split_by

__all__ = [
    "COLUMNS", "REASONS", "BadRow", "answer_type_of", "bad_frame", "counts", "examples", "frame", "from_benchmark",
    "from_files", "from_hub", "from_world", "guess_floor", "load", "open_image", "overlap", "overlap_table", "split_by",
]  # fmt: skip

# MM-K12's own names, and so the default; the names of OPTIONAL are used where a data set has them.
COLUMNS = {"id": "id", "question": "question", "answer": "answer", "image": "image_path"}
OPTIONAL = ("choices", "answer_type", "split", "grading")

REASONS = {
    "broken_row": "the line is no JSON object",
    "missing_column": "a mapped column is not in the row",
    "empty_id": "no id",
    "duplicate_id": "an earlier row has the id",
    "empty_question": "no question",
    "empty_gold": "no answer",
    "broken_gold": "the answer is a numbered list of nothing",
    "bad_choices": "the options are no list, or the answer is none of them",
    "no_image": "no image, or no such file",
    "several_images": "more than one image",
    "broken_image": "the image cannot be decoded",
    "image_bomb": "the image is too large to be decoded safely",
    "extreme_aspect": "the image is too narrow for the models' processors",
    "path_escapes": "the image path leaves the folder",
    "invalid_record": "a field has a value that the record forbids",
}


class BadRow(NamedTuple):
    """A row that became no problem: its number as read (from 0), its id if it has one, a key of REASONS, the value."""

    row: int
    id: str
    reason: str
    detail: str


def bad_frame(bad_rows: list[BadRow]) -> pd.DataFrame:
    """One row per bad row: row, id, reason, detail, and what the reason means."""
    table = pd.DataFrame(bad_rows, columns=BadRow._fields)
    return table.assign(meaning=table["reason"].map(REASONS))


Loaded = tuple[list[Problem], list[BadRow]]
Fetch = Callable[[Any], bytes]  # from the value of an image column to the bytes of the image


def load(
    source: str, sizes: dict[str, int], seed: int, out_dir: Path, *, path: str | Path = "", dataset_id: str = "",
    revision: str = "", hub_config: str = "", hub_splits: dict[str, str] | None = None, streaming: bool = False,
    columns: dict[str, str] = COLUMNS, benchmark: str = "", strict: bool = False, **dials: Any,
) -> Loaded:  # fmt: skip
    """The problems of `source` ("world", "files" or "hub") and the rows that could not be used.

    `sizes` are problems per split. Where the source has no splits of its own (no mapped "split" column, no `hub_splits`
    by our names), at most their sum is read and divided in these proportions, the problems of one image together.
    `benchmark` names an entry of the registry, which then says the rest (see `from_benchmark`); all of it is "test".
    `dials` go to `world.draw`. Images of an earlier run that no problem uses are removed from `out_dir`.
    """
    if benchmark and source != "hub":
        raise ValueError(f"benchmark {benchmark!r} is read from the hub: set source: hub, not {source}")
    if sum(sizes.values()) < 1 or min(sizes.values()) < 0:
        raise ValueError(f"sizes {sizes} ask for no problem or for less than none: set n_train, n_dev, n_test")
    common = {"columns": columns, "strict": strict}
    divided = "split" in columns
    if source == "world":
        problems, bad, divided = from_world(sizes, seed, out_dir, **dials), [], True
    elif source == "files":
        problems, bad = from_files(Path(path), out_dir, n=sum(sizes.values()), **common)
    elif source == "hub" and benchmark:
        if any(n for name, n in sizes.items() if name != "test"):
            raise ValueError(f"benchmark {benchmark!r} is for testing only: set n_train and n_dev to 0, not {sizes}")
        where = {"dataset_id": dataset_id, "revision": revision, "streaming": streaming}
        (problems, bad), divided = from_benchmark(benchmark, out_dir, n=sizes["test"], strict=strict, **where), True
    elif source == "hub":
        hub_splits = hub_splits or {"all": "train"}
        if not divided and 0 < len(set(hub_splits) & set(sizes)) < len(hub_splits):
            raise ValueError(f"hub_splits {hub_splits} name {sorted(sizes)} and others: name these or only others")
        divided |= set(hub_splits) <= set(sizes)
        limits = {ours: sizes[ours] if ours in sizes else sum(sizes.values()) for ours in hub_splits}
        hub_splits = {ours: theirs for ours, theirs in hub_splits.items() if limits[ours] > 0}
        problems, bad = from_hub(
            dataset_id, revision, hub_splits, out_dir, limits=limits, config=hub_config, streaming=streaming, **common
        )
    else:
        raise ValueError(f"source {source!r} is unknown: world, files or hub")
    if not divided:
        problems = split_by(problems, {name: n / sum(sizes.values()) for name, n in sizes.items()}, seed)
    prune(Path(out_dir), {problem.image for problem in problems})
    return problems, bad


def from_world(sizes: dict[str, int], seed: int, out_dir: Path, **dials: Any) -> list[Problem]:
    """`sizes[split]` problems per split of the embedded world, their images as PNG under `out_dir`/images."""
    problems = []
    for split, n in sizes.items():
        for problem, image in world.draw(n, seed, split, **dials):
            name, digest = store(png(image), ".png", out_dir)
            problems.append(problem.model_copy(update={"image": name, "image_sha256": digest}))
            problems[-1]._root = out_dir
    return problems


def from_files(
    path: Path, out_dir: Path, *, columns: dict[str, str] = COLUMNS, source: str = "", split: str = "all", n: int = 0,
    strict: bool = False,
) -> Loaded:  # fmt: skip
    """Problems of a JSON array or a JSON lines file (either may be .gz); image paths are relative to the file's folder.

    columns: what our id, question, answer, image, and if they exist choices, answer_type, split, are called there.
    source: defaults to the file's name. n: at most so many rows, 0 is all. strict: the first bad row is an error.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: set `path` to a .json or .jsonl file (.gz allowed)")
    rows = ((split, row) for row in islice(json_rows(path), n or None))
    return _collect(rows, lambda value: _local_image(value, path.parent), out_dir, columns, source or path.stem, strict)


def from_hub(
    dataset_id: str, revision: str, hub_splits: dict[str, str], out_dir: Path, *, columns: dict[str, str] = COLUMNS,
    config: str = "", limits: dict[str, int] | None = None, streaming: bool = False, strict: bool = False,
) -> Loaded:  # fmt: skip
    """Problems of a hub data set at one revision (commit, tag or branch), or of a local folder laid out like one.

    hub_splits: for each split of ours the one of the hub; slices such as "train[:100]" may be taken. limits: at most so
    many rows of a split of ours, 0 or no entry is all. streaming: read row by row, without the rest. Images may be an
    Image feature, raw bytes or the path of a file of the data set. Needs the network, unless the set is cached and the
    revision is a commit. The `source` of a problem is "dataset_id@commit".
    """
    if not dataset_id or not revision:
        given = f"dataset_id {dataset_id!r}, revision {revision!r}"
        raise ValueError(f"{given}: give both, so that a rerun reads the same rows")
    revision = _commit(dataset_id, revision)

    def rows() -> Iterator[tuple[str, Any]]:
        for ours, theirs in hub_splits.items():
            rows = _hub_rows(dataset_id, config, theirs, revision, streaming)
            yield from ((ours, row) for row in islice(rows, (limits or {}).get(ours) or None))

    fetch, source = _hub_image(dataset_id, revision)
    return _collect(rows(), fetch, out_dir, columns, source, strict)


def from_benchmark(
    name: str, out_dir: Path, *, n: int = 0, dataset_id: str = "", revision: str = "", streaming: bool = False,
    strict: bool = False,
) -> Loaded:  # fmt: skip
    """The problems of the benchmark called `name` in the registry, split "test", with what grades them.

    n: at most so many rows, 0 is all. dataset_id, revision: others than the registry's, such as a local folder of the
    same layout. Of several splits the i-th rows follow one another, so that the variants of a question stay together.
    """
    entry = registry.benchmark(name)
    if entry.use != "selection":
        raise ValueError(f"{name} holds labelled steps: read its file in 05_visualprocessbench (benchmark_path)")
    dataset_id = dataset_id or entry.dataset_id
    revision = _commit(dataset_id, revision or entry.revision or "main")

    def rows() -> Iterator[tuple[str, Any]]:
        for config in entry.configs:
            tables = [_hub_rows(dataset_id, config, split, revision, streaming) for split in entry.splits]
            for together in zip(*tables, strict=True):
                given = (row | {"split": split} for split, row in zip(entry.splits, together, strict=True))
                yield from (("test", row) for row in given if registry.wanted(entry, row))

    columns = {key: key for key in registry.COLUMNS}
    fetch, source = _hub_image(dataset_id, revision)
    convert = partial(registry.fields_of, name)
    return _collect(islice(rows(), n or None), fetch, out_dir, columns, source, strict, convert)


def _hub_rows(dataset_id: str, config: str, split: str, revision: str, streaming: bool) -> Iterable[Any]:
    """The rows of one split; images as the bytes that they are, so that what is checked is what is kept."""
    import datasets  # slow to import, and no other source needs it

    options = {"name": config or None, "revision": revision, "streaming": streaming}
    table = datasets.load_dataset(dataset_id, split=split, **options)
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _collect(
    rows: Iterable[tuple[str, Any]], fetch: Fetch, out_dir: Path, columns: dict[str, str], source: str, strict: bool,
    convert: Callable[[Any], Any] = lambda row: row,
) -> Loaded:  # fmt: skip
    unknown = set(columns) - set(COLUMNS) - set(OPTIONAL)
    if unknown or not set(COLUMNS) <= set(columns):
        raise ValueError(f"columns {columns} must map {sorted(COLUMNS)} and may map {sorted(OPTIONAL)}")
    problems, bad, seen = [], [], set()
    for number, (split, row) in enumerate(rows):
        try:
            values = _values(convert(row), columns, seen)
            problem = _problem(values, fetch(values["image"]), Path(out_dir), source, split)
        except Rejected as why:
            name = str(row.get(columns["id"], ""))[:100] if isinstance(row, dict) else ""
            bad.append(BadRow(number, name, why.reason, why.detail))
            if strict:
                where = f"{source}, row {number} ({name or 'no id'})"
                raise ValueError(f"{where}: {why}; correct it, or set strict: false") from why
        else:
            seen.add(problem.problem_id)
            problems.append(problem)
    return problems, bad


def _values(row: Any, columns: dict[str, str], seen: set[str]) -> dict[str, Any]:
    """The row's values under our names, with id, question and answer as clean text; Rejected if one is missing."""
    if row is None:
        raise Rejected("broken_row", f"no JSON object, or a line of {MAX_ROW} bytes or more")
    if not isinstance(row, dict):
        raise Rejected("broken_row", f"expected an object, found {type(row).__name__}")
    if missing := [f"{theirs!r} ({ours})" for ours, theirs in columns.items() if theirs not in row]:
        raise Rejected("missing_column", f"{', '.join(missing)} not among {sorted(map(str, row))}"[:500])
    values = {ours: row[theirs] for ours, theirs in columns.items()}
    values |= {key: clean(values[key]) for key in ("id", "question", "answer")}
    if not values["id"] or values["id"] in seen:
        raise Rejected("duplicate_id" if values["id"] else "empty_id", f"id {values['id'][:100]!r}")
    if not values["question"]:
        raise Rejected("empty_question", repr(row[columns["question"]])[:100])
    check_gold(values["answer"])
    return values


def _problem(values: dict[str, Any], raw: bytes, out_dir: Path, source: str, split: str) -> Problem:
    choices, gold = choices_of(values.get("choices"), values["answer"])
    _, suffix = decode(raw)
    image, digest = store(raw, suffix, out_dir)
    try:
        problem = Problem(
            problem_id=values["id"], question=values["question"], image=image, image_sha256=digest, answer=gold,
            answer_type=values.get("answer_type") or answer_type_of(values["question"], gold, choices),
            choices=choices, source=source, split=clean(values.get("split")) or split, grading=values.get("grading"),
        )  # fmt: skip
    except ValidationError as error:
        raise Rejected("invalid_record", faults(error)[:300]) from error
    problem._root = out_dir
    return problem


def _only(value: Any) -> Any:
    """The one image of a row; a list of one counts as one."""
    values = value if isinstance(value, list) else [value]
    if len(values) > 1:
        raise Rejected("several_images", f"{len(values)} images, a problem has one")
    if not values or values[0] is None or values[0] == "":
        raise Rejected("no_image", f"the image is {value!r}")
    return values[0]


def _local_image(value: Any, root: Path) -> bytes:
    value = _only(value)
    if not isinstance(value, str):
        raise Rejected("no_image", f"expected a path, found {type(value).__name__}")
    return read_bytes(inside(root, value))


def _hub_image(dataset_id: str, revision: str) -> tuple[Fetch, str]:
    """What reads an image column of the hub, and the name of the source, without a folder of this machine.

    The column may hold bytes, a Pillow image, {"bytes", "path"}, or a file's path.
    """
    from datasets import config

    local = Path(dataset_id).resolve() if Path(dataset_id).is_dir() else None
    caches = [local, Path(config.HF_DATASETS_CACHE).resolve(), Path(config.HF_CACHE_HOME).resolve()]

    def fetch(value: Any) -> bytes:
        value = _only(value)
        if isinstance(value, dict):
            value = value.get("bytes") or _cached_path(value.get("path"), [folder for folder in caches if folder])
        if isinstance(value, Image.Image):
            return png(value)
        if isinstance(value, bytes):
            return value
        if isinstance(value, Path):
            return read_bytes(value)
        if not isinstance(value, str):
            raise Rejected("no_image", f"expected an image, found {type(value).__name__}")
        return read_bytes(inside(local, value) if local else _download(dataset_id, revision, value))

    return fetch, f"{local.name if local else dataset_id}@{revision}"


def _cached_path(value: Any, folders: list[Path]) -> Path:
    """The file that the datasets library names, links followed (its cache is made of them), if it is one of its own."""
    if not value or "://" in str(value):
        raise Rejected("no_image", f"no bytes, and the path is {str(value)[:200]!r}; try without streaming")
    path = Path(value).resolve()
    if not any(path.is_relative_to(folder) for folder in folders):
        raise Rejected("path_escapes", f"{str(value)[:200]!r} is no file of the data set")
    return path


def _commit(dataset_id: str, revision: str) -> str:
    """The commit that a branch or tag of a hub data set stands for now; a commit, or what goes with a folder, as is."""
    if Path(dataset_id).is_dir() or (len(revision) == 40 and set(revision) <= set("0123456789abcdef")):
        return revision
    return registry.hub_commit(dataset_id, revision)


def _download(dataset_id: str, revision: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if name.startswith("/") or ".." in name.split("/") or "://" in name:
        raise Rejected("path_escapes", f"{name[:200]!r} is no path within the data set")
    try:
        return Path(hf_hub_download(dataset_id, name, repo_type="dataset", revision=revision)).resolve()
    except EntryNotFoundError as error:
        raise Rejected("no_image", f"{dataset_id}@{revision} has no file {name[:200]!r}") from error
