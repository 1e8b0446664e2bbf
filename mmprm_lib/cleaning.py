"""Executed notebooks as they are kept: without times, random ids, paths of the machine, and refreshes of bars."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import provenance
from .schema import write_bytes


def clean(path: Path) -> None:
    """Nothing; takes out of an executed notebook what differs between two equal runs: times, random ids, machine paths,
    the refreshes of progress bars. The parameters stay, in their cell.
    """
    if not path.is_file():
        return
    notebook = json.loads(path.read_text(encoding="utf-8"))
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    spec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook["metadata"] = {"kernelspec": spec, "language_info": language}
    for position, cell in enumerate(notebook["cells"]):
        tags = cell.get("metadata", {}).get("tags", [])
        cell["metadata"] = {"tags": tags} if tags else {}
        cell["id"] = f"injected-{position}" if "injected-parameters" in tags else cell.get("id", f"cell-{position}")
        for output in cell.get("outputs", []):
            _clean_output(output)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    write_bytes(path, [text.encode(), b"\n"])


def _clean_output(output: dict[str, Any]) -> None:
    """Nothing; changes the texts of an output, never its images (where "/tmp" may stand by chance)."""
    output.get("metadata", {}).pop("execution", None)
    for place in (output, output.get("data", {})):
        for key in {"text", "text/plain", "text/html", "traceback", "evalue"} & place.keys():
            value = place[key]
            if isinstance(value, list) and key != "traceback":
                value = "".join(value)
            if isinstance(value, list):
                place[key] = [_without_paths(line) for line in value]
            elif "base64," not in value:
                place[key] = _without_paths(_last_refresh(value) if key == "text" else value)


def _last_refresh(text: str) -> str:
    """Text as a terminal would leave it: of what `\\r` overwrites only the last, and a bar without its times."""
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join(re.sub(r"(\d+/\d+|\dit) \[[\d:?]+[<,][^\]]*\]", r"\1", line) for line in lines)


def _without_paths(text: str) -> str:
    """Text with the folders of this machine named by what they are."""
    found = {str(provenance.results_root()): "results", str(provenance.project_root()): ".", sys.prefix: ".venv"}
    found |= {str(Path.home()): "~", tempfile.gettempdir(): "<tmp>"}
    # the longest first, because the results lie in the project and the project in the home folder
    for path in sorted(found, key=len, reverse=True):
        if len(path) > 2:
            text = re.sub(re.escape(path) + r"(?![\w-])", lambda _, path=path: found[path], text)
    return text
