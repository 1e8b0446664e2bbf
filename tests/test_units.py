"""Units: a table of amounts as policies write them; what is wrong is never correct, what cannot be told is unknown."""

import time
from fractions import Fraction
from types import SimpleNamespace

import pytest

from mmprm_lib import grading
from mmprm_lib.answers import verdict
from mmprm_lib.quantities import mixed, quantity, trailing_unit
from mmprm_lib.units import is_known, same_quantity, unit_of
from mmprm_lib.wording import clock


@pytest.mark.parametrize("answer, gold, label", [
    ("5 keV", "5 MeV", "wrong"), ("5 cal", "5 kcal", "wrong"), ("1 atm", "1 bar", "wrong"),
    ("20 mph", "20 m/s", "wrong"), ("20 mph", "8.94 m/s", "unknown"), ("6abc", "6abd", "wrong"),
    ("6xyz", "6", "unknown"), ("6 xyz", "6", "unknown"), ("2 thirds", "2", "unknown"),
    ("2 thirds", r"\frac{2}{3}", "unknown"), ("3 trillion", "3", "wrong"),
    ("3 trillion", r"3\times 10^{12}", "correct"), ("2 dozens", "2", "wrong"), ("5 squared", "5", "unknown"),
    ("5 squared", "25", "unknown"), ("5 below zero", "-5", "unknown"), ("5 ms", "5 m", "wrong"),
    ("0.005 s", "5 ms", "correct"), ("5 μs", "5000 ns", "correct"), ("5 us", "5 μs", "correct"),
    ("5 M", "5 m", "unknown"), ("5 M", "5", "unknown"), ("5 H", "5 h", "unknown"), ("5 S", "5 s", "unknown"),
    ("5 G", "5 g", "unknown"), ("5 KM", "5 km", "correct"), ("60 KM/H", "60 km/h", "unknown"),
    ("5 apples", "5", "correct"), ("5", "5 apples", "correct"), ("12 students", "12 pupils", "unknown"),
    ("12 students", "12 cm", "unknown"), ("12 apples", "13 apples", "wrong"), ("6 red apples", "6 apples", "correct"),
    ("12 apples in total", "12 apples", "correct"), ("12 apples in total", "12", "correct"),
    ("5 gold coins", "5 silver coins", "unknown"), ("3 light years", "3 years", "unknown"),
    ("5 nautical miles", "5 miles", "unknown"), ("2 years", "24 months", "correct"),
    ("1 year", "365 days", "unknown"), ("1 week", "7 days", "correct"), ("5 m", "500 cm", "correct"),
    ("5m", "500 cm", "correct"), ("500 cm", "5m", "correct"), ("5m", "5", "wrong"), ("5m", "5 kg", "wrong"),
    ("5v", "5 V", "unknown"), ("5 kw", "5 kW", "unknown"), ("5 kw", "5", "unknown"), (r"5\mathrm{m}", "5", "correct"),
    (r"5\,\text{m}", "500 cm", "correct"), (r"5\text{m/s}", "18 km/h", "correct"),
    (r"10 \frac{\text{m}}{\text{s}}", "10 m/s", "correct"), (r"10 \frac{\text{m}}{\text{s}}", "36 km/h", "correct"),
    (r"10\frac{km}{h}", "10 m/s", "wrong"), ("9.8 m s^{-2}", "9.8 m/s^2", "correct"),
    ("9.8 m·s⁻²", "9.8 m/s^2", "correct"), ("9.8 m/s/s", "9.8 m/s^2", "correct"),
    ("9.8 meters per second squared", "9.8 m/s^2", "correct"), ("9.8 m/s", "9.8 m/s^2", "wrong"),
    ("1 L", "1000 cm^3", "correct"), ("1 mL", "1 cm^3", "correct"), ("1 mL", "1 L", "wrong"),
    ("2 kWh", "7.2 MJ", "correct"), ("5 megawatt-hours", "5 MWh", "correct"), ("5 MW", "5 MWh", "wrong"),
    ("5 N·m", "5 J", "correct"), ("5 N", "5 J", "wrong"), ("760 mmHg", "1 atm", "correct"),
    ("1 atm", "101325 Pa", "correct"), ("1013 hPa", "101.3 kPa", "correct"), ("300 K", "27 °C", "unknown"),
    ("300.15 K", "27 °C", "correct"), ("20 K", "20 °C", "unknown"), ("20 °F", "20 °C", "wrong"),
    ("32 °F", "0 °C", "correct"), ("20 degrees Celsius", "20 °C", "correct"), ("20 degrees", "20 °C", "unknown"),
    ("20 C", "20 °C", "unknown"), ("25 C", "20 °C", "wrong"), ("30^o", "30°", "correct"), ("30º", "30°", "correct"),
    ("30 deg", "30°", "correct"), ("30°", "30", "correct"), ("0.5236", "30°", "unknown"), ("0.6", "30°", "wrong"),
    ("£5", "€5", "wrong"), ("€5", "5 euros", "correct"), (r"\$5", "£5", "wrong"), (r"\$0.50", "50 cents", "correct"),
    ("50 cents", r"\$50", "wrong"), (r"\$5 million", "5000000", "correct"), (r"\$5 million", r"\$5", "wrong"),
    (r"\$1,234.50", "1234.5", "correct"), ("5 dollars", "5 yuan", "wrong"), ("5 pounds", "£5", "unknown"),
    ("50%", "0.5", "correct"), ("0.5 percent of total", "0.5", "wrong"), ("50 percent of voters", "50%", "correct"),
    ("50%", r"\frac{1}{2}", "correct"), ("1/2%", "0.5", "wrong"), ("50%", "50 kg", "wrong"),
    ("1 h 30 min", "90 min", "correct"), ("1 h 30 min", "90", "correct"), ("1 h 30 min", "1.5 hours", "correct"),
    ("1 h 30 min", "80 min", "wrong"), ("2 hours and 30 minutes", "150 minutes", "correct"),
    ("2h30min", "2.5 h", "correct"), ("1小时30分钟", "90分钟", "correct"), ("5 ft 3 in", "63 in", "correct"),
    ("5 feet 3 inches", "63 inches", "correct"), ("5 ft 3 in", "5 ft", "wrong"), ("1 m 50 cm", "1.5 m", "correct"),
    ("2:30", "2 hours 30 minutes", "unknown"), ("10 dollars and 50 cents", r"\$10.50", "correct"),
    ("7 pm", "7:00 pm", "correct"), ("7 am", "7:00 pm", "wrong"), ("0.333333 km", r"\frac{1}{3} km", "correct"),
    ("50 km/h", "13.89 m/s", "unknown"), ("50 km/h", "15 m/s", "wrong"), ("5 MJ", "5 mJ", "wrong"),
    ("5 nF", "5 pF", "wrong"), ("5 mT", "0.005 T", "correct"), ("5 μC", r"5\times10^{-6} C", "correct"),
    ("5 mH", "0.005 H", "unknown"), ("2nm", "2", "unknown"), ("2nm", "2mn", "correct"), ("3ms", "3", "unknown"),
    ("5 eV", "5 V", "wrong"), ("5 eV", "8.01e-19 J", "unknown"), ("5 eV", "5 J", "wrong"),
    ("12apples", "12", "unknown"), ("12 does not work", "12", "unknown"), ("12 is wrong", "12", "unknown"),
    ("5 km away", "5 km", "unknown"), ("5 meters tall", "5 m", "correct"), ("5 meters tall", "5 cm", "wrong"),
    ("100 rpm", "100 Hz", "unknown"), ("100 rpm", "100", "correct"), ("3人", "3 cm", "unknown"),
    ("3人", "3", "correct"), ("10⁻³", "0.001", "correct"), ("2×10⁵", "200000", "correct"), ("x²", "x^2", "correct"),
    ("5 m²", "5 m", "wrong"), ("5 m^3", "5 m^2", "wrong"), ("5 cm2", "5 cm^2", "correct"),
    ("5 sq cm", "5 cm^2", "correct"), ("5 square cm", "5 cm", "wrong"), ("5 cubic metres", "5 m^3", "correct"),
    ("5 units", "5", "correct"), ("5 square units", "5", "correct"), ("1 bar", "100 kPa", "correct"),
    ("5 mi", "5 km", "wrong"), ("10 knots", "5.14 m/s", "unknown"), ("5 lb", "5 kg", "wrong"),
    ("180 lbs", "180 pounds", "unknown"), ("4 Cal", "4 kcal", "unknown"), ("4 kilocalories", "4 kcal", "correct"),
    ("4 calories", "4 J", "wrong"), ("3x", "3", "wrong"), ("3 and a half", "3.5", "correct"),
    ("3 and a half", "3", "wrong"), ("5 million", "5 m", "wrong"), ("12 s", "12", "correct"),
    (r"2\sqrt{3} m/s", r"2\sqrt{3}", "correct"), (r"2\sqrt{3} Ω", r"2\sqrt{3} V", "wrong"),
    (r"2\sqrt{3} apples", r"2\sqrt{3}", "unknown"), ("3 and a half hours", "210 minutes", "correct"),
    (r"\frac{1}{2} m", "50 cm", "correct"), (r"1 \frac{1}{2} hours", "90 min", "correct"),
    ("-5 °C", "268.15 K", "correct"), ("5 A", "5 mA", "wrong"), ("5 W", "5 J/s", "correct"),
    ("5 J/s", "5 W", "correct"), ("1.5 V", "1500 mV", "correct"), ("5 kg m/s", "5 N s", "correct"),
    ("5 kg·m/s", "5 N·s", "correct"), ("5 T", "5 Wb/m^2", "correct"), ("4.18 J/(g·°C)", "4.18 J/g°C", "unknown"),
    ("4.18 J/(g °C)", "4.18 J/(g K)", "unknown"), ("6.02×10²³", r"6.02\times 10^{23}", "correct"),
    ("6.02×10²³ /mol", r"6.02\times 10^{23} mol^{-1}", "correct"), ("0.5 L/min", "500 mL/min", "correct"),
    ("3 ton", "3000 kg", "correct"), ("5 hectares", "50000 m^2", "correct"), ("5 m^2", "5 cm^2", "wrong"),
    ("50000 cm^2", "5 m^2", "correct"), ("5 cc", "5 mL", "correct"), ("25 percent", "1/4", "correct"),
    ("25%", "25", "correct"), ("25", "25%", "correct"), ("0.25", "25%", "correct"), ("2.5%", "25%", "wrong"),
    ("12¢", "12 cents", "correct"), (r"\$12", "12", "correct"), (r"$\$12$", "12", "correct"),
    (r"12 \$", "12 dollars", "correct"), ("12 €", "12 euros", "correct"), (r"-\$5", "-5", "correct"),
    (r"\$3x", "3x", "correct"), (r"\$5/3", "5/3", "correct"), (r"\$5/hour", "5 dollars per hour", "correct"),
    (r"\$5-\$3", "2", "correct"), ("5 min 30 s", "5.5 min", "correct"), ("5 min 30 s", "330", "correct"),
    ("5 min 30 s", "5.5", "correct"), ("5 min 30 s", "5", "wrong"), ("90 s", "1.5 min", "correct"),
    ("1 day", "24 h", "correct"), ("1 day 2 hours", "26 hours", "correct"), ("60°", "60'", "unknown"),
    ("30°15'", "30.25°", "correct"), ("5 kN/m^2", "5 kPa", "correct"), ("5 N/mm^2", "5 MPa", "correct"),
    ("5 MPa", "5 mPa", "wrong"), ("5 mpa", "5 MPa", "unknown"), ("5 KW", "5 kW", "unknown"),
    ("5 KJ", "5 kJ", "unknown"), ("5 Kg", "5 kg", "correct"), ("5 hrs", "5 h", "correct"),
    ("5 mins", "5 min", "correct"), ("5 secs", "5 s", "correct"), ("5 yrs", "5 years", "correct"),
    ("5 kms", "5 km", "correct"), ("5 inches", "12.7 cm", "correct"), ("6 ft", "1.83 m", "unknown"),
    ("6 ft", "2 m", "wrong"), ("12 (ms)", "12 s", "wrong"), ("12 (ms)", "0.012 s", "correct"),
    ("x = 5 ms", "0.005 s", "correct"), ("v = 20 mph", "20 m/s", "wrong"), ("(5 cm, 6 cm)", "(5, 6)", "correct"),
    ("(5 cm, 6 cm)", "(5 m, 6 m)", "wrong"), ("5 cm, 3 kg", "5 cm, 3 kg", "correct"),
    ("5 cm and 3 kg", "3 kg, 5 cm", "correct"), ("5abc", "5", "unknown"), ("abc", "5", "wrong"),
    ("5 thirty", "5", "unknown"), ("5 hundredths", "5", "unknown"), ("5 hundred", "500", "correct"),
    ("5 hundred", "5", "wrong"), ("5 tens", "5", "unknown"), ("5 times as many", "5", "correct"),
    ("3 times", "3", "correct"), ("10 points", "10", "correct"), ("5 miles per hour", "5 mph", "correct"),
    ("5 miles an hour", "5 mph", "correct"), ("1000 kg/m^3", "1 g/cm^3", "correct"),
    ("1 g/mL", "1000 kg/m^3", "correct"), ("5 mol/L", "5 M", "unknown"), ("5 mmol", "0.005 mol", "correct"),
    ("37.5 μm", "37.5 nm", "wrong"), ("5 nm", "5 mm", "wrong"), ("3.0e8 m/s", r"3\times10^8 m/s", "correct"),
    ("3e8", r"3\times10^8 m/s", "correct"), ("5 J", "5 cal", "wrong"), ("4.184 J", "1 cal", "correct"),
    ("5 apples per day", "5 apples per hour", "wrong"), ("2 apples per minute", "120 apples per hour", "correct"),
    ("200 kPa", "2 bar", "correct"), ("5 GHz", "5 MHz", "wrong"), ("5 decades", "5", "correct"),
    ("12 m n", "12 m", "wrong"), ("5 kilo-ohm", "5000 Ω", "unknown"), ("5 kilohms", "5000 Ω", "unknown"),
    ("5 Angstrom", "0.5 nm", "unknown"), ("5 gallons", "5 L", "unknown"), ("2 kN", "2000 kg", "wrong"),
    ("5lb", "5", "unknown"), ("2nm", "3", "wrong"), (r"5\frac{h}{m}", "5", "wrong"), (r"5 \frac{h}{m}", "5", "wrong"),
    (r"10 \frac{m}{s}", "10", "correct"), (r"10\frac{m}{s}", "10 m/s", "correct"),
])  # fmt: skip
def test_what_is_said_of_an_amount(answer, gold, label):
    found = verdict(f"\\boxed{{{answer}}}", SimpleNamespace(answer=gold, answer_type="expression", choices=[]))
    assert found.label == label and bool(found.reason) == (label == "unknown"), found


@pytest.mark.parametrize("text, dimensions, factor", [
    ("ms", {"time": 1}, Fraction(1, 1000)), ("km/h", {"length": 1, "time": -1}, Fraction(5, 18)),  # 1000/3600
    ("L", {"length": 3}, Fraction(1, 1000)), ("square metres", {"length": 2}, 1),
    ("m s^{-2}", {"length": 1, "time": -2}, 1), ("N", {"length": 1, "mass": 1, "time": -2}, 1000),
    ("kcal", {"length": 2, "mass": 1, "time": -2}, 4_184_000),  # g m/s^2
    ("mph", {"length": 1, "time": -1}, Fraction(1609344, 3_600_000)), ("month", {"year": 1}, Fraction(1, 12)),
    ("个", {}, 1), ("人", {"?人": 1}, 1), ("apples", {"?appl": 1}, 1), ("apple", {"?appl": 1}, 1),
    ("books per day", {"?book": 1, "time": -1}, Fraction(1, 86400)), ("M", {"~M": 1}, 1), ("kw", {"~kw": 1}, 1),
])  # fmt: skip
def test_units_have_a_dimension_and_a_size(text, dimensions, factor):
    assert unit_of(text) == (tuple(sorted(dimensions.items())), factor)


@pytest.mark.parametrize("text", ["xyz", "xy", "thirds", "squared", "below zero", "wrong", "sin", "5", "m n", "pm", ""])
def test_what_is_no_unit_has_none(text):
    assert not is_known(unit_of(text)) and (text == "" or unit_of(text) is None)


def test_every_unit_is_known_and_no_two_sizes_are_the_same_amount():
    names = "mm cm dm m km in ft mi mg g kg lb ms s min h day week mL L J kJ eV keV MeV cal kcal kWh Pa kPa bar atm"
    names = names.split()
    read = {name: quantity(f"5 {name}") for name in names}
    assert all(is_known(unit) for _, unit in read.values())
    for one in names:
        for other in names:
            assert same_quantity(read[one], read[other]) is (one == other)


def test_letters_that_may_be_factors_are_no_unit_unless_there_must_be_one():
    assert [quantity(text) for text in ("6abc", "2nm", "3m", "12apples", "5ms")] == [None] * 5
    assert quantity("7cm") == quantity("7 cm") and quantity("36km/h") == quantity("36 km/h")
    assert quantity("3m", beside_unit=True) == quantity("3 m") and quantity("3x", beside_unit=True) is None


def test_mixed_amounts_are_one_amount_in_each_of_their_units():
    assert [value for value, _ in mixed("1 h 30 min")] == [Fraction(3, 2), 90]
    assert [value for value, _ in mixed("2 days and 6 hours")] == [Fraction(9, 4), 54]
    for text in ("30 min 1 h", "1 h 90 min", "3 kg 5 cm", "1 h", "3 m 2", "2x3y", "-1 h 30 min"):
        assert mixed(text) == () and (text == "1 h" or quantity(text) is None), text
    assert quantity(r"5\times 10^{-6} C")[0] == Fraction(5, 10**6)  # and no amount in parts


def test_an_amount_of_an_unknown_unit_is_unknown_under_a_tolerance_too():
    row = SimpleNamespace(answer="1.5", answer_type="expression", choices=[], grading={"rule": "olympiad", "unit": "m"})
    answers = {"1.5": "correct", "150 cm": "correct", "1.5 kg": "wrong", "1.5 zorbs": "unknown"}
    assert {answer: grading.verdict(f"Answer: {answer}", row).label for answer in answers} == answers


def test_hours_without_minutes_are_a_time_and_units_end_an_expression():
    assert clock("7 pm") == (1140, True) and clock("7") is None and clock("7 m") is None
    assert trailing_unit(r"2\sqrt{3} Ω")[0] == r"2\sqrt{3}" and trailing_unit(r"2\sqrt{3} M") == (r"2\sqrt{3} M", None)


@pytest.mark.parametrize("piece", [
    r"\$", "£1", "£ ", "1,111", "m ", "m-", "a squared ", "cubic ", " per ",
    "²", "⁻", "1 h ", r"\frac{m}{s}", "1\\text{",
    "a an ",
])  # fmt: skip
def test_long_units_are_read_in_the_time_of_their_length(piece):
    start, gold = time.process_time(), SimpleNamespace(answer="5 m", answer_type="number", choices=[])
    verdict(f"\\boxed{{5 {piece * (1900 // len(piece))}}}", gold)
    verdict(f"\\boxed{{5}} Answer: {piece * (60_000 // len(piece))}", gold)
    assert time.process_time() - start < 5  # 0.1 on one quiet core
