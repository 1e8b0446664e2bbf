"""Figures of the scenes: 112 x 112 RGB, drawn at twice the size and reduced, so that edges are smooth."""

import random
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SIZE = 112
INK, GREY, FAINT = (40, 40, 48), (150, 150, 158), (226, 226, 230)
HUES = [(52, 101, 164), (204, 92, 30), (60, 140, 76), (150, 70, 150), (180, 40, 60), (40, 140, 150)]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that Pillow ships, at a size in doubled pixels."""
    return ImageFont.load_default(size=size)


def write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int = 30, fill: tuple = INK) -> None:
    """Text centred at (x, y), in the doubled coordinates."""
    draw.text((x, y), text, fill=fill, font=font(size), anchor="mm")


def bars(draw: ImageDraw.ImageDraw, values: dict, extra: dict, look: random.Random) -> None:
    """A bar chart with a grid line per unit."""
    hues = look.sample(HUES, 4)
    for height in range(0, 10):
        y = 188 - 20 * height
        draw.line([(18, y), (224, y)], fill=GREY if height in (0, 5) else FAINT, width=2)
    write(draw, 8, 88, "5", 18, GREY)
    for i, (name, value) in enumerate(values.items()):
        x = 22 + 51 * i
        draw.rectangle([x + 6, 188 - 20 * value, x + 40, 188], fill=hues[i])
        write(draw, x + 23, 206, name, 28)


def table(draw: ImageDraw.ImageDraw, values: dict, extra: dict, look: random.Random) -> None:
    """Prices and counts of three goods."""
    hue = look.choice(HUES)
    draw.rectangle([0, 0, 223, 54], fill=hue)
    write(draw, 88, 28, "price", 28, (255, 255, 255))
    write(draw, 176, 28, "count", 28, (255, 255, 255))
    for row, name in enumerate("ABC"):
        y = 84 + 56 * row
        draw.line([(0, y + 28), (224, y + 28)], fill=FAINT, width=3)
        write(draw, 28, y, name, 34, hue)
        write(draw, 88, y, str(values[f"price {name}"]), 36)
        write(draw, 176, y, str(values[f"count {name}"]), 36)
    draw.line([(54, 56), (54, 224)], fill=GREY, width=2)


def triangle(draw: ImageDraw.ImageDraw, values: dict, extra: dict, look: random.Random) -> None:
    """A triangle with two angles given; not to scale."""
    hue, top = look.choice(HUES), look.choice([84, 112, 140])
    soft = tuple(255 - (255 - c) // 5 for c in hue)
    draw.polygon([(14, 184), (210, 184), (top, 22)], fill=soft)
    draw.line([(14, 184), (210, 184), (top, 22), (14, 184), (210, 184)], fill=hue, width=5, joint="curve")
    for name, (x, y) in {"A": (12, 206), "B": (212, 206), "C": (top, 10)}.items():
        write(draw, x, y, name, 26)
    for name, (x, y) in {"A": (60, 166), "B": (164, 166), "C": (112, 84)}.items():
        write(
            draw, x, y, "?" if name == extra["open"] else str(values[name]), 30, hue if name == extra["open"] else INK
        )


def rectangle(draw: ImageDraw.ImageDraw, values: dict, extra: dict, look: random.Random) -> None:
    """A rectangle with sides a and b and a gate g; not to scale."""
    hue, x, y = look.choice(HUES), 200 - 10 * look.randint(0, 4), 60 - 10 * look.randint(0, 3)
    draw.rectangle([60, y, x, 164], fill=tuple(255 - (255 - c) // 5 for c in hue), outline=hue, width=5)
    draw.rectangle([98, 158, 126, 170], fill=(255, 255, 255), outline=GREY, width=2)
    for text, u, v in ((f"a {values['a']}", 28, 112), (f"b {values['b']}", 112, 12), (f"g {values['g']}", 112, 196)):
        write(draw, u, v, text, 28)


def line(draw: ImageDraw.ImageDraw, values: dict, extra: dict, look: random.Random) -> None:
    """A number line with three points."""
    hues = look.sample(HUES, 3)
    draw.line([(6, 140), (218, 140)], fill=INK, width=4)
    for i in range(10):
        x = 13 + 22 * i
        draw.line([(x, 132), (x, 148)], fill=INK, width=3)
        write(draw, x, 166, str(i), 20, GREY)
    for i, name in enumerate(sorted(values)):
        x = 13 + 22 * values[name]
        draw.ellipse([x - 9, 131, x + 9, 149], fill=hues[i])
        write(draw, x, 100, name, 30, hues[i])


DRAW = {"bars": bars, "table": table, "triangle": triangle, "rectangle": rectangle, "line": line}


def render(scene: dict) -> Image.Image:
    """The scene's figure, 112 x 112 RGB; the same scene always gives the same pixels."""
    canvas = Image.new("RGB", (2 * SIZE, 2 * SIZE), "white")
    draw = ImageDraw.Draw(canvas)
    DRAW[scene["family"]](draw, scene["values"], scene["extra"], random.Random(scene["look"]))
    return canvas.reduce(2)
