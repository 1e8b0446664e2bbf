"""One spelling per thing: LaTeX clean-up, exact numbers with units, sequences (tuples, intervals, sets, blanks)."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

MAX_ANSWER = 2000  # characters; what is longer is no final answer
MAX_DEPTH = 24  # of brackets in brackets

# --- one spelling per thing -----------------------------------------------------------------------
_CHARACTERS = {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)} | str.maketrans({
    "\u3000": " ", "\xa0": " ", "。": ".", "、": ",", "−": "-", "–": "-", "“": '"', "”": '"', "’": "'",
    "²": "^2", "³": "^3", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "∅": r"\emptyset ", "℃": "°C", "µ": "μ", "⁄": "/", "∶": ":",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≈": r"\approx ",
    "±": r"\pm ", "ℝ": "R", "$": "", "£": "", "€": "", "¥": "",
}) | {0x2460 + i: f"({i + 1})" for i in range(9)} | {
    ord(c): f" {fraction}" for c, fraction in zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8".split(), strict=True)}
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"(?<!\\)\\\\(?=[a-zA-Z]{2})", r"\\"),  # doubled backslashes of escaped JSON
    (r"\\(?:number|mathrm|text(?:bf|rm|it)?|mbox|mathbf|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\ce(?![a-z])|(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])", ""),
    (r"\\mathbb\s*(?:\{R\}|R)", "R"),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*(\{[^{}]*\}|\w)\s*(\{[^{}]*\}|\w)",
     lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}"),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-z])", ""),
    (r",\s*\\!\s*|\{,\}", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-z])", " "),
    (r"(?:\{\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))", "°"),
    (r"\\degree(?![a-z])|\\?textdegree|(?<=\d)\s*degrees?\b", "°"),
    (r"\\leq?(?:slant)?(?![a-z])", r"\\leq "),
    (r"\\geq?(?:slant)?(?![a-z])", r"\\geq "),
    (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\%", "%"),
    (r"(?<=\d)\s+(?=10\s*\^)|(?<=\d)\s*\\cdot\s*(?=10\s*\^)", r"\\times "),
    (r"\\varnothing(?![a-z])", r"\\emptyset"),
    (r"\\Omega(?![a-z])", "Ω"),
    (r"°\s*(?=[CF]\b)", "°"),
    (r"(?<=[\d}i)\s])\s*\brad(?:ians?)?\.?$", ""),
    (r"(?<![A-Za-z\\])\\?sqrt\s*\(([^()]*)\)", lambda m: rf"\sqrt{{{m[1]}}}"),
    (r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}"),
    (r"(?<!\\)\\[()\[\]]", ""),
    (r"\s+", " "),
]]
_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|arcsin|arccos|arctan|infty|cup|cap)\b")


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(-?\d[\d.,/]*|[A-J](?![A-Za-z]))")
_BRACE = re.compile(r"(?<!\\)[{}]")


def boxes(text: str) -> list[tuple[str, int, int]]:
    """Content, start, end of every complete \\boxed{...}, \\fbox{...} or \\boxed 12, by their starts, in one pass."""
    found, begun, opened = [], dict[int, int](), list[int]()
    for box in _BOX.finditer(text):
        if box[1]:
            found.append((box[1].rstrip(".,"), box.start(), box.end()))
        else:
            begun[box.end()] = box.start()
    for brace in _BRACE.finditer(text) if begun else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened and (start := opened.pop()) in begun:
            found.append((text[start + 1 : brace.start()].strip(), begun[start], brace.end()))
    return sorted(found, key=lambda box: box[1])


def last_boxed(text: str) -> str | None:
    """The content of the last of `boxes`; None without one."""
    found = boxes(text)
    return found[-1][0] if found else None


_TAG = re.compile(r"<(?P<tag>/?)answer>|\[(?P<bracket>/?)answer\]|<\|(?P<box>begin|end)_of_box\|>", re.I)


def last_tagged(text: str) -> str | None:
    """What stands in the last <answer>...</answer>, or its like in brackets or GLM's boxes; None without one."""
    begun, found = dict[str, int](), None
    for tag in _TAG.finditer(text):
        if tag[tag.lastgroup].casefold() not in ("/", "end"):
            begun[tag.lastgroup] = tag.end()
        elif (start := begun.pop(tag.lastgroup, None)) is not None:
            found = text[start : tag.start()]
    return None if found is None else found.strip()


def unreadable(text: str) -> str:
    """Why a text is no answer that could be compared; "" if it could."""
    if len(text) > MAX_ANSWER:
        return f"an answer of {len(text)} characters (limit {MAX_ANSWER})"
    depths = accumulate((c in "([{") - (c in ")]}") for c in text)
    return f"brackets in brackets, more than {MAX_DEPTH} deep" if max(depths, default=0) > MAX_DEPTH else ""


@lru_cache(maxsize=65536)
def clean_text(text: str) -> str:
    """One spelling: wrappers ($, \\boxed, \\text, bold, final period) gone, one name per command, ASCII marks."""
    text = text.strip()
    if text.startswith(r"\boxed{") and text.rstrip(" .").endswith("}"):
        text = last_boxed(text) or text
    text = text.replace(r"\$", "").translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().strip('"`')
    return text.strip("*").strip().rstrip(" .,;") or text


def exact_key(clean: str) -> str:
    """Exact-match key: no spaces except between digits, no braces round one character."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<!\d) | (?!\d)", "", clean))


# --- numbers and units ----------------------------------------------------------------------------
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
_QUANTITY = re.compile(
    rf"([+-]?)\s*(?:({_NUMBER})(?!\s*[/:]|[\d.,]))?\s*"  # sign, whole part (not the 1 of 12 or of 1/2)
    rf"(?:\\frac\{{\s*([+-]?{_NUMBER})\s*\}}\{{\s*({_NUMBER})\s*\}}|({_NUMBER})\s*[/:]\s*({_NUMBER}))?\s*"  # fraction
    r"(?:(?:\\times|\*|x)\s*10\s*\^\s*[{(]?\s*([+-]?\d{1,3})\s*[})]?|[eE]([+-]?\d{1,3}))?"  # power of ten
    r"\s*((?:%|percent|[A-Za-z°Ωμ\u4e00-\u9fff]).*)?")  # unit
_DIMENSIONS = {
    "length": "mm=1/1000 cm=1/100 dm=1/10 m=1 km=1000 millimeter=1/1000 centimeter=1/100 decimeter=1/10 meter=1 "
              "kilometer=1000 inch=127/5000 foot=381/1250 feet=381/1250 ft=381/1250 yard=1143/1250 mile=201168/125",
    "mass": "mg=1/1000 g=1 kg=1000 gram=1 kilogram=1000 ton=1000000", "angle": "°=1 deg=1 degree=1",
    "time": "s=1 sec=1 second=1 min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800",
    "percent": "%=1/100 percent=1/100",
    "volume": "ml=1/1000 l=1 milliliter=1/1000 liter=1", "money": "dollar=1 cent=1/100", "yuan": "yuan=1"}
_UNITS = {name: (dimension, Fraction(factor)) for dimension, table in _DIMENSIONS.items()
          for name, factor in (pair.split("=") for pair in table.split())}
# derived units and symbols whose case matters; a prefix may stand before those of the first line
_DERIVED = {
    "N": "kg m/s^2", "J": "kg m^2/s^2", "W": "kg m^2/s^3", "Pa": "kg/m s^2", "Hz": "/s", "A": "", "V": "kg m^2/s^3 A",
    "Ω": "kg m^2/s^3 A^2", "mol": "", "K": "", "°C": "", "°F": ""}
_PREFIXES = {"": 0, "p": -12, "n": -9, "μ": -6, "m": -3, "k": 3, "M": 6, "G": 9}
_CHINESE = dict(pair.split("=") for pair in (
    "平方=square\xa0 立方=cubic\xa0 毫米=mm 厘米=cm 分米=dm 千米=km 公里=km 毫升=ml 千克=kg 公斤=kg "
    "小时=h 分钟=min "
    "米=m 升=l 克=g 秒=s 天=day 度=° 元=yuan 每=/").split(" "))
_PURE = {"rad", "radian", "radians", "unit", "units"}  # units of no dimension
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "万": 10**4, "亿": 10**8}
_SCALE = re.compile(r"(?i)(?:(dozen|hundred|thousand|million|billion)(?![a-z])|([万亿]))\s*")
Unit = tuple[tuple[tuple[str, int], ...], Fraction]  # (sorted powers of dimensions, factor to the base unit)


def _unit(text: str) -> Unit | None:
    """Dimension and factor of a unit such as "cm^2", "square metres", "km/h"; () and 1 for other words, else None."""
    for chinese, latin in _CHINESE.items():
        text = text.replace(chinese, latin.replace("\xa0", " "))
    if re.fullmatch(r"[\u4e00-\u9fff]{1,4}", text):  # a counter, such as 个
        return (), Fraction(1)
    text = text.replace("metre", "meter").replace("litre", "liter").translate({ord(c): "" for c in "{}()"})
    text = re.sub(r"(?i)\b(square|sq\.?|cubic)\s+([a-z]+)", lambda m: f"{m[2]}^{3 if m[1] == 'cubic' else 2}", text)
    powers, factor = {}, Fraction(1)
    for place, side in enumerate(re.split(r"/|\bper\b", text)):
        for token in side.replace("\\cdot", " ").split():
            m = re.fullmatch(r"([A-Za-z°%Ωμ]+)(?:\^?(\d))?\.?", token)
            found = _one_unit(m[1]) if m else None
            if found is None:
                plain = re.fullmatch(r"(?i)[a-z]{3,}(?:[ -][a-z]{2,}){0,3}", text) and not _FUNCTIONS.search(text)
                return ((), Fraction(1)) if plain else None
            power = int(m[2] or 1) * (-1 if place else 1)
            for dimension, of_one in found[0]:
                powers[dimension] = powers.get(dimension, 0) + power * of_one
            factor *= found[1] ** power
    return tuple(sorted((dimension, power) for dimension, power in powers.items() if power)), factor


@lru_cache(maxsize=1024)
def _one_unit(name: str) -> Unit | None:
    """A single unit: a symbol of _DERIVED with its prefix, as written, or a name of _UNITS in any case."""
    if name in _PURE:
        return (), Fraction(1)
    for prefix, power in _PREFIXES.items():
        base = name.removeprefix(prefix)
        if base in _DERIVED and name.startswith(prefix) and (not prefix or base[0] not in "°"):
            made = _unit(_DERIVED[base]) if _DERIVED[base] else (((base, 1),), Fraction(1))
            return made[0], made[1] * Fraction(10) ** power
    low = name.casefold()
    unit = next((_UNITS[n] for n in (low, low.removesuffix("s"), low.removesuffix("es")) if n in _UNITS), None)
    return None if unit is None else (((unit[0], 1),), unit[1])


@lru_cache(maxsize=65536)
def quantity(clean: str) -> tuple[Fraction, Unit | None] | None:
    """Exact value and unit of "1,234.5", "-1\\frac{4}{5}", "3/4", "2.1 \\times 10^{3}", "7 cm", "50%"; else None."""
    clean = " ".join(clean.split())  # the pattern's time is a high power of the length of white space
    clean = re.sub(r"^([+-]?)\s*10(?=\s*\^)", r"\g<1>1\\times 10", clean[:400])  # 10^{-3}
    m = _QUANTITY.fullmatch(clean) if len(clean) < 400 else None
    if m is None or not (m[2] or m[3] or m[5]):
        return None
    sign, whole, a, b, c, d, power, e, words = m.groups()
    scale = _SCALE.match(words or "")
    words = words[scale.end() :] if scale else words
    unit = _unit(words) if words else None
    glued = words and len(words) == 1 and words.isascii() and words.isalpha() and clean[-2] != " "
    if words and (unit is None or glued):  # "3m" may be 3 times m
        return None
    number: Callable[[str], Fraction] = lambda text: Fraction(text.replace(",", ""))  # noqa: E731
    top, bottom = (number(a or c), number(b or d)) if a or c else (Fraction(0), Fraction(1))
    if not bottom:
        return None
    value = (number(whole) if whole else 0) + top / bottom
    value *= _SCALES[(scale[1] or scale[2]).casefold()] if scale else 1
    return (-value if sign == "-" else value) * Fraction(10) ** int(power or e or 0), unit


def near(a: Fraction, b: Fraction) -> bool:
    """Equal, or equal to six digits where one is no integer (0.333333 is 1/3, 0.33 is not), as in math-verify."""
    if a == b:
        return True
    return (a.denominator > 1 or b.denominator > 1) and abs(a - b) <= min(1, max(abs(a), abs(b))) / 1_000_000


def same_quantity(candidate: tuple, gold: tuple) -> bool:
    """Equal values; a missing unit is forgiven, another is converted or wrong; 50% is 0.5 and, beside a bare 50, 50."""
    (x, ux), (y, uy) = candidate, gold
    if ux and uy and ux[0] and uy[0]:
        return ux[0] == uy[0] and near(x * ux[1], y * uy[1])
    if any(u and u[0] == (("percent", 1),) for u in (ux, uy)):
        as_ratio = near(x * (ux or (0, 1))[1], y * (uy or (0, 1))[1])
        return as_ratio or (near(x, y) and abs(y) >= 1)
    return near(x, y)


def clock(clean: str) -> tuple[int, bool] | None:
    """Minutes after midnight of "7:30 pm" or "19:30", and whether the half of the day is known; None for other text."""
    m = re.fullmatch(r"(\d{1,2}):([0-5]\d)\s*(?:([ap])\.?\s?m\.?)?", clean, re.I)
    if m is None or int(m[1]) > 23:
        return None
    hours = int(m[1]) % 12 + (12 if m[3].casefold() == "p" else 0) if m[3] else int(m[1])
    return 60 * hours + int(m[2]), bool(m[3]) or int(m[1]) > 12


def union_of(clean: str) -> str | None:
    """The set of "x<1 or x>2" or "1 < x \\leq 2" as intervals joined by \\cup; text with \\cup as it is; else None."""
    if r"\cup" in clean:
        return clean
    parts, sign = [], r"\s*(<|>|\\leq|\\geq)\s*"
    for part in re.split(r"\s*(?:\bor\b|\\lor|\\vee|,|或)\s*", clean):
        one = re.fullmatch(rf"[a-z]{sign}([^<>]+)", part)
        two = re.fullmatch(rf"([^<>]+?){sign}[a-z]{sign}([^<>]+)", part)
        if one:
            value, closed = one[2].strip(), "q" in one[1]
            below = rf"(-\infty,{value}{']' if closed else ')'}"
            parts.append(below if one[1] in ("<", r"\leq") else rf"{'[' if closed else '('}{value},\infty)")
        elif two and two[2] in ("<", r"\leq") and two[3] in ("<", r"\leq"):
            ends = "[" if "q" in two[2] else "(", "]" if "q" in two[3] else ")"
            parts.append(f"{ends[0]}{two[1].strip()},{two[4].strip()}{ends[1]}")
        else:
            return None
    return r"\cup ".join(parts)


def trailing_unit(clean: str) -> tuple[str, Unit | None]:
    """The expression without a known unit at its end, and the unit: "2\\sqrt{2} cm" is "2\\sqrt{2}" and cm."""
    m = re.search(r"(?<=[\d}) ])(?<!\\)\s*([A-Za-z°][A-Za-z°/ ]*(?:\^\{?\d\}?)?)$", clean)
    m = None if re.search(r"(?:sin|cos|tan|cot)(?![a-z])", clean) else m  # \\sin 60° has no unit
    unit = _unit(m[1]) if m and (len(m[1]) > 1 or m[1] == "°" or m[0][0] == " ") else None
    if not (m and unit and unit[0] and clean[:m.start()].strip()):
        return clean, None
    return clean[:m.start()].strip(), unit


# --- sequences ------------------------------------------------------------------------------------
def unmatched(left: list[str], items: tuple[str, ...]) -> list[str]:
    """The items that nothing in `left` is spelled like; what one is spelled like is taken out of `left`."""
    spelled = dict[str, list[str]]()
    for other in left:
        spelled.setdefault(exact_key(clean_text(other)), []).append(other)
    rest = []
    for item in items:
        if same := spelled.get(exact_key(clean_text(item))):
            left.remove(same.pop())
        else:
            rest.append(item)
    return rest


def _split_top(text: str, separators: str) -> list[str]:
    """Parts of text between separators (a regular expression) that stand outside all brackets."""
    depth, last, parts = 0, 0, []
    for m in re.finditer(rf"(?P<sep>{separators})|[(\[{{⦃]|[)\]}}⦄]", text):
        if m["sep"] and depth <= 0:
            parts.append(text[last:m.start()])
            last = m.end()
        elif not m["sep"]:
            depth += 1 if m[0] in "([{⦃" else -1
    return [part.strip() for part in [*parts, text[last:]]]


def _unlabelled(lines: list[str]) -> list[str]:
    """The lines without the numbers 1. 2. 3. or letters a) b) c) of a list, if each has its own."""
    found = [re.match(r"\s*\(?(\d|[a-h])(?:[.、:：]\s+|\)\s*)(?=\S)", line) for line in lines]
    labels = "".join(m[1] for m in found if m)
    if not 2 <= len(lines) == len(labels) or not ("123456789".startswith(labels) or "abcdefgh".startswith(labels)):
        return lines
    return [line[m.end():] for m, line in zip(found, lines, strict=True)]


@lru_cache(maxsize=16384)
def sequence(raw: str) -> tuple[str, tuple[str, ...]] | None:
    """(kind, items) or None; kind: "parts" (blanks, in order), "list" (bare commas, any order), "{}" or brackets."""
    text = re.sub(r"\*\*(\(?[\da-h][.)]:?)\*\*", r"\1", raw.strip())  # the number of a part in bold
    text = text.translate({ord(wide): chr(ascii_) for wide, ascii_ in zip("，；（）", b",;()", strict=True)})
    mark = r"(?:^|\s|(?<=[$;.,]))\((?:\d|[a-h])\)\s*"  # (1) ... (2) ..., (a) ... (b) ...
    marked, labels = re.split(mark, text), "".join(re.findall(r"[\da-h](?=\))", "".join(re.findall(mark, text))))
    if not ("123456789".startswith(labels) or "abcdefgh".startswith(labels)):
        marked = [text]
    adjacent = re.fullmatch(r"(?:(\${1,2})[^$]+\1\s*){2,}", text)  # $$7$$ $$10$$
    for parts in (
        _unlabelled([line for line in text.split("\n") if line.strip()]),
        [part.rstrip(" ;,") for part in marked[1:]] if not marked[0].strip() else [],
        [body for _, body in re.findall(r"(\${1,2})([^$]+)\1", text)] if adjacent else [],
        _split_top(text, ";"),
        text.split() if re.fullmatch(rf"-?{_NUMBER}( -?{_NUMBER})+", text) else [],
    ):
        if len(parts) > 1 and all(clean_text(part) for part in parts):
            return "parts", tuple(parts)
    clean = clean_text(text.replace(r"\{", "⦃").replace(r"\}", "⦄"))
    statements = clean + "." if re.fullmatch(r"\d(\.\d){2,}", clean) else clean
    if re.fullmatch(r"(?:\(\d\)|\d\.){2,}", statements):  # the numbers of true statements: (1)(3)(4) or 1.3.4.
        return "list", tuple(re.findall(r"\d", clean))
    if bracketed := _bracketed(clean):
        return bracketed
    if quantity(clean) or clean.startswith(r"\begin"):
        return None
    items = _split_top(clean, r",\s*(?:and |or )?|\s(?:and|or)\s|\s*或\s*")
    return ("list", tuple(items)) if len(items) > 1 and all(items) else None


def _bracketed(clean: str) -> tuple[str, tuple[str, ...]] | None:
    """Brackets and items of a tuple, interval or set whose first bracket closes at its end; None for anything else."""
    if len(clean) < 2 or clean[0] + clean[-1] not in ("()", "[]", "(]", "[)", "⦃⦄", "{}"):
        return None
    inner = clean[1:-1]
    items = _split_top(inner, r",\s*")
    depths = [0, *accumulate((c in "([{⦃") - (c in ")]}⦄") for c in inner)]
    if min(depths) < 0 or depths[-1] or (clean[0] == "{" and len(items) < 2):
        return None
    restored = tuple(item.replace("⦃", r"\{").replace("⦄", r"\}") for item in items)
    return ("{}" if clean[0] in "⦃{" else clean[0] + clean[-1]), restored
