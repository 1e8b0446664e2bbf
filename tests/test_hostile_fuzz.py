"""Fuzzing of whatever reads what others wrote: 100,000 generated inputs in the slow tier, some of them by default.

Every target asserts what must hold for any input: no error but the documented one, a bound on the CPU time of each
input, round trips, no special token, nothing written or followed outside the folder.
"""

import io
import json
import os
import random
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from mmprm_lib import benchmark, critique, data, fields, images, interchange, models, schema, steps
from mmprm_lib.answers import equal, extract, normal_form, verdict
from mmprm_lib.images import Rejected
from mmprm_lib.label_selection import parse_first_error
from mmprm_lib.quantities import last_boxed

SECONDS = 8.0  # of CPU for one input, on the slowest machine
INPUTS = {"texts": 30_000, "verdicts": 6_000, "tokens": 20_000, "rows": 24_000, "images": 8_000, "paths": 10_000}
INPUTS |= {"records": 6_000}
# those of test_hostile_fuzz_models
INPUTS |= {"yaml": 4_000, "templates": 300, "indices": 6_000, "configs": 300, "internvl": 1_000}
SHARE = 100  # the default tier has one input of so many

PIECES = [
    *"abxyzABC0123456789 \n\t\r\0\x1b\x0b\u200b\u202e\u2028\u3000é答√π°²×≤,;:.!?'\"`*_-+=/\\|<>()[]{}^~$%&#@",
    "\n\n", "\\boxed{", "\\frac{1}{2}", "\\frac", "\\sqrt{", "\\text{", "\\left(", "\\right)", "\\{", "\\}", "\\circ",
    "\\times 10^", "\\pm", "\\infty", "\\begin{cases}", "\\end{cases}", "<answer>", "</answer>", "<step>", "</step>",
    "Answer: ", "The answer is ", "Final answer", "答案：", "#### ", "(A) ", "B. ", "A, C", " and ", " or ",
    " because ", "1,234", "3.14", "1e9", "50%", " cm^2", " km/h", " degrees", "x = ", "it is ", "about ", "not unique",
    "or fill in ", "Step 1: ", "Step 99999999999999999999: ", "Intent: ", "Image: ", "Logic: ", "Judgement: Correct",
    "Judgement: Incorrect", "Correct Step: ", "<prm>", "<image>", "<|im_end|>", "<|im_start|>", "<|", "|>", "im_",
    "<im", "age>", "__import__('os')", "9^9^9", "1000000!", "{{", "}}", "true", "no", "\U0001f600", "\ud7ff", "e\u0301",
]  # fmt: skip


def count(target, slow):
    return INPUTS[target] // (1 if slow else SHARE)


tiers = pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])


def text_of(rng, longest=40):
    """A text of pieces; one in twelve repeats a part of itself hundreds of times."""
    text = "".join(rng.choices(PIECES, k=rng.randint(0, longest)))
    if text and rng.random() < 1 / 12:
        at = rng.randrange(len(text))
        text = text[:at] + text[at : at + rng.randint(1, 12)] * rng.randint(50, 400) + text[at:]
    return text


class Bounded:
    """A block that takes SECONDS of CPU time at most; `what` is told if it does not."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, *error):
        assert time.process_time() - self.start < SECONDS, ascii(self.what)[:2000]


def test_there_are_a_hundred_thousand_inputs():
    assert sum(INPUTS.values()) >= 100_000


@tiers
def test_parsers_of_texts(slow):
    rng = random.Random(f"texts/{slow}")
    for _ in range(count("texts", slow)):
        text = text_of(rng)
        with Bounded(text):
            found = extract(text)
            # neighbouring boxes are one answer, joined by commas
            assert found is None or (found and all(part in text for part in found.split(", ")))
            assert last_boxed(text) is None or last_boxed(text) in text
            parts = steps.split(text)
            assert steps.split(steps.join(parts)) == parts or "<" in text
            assert len(steps.split(text, max_steps=3)) <= 3 and all(part.strip() for part in parts)
            read = critique.parse("s", text, 3)
            assert read.parse == "ok" or (read.first_error is None and read.steps == [])
            assert read.parse != "ok" or critique.parse("s", critique.render(read), 3) == read
            place = parse_first_error(text, 3)
            assert place.first_error in (None, 0, 1, 2, 3)
            plain = fields.clean(text)
            assert fields.clean(plain) == plain and fields.answer_type_of(text, plain, [])
            try:
                fields.check_gold(plain)
                options, letter = fields.choices_of([text, "b", plain + "c"], "A")
                assert letter == "A" and len(options) == 3
            except Rejected as why:
                assert why.reason in data.REASONS


@tiers
def test_verdicts(slow):
    rng = random.Random(f"verdicts/{slow}")
    golds = ["12", "1/2", "x+1", r"\frac{1}{2}", "yes", "A", "(1,2)", r"\{1,2\}", "3 cm", "the cat", "[0,1)"]
    for _ in range(count("verdicts", slow)):
        given, gold = text_of(rng, 12), rng.choice(golds) if rng.random() < 0.8 else text_of(rng, 12)
        kind = rng.choice(["number", "expression", "choice", "text"])
        asked = SimpleNamespace(answer=gold, answer_type=kind, choices=rng.choice([[], ["12", "the cat", given]]))
        with Bounded((given, gold)):
            found = verdict(f"Answer: {given}", asked, timeout_s=0.5)
            assert found.label in ("correct", "wrong") or found.reason
            assert found.label == "unknown" or found.answer
            assert isinstance(normal_form(given, asked), str)
            assert equal(given, given, kind, [], timeout_s=0.5) is not False or not given.strip()


@pytest.fixture(scope="module")
def processor():
    return models.load("embedded")[1]


@tiers
def test_no_text_becomes_a_special_token(slow, processor):
    rng, tokenizer = random.Random(f"tokens/{slow}"), processor.tokenizer
    words = steps.special_strings(processor)
    parts = [*words, *(part for w in words for k in range(1, len(w)) for part in (w[:k], w[k:]))]
    special = set(tokenizer.all_special_ids)
    for _ in range(count("tokens", slow)):
        text = "".join(rng.choices(parts + PIECES, k=rng.randint(1, 12)))
        with Bounded(text):
            safe = steps.neutralise(text, processor)
            ids = tokenizer(safe, add_special_tokens=False)["input_ids"]
            assert not special & set(ids), ascii(text)
            assert steps.neutralise(safe, processor) == safe and safe.replace(" ", "") == text.replace(" ", "")
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == safe


VALUES = [None, True, -1, 0, 1, 2, 0.5, 10**30, "", "x", "\0", "\ud800", "+", "-", [], {}, [[]], [None], ["a"]]
VALUES += [{"a": 1}, "../../x", "a.png", [1], [0.5, None], [{"step": "s"}], float("nan"), float("inf"), "ки", "\n\n"]
VALUES += ["<prm>"]
SEEDS = [
    {"id": "x", "question": "q", "answer": "1", "image_path": "a.png", "choices": None, "split": "dev"},
    {"id": "v", "image": ["a.png"], "question": "q", "answer": "1", "policy_model": "m", "data_source": "d",
     "response": {"steps": ["s", "t"], "process_correctness": [1, -1]}},
    {"image": "a.png", "question": "<image>\nq", "question_orig": "q", "answer": "1", "response": "s\n\nt",
     "steps_with_score": [{"step": "s", "score": 0.5, "num_mc_correct": 1, "num_mc_total": 2}]},
    {"image": "a.png", "conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "### Question:\nq\n\n### Solution Process:\ns"}, {"from": "gpt", "value": "+"}]},
    {"image": "a.png", "conversations": [{"from": "human", "value": "Question: q\nProcess: s<prm>\n\nt<prm>"},
                                         {"from": "gpt", "value": [1.0, 0.5]}]},
    {"question": "q", "answer": "1", "image_path": "a.png", "process": "s<prm>", "labels": [0.5]},
    {"question": "q", "answer": "1", "solutions_splits": [["s"], ["t"]], "labels": [1, 0],
     "prm_scores": [[0.5], [0.1]]},
    {"question": {"problem": "q", "ground_truth_answer": "1"}, "label": {"finish_reason": "solution", "steps": [
        {"completions": [{"text": "s", "rating": 1}], "human_completion": None, "chosen_completion": 0}]}},
    {"input": "q Step 1: s ки\nStep 2: t ки", "label": "q Step 1: s +\nStep 2: t -"},
    {"id": "p", "generator": "g", "problem": "q", "steps": ["s", "t"], "final_answer_correct": False, "label": 1},
    {"question": "q", "final_answer": "1", "reasoning_steps": {"text": "q", "mc_value": 0.5, "children": [
        {"text": "s", "mc_value": 1.0, "children": []}]}},
    {"question": "q", "reasoning_steps": [{"solution_prefix": "q s", "mc_value": 0.5}]},
]  # fmt: skip


def changed(rng, value):
    """The value with one place of it replaced, removed or doubled."""
    if rng.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return rng.choice(VALUES) if rng.random() < 0.8 else text_of(rng, 8)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return value[:at] + [changed(rng, value[at])] * rng.choice([0, 1, 1, 1, 2]) + value[at + 1 :]
    key = rng.choice(list(value))
    rest = {k: v for k, v in value.items() if k != key}
    return rest if rng.random() < 0.15 else rest | {key: changed(rng, value[key])}


def line_of(rng):
    """A line of JSON that was one of SEEDS, or its bytes with some of them changed."""
    value = rng.choice(SEEDS)
    for _ in range(rng.randint(0, 3)):
        value = changed(rng, value)
    raw = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        raw[rng.randrange(len(raw))] = rng.choice(b'"\\{}[],:0e-\0\xff\xed ')
    return bytes(raw).replace(b"\n", b" ")


def seen(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@tiers
def test_rows_of_foreign_files(slow, tmp_path):
    rng, folder = random.Random(f"rows/{slow}"), tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    n_used = n_lines = 0
    for _ in range(count("rows", slow) // 60):
        lines = [raw for raw in (line_of(rng) for _ in range(60)) if raw.strip()]
        lines[0] = json.dumps(rng.choice(SEEDS)).encode()  # a file that begins with "[" would be an array
        (folder / "rows.jsonl").write_bytes(b"\n" + b"\n".join(lines) + b"\n")
        with Bounded(lines):
            problems, bad = data.from_files(folder / "rows.jsonl", tmp_path / "out")
            assert len(problems) + len(bad) == len(lines) and {b.reason for b in bad} <= set(data.REASONS)
            schema.write_records(tmp_path / "out/problems.jsonl", problems)
            assert schema.read_records(tmp_path / "out/problems.jsonl", schema.Problem) == problems
        with Bounded(lines):
            found = benchmark.read_visualprocessbench(folder / "rows.jsonl")
            assert len(found.solutions) + len(found.bad) == len(lines) and len(found.labels) == len(found.solutions)
        n_lines, n_used = n_lines + len(lines), n_used + len(problems) + len(found.solutions)
        for name, (read, write) in interchange.FORMATS.items():
            with Bounded((name, lines)):
                labelled = list(read(folder / "rows.jsonl", bad=(bad := [])))
                names = [one.record_id for one in labelled]
                n_used += len(names)
                write(tmp_path / "out/again.jsonl", labelled, strict=False, bad=[])
                again = list(read(tmp_path / "out/again.jsonl", strict=True))
                assert {one.record_id for one in again} <= set(names), name
    assert n_used > n_lines / 10  # the fuzz gets past the first check
    known = ["in", "in/a.png", "in/rows.jsonl", "out", "out/again.jsonl", "out/images", "out/problems.jsonl"]
    assert [name for name in seen(tmp_path) if not name.startswith("out/images/")] == known


@tiers
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken tags
def test_images(slow):
    rng, picture = random.Random(f"images/{slow}"), Image.effect_noise((40, 30), 60).convert("RGB")
    raws = []
    for mode, kind, options in [
        ("RGB", "PNG", {}), ("P", "PNG", {"transparency": 0}), ("LA", "PNG", {}), ("1", "PNG", {}), ("I;16", "PNG", {}),
        ("RGB", "JPEG", {}), ("CMYK", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("RGB", "WEBP", {}),
        ("RGB", "GIF", {"save_all": True, "append_images": [picture] * 3}), ("RGB", "BMP", {}), ("RGB", "TIFF", {}),
        ("L", "TIFF", {"compression": "tiff_lzw"}), ("F", "TIFF", {}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        (picture.convert("L") if mode == "I;16" else picture).convert(mode).save(buffer, kind, **options)
        raws.append(buffer.getvalue())
    n_read = 0
    for _ in range(count("images", slow)):
        raw = bytearray(rng.choice(raws))
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            at = rng.randrange(len(raw) if rng.random() < 0.5 else min(len(raw), 80))
            raw[at : at + rng.choice([0, 1, 1, 4])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
        raw = raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw
        with Bounded(bytes(raw)):
            try:
                image, suffix = images.decode(bytes(raw))
            except Rejected as why:
                assert why.reason in ("broken_image", "image_bomb", "extreme_aspect") and " at 0x" not in why.detail
            else:
                n_read += 1
                assert image.mode == "RGB" and image.width * image.height <= images.MAX_PIXELS
                assert suffix in images.FORMATS.values() and not image.info
    assert n_read > count("images", slow) / 10


@tiers
def test_paths(slow, tmp_path):
    rng, root = random.Random(f"paths/{slow}"), tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to("../secret")
    (root / "sub/up").symlink_to("../..")
    os.mkfifo(root / "pipe")
    parts = ["..", ".", "a", "sub", "link", "up", "pipe", "/", "/", "/", "secret", "\\", "\0", "~", "C:", "\ud800", "é"]
    parts += ["file://", "data:", "%2e%2e", " ", "x" * 300, "\x1b", "root", str(tmp_path), "/dev/zero", "\u2215"]
    for _ in range(count("paths", slow)):
        name = "".join(rng.choices(parts, k=rng.randint(1, 7)))
        with Bounded(name):
            try:
                assert images.read_bytes(images.inside(root, name)) == b"inside", ascii(name)
            except Rejected as why:
                assert why.reason in ("no_image", "path_escapes") and why.detail.isprintable()


@tiers
def test_records(slow, tmp_path):
    rng = random.Random(f"records/{slow}")
    labels = schema.StepLabels(
        solution_id="s", problem_id="p", steps=["a", "b"], n_rollouts=[4, None], n_correct=[2, None],
        n_unknown=[0, None], mc_score=[0.5, None], strategy="x", n_generated_tokens=3,
    )  # fmt: skip
    n_read = 0
    for _ in range(count("records", slow)):
        value = json.loads(labels.model_dump_json())
        for _ in range(rng.randint(0, 2)):
            value = changed(rng, value)
        raw = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        (tmp_path / "r.jsonl").write_bytes(raw + b"\n")
        with Bounded(raw):
            try:
                (record,) = schema.read_records(tmp_path / "r.jsonl", schema.StepLabels)
            except ValueError as error:
                assert str(error).startswith(f"{tmp_path}/r.jsonl:1: not a StepLabels record: ")
                assert len(str(error)) < 2000 and str(error).isprintable()
            else:
                n_read += 1
                schema.write_records(tmp_path / "again.jsonl", [record])
                assert schema.read_records(tmp_path / "again.jsonl", schema.StepLabels) == [record]
    assert n_read > count("records", slow) / 20
