"""What the embedded base is trained on: rows of short statements about one figure or about numbers, nothing else.

No solution of a problem, no PRM format and no Monte Carlo label is seen. Only scenes of the asked split are drawn, so
that skills can be measured on scenes never trained on.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from .models import IMAGE_SIZE, PATCH
from .world import FAMILIES, parts, render, split_of
from .world.truth import OPERATIONS, operand

JUDGE_TEXT, MARK = "Judge each statement.", " True?"
KINDS = {1: "reading", 2: "arithmetic", 3: "copying"}  # of a target; 4 is a judgement, 0 is not trained on
SKILLS = ("describe", "compute", "look_up", "copy", "tell", "judge")


def scene(rng: random.Random, split: str) -> tuple[dict, str]:
    """A scene of the split and one wording of its question."""
    while True:
        family = rng.choice(list(FAMILIES))
        draft = FAMILIES[family](rng, rng.random())
        found = {
            "family": family,
            "values": draft.values,
            "extra": draft.extra,
            "plan": draft.plan,
            "trap": draft.trap,
            "look": rng.randrange(2**31),
        }
        if split_of(found) == split:
            return found, rng.choice([draft.plain, draft.tricky])


def facts(found: dict, rng: random.Random) -> list[tuple[str, int]]:
    """The computations of a scene's plan or trap as (text up to "=", result); each value misread with chance 1/4."""
    unit = 5 if found["family"] == "triangle" else 1
    values = {
        k: v if rng.random() < 0.75 else max(0, v + unit * rng.choice([-2, -1, 1, 2]))
        for k, v in found["values"].items()
    }
    results, out = [], []
    for item in found[rng.choice(["plan", "trap"])]:
        if "head" in item:
            x, y = (operand(item[side], {"values": values}, results) for side in ("left", "right"))
            x, y = (y, x) if item["op"] == "-" and x < y else (x, y)
            results.append(OPERATIONS[item["op"]](x, y))
            out.append((f"{item['head']}: {x} {item['op']} {y} =", results[-1]))
    return out


def statement(found: dict, rng: random.Random) -> tuple[str, int, bool]:
    """(text without the value, the value it claims, whether that is true): a reading or a computation."""
    right = rng.random() < 0.5
    if rng.random() < 0.65:
        phrase, key = rng.choice(list(parts(found["family"], found["values"]).items()))
        value, unit = found["values"][key], 5 if found["family"] == "triangle" else 1
        others = [v for v in found["values"].values() if v != value] * 2
        wrong = rng.choice(others + [v for v in (value + d * unit for d in (-3, -2, -1, 1, 2, 3)) if v >= 0])
        return f"{phrase} is", value if right else wrong, right
    text, value = rng.choice(facts(found, rng))
    near = [value + d for d in (-10, -5, -2, -1, 1, 2, 5, 10) if value + d >= 0]
    return text, value if right else rng.choice(near), right


HEADS = [("Sum", "+"), ("Difference", "-"), ("Cost", "*"), ("Area", "*"), ("Half", "+"), ("Distance", "-")]


class Writer:
    """Turns scenes into token rows: (ids, next-token targets, kind of each target, image or None)."""

    def __init__(self, processor, seed: int, split: str = "train"):
        self.tokenizer, self.rng, self.split = processor.tokenizer, random.Random(f"{seed}/{split}/base"), split
        self.yes, self.no = (self.tokenizer(w)["input_ids"][0] for w in (" Yes", " No"))
        self.image = "<image>" * (IMAGE_SIZE // PATCH) ** 2
        self.cache: dict[str, list[int]] = {}
        self.options = ""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text)["input_ids"]
        return self.cache[text]

    def row(self, skill: str) -> dict:
        """One training row of a skill: `ids`, `targets` and `kinds` (token,), and the figure or None."""
        found, question = scene(self.rng, self.split)
        pieces = getattr(self, skill)(found)  # (text, kind of its targets), the kinds as in KINDS
        users = {
            "describe": "Describe the figure.",
            "compute": "Compute.",
            "copy": "Compute.",
            "judge": f"{question}\n{JUDGE_TEXT}",
        }
        user = users.get(skill, self.options)  # the skills that are not among them have written their own instruction
        seeing = skill in ("describe", "tell", "judge")
        head = self.encode("<|im_start|>user\n" + (self.image if seeing else "")) + self.encode(user)
        ids = head + self.encode("<|im_end|>\n<|im_start|>assistant\n")
        targets, kinds = [-100] * len(ids), [0] * len(ids)
        for text, kind in pieces:
            if kind == 4:  # the judgement is read at the mark and never written
                targets[-1], kinds[-1] = (self.yes if text == "yes" else self.no), 4
                continue
            new = self.encode(text)
            ids += new
            if kind:
                targets[-1], kinds[-1] = new[0], kind
            targets += (new[1:] if kind else [-100] * (len(new) - 1)) + [-100]
            kinds += [kind] * (len(new) - 1) + [0]
        return {"ids": ids, "targets": targets, "kinds": kinds, "image": render(found) if seeing else None}

    def describe(self, found: dict) -> list[tuple[str, int]]:
        """Every value that the figure shows, in any order."""
        items = list(parts(found["family"], found["values"]).items())
        self.rng.shuffle(items)
        return [x for phrase, key in items for x in ((f"{phrase} is", 0), (f" {found['values'][key]}", 1), ("\n\n", 0))]

    def compute(self, found: dict) -> list[tuple[str, int]]:
        """Up to six computations; their results are trained on."""
        known = [f for _ in range(4) for f in facts(scene(self.rng, self.split)[0], self.rng)][:6]
        return [x for text, value in known for x in ((text, 0), (f" {value}", 2), ("\n\n", 0))]

    def look_up(self, found: dict) -> list[tuple[str, int]]:
        """Eight computations, each with its answer: the letter of its option, or the number itself.

        Half of the lists hold numbers close to one another, so that no single digit gives an option away.
        """
        known: dict[int, str] = {}
        while len(known) < 4:
            known |= {value: text for text, value in facts(scene(self.rng, self.split)[0], self.rng)}
        options = self.rng.sample(list(known)[:4], 4)
        if self.rng.random() < 0.5:
            known, options = self.close(list(known)[0])
        listed, self.options = self.rng.random() < 0.8, "Compute."
        if listed:
            self.options += "\n" + " ".join(f"({k}) {v}" for k, v in zip("ABCD", options, strict=True))
        out = []
        for value in self.rng.sample(options * 2, 8):
            answer = "ABCD"[options.index(value)] if listed else str(value)
            out += [(known[value], 0), (f" {value}", 2), ("\n\nAnswer:", 0), (f" {answer}", 3), ("\n\n", 0)]
        return out

    def close(self, value: int) -> tuple[dict[int, str], list[int]]:
        """Sums whose results lie close to `value`, by result, and the four results in any order."""
        results = [value, *self.rng.sample([value + d for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0], 3)]
        parts_ = {z: self.rng.randint(0, min(9, z)) for z in results}
        return {z: f"Sum: {z - x} + {x} =" for z, x in parts_.items()}, self.rng.sample(results, 4)

    def copy(self, found: dict) -> list[tuple[str, int]]:
        """Numbers that are said, then taken up in computations, in the order in which they were said."""
        out = []
        for _ in range(3):
            found, _question = scene(self.rng, self.split)
            phrases = self.rng.sample(list(parts(found["family"], found["values"])), 2)
            head, op = self.rng.choice(HEADS)
            x, y = sorted((self.number(found, op), self.number(found, op)), reverse=op == "-")
            for phrase, value in zip(phrases, (x, y), strict=True):
                out += [(f"{phrase} is {value}\n\n", 0)]
            z = OPERATIONS[op](x, y)
            out += [(f"{head}:", 0), (f" {x}", 3), (f" {op}", 0), (f" {y}", 3), (" =", 0), (f" {z}", 2), ("\n\n", 0)]
            if self.rng.random() < 0.5:  # and on from the result
                head, op = self.rng.choice([("Sum", "+"), ("Difference", "-")])
                w = self.rng.randint(1, 9) if op == "+" or z > 9 else self.rng.randint(0, z)
                phrase = self.rng.choice(list(parts(found["family"], found["values"])))
                out += [(f"{phrase} is {w}\n\n{head}:", 0), (f" {z}", 3), (f" {op}", 0), (f" {w}", 3), (" =", 0)]
                z = OPERATIONS[op](z, w)
                out += [(f" {z}", 2), ("\n\n", 0)]
            if self.rng.random() < 0.5:
                out += [("Answer:", 0), (f" {z}", 3), ("\n\n", 0)]
        return out

    def tell(self, found: dict) -> list[tuple[str, int]]:
        """Two or three named values, read in the order of the instruction, and combined with the operation it names."""
        names = parts(found["family"], found["values"])
        chosen = self.rng.sample(list(names), min(len(names), self.rng.choice([2, 2, 3])))
        head, op = self.rng.choice(HEADS)
        values = [found["values"][names[phrase]] for phrase in chosen]
        if values[0] < values[1] and op == "-":
            chosen[:2], values[:2] = chosen[1::-1], values[1::-1]
        if op == "*" and max(values[:2]) > 12:
            head, op = "Sum", "+"
        self.options = f"{head} of {', '.join(phrase[0].lower() + phrase[1:] for phrase in chosen)}."
        z = OPERATIONS[op](*values[:2])
        out = [
            x
            for phrase, v in zip(chosen, values, strict=True)
            for x in ((f"{phrase} is", 3), (f" {v}", 1), ("\n\n", 3))
        ]
        out += [(f"{head}:", 3), (f" {values[0]}", 3), (f" {op}", 3), (f" {values[1]}", 3), (" =", 3), (f" {z}", 2)]
        return [*out, ("\n\n", 3), ("Answer:", 3), (f" {z}", 3), ("<|im_end|>", 3)]

    def number(self, found: dict, op: str) -> int:
        """A number such as the figures of the scene's family show, small if it is multiplied."""
        if found["family"] == "triangle" and op != "*":
            return 5 * self.rng.randint(4, 19)
        return self.rng.randint(1, 9)

    def judge(self, found: dict) -> list[tuple[str, int]]:
        """Eight statements, half of them false; read and computed values are trained on where they are true."""
        out = []
        for _ in range(8):
            text, value, right = statement(found, self.rng)
            kind = (1 if " is" in text else 2) if right else 0
            out += [(text, 0), (f" {value}", kind), (MARK, 0), ("yes" if right else "no", 4), ("\n\n", 0)]
        return out


class Stage(NamedTuple):
    """A stretch of the training: its updates, the share of every skill, and the learning rate's factor.

    The factor rises over 50 updates, holds, and from the share `falls` of the stage on falls in a line to 3 % of it.
    """

    updates: int
    shares: dict[str, float]
    factor: float
    falls: float


# A model that cannot see learns to judge by looks only: so it reads first, then judges, then restates numbers, and at
# last does as it is told.
STAGES = (
    Stage(1000, dict(describe=0.8, compute=0.12, look_up=0.08), 1.0, 0.5),
    Stage(750, dict(describe=0.2, compute=0.05, look_up=0.17, judge=0.58), 0.8, 1.0),
    Stage(600, dict(describe=0.15, look_up=0.25, copy=0.3, judge=0.3), 0.6, 1.0),
    Stage(900, dict(describe=0.05, look_up=0.25, copy=0.15, tell=0.35, judge=0.2), 0.6, 0.3),
)


def pace(update: int, stages: tuple[Stage, ...] = STAGES) -> float:
    """The learning rate's factor at an update of the whole training."""
    for stage in stages:
        if update < stage.updates:
            fall = stage.updates * (1 - stage.falls)
            return stage.factor * min(
                1.0, (update + 1) / 50, max(0.03, (stage.updates - update) / fall if fall else 1.0)
            )
        update -= stage.updates
    return 0.0


def rows(processor, seed: int, batch: int, stages: tuple[Stage, ...] = STAGES) -> Iterator[dict]:
    """Rows of the whole training, update by update, `batch` to an update."""
    writer = Writer(processor, seed)
    for stage in stages:
        for _ in range(stage.updates):
            for skill in writer.rng.choices(list(stage.shares), list(stage.shares.values()), k=batch - 1):
                yield writer.row(skill)
            yield writer.row("describe")  # no batch is without a figure
