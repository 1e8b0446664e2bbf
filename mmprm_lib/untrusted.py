"""What lies beside the weights of a checkpoint that others made is read before transformers follows it: indices, the
configuration, adapters.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ADAPTER, INDEX = "adapter_config.json", "model.safetensors.index.json"
MAX_LAYERS = 1000  # that a config.json may ask for; the largest models have some 130
MERGE = "merge it into its base (merge_and_unload of peft), save that, and name its folder"


def check_index(folder: Path) -> None:
    """Nothing; ValueError if `folder` is a file, or a folder without safetensors, with an index of other files, with a
    config.json that leads elsewhere, or with an adapter alone.

    transformers would follow the names of an index and the base of an adapter wherever they lead, and would unpickle
    what does not end in .safetensors. What is no folder is left to `check_hub`.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give the folder of a checkpoint, of which the .safetensors are read")
    if not folder.is_dir():
        return
    for index in folder.glob("*.index.json"):
        _check_names(index)
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no .safetensors file: weights in other formats are not read, convert them")
    if (folder / "config.json").is_file():
        _check_config(folder / "config.json")
    elif (folder / ADAPTER).exists():
        raise ValueError(f"{folder} is an adapter without its model: {MERGE}")


def check_hub(name: str, revision: str | None = None) -> str | None:
    """The commit of a hub id that was checked, `revision` where neither the hub nor its cache has one.

    ValueError for what `check_index` refuses in a folder, and for any adapter, whose base transformers would load in
    the place of this model. Only the small files are fetched.
    """
    config = _fetched(name, "config.json", revision)
    if config:
        revision = config.parent.name  # .../snapshots/<commit>/config.json: the other files are of the same
    if _fetched(name, ADAPTER, revision):
        raise ValueError(f"{name} is an adapter, whose base would be loaded unchecked: {MERGE}")
    if index := _fetched(name, (config and _check_config(config)) or INDEX, revision):
        _check_names(index)
    return revision


def _fetched(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a hub id in the cache, fetched if need be; None if there is none, or no hub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except (OSError, ValueError):  # no such file, no such name, no network: whoever loads it says what is missing
        return None


def _check_names(index: Path) -> None:
    """Nothing; ValueError if an index of weights names anything but .safetensors files beside it."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights: {type(error).__name__}; fetch it again") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{index} names {str(name)[:100]!r}: only .safetensors files of its folder are read")


def _check_config(path: Path) -> str:
    """The index of weights that a config.json names, "" if it names none; ValueError for a file of another kind or
    place, and for what `check_layers` refuses.
    """
    config = read_object(path)
    named = config.get("transformers_weights") or ""
    if named and not (isinstance(named, str) and re.fullmatch(r"[\w.-]+\.safetensors(\.index\.json)?", named)):
        raise ValueError(f"{path} names {str(named)[:100]!r}: only .safetensors files of its folder are read")
    check_layers(config, path)
    return named if named.endswith(".index.json") else ""


def check_layers(config: dict[str, Any], path: Path) -> None:
    """Nothing; ValueError if the configuration in `path` has more than MAX_LAYERS, which would be built one by one
    before anything is read, without end.
    """
    parts = [config]
    for part in parts:
        parts += [value for value in part.values() if isinstance(value, dict)]
        for key, value in part.items():
            if ("layers" in key or key == "depth") and isinstance(value, int) and value > MAX_LAYERS:
                raise ValueError(f"{path}: {key[:100]!r} is more than {MAX_LAYERS}: fetch it again")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError that names the file if it holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {type(error).__name__}; fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object: fetch it again")
    return found


def reason(error: Exception) -> str:
    """What an error says of such a file: its kind and message, one printable line of some 300 characters at most."""
    text = "".join(c for c in " ".join(str(error)[:3000].split()) if c.isprintable())
    return f"{type(error).__name__}: {text[:300]}"
