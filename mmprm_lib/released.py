"""PRMs that others trained, scored as they are: the choices that a user makes by name, as a Format.

What a checkpoint saw is seldom published in full, and where it is, training and evaluation differ. So every choice has
a name in the parameter `formats` of the notebooks: {scorer: {choice: value}}; params/released/ holds what is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from . import models
from .prm import add_marker, load_prm
from .provenance import project_root
from .scoring import Scorer
from .steps import FORMATS, MARKER, Format

TEXTS = [field.name for field in fields(Format) if field.name != "kind"]
CHOICES = ["format", *TEXTS, "system_file", "history", "threshold"]
FROM_CHECKPOINT = "checkpoint"  # as system_file: the message that the checkpoint's configuration holds


def check_choices(formats: Mapping[str, Any]) -> None:
    """Nothing; ValueError naming the scorer whose choices are none, and what there is to choose."""
    for name, choices in formats.items():
        if not isinstance(choices, dict) or set(choices) - set(CHOICES):
            raise ValueError(f"formats of {name!r} are {choices!r}: choose among {', '.join(CHOICES)}")
        if choices.get("format") not in FORMATS:
            known = ", ".join(FORMATS)
            raise ValueError(f"formats of {name!r}: format is {choices.get('format')!r}, not one of {known}")
        words = choices.get("labels", [])
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"formats of {name!r}: labels are {words!r}: give words, in quotes (Yes is true)")
        if not 0 <= float(choices.get("threshold", 0.5)) <= 1:
            raise ValueError(f"formats of {name!r}: threshold is {choices['threshold']}, a score is from 0 to 1")


def system_file(choices: Mapping[str, Any]) -> str:
    """The text file that holds the system message, as `choices` name it; "" if none does."""
    source = choices.get("system_file", "")
    return "" if source == FROM_CHECKPOINT else source


def read_format(name: str, choices: Mapping[str, Any], config: Any, root: Path) -> tuple[Format, dict[str, Any]]:
    """(format, options of the Scorer) that `choices` make of one of FORMATS.

    `system_file` is a text file below `root`, or "checkpoint": the `system_message` of `config`. Without it there is no
    system turn but the one that the checkpoint's chat template writes by itself: FORMATS' own words are for the PRMs of
    this project. ValueError where a choice is unknown, or that message is wanted and not there.
    """
    check_choices({name: choices})
    texts = {"system": ""} | {key: choices[key] for key in TEXTS if key in choices}
    if "labels" in texts:
        texts["labels"] = tuple(texts["labels"])
    if path := system_file(choices):
        texts["system"] = (root / path).read_text(encoding="utf-8").rstrip("\n")
    elif choices.get("system_file"):
        texts["system"] = getattr(config, "system_message", None) or ""
        if not texts["system"]:
            raise ValueError(f"{name}: the configuration has no system_message: set system_file to a text file")
    options = {key: choices[key] for key in ("history", "threshold") if key in choices}
    return replace(FORMATS[choices["format"]], **texts), options


def scorer_at(
    name: str, where: str, place: str | Path, load_options: Mapping[str, Any], choices: Mapping[str, Any],
    **options: Any,
) -> Scorer:  # fmt: skip
    """The PRM at `place` (`where`, as the user wrote it) as a Scorer called `name`; `options` are Scorer's.

    One saved by `prm.train` knows its format, one that others trained is read by `choices`, and a plain model in the
    format that `name` begins with. ValueError if none of these fits. `load_options` go to `models.load`.
    """
    if isinstance(place, Path) and (place / "prm.json").is_file():
        if choices:
            raise ValueError(f"{name} at {where!r} was saved with its format: leave it out of formats")
        prm = load_prm(place, **load_options)
        form, model, processor = prm.form, prm.model, prm.processor
    elif choices:
        check_choices({name: choices})
        model, processor = models.load(place, **load_options)
        form, chosen = read_format(name, choices, model.config, project_root())
        options = chosen | options  # what the caller says of the history comes first
    else:
        kinds = [kind for kind in FORMATS if name == kind or name.startswith(f"{kind}_")]
        if not kinds:
            raise ValueError(f"{name!r} at {where!r} is no trained PRM: name it after one of {', '.join(FORMATS)}")
        form = FORMATS[max(kinds, key=len)]
        model, processor = models.load(place, **load_options)
        if form.marker == MARKER:
            add_marker(model, processor)
    return Scorer(form, model, processor, name=name, **options)
