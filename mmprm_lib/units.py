"""Units: the dimension and size of "km/h", "square metres", "MeV"; whether two amounts are the same, if that is known.

What cannot be read is kept apart from what differs. A word of no table ("apples") is a dimension of its own, named
"?" and the word; a symbol in the wrong case, whose meaning could only be guessed ("5 M", "5 kw"), is named "~".
"""

import re
from fractions import Fraction
from functools import lru_cache

Unit = tuple[tuple[tuple[str, int], ...], Fraction]  # (sorted powers of dimensions, factor to the base unit)

# symbols, as they are written, with their prefixes: what a base unit is made of, "" for a dimension
_SYMBOLS = {
    "m": ("", "p n μ m c d k"), "g": ("", "n μ m c k"), "s": ("", "p n μ m"), "A": ("", "p n μ m k M G"),
    "K": ("", "p n μ m k M G"), "mol": ("", "n μ m k"),
    "L": ("1/1000 m^3", "n μ m c d"), "l": ("1/1000 m^3", "n μ m c d"),
    "N": ("1000 g m/s^2", "p n μ m k M G"), "J": ("1000 g m^2/s^2", "p n μ m k M G"),
    "W": ("1000 g m^2/s^3", "p n μ m k M G"), "Pa": ("1000 g/m s^2", "p n μ m h k M G"),
    "Hz": ("1/s", "p n μ m k M G"), "C": ("A s", "p n μ m"), "V": ("1000 g m^2/s^3 A", "p n μ m k M G"),
    "Ω": ("1000 g m^2/s^3 A^2", "p n μ m k M G"), "F": ("A s/V", "p n μ m"), "T": ("V s/m^2", "n μ m"),
    "Wb": ("V s", "n μ m"), "eV": ("1.602176634e-19 J", "m k M G T"), "cal": ("4.184 J", "k"),
    "Wh": ("3600 J", "m k M G T"), "bar": ("100000 Pa", "m k"), "h": ("3600 s", ""),
    "°C": ("", ""), "°F": ("", "")}  # fmt: skip
_DIMENSIONS = {"m": "length", "g": "mass", "s": "time", "°": "angle"}
_PREFIXES = {"": 0, "p": -12, "n": -9, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "M": 6, "G": 9,
             "T": 12}  # fmt: skip
# names, in any case and number; those whose value is "" are dimensions
_NAMES = dict(pair.split("=") for pair in (
    "mm=0.001_m cm=0.01_m dm=0.1_m km=1000_m in=0.0254_m inch=0.0254_m foot=0.3048_m feet=0.3048_m ft=0.3048_m "
    "yard=0.9144_m yd=0.9144_m mile=1609.344_m mi=1609.344_m mg=0.001_g kg=1000_g ton=1000000_g tonne=1000000_g "
    "lb=453.59237_g ounce=28.349523125_g oz=28.349523125_g °= deg=° degree=° arcmin=1/60_° arcsec=1/3600_° "
    "sec=s min=60_s minute=60_s hr=3600_s "
    "hour=3600_s day=86400_s week=604800_s year= yr=year month=1/12_year percent= %=percent ml=0.001_L cc=cm^3 "
    "hectare=10000_m^2 dollar= cent=0.01_dollar yuan= euro= gbp= mph=mile/h kph=km/h knot=1.852_km/h rpm= "
    "kcal=4184_J atm=101325_Pa atmosphere=101325_Pa torr=101325/760_Pa mmhg=torr ohm=Ω").split(" "))  # fmt: skip
_LONG = {"meter": "m", "gram": "g", "second": "s", "liter": "L", "newton": "N", "joule": "J", "watt": "W", "volt": "V",
         "pascal": "Pa", "hertz": "Hz", "ampere": "A", "amp": "A", "kelvin": "K", "mole": "mol", "coulomb": "C",
         "farad": "F", "tesla": "T", "electronvolt": "eV", "calorie": "cal", "cal": "cal", "bar": "bar"}  # fmt: skip
_LONG_PREFIXES = {"": 0, "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3,
                  "mega": 6, "giga": 9}  # fmt: skip
_PURE = {"rad", "radian", "radians", "unit", "units"}  # units of no dimension
_GUESSED = {"M", "G", "H", "S", "Mm", "Mg", "Cal", "mH", "μH", "uH", "nH", "mS", "μS"}  # metre or mega, henry or hour
_CHINESE = dict(pair.split("=") for pair in (
    "平方=square\xa0 立方=cubic\xa0 毫米=mm 厘米=cm 分米=dm 千米=km 公里=km 毫升=mL 千克=kg 公斤=kg "
    "小时=h 分钟=min "
    "米=m 升=L 克=g 秒=s 天=day 度=° 元=yuan 每=/").split(" "))
_PLAIN = re.compile(r"(?i)[a-z]{3,}(?:[ -][a-z]{2,}){0,3}")
_SMALL = {"in", "of", "to", "on", "at", "for", "the", "and", "with", "each", "total"}  # not what is counted
# words that make of the number before them another number, or take it back
_NO_NOUN = re.compile(
    r"(?i)\b(?:(?:hal(?:f|ve)|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|"
    r"millionth|dozen|hundred|thousand|[mbtr]r?illion|score|gross)s?|squared?|cubed?|factorial|plus|minus|over|point|"
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty)s?|not?|never|wrong|incorrect|cannot|doesn|isn|but|except|than|more|"
    r"less|most|least|below|above|under|minimum|maximum|negative|force|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|"
    r"arcsin|arccos|arctan|infty|cup|cap)\b")
_KELVIN = {"K": (Fraction(1), Fraction(0)), "°C": (Fraction(1), Fraction("273.15")),
           "°F": (Fraction(5, 9), Fraction("459.67") * 5 / 9)}  # fmt: skip
_CONFUSED = [("C", "°C"), ("F", "°F"), ("°", "°C"), ("°", "°F")]  # one is written where the other is meant
_RELATED = [("year", "s"), ("rpm", "Hz")]  # of one kind, but no exact number of one is one of the other


def unit_of(text: str) -> Unit | None:
    """Dimension and factor of a unit such as "cm^2", "square metres", "km/h", or of a noun; None for other text."""
    for chinese, latin in _CHINESE.items():
        text = text.replace(chinese, latin.replace("\xa0", " "))
    if re.fullmatch(r"[\u4e00-\u9fff]{1,4}", text):
        return ((() if text == "个" else ((f"?{text}", 1),)), Fraction(1))  # a counter
    text = re.sub(r"(?i)(met|lit)re", r"\1er", text).translate({ord(c): "" for c in "{}()"})
    text = re.sub(r"(?i)\b(square|sq\.?|cubic)\s+([a-z]+)", lambda m: f"{m[2]}^{3 if m[1] == 'cubic' else 2}", text)
    text = re.sub(r"(?i)([a-z]+) (squared|cubed)\b", lambda m: f"{m[1]}^{3 if m[2][0] in 'cC' else 2}", text)
    text = re.sub(r"(?i) an? (?=(?:second|minute|hour|day|week|month|year)\b)", " per ", text)
    text = re.sub(r"(?i)°? ?\b(celsius|centigrade|fahrenheit)\b", lambda m: f"°{'F' if m[1][0] in 'fF' else 'C'}", text)
    powers, factor, plain = {}, Fraction(1), False
    for place, side in enumerate(re.split(r"/|\bper\b", text)):
        tokens = re.split(r"(?:\\cdot|\s|\*|(?<=[A-Za-z])-(?=[A-Za-z]))+", side.strip())
        for n, token in enumerate(tokens if side.strip() else ()):
            m = re.fullmatch(r"([A-Za-z°%Ωμ]+)(?:\^?(-?\d))?\.?", token)
            found = _one_unit(m[1]) if m else None
            if found is None:
                plain = plain or bool(_PLAIN.fullmatch(text)) and not _NO_NOUN.search(text)
                if not (m and plain) or not re.search(r"(?i)[aeiou]|[^wxz]y", token):
                    return None
                if (n and powers and not any(name[0] == "?" for name in powers)) or token.casefold() in _SMALL:
                    continue  # "5 km away", "12 apples in total"
                found = ((f"?{_stem(token)}", 1),), Fraction(1)
            elif plain and token.casefold() in _SMALL:  # in: no inch there
                continue
            power = int(m[2] or 1) * (-1 if place else 1)
            for dimension, of_one in found[0]:
                powers[dimension] = powers.get(dimension, 0) + power * of_one
            factor *= found[1] ** power
    return tuple(sorted((dimension, power) for dimension, power in powers.items() if power)), factor


def _stem(word: str) -> str:
    return re.sub(r"(?<=..)(?:ies|es|y|e|s)$", "", word.casefold())


@lru_cache(maxsize=1024)
def _one_unit(name: str) -> Unit | None:
    """A single unit: a symbol with its prefix as written, a name in any case, or a guess at either; None else."""
    if name in _PURE:
        return (), Fraction(1)
    if name in _GUESSED:
        return ((f"~{name}", 1),), Fraction(1)
    if name in _SIGNS:
        return _of_base(*_SIGNS[name])
    low = name.casefold()
    for one in (low, *(low.removesuffix(end) for end in ("s", "es") if len(low) > 2)):
        if one in _NAMES:
            return _made(one, _NAMES[one].replace("_", " "))
        if one in _WORDS:
            return _of_base(*_WORDS[one])
    return (((f"~{name}", 1),), Fraction(1)) if len(name) > 1 and low in _ANY_CASE else None


def _of_base(base: str, power: int) -> Unit:
    dimension, factor = _made(base, _SYMBOLS[base][0])
    return dimension, factor * Fraction(10) ** power


def _made(name: str, of: str) -> Unit:
    """The unit that is `of` ("1000 g m/s^2", "1/12 year"), or, of "", a dimension of its own."""
    if not of:
        return ((_DIMENSIONS.get(name, name), 1),), Fraction(1)
    number = re.match(r"\d[\d.]*(?:e-?\d+)?(?:/\d+)?(?=[ /])", of)
    powers, factor = unit_of(of[number.end():] if number else of)
    return powers, factor * Fraction(number[0] if number else 1)


_SIGNS = {prefix + base: (base, _PREFIXES[prefix]) for base, (_, prefixes) in _SYMBOLS.items()
          for prefix in ("", *prefixes.split(), *("u" for p in prefixes.split() if p == "μ"))
          if prefix + base != "pm"}  # fmt: skip
_WORDS = {prefix + word: (base, power) for word, base in _LONG.items() for prefix, power in _LONG_PREFIXES.items()}
_ANY_CASE = {sign.casefold() for sign in _SIGNS}


# --- the same amount, or not ----------------------------------------------------------------------
def near(a: Fraction, b: Fraction) -> bool:
    """Equal, or equal to six digits where one is no integer (0.333333 is 1/3, 0.33 is not), as in math-verify."""
    if a == b:
        return True
    return (a.denominator > 1 or b.denominator > 1) and abs(a - b) <= min(1, max(abs(a), abs(b))) / 1_000_000


def _close(a: Fraction, b: Fraction) -> bool:
    return abs(a - b) <= abs(b) / 200


def is_known(unit: Unit | None) -> bool:
    """Whether there is a unit, of some dimension, in which no word or symbol had to be guessed."""
    return bool(unit and unit[0]) and not any(name[0] in "?~" for name, _ in unit[0])


def is_percent(unit: Unit | None) -> bool:
    """Whether the unit is per cent."""
    return bool(unit) and unit[0] == (("percent", 1),)


def same_quantity(candidate: tuple, gold: tuple) -> bool | None:
    """Equal values; a missing unit is forgiven, another converted or wrong; 50% is 0.5 and, beside a bare 50, 50.

    None where the units differ and one of them is a word or symbol of no known size, or where a conversion that no
    one writes with all its digits (20 mph in m/s) comes close.
    """
    (x, ux), (y, uy) = candidate, gold
    a, b = ux[0] if ux else (), uy[0] if uy else ()
    if a == b:
        ratio = ux[1] / uy[1] if ux and uy else Fraction(1)
        decimal = re.fullmatch("10*", str(max(ratio, 1 / ratio)))
        return near(x * ratio, y) or (None if not decimal and _close(x * ratio, y) else False)
    if is_percent(ux) and not b or is_percent(uy) and not a:
        as_ratio = near(x / (100 if a else 1), y / (100 if b else 1))
        return as_ratio or (near(x, y) and abs(y) >= 1)
    if not a or not b:
        guessed = any(name[0] == "~" for name, _ in a + b)
        in_degrees = (("angle", 1),) in (a, b) and _close(*(v * Fraction(355, 113) / 180 if u else v
                                                            for v, u in ((x, a), (y, b))))  # fmt: skip
        return None if guessed else near(x, y) or (None if in_degrees else False)
    return _across(x, a, y, b)


def _in_kelvin(dimensions: tuple) -> list:
    return sorted(("K" if name == "°C" else name, power) for name, power in dimensions)


def _across(x: Fraction, a: tuple, y: Fraction, b: tuple) -> bool | None:
    """As `same_quantity`, for two different dimensions a and b."""
    nouns = [{name for name, _ in side if name[0] == "?"} for side in (a, b)]
    if any(name[0] in "?~" for name, _ in a + b):
        rest = [[each for each in side if each[0][0] != "?"] for side in (a, b)]  # "6 red apples", "6 apples"
        alike = rest[0] == rest[1] and all(nouns) and (nouns[0] <= nouns[1] or nouns[1] <= nouns[0])
        return near(x, y) if alike else None
    names = [side[0][0] if len(side) == 1 and side[0][1] == 1 else "" for side in (a, b)]
    if all(name in _KELVIN for name in names):
        (p, p0), (q, q0) = (_KELVIN[name] for name in names)
        here, there = x * p + p0, y * q + q0
        differences = near(x * p, y * q)  # 20 K warmer is 20 °C warmer
        return near(here, there) or (None if differences or abs(here - there) <= Fraction(1, 2) else False)
    if _in_kelvin(a) == _in_kelvin(b):  # J/(kg °C) and J/(kg K), but for prefixes
        return None
    pair = {a, b}
    if any(pair == {unit_of(one)[0], unit_of(other)[0]} for one, other in _RELATED):
        return None
    confused = any(pair == {unit_of(one)[0], unit_of(other)[0]} for one, other in _CONFUSED)
    return None if confused and near(x, y) else False
