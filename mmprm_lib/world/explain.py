"""What a teacher who knows the truth says of a step, in the words of the world's vocabulary.

The intent names what is needed there, the image what the figure and the steps before give for it, the logic what the
step should say: the step itself exactly where it is right. So a model that learns to write such text reads and computes
by itself, and whether the two are alike is all that a verdict needs.
"""

import random
from typing import NamedTuple

from .families import parts
from .truth import ANSWER, CALC, NEUTRAL, READ, StepTruth, check_step, correct_step, operand, walk

INTENTS = {
    "read": ("Read {}", "Look at {}", "Read {} first", "Look at {} first"),
    "deduce": ("{}", "Compute {}", "Now {}", "Now compute {}"),
    "answer": ("Answer the Question", "Now Answer", "Answer: {}"),
}
IMAGES = ("{}", "Look: {}", "figure: {}")
LOGICS = ("{}", "Now {}", "True: {}")
SILENT = (  # of a step that claims nothing
    ("Look first", "Read first", "Look at the figure"),
    ("No statement", "No Answer from the figure"),
    ("No statement is False", "No statement to compute"),
)


class Explanation(NamedTuple):
    """GM-PRM's three aspects of a step, as sentences."""

    intent: str
    image: str
    logic: str


class Task(NamedTuple):
    """What a step is there for: a name, the facts it rests on, and what is to be written, with and without its head."""

    kind: str  # read, deduce, answer
    name: str
    facts: list[str]
    text: str
    said: str
    item: dict


def tasks(problem) -> list[Task]:
    """The planned steps of a problem and its answer, in order."""
    scene, results, heads, found = problem.scene, [], [], []
    names = {key: phrase for phrase, key in parts(scene["family"], scene["values"]).items()}
    for item, text in zip(scene["plan"], walk(scene["plan"], scene)[0], strict=True):
        if "read" in item:
            found.append(Task("read", item["read"], [text], text, text.rpartition(" ")[2], item))
            continue
        called, facts = [], []
        for ref in (item["left"], item["right"]):
            name = names.get(ref) or (heads[int(ref[1:])] if ref.startswith("r") else ref)
            called.append(name)
            facts += [] if ref.isdigit() else [f"{name} is {operand(ref, scene, results)}"]
        heads.append(item["head"])
        results.append(int(text.rpartition(" ")[2]))
        said = text.partition(": ")[2]
        found.append(Task("deduce", f"{item['head']} of {' and '.join(called)}", facts, text, said, item))
    facts, said = [f"{heads[-1]} is {results[-1]}"], str(results[-1])
    return [*found, Task("answer", heads[-1], facts, f"Answer: {problem.answer}", said, {})]


def _open(problem, prefix: list[str]) -> list[Task]:
    """The tasks that the prefix has not done; the answer is always among them."""
    done = {step.strip() for step in prefix}
    return [task for task in tasks(problem) if task.text not in done or task.kind == "answer"]


def _task(problem, prefix: list[str], step: str, judged: StepTruth) -> Task:
    """The task that a step is about; the next open one where the step is about none."""
    left, text = _open(problem, prefix), step.strip()
    if match := READ.fullmatch(text):
        key = parts(problem.scene["family"], problem.scene["values"]).get(match[1])
        value = problem.scene["values"].get(key)
        return left[0] if key is None else Task("read", match[1], [f"{match[1]} is {value}"], text, str(value), {})
    if match := CALC.fullmatch(text):
        same = [t for t in tasks(problem) if (t.item.get("head"), t.item.get("op")) == (match[1], match[3])]
        same.sort(key=lambda t: (sorted(t.said.split()) != sorted(match[0].partition(": ")[2].split()), t not in left))
        return same[0] if same else left[0]
    if ANSWER.fullmatch(text) and (judged.truth == 1 or len(left) == 1):
        return left[-1]
    return left[0]


def _due(problem, task: Task) -> tuple[str, list[str]]:
    """What the step should say, and the facts; an option's letter is looked up in the options."""
    if task.kind == "read":
        return f"{task.name} is {task.said}", task.facts
    options = dict(zip("ABCD", problem.choices, strict=False)) if task.kind == "answer" else {}
    return task.text, [*task.facts, *(f"{k} is {v}" for k, v in options.items() if k == problem.answer)]


def explain(problem, prefix: list[str], step: str, rng: random.Random) -> Explanation:
    """Intent, image and logic of `step` after `prefix`, in one of several wordings. Takes any text as a step.

    The logic states the step itself exactly where it is right.
    """
    judged, text = check_step(problem, prefix, step), step.strip()
    if text in NEUTRAL:
        return Explanation(*(rng.choice(words) for words in SILENT))
    task = _task(problem, prefix, step, judged)
    form = {"read": READ, "deduce": CALC, "answer": ANSWER}[task.kind]
    about = form.fullmatch(text) and (task.kind == "answer" or text.split(":")[0].startswith(_head(task)))
    due, facts = _due(problem, task) if about else (task.text, task.facts)
    due = text if judged.truth == 1 else due  # the same operands may stand in another order
    intent = rng.choice(INTENTS[task.kind]).format(task.name)
    return Explanation(intent, rng.choice(IMAGES).format(", ".join(facts)), rng.choice(LOGICS).format(due))


def _head(task: Task) -> str:
    return f"{task.name} is" if task.kind == "read" else task.item["head"]


def correction(problem, prefix: list[str], step: str) -> str:
    """What should stand in the place of a wrong step.

    The same step done right, if it is wanted and nothing that it rests on is missing; else the next planned one.
    """
    judged = check_step(problem, prefix, step)
    task, left = _task(problem, prefix, step, judged), _open(problem, prefix)
    for other in left if judged.intent else []:
        if (other.kind, other.name) == (task.kind, task.name):
            return other.text
        if other.kind != "read":
            break
    return correct_step(problem, prefix)
