"""The parameters of a notebook: declared in its own cell, checked before anything runs.

papermill alone lets an unknown name pass with a warning, reads `1e-5` in YAML as text, and runs with the defaults when
the tag is lost; each of these is one clear error here. A declaration is a line of the cell tagged `parameters`:

    learning_rate: float = 1.0e-3  # [1e-6, 1e-1] peak, AdamW (paper: 4e-6)

A leading `[low, high]` (inclusive) or `{a, b, c}` in its comment is checked; for a list it holds for every entry.
"""

from __future__ import annotations

import ast
import copy
import io
import json
import math
import re
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TYPES: dict[str, type] = {t.__name__: t for t in (int, float, str, bool, list, dict)}


@dataclass(frozen=True)
class Parameter:
    """One declared parameter; at most one of `bounds` and `members` restricts its value."""

    name: str
    kind: type
    default: Any
    comment: str = ""
    bounds: tuple[float, float] | None = None
    members: tuple[Any, ...] | None = None


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook file, each a dict with `source` (one string), `tags` and `id`."""
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook} is missing: parameters are read from the notebook that declares them")
    cells = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            cells.append({"source": source, "tags": cell.get("metadata", {}).get("tags", []), "id": cell.get("id", "")})
    return cells


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares, by name, in order.

    ValueError if there is not exactly one cell tagged `parameters`, or if it holds anything but typed literals.
    """
    tagged = [cell["source"] for cell in code_cells(notebook) if "parameters" in cell["tags"]]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged `parameters`; tag exactly one")
    return declared_in(tagged[0], notebook.name)


def declared_in(source: str, where: str = "parameters") -> dict[str, Parameter]:
    """The parameters declared by the source of a cell, by name, in order; ValueError names the wrong line."""
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        try:
            parameter = _declaration(node, comments.get(node.end_lineno or node.lineno, ""))
        except ValueError as error:
            raise ValueError(f"{where}, line {node.lineno} of the parameters cell: {error}") from None
        if parameter.name in found:
            raise ValueError(f"{where}: parameter {parameter.name} is declared twice")
        found[parameter.name] = parameter
    return found


def _declaration(node: ast.stmt, comment: str) -> Parameter:
    """The parameter that a statement declares; ValueError if it is no typed literal or its default is out of range."""
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
        raise ValueError(
            f"{ast.unparse(node)!r} is no declaration; write `name: type = literal  # [lo, hi] what it is`"
        )
    kind = TYPES.get(ast.unparse(node.annotation))
    if kind is None:
        raise ValueError(f"type {ast.unparse(node.annotation)} of {node.target.id}: use one of {', '.join(TYPES)}")
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        raise ValueError(
            f"{node.target.id} is derived ({ast.unparse(node.value)}); derive it in a later cell"
        ) from None
    bounds, members = _restriction(comment, kind, default)
    parameter = Parameter(node.target.id, kind, default, comment, bounds, members)
    if errors := _errors(parameter, default):
        raise ValueError("; ".join(errors))
    return parameter


def _restriction(comment: str, kind: type, default: Any) -> tuple[tuple[float, float] | None, tuple[Any, ...] | None]:
    """The bounds or the members that a comment begins with; ValueError if it begins with a bracket and is neither."""
    if comment.startswith("["):
        match = re.match(r"\[\s*([^,\]\s]+)\s*,\s*([^,\]\s]+)\s*\]", comment)
        scalar = type(default[0]) if kind is list and default else kind
        if match is None or scalar not in (int, float):
            raise ValueError(f"range {comment.split(']')[0]}]: write [low, high], on numbers only")
        return (float(match[1]), float(match[2])), None
    if comment.startswith("{"):
        if "}" not in comment or kind is dict:
            raise ValueError(f"set {comment!r}: write {{a, b, c}}")
        words = [word.strip().strip("'\"") for word in comment[1 : comment.index("}")].split(",")]
        scalar = type(default[0]) if kind is list and default else kind
        return None, tuple(scalar(word) if scalar in (int, float) else word for word in words)
    return None, None


def shown(value: Any) -> str:
    """The value as an error shows it: one line, control characters escaped, 200 characters at most."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def read_yaml(path: Path) -> Any:
    """The value of a YAML file. ValueError naming the file if it is none, names a key twice, or repeats by an alias.

    PyYAML takes the last of two equal keys in silence; a few lines of aliases of aliases stand for gigabytes.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it holds an alias (*name): write the value out")
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no YAML: {str(error)[:500]}") from None
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # PyYAML's own, of `!!bool maybe`
        raise ValueError(f"{path}: no YAML: a value is not of the type that it names ({str(error)[:500]})") from None


def _check_keys(node: yaml.Node | None) -> None:
    """Nothing; ValueError if a mapping in a document holds a key twice."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    seen = set[str]()
    for key, _ in pairs:
        if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
            raise ValueError(f"{key.value[:100]!r} stands there twice (line {key.start_mark.line + 1}): remove one")
        seen.add(str(key.value))
    inner = [value for _, value in pairs] if pairs else node.value if isinstance(node, yaml.SequenceNode) else []
    for value in inner:
        _check_keys(value)


def _is(value: Any, kind: type) -> bool:
    """Whether a value has a type: an int may stand for a float, a bool for nothing else."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _wrong_type(name: str, kind: str, value: Any) -> str:
    """What is wrong, with the remedy where the mistake is a known one of YAML."""
    message = f"{name} must be {kind}, got {type(value).__name__} {shown(value)}"
    if isinstance(value, str):
        number = re.fullmatch(r"([+-]?\d+)[eE]([+-]?\d+)", value.strip())
        if number:
            return f"{message}: YAML reads {value} as text, write {number[1]}.0e{number[2]}"
        return f"{message}: remove the quotes if it is a number" if value.strip()[:1].isdigit() else message
    return f"{message}: put it in quotes" if kind == "str" else message


def _errors(parameter: Parameter, value: Any) -> list[str]:
    """All that is wrong with a value; empty if nothing."""
    if value is None:
        return [f"{parameter.name} is None; use a value of its type (an empty string, 0) that says so"]
    if not _is(value, parameter.kind):
        return [_wrong_type(parameter.name, parameter.kind.__name__, value)]
    if parameter.kind is dict:
        return []
    errors = []
    entries = value if parameter.kind is list else [value]
    kinds = {type(entry) for entry in parameter.default} if parameter.kind is list else set()
    for entry in entries:
        if isinstance(entry, int) and abs(entry) > sys.float_info.max:
            errors.append(f"{parameter.name} is {shown(entry)}, more than any number that is computed with")
        elif kinds and not any(_is(entry, kind) for kind in kinds):
            errors.append(
                _wrong_type(f"an entry of {parameter.name}", "/".join(sorted(k.__name__ for k in kinds)), entry)
            )
        elif isinstance(entry, float) and not math.isfinite(entry):
            errors.append(f"{parameter.name} is {entry}; give a finite number")
        elif parameter.bounds and not parameter.bounds[0] <= entry <= parameter.bounds[1]:
            low, high = parameter.bounds
            errors.append(f"{parameter.name} is {shown(entry)}, outside [{low:g}, {high:g}]")
        elif parameter.members is not None and entry not in parameter.members:
            errors.append(f"{parameter.name} is {shown(entry)}, not one of {', '.join(map(repr, parameter.members))}")
    return errors


def resolve(parameters: Mapping[str, Parameter], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every declared parameter with its given value or its default, in declaration order; the values are copies.

    One ValueError lists all that is wrong: unknown names, wrong types, values out of range.
    """
    unknown = [shown(name) if not str(name).isprintable() or len(str(name)) > 200 else name for name in given
               if name not in parameters]  # fmt: skip
    errors = [f"{name} is unknown; declared are: {', '.join(parameters)}" for name in unknown]
    values = {}
    for name, parameter in parameters.items():
        value = copy.deepcopy(given.get(name, parameter.default) if name in given else parameter.default)
        errors += _errors(parameter, value)
        values[name] = value
    if errors:
        raise ValueError(f"parameters of {where}:\n" + "\n".join(f"  - {error}" for error in errors))
    return {name: float(value) if parameters[name].kind is float else value for name, value in values.items()}


def check(parameters: Mapping[str, Parameter], namespace: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values that a running notebook holds for its declared parameters, checked as `resolve` does.

    Also found: a declared name that the kernel does not hold, a name that papermill injected and nobody declared, and
    an injected value that the notebook's own cell overwrote (which happens when the `parameters` tag is lost).
    """
    injected = injected_values(namespace.get("In", []))
    given = {name: namespace[name] for name in parameters if name in namespace}
    given.update({name: value for name, value in injected.items() if name not in parameters})
    errors = [f"{name} is missing: run the parameters cell first" for name in parameters if name not in namespace]
    errors += [
        f"{name} was given as {value!r} but is {namespace[name]!r}: the parameters cell ran after the injected one"
        for name, value in injected.items()
        if name in parameters and name in namespace and namespace[name] != value
    ]
    try:
        values = resolve(parameters, given, where)
    except ValueError as error:
        raise ValueError("\n".join([str(error), *(f"  - {e}" for e in errors)])) from None
    if errors:
        raise ValueError(f"parameters of {where}:\n" + "\n".join(f"  - {error}" for error in errors))
    return values


def injected_values(history: list[str]) -> dict[str, Any]:
    """The names and values of papermill's injected cell in IPython's input history; empty if there is none.

    It begins with "# Parameters"; a value that is no literal (`float("nan")`) is kept as its text.
    """
    values: dict[str, Any] = {}
    for source in history:
        if source.lstrip().startswith("# Parameters"):
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    try:
                        values[node.targets[0].id] = ast.literal_eval(node.value)
                    except ValueError:
                        values[node.targets[0].id] = ast.unparse(node.value)
    return values
