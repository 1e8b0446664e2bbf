"""Published golds beside the repository, for what is measured on them: python -m tests.golds writes docs/answers.md."""

from __future__ import annotations

import json
from pathlib import Path

from mmprm_lib.answer_survey import Gold, document, survey
from tests.conftest import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
DOCUMENT = REPOSITORY / "docs" / "answers.md"
SETS = {
    "MM-K12": "the published part of the test set",
    "SciBench": "questions with a picture, numbers with their units",
    "TheoremQA": "typed golds: integers, floats, truth values, lists, options",
    "MATH-500": "expressions, tuples, text",
}


def golds(data: Path = DATA) -> list[Gold]:
    """The golds of all sets, in the order of their files. FileNotFoundError where they are not there."""
    found = [Gold("MM-K12", row["answer"]) for row in json.loads((data / "mm_k12" / "k12.json").read_text())]
    for row in map(json.loads, filter(str.strip, (data / "scibench" / "multimodal.jsonl").read_text().splitlines())):
        number, unit = row["answer_number"].strip(), row["unit"].strip().strip("$")
        found.append(Gold("SciBench", f"{number} {unit}".strip(), "number"))
    for row in json.loads((data / "answers" / "theoremqa_test.json").read_text()):
        found.append(Gold("TheoremQA", str(row["Answer"]), "text" if row["Answer_type"] == "bool" else "expression"))
    lines = (data / "answers" / "math500_test.jsonl").read_text().splitlines()
    return found + [Gold("MATH-500", json.loads(line)["answer"]) for line in lines]


if __name__ == "__main__":
    DOCUMENT.write_text(document(survey(golds()), SETS), encoding="utf-8")
