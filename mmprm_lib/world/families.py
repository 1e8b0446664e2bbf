"""Five families of problems: what the figure holds, what is asked, how it is solved, and how people go wrong.

A scene is plain data: the values in the figure, the plan (the steps a right solution takes) and the trap (the plan of
somebody who holds the scene's misconception). Everything else in `world` is computed from it.
"""

import random
import re
from typing import NamedTuple

LETTERS = "ABCD"


class Draft(NamedTuple):
    """A question about a figure, before it becomes a problem."""

    values: dict[str, int]  # what the figure shows, by name
    plain: str  # a wording that nobody trips over
    tricky: str  # a wording that invites the misconception
    plan: list[dict]
    trap: list[dict]
    extra: dict  # what else the renderer must know: the corner whose angle is asked


def read(phrase: str, key: str, takes: str = "") -> dict:
    """A step that reads the value `key`; with `takes`, the value of another part is read in its place."""
    return {"read": phrase, "key": key, "takes": takes or key}


def calc(head: str, left: str, op: str, right: str) -> dict:
    """A step that computes; an operand is the name of a value, a constant such as "180", or "r0", an earlier result."""
    return {"head": head, "left": left, "op": op, "right": right}


def bars(rng: random.Random, hard: float) -> Draft:
    """Four bars of height 1 to 9; three of them are combined."""
    values = {k: rng.randint(1, 9) for k in LETTERS}
    a, c = rng.sample(LETTERS, 2)
    b = rng.choice([k for k in "ABC" if k not in (a, c)])  # not D: some bar must stand after it
    after = LETTERS[LETTERS.index(b) + 1]
    kinds = ["add_take", "take_add", "add_add"] if rng.random() < hard else ["add", "take"]
    kind = rng.choice(kinds)
    if kind.startswith("take") and values[a] < values[b]:
        values[a], values[b] = values[b], values[a]
    if kind == "add_take" and values[a] + values[b] < values[c]:
        kind = "add_add"
    first = ("Sum", "+") if kind.startswith("add") else ("Difference", "-")
    start = "What are bar {a} and {b} together" if kind.startswith("add") else "How much more is bar {a} than {b}"
    tail = {"take": ", less bar {c}", "add": ", plus bar {c}"}.get(kind.partition("_")[2], "")
    plain, tricky = ((start + tail + "?").format(a=a, b=who, c=c) for who in (f"bar {b}", f"the bar before {after}"))
    plan = [read(f"Bar {a}", a), read(f"Bar {b}", b), calc(first[0], a, first[1], b)]
    trap = [plan[0], read(f"Bar {b}", b, takes=after), plan[2]]  # the neighbouring bar
    more = []
    if tail:
        last = calc("Sum", "r0", "+", c) if kind.endswith("add") else calc("Difference", "r0", "-", c)
        more = [read(f"Bar {c}", c), last]
    return Draft(values, plain, tricky, plan + more, trap + more, {})


def table(rng: random.Random, hard: float) -> Draft:
    """Three goods with price and count; the cost of one stock, with or without one piece of another good."""
    values = {f"{column} {k}": rng.randint(2, 9) for column in ("price", "count") for k in "ABC"}
    a, b = rng.sample("ABC", 2)
    plan = [read(f"Price {a}", f"price {a}"), read(f"Count {a}", f"count {a}")]
    cost = calc("Cost", f"price {a}", "*", f"count {a}")
    trap = plan + [calc("Cost", f"price {a}", "+", f"count {a}")]  # adds where it should multiply
    plain, tricky = f"What do all the {a} cost", f"What is the whole stock of {a} worth"
    more, tail = [], "?"
    if rng.random() < hard:
        word, head, op = rng.choice([("plus", "Sum", "+"), ("less", "Difference", "-")])
        if op == "-" and values[f"price {a}"] + values[f"count {a}"] < values[f"price {b}"]:
            word, head, op = "plus", "Sum", "+"
        more, tail = [read(f"Price {b}", f"price {b}"), calc(head, "r0", op, f"price {b}")], f", {word} one {b}?"
    return Draft(values, plain + tail, tricky + tail, plan + [cost] + more, trap + more, {})


def triangle(rng: random.Random, hard: float) -> Draft:
    """Two angles are given, multiples of 5 degrees; the third, or the outer angle beside it, is asked."""
    x = rng.choice("ABC")
    a, b = [k for k in "ABC" if k != x]
    while True:
        values = {a: 5 * rng.randint(4, 19), b: 5 * rng.randint(4, 19)}
        if 25 <= 180 - sum(values.values()) <= 120:
            break
    start = [read(f"Angle {a}", a), read(f"Angle {b}", b), calc("Sum", a, "+", b)]
    third = calc("Angle", "180", "-", "r0")
    if rng.random() < hard:  # the outer angle is the sum of the other two: the trap subtracts once too often
        return Draft(
            values,
            f"What is the outer angle at {x}?",
            f"How far does a line turn at {x}?",
            start,
            start + [third],
            {"open": x},
        )
    return Draft(values, f"What is angle {x}?", f"How wide is the corner {x}?", start + [third], start, {"open": x})


def rectangle(rng: random.Random, hard: float) -> Draft:
    """Sides a and b (2 to 12) and a gate g: perimeter or area, with or without the gate."""
    values = {"a": rng.randint(2, 12), "b": rng.randint(2, 12), "g": rng.randint(1, 6)}
    sides = [read("Side a", "a"), read("Side b", "b")]
    around = [calc("Half", "a", "+", "b"), calc("Perimeter", "2", "*", "r0")]
    inside = [calc("Area", "a", "*", "b")]
    if rng.random() < 0.5:
        plain, tricky, plan, trap = "What is the perimeter", "How long is the way around", around, inside
    else:
        plain, tricky, plan, trap = "What is the area", "How much room is inside", inside, around[:1]
    ask, tails = "?", ([], [])
    if rng.random() < hard and min(values["a"] * values["b"], values["a"] + values["b"]) >= values["g"]:
        word, head, op = rng.choice([("plus", "Sum", "+"), ("less", "Difference", "-")])
        ask = f", {word} the gate?"
        tails = tuple([read("Gate", "g"), calc(head, f"r{len(p) - 1}", op, "g")] for p in (plan, trap))
    return Draft(values, plain + ask, tricky + ask, sides + plan + tails[0], sides + trap + tails[1], {})


def line(rng: random.Random, hard: float) -> Draft:
    """Three points on a number line from 0 to 9: a distance, or the length of a walk."""
    values = dict(zip("ABC", rng.sample(range(10), 3), strict=True))
    a, b, c = rng.sample("ABC", 3)

    def far(x: str, y: str) -> dict:
        return calc("Distance", x, "-", y) if values[x] > values[y] else calc("Distance", y, "-", x)

    hop = [read(f"Point {a}", a), read(f"Point {b}", b), far(a, b)]
    wrong = hop[:2] + [calc("Distance", a, "+", b)]  # adds the places instead of taking their distance
    if rng.random() < hard:
        more = [read(f"Point {c}", c), far(b, c), calc("Sum", "r0", "+", "r1")]
        return Draft(
            values,
            f"How far is it from {a} to {b} and on to {c}?",
            f"How long is the walk {a}, {b}, {c}?",
            hop + more,
            wrong + more,
            {},
        )
    return Draft(values, f"How far is it from {a} to {b}?", f"How much lies between {a} and {b}?", hop, wrong, {})


FAMILIES = {"bars": bars, "table": table, "triangle": triangle, "rectangle": rectangle, "line": line}


def parts(family: str, values: dict[str, int]) -> dict[str, str]:
    """How a step names each value of the figure: phrase -> key, such as "Price A" -> "price A"."""
    if family == "table":
        return {f"{key[:5].capitalize()} {key[-1]}": key for key in values}
    if family == "rectangle":
        return {"Side a": "a", "Side b": "b", "Gate": "g"}
    return {f"{dict(bars='Bar', triangle='Angle', line='Point')[family]} {key}": key for key in values}


OTHER_WORDS = """user assistant system Answer Look at the figure Now compute Read first is Yes No True False Correct
Incorrect Describe Compute Judge each statement Question Solution Process Step Intent Image Logic Judgement"""


def vocabulary() -> list[str]:
    """Every word of the world's questions and steps as a tokenizer meets it: at a line's start and after a space."""
    rng, words = random.Random(0), set()
    for name, family in FAMILIES.items():
        for _ in range(300):
            draft = family(rng, 0.5)
            heads = [item.get("head") or item["read"] for item in draft.plan + draft.trap]
            words.update(
                re.findall(r"[A-Za-z]+", " ".join([draft.plain, draft.tricky, *heads, *parts(name, draft.values)]))
            )
    words.update(re.findall(r"[A-Za-z]+", OTHER_WORDS))
    marks = list("?,:.+-*=()")
    return sorted(w for word in [*words, *marks, *"0123456789"] for w in (word, " " + word)) + ["\n\n"]
