"""The truth about every possible step: is it right, which of GM-PRM's three aspects fails, what should stand there.

Convention (VisualProcessBench judges every step on its own): a step is right when it does something the solution needs,
with values that the figure shows, and computes correctly. A step that carries an earlier mistake on uses a value that
the figure does not show, and is wrong; a later step that reads the figure correctly is right again.
"""

import random
import re
from typing import NamedTuple

from .families import parts

OPERATIONS = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}
NEUTRAL = ("Look at the figure", "Now compute", "Read the figure first")
READ = re.compile(r"([A-Za-z]+(?: [A-Za-z])?) is (\d{1,6})")
CALC = re.compile(r"([A-Za-z]+): (\d{1,6}) ([-+*]) (\d{1,6}) = (\d{1,6})")
ANSWER = re.compile(r"Answer: (\d{1,6}|[A-D])")


class StepTruth(NamedTuple):
    """truth: 1 right, -1 wrong, 0 neutral; the aspects of GM-PRM: does the step fit the task, the figure, the logic."""

    truth: int
    intent: bool = True
    image: bool = True
    logic: bool = True


def operand(ref: str, scene: dict, results: list[int]) -> int:
    """The number that an operand stands for: a constant, an earlier result, or a value in the figure."""
    if ref.isdigit():
        return int(ref)
    if re.fullmatch(r"r\d", ref):
        return results[int(ref[1:])]
    return scene["values"][ref]


def step_text(item: dict, scene: dict, results: list[int]) -> str:
    """The right step for one item of a plan, given the results so far; appends its own result to them."""
    if "read" in item:
        return f"{item['read']} is {scene['values'][item['takes']]}"
    x, y = operand(item["left"], scene, results), operand(item["right"], scene, results)
    results.append(OPERATIONS[item["op"]](x, y))
    return f"{item['head']}: {x} {item['op']} {y} = {results[-1]}"


def walk(plan: list[dict], scene: dict) -> tuple[list[str], int]:
    """The steps of a plan without its answer step, and the plan's result."""
    results: list[int] = []
    steps = [step_text(item, scene, results) for item in plan]
    return steps, results[-1]


def answer_step(result: int, choices: list[str], rng: random.Random) -> str:
    """The last step; with choices, the letter of the option that holds the result, or a guess when none does."""
    if not choices:
        return f"Answer: {result}"
    place = choices.index(str(result)) if str(result) in choices else rng.randrange(len(choices))
    return f"Answer: {'ABCD'[place]}"


def solve(problem) -> list[str]:
    """The worked solution, every step right."""
    steps, _ = walk(problem.scene["plan"], problem.scene)
    return steps + [f"Answer: {problem.answer}"]


def _planned(problem) -> list[str]:
    return walk(problem.scene["plan"], problem.scene)[0]


def _open_steps(problem, prefix: list[str]) -> list[int]:
    """Places of the planned steps that the prefix has not done yet."""
    left = list(enumerate(_planned(problem)))
    for step in prefix:
        left = [(i, text) for i, text in left if text != step.strip()]
    return [i for i, _ in left]


def check_step(problem, prefix: list[str], step: str) -> StepTruth:
    """The truth about `step` after `prefix`: StepTruth(truth, intent, image, logic). Takes any text."""
    text, scene = step.strip(), problem.scene
    if text in NEUTRAL:
        return StepTruth(0)
    if match := ANSWER.fullmatch(text):
        return _check_answer(problem, prefix, match[1])
    if match := READ.fullmatch(text):
        return _check_read(scene, match)
    if match := CALC.fullmatch(text):
        return _check_calc(problem, prefix, match)
    return StepTruth(-1, intent=False, image=False, logic=False)


def _check_answer(problem, prefix: list[str], answer: str) -> StepTruth:
    right = answer == problem.answer
    done = not _open_steps(problem, prefix)
    last = re.search(r"= (\d+)$", prefix[-1].strip()) if prefix else None
    said = answer if answer.isdigit() else dict(zip("ABCD", problem.choices, strict=False)).get(answer, "")
    logic = last is not None and last[1] == said  # it says what the step before it computed
    return StepTruth(1 if right else -1, intent=right or done, image=right, logic=right or logic)


def _check_read(scene: dict, match: re.Match) -> StepTruth:
    phrase, value = match[1], int(match[2])
    needed = {item["read"] for item in scene["plan"] if "read" in item}
    key = parts(scene["family"], scene["values"]).get(phrase)
    if key is None:  # the figure has no such part
        return StepTruth(-1, intent=False, image=False)
    seen = scene["values"][key] == value
    if phrase not in needed:  # true, but of no use here
        return StepTruth(0 if seen else -1, intent=False, image=seen)
    return StepTruth(1 if seen else -1, image=seen)


def _check_calc(problem, prefix: list[str], match: re.Match) -> StepTruth:
    head, x, op, y, z = match[1], int(match[2]), match[3], int(match[4]), int(match[5])
    scene, results, fits, right = problem.scene, [], False, False
    for item in scene["plan"]:
        if "head" not in item:
            continue
        a, b = operand(item["left"], scene, results), operand(item["right"], scene, results)
        results.append(OPERATIONS[item["op"]](a, b))
        if (item["head"], item["op"]) == (head, op):
            fits = True
            right = right or (x, y) == (a, b) or (op != "-" and (y, x) == (a, b))
    # right values of the wrong parts are a wrong intent; values that nothing shows are a wrong reading, carried on
    known = {x, y} <= {*scene["values"].values(), *results}
    logic = OPERATIONS[op](x, y) == z
    return StepTruth(1 if right and logic else -1, fits and (right or not known), right or known, logic)


def truth(problem, steps: list[str]) -> list[int]:
    """1, 0 or -1 for every step of a solution."""
    return [check_step(problem, steps[:i], step).truth for i, step in enumerate(steps)]


def correct_step(problem, prefix: list[str]) -> str:
    """The step that should stand after `prefix`: the first planned step not done there, else the right answer."""
    left = _open_steps(problem, prefix)
    return _planned(problem)[left[0]] if left else f"Answer: {problem.answer}"


def first_error(problem, steps: list[str]) -> int | None:
    """Place of the first wrong step, None when there is none."""
    return next((i for i, t in enumerate(truth(problem, steps)) if t == -1), None)


def corpus_solution(
    problem,
    rng: random.Random,
    slip: float = 0.06,
    misconception: float = 0.65,
    background: float = 0.03,
    neutral: float = 0.15,
) -> list[str]:
    """A solution as a scraped corpus holds it: mostly right, with two sorts of error.

    slip: chance of an independent error in each step (a misread value, an arithmetic slip), in [0, 1].
    misconception: chance that a problem in its tricky wording is solved by its trap; background: the same for plain
    wordings.
    neutral: chance of an opening step that claims nothing.
    """
    scene = problem.scene
    trapped = rng.random() < (misconception if scene["tricky"] else background)
    steps, seen, results = [], {}, []
    for item in scene["trap" if trapped else "plan"]:
        if "read" in item:
            value = scene["values"][item["takes"]]
            seen[item["key"]] = _misread(value, scene, rng) if rng.random() < slip else value
            steps.append(f"{item['read']} is {seen[item['key']]}")
            continue
        world = {"values": {**scene["values"], **seen}}
        x, y, op = operand(item["left"], world, results), operand(item["right"], world, results), item["op"]
        if op == "-" and x < y:  # after a misreading: the larger first, as a writer would
            x, y = y, x
        z = OPERATIONS[op](x, y)
        results.append(max(0, z + rng.choice([-10, -2, -1, 1, 2, 10])) if rng.random() < slip else z)
        steps.append(f"{item['head']}: {x} {op} {y} = {results[-1]}")
    if rng.random() < neutral:
        steps.insert(0, rng.choice(NEUTRAL))
    return steps + [answer_step(results[-1], problem.choices, rng)]


def _misread(value: int, scene: dict, rng: random.Random) -> int:
    others = [v for v in scene["values"].values() if v != value]
    unit = 5 if scene["family"] == "triangle" else 1
    return rng.choice(others * 2 + [max(0, value + d * unit) for d in (-2, -1, 1, 2)])


def step_kind(step: str) -> str:
    """What a step does, by its form: "read", "deduce", "answer", "neutral", or "other" for any other text."""
    forms = {"read": READ, "deduce": CALC, "answer": ANSWER}
    if step.strip() in NEUTRAL:
        return "neutral"
    return next((kind for kind, form in forms.items() if form.fullmatch(step.strip())), "other")


def error_kind(judged: StepTruth) -> str:
    """The first of GM-PRM's aspects in which a wrong step fails: "intent", "image" or "logic"; "" if it does not."""
    if judged.truth != -1:
        return ""
    return next((name for name in ("intent", "image", "logic") if not getattr(judged, name)), "logic")
