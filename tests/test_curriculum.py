"""What the embedded base is trained on, how its skills are measured, and a training of two updates."""

from __future__ import annotations

import json
import math
import random
import re
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from mmprm_lib import curriculum, models, pretrain, world
from mmprm_lib.world import split_of

PROCESSOR = models.new_processor()
TOKENIZER = PROCESSOR.tokenizer
YES, NO = (TOKENIZER(word)["input_ids"][0] for word in (" Yes", " No"))
READ_A, SUM = {"read": "Bar A", "key": "A", "takes": "A"}, {"head": "Sum", "left": "A", "op": "+", "right": "B"}
BARS = {
    "family": "bars",
    "values": {"A": 3, "B": 8, "C": 5, "D": 6},
    "extra": {},
    "look": 0,
    "plan": [READ_A, {"read": "Bar B", "key": "B", "takes": "B"}, SUM],
    "trap": [READ_A, {"read": "Bar B", "key": "B", "takes": "C"}, SUM],
}
OPEN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CLAIM = re.compile(r"(?:(?P<part>[A-Za-z]+(?: [A-Za-z])?) is|[A-Za-z]+: (\d+) ([-+*]) (\d+) =) (?P<value>\d+)")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@pytest.fixture
def bars(monkeypatch):
    """Every scene is the same chart, A 3, B 8, C 5, D 6, so that rows can be stated in full."""
    monkeypatch.setattr(curriculum, "scene", lambda rng, split: (BARS, "What are bar A and bar B together?"))


def text_of(row: dict) -> str:
    """A row as text, its image tokens as one."""
    return re.sub("(<image>)+", "<image>", TOKENIZER.decode(row["ids"]))


def targets_of(row: dict) -> list[tuple[str, str, int]]:
    """What is asked of the model: (the two tokens up to the place, what must follow, its kind)."""
    found = []
    for place, (target, kind) in enumerate(zip(row["targets"], row["kinds"], strict=True)):
        assert (target == -100) == (kind == 0)
        if kind:
            found.append((TOKENIZER.decode(row["ids"][place - 1 : place + 1]), TOKENIZER.decode([target]), kind))
    return found


def claims(row: dict) -> list[tuple[str, bool]]:
    """The statements of a judging row with the verdicts that the row asks for."""
    verdicts = [target == YES for target, kind in zip(row["targets"], row["kinds"], strict=True) if kind == 4]
    texts = text_of(row).split("assistant\n")[1].split(curriculum.MARK)[:-1]
    return list(zip((text.strip() for text in texts), verdicts, strict=True))


def claimed(row: dict) -> str:
    """The reply of a row."""
    return text_of(row).split("assistant\n")[1]


def is_true(claim: str, values: dict, family: str) -> bool:
    """Whether a statement holds: a reading by the figure, a computation by its own numbers."""
    match = CLAIM.fullmatch(claim)
    assert match, claim
    if match["part"]:
        return values[world.parts(family, values)[match["part"]]] == int(match["value"])
    return OPERATIONS[match[3]](int(match[2]), int(match[4])) == int(match["value"])


# ---- rows, stated in full


def test_a_description_names_every_value_and_asks_for_each(bars):
    row = curriculum.Writer(PROCESSOR, 0).row("describe")
    told = "Bar B is 8\n\nBar C is 5\n\nBar A is 3\n\nBar D is 6\n\n"  # the order is drawn
    assert text_of(row) == OPEN.format("<image>Describe the figure.") + told
    assert targets_of(row) == [(" B is", " 8", 1), (" C is", " 5", 1), (" A is", " 3", 1), (" D is", " 6", 1)]
    assert row["ids"].count(3) == 16 and row["image"].size == (112, 112)


def test_a_computation_asks_for_every_digit_of_its_result(bars):
    row = curriculum.Writer(PROCESSOR, 0).row("compute")
    done = "Sum: 3 + 8 = 11\n\nSum: 1 + 8 = 9\n\nSum: 1 + 8 = 9\n\nSum: 3 + 8 = 11\n\n"  # 1 is a misread 3
    assert text_of(row) == OPEN.format("Compute.") + done
    eleven, nine = [(" 8 =", " 1", 2), (" = 1", "1", 2)], [(" 8 =", " 9", 2)]
    assert targets_of(row) == [*eleven, *nine, *nine, *eleven]
    assert row["image"] is None and 3 not in row["ids"]


def test_looking_up_asks_for_results_and_for_their_letter_or_the_number():
    writer, forms = curriculum.Writer(PROCESSOR, 0), set()
    for row in (writer.row("look_up") for _ in range(40)):
        user, reply = re.fullmatch(OPEN.format("(.*)").replace("|", r"\|") + "(.*)", text_of(row), re.DOTALL).groups()
        options = dict(re.findall(r"\((\w)\) (\d+)", user))
        assert user.startswith("Compute.") and list(options) in ([], list("ABCD"))
        asked = []
        for x, sign, y, value, answer in re.findall(r": (\d+) ([-+*]) (\d+) = (\d+)\n\nAnswer: (\w+)", reply):
            assert OPERATIONS[sign](int(x), int(y)) == int(value)
            assert options.get(answer, answer) == value  # the letter of the option, or the number itself
            assert answer.isdigit() == (not options)
            asked += [(digit, 2) for digit in value] + [(digit, 3) for digit in answer]
        assert asked and [(word.strip(), kind) for _, word, kind in targets_of(row) if word != "<|im_end|>"] == asked
        forms.add(bool(options))
    assert forms == {True, False}


def test_copied_numbers_are_those_that_were_said_and_results_are_right():
    writer = curriculum.Writer(PROCESSOR, 0)
    for row in (writer.row("copy") for _ in range(40)):
        said, results = [], []
        for line in claimed(row).split("\n\n")[:-1]:
            if match := re.fullmatch(r"[A-Za-z]+(?: [A-Za-z])? is (\d+)", line):
                said.append(int(match[1]))
            elif match := re.fullmatch(r"[A-Za-z]+: (\d+) ([-+*]) (\d+) = (\d+)", line):
                x, y, z = int(match[1]), int(match[3]), int(match[4])
                assert [x, y] in (said[-2:], [*results[-1:], *said[-1:]])
                assert OPERATIONS[match[2]](x, y) == z >= 0
                results.append(z)
            else:
                assert line == f"Answer: {results[-1]}"
        assert {kind for *_, kind in targets_of(row)} == {2, 3} and row["image"] is None


def test_what_is_told_is_read_in_the_order_of_the_instruction_and_combined():
    found, writer = [], curriculum.Writer(PROCESSOR, 0)
    for _ in range(40):
        row = writer.row("tell")
        asked, reply = text_of(row).split("user\n")[1].split("<|im_end|>")[0], claimed(row)
        head, named = re.fullmatch(r"(?:<image>)?([A-Z][a-z]+) of ([a-zA-Z ,]+)\.", asked).groups()
        read = re.findall(r"([A-Za-z]+(?: [A-Za-z])?) is (\d+)\n", reply)
        assert [phrase[0].lower() + phrase[1:] for phrase, _ in read] == named.split(", ")
        x, sign, y, z = re.search(rf"{head}: (\d+) ([-+*]) (\d+) = (\d+)\n\nAnswer: \4<\|im_end\|>$", reply).groups()
        assert [x, y] == [value for _, value in read[:2]] and OPERATIONS[sign](int(x), int(y)) == int(z) >= 0
        assert row["image"] is not None
        found.append(len(read))
    assert set(found) == {2, 3}


def test_judgements_are_asked_at_the_mark_and_never_written(bars):
    row = curriculum.Writer(PROCESSOR, 0).row("judge")
    head = "<image>What are bar A and bar B together?\nJudge each statement."
    stated = [
        *["Bar A is 3", "Bar A is 3", "Sum: 3 + 8 = 11", "Bar D is 6"],
        *["Sum: 3 + 8 = 11", "Bar C is 6", "Bar B is 8", "Bar D is 6"],
    ]
    assert text_of(row) == OPEN.format(head) + "".join(f"{claim} True?\n\n" for claim in stated)
    asked = targets_of(row)
    assert [(where, word) for where, word, kind in asked if kind == 4] == [
        (" True?", " No" if claim == "Bar C is 6" else " Yes") for claim in stated
    ]
    # of a false statement the value is not asked for: eight statements, two of the seven true ones with two digits
    assert [word for _, word, kind in asked if kind != 4] == [" 3", " 3", " 1", "1", " 6", " 1", "1", " 8", " 6"]


# ---- rows of every scene


@pytest.mark.parametrize("skill", curriculum.SKILLS)
def test_targets_are_the_next_tokens_and_verdicts_stand_at_marks(skill):
    writer, mark = curriculum.Writer(PROCESSOR, 3), TOKENIZER(curriculum.MARK)["input_ids"]
    for row in (writer.row(skill) for _ in range(40)):
        assert len(row["ids"]) == len(row["targets"]) == len(row["kinds"])
        for place, (target, kind) in enumerate(zip(row["targets"], row["kinds"], strict=True)):
            if kind in curriculum.KINDS:
                assert target == row["ids"][place + 1]
            elif kind == 4:
                assert target in (YES, NO) and row["ids"][place - 1 : place + 1] == mark
        asked_before_the_reply = row["kinds"][: row["ids"].index(2)]  # 2 ends the user's turn
        assert not any(asked_before_the_reply)


def test_every_verdict_agrees_with_the_scene(monkeypatch):
    found, draw = [], curriculum.scene
    monkeypatch.setattr(curriculum, "scene", lambda rng, split: found.append(draw(rng, split)) or found[-1])
    writer, kinds = curriculum.Writer(PROCESSOR, 0), set()
    for _ in range(100):
        found.clear()
        row = writer.row("judge")
        scene = found[0][0]
        for claim, verdict in claims(row):
            assert verdict == is_true(claim, scene["values"], scene["family"]), (claim, scene["values"])
            kinds.add((scene["family"], " is " in claim, verdict))
    assert len(kinds) == 5 * 2 * 2  # every family, readings and computations, true and false


def test_half_of_the_statements_are_true_of_either_sort():
    rng, counts = random.Random(0), {True: [], False: []}
    for _ in range(1500):
        scene, _ = curriculum.scene(rng, "train")
        text, _, right = curriculum.statement(scene, rng)
        counts[" is" in text].append(right)
    readings, computations = counts[True], counts[False]
    assert abs(len(readings) / 1500 - 0.65) < 0.06  # five standard errors: 5 * sqrt(.65 * .35 / 1500)
    for sort in (readings, computations):
        assert abs(sum(sort) / len(sort) - 0.5) < 2.5 / math.sqrt(len(sort))  # five standard errors


def test_false_readings_name_other_values_of_the_figure_and_near_ones(bars):
    rng = random.Random(1)
    drawn = [curriculum.statement(BARS, rng) for _ in range(400)]
    false = {value for text, value, right in drawn if text == "Bar A is" and not right}
    assert {8, 5, 6} <= false and 3 not in false and false <= {0, 1, 2, 4, 5, 6, 8}  # 3 - 3 to 3 + 3, and the others


def test_computations_come_from_plan_and_trap_with_right_results():
    rng, seen = random.Random(2), set()
    for _ in range(300):
        scene, _ = curriculum.scene(rng, "train")
        for text, value in curriculum.facts(scene, rng):
            match = re.fullmatch(r"([A-Za-z]+): (\d+) ([-+*]) (\d+) =", text)
            assert OPERATIONS[match[3]](int(match[2]), int(match[4])) == value >= 0
            seen.add((scene["family"], match[3]))
    assert {("table", "+"), ("table", "*"), ("rectangle", "*"), ("line", "-"), ("triangle", "-")} <= seen


# ---- splits and seeds


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_scenes_of_the_asked_split_are_shown(monkeypatch, split):
    drawn, draw = [], curriculum.scene
    monkeypatch.setattr(curriculum, "scene", lambda rng, split: drawn.append(draw(rng, split)[0]) or (drawn[-1], "?"))
    writer = curriculum.Writer(PROCESSOR, 0, split)
    for skill in curriculum.SKILLS * 5:
        writer.row(skill)
    assert len(drawn) >= 5 * len(curriculum.SKILLS) and {split_of(scene) for scene in drawn} == {split}


def test_a_seed_gives_the_same_rows_and_another_gives_others():
    def some(seed: int, split: str = "train") -> list[list[int]]:
        writer = curriculum.Writer(PROCESSOR, seed, split)
        return [writer.row(skill)["ids"] for skill in curriculum.SKILLS]

    assert some(0) == some(0)
    assert some(0) != some(1) and some(0) != some(0, "test")


STAGES = (
    curriculum.Stage(2, {"describe": 1.0}, factor=1.0, falls=0.5),
    curriculum.Stage(3, {"describe": 0.5, "judge": 0.5}, factor=0.5, falls=1.0),
)


def test_each_stage_shows_its_own_skills_for_its_own_updates():
    batches = list(curriculum.rows(PROCESSOR, 0, 16, STAGES))
    assert len(batches) == (2 + 3) * 16
    judging = [any(4 in row["kinds"] for row in batches[start : start + 16]) for start in range(0, 80, 16)]
    assert judging == [False, False, True, True, True]
    assert all(row["image"] is not None for row in batches[15::16])  # no batch is without a figure


def test_the_stages_read_before_they_judge_and_their_shares_sum_to_one():
    assert "judge" not in curriculum.STAGES[0].shares and curriculum.STAGES[0].shares["describe"] >= 0.5
    for stage in curriculum.STAGES:
        assert math.isclose(sum(stage.shares.values()), 1) and set(stage.shares) <= set(curriculum.SKILLS)
        assert stage.updates > 50 and 0 < stage.factor <= 1 and 0 <= stage.falls <= 1
    assert {skill for stage in curriculum.STAGES for skill in stage.shares} == set(curriculum.SKILLS)


# ---- training


def test_pace_rises_holds_and_falls_in_every_stage():
    stages = (curriculum.Stage(100, {}, factor=0.8, falls=0.5), curriculum.Stage(100, {}, factor=0.6, falls=1.0))
    # up over 50 updates, from the middle down in a line: 75 is half way, 99 would be at 1 / 50, but 0.03 is the least
    first = {0: 0.8 / 50, 24: 0.8 * 25 / 50, 49: 0.8, 50: 0.8, 75: 0.4, 99: 0.8 * 0.03}
    second = {100: 0.6 / 50, 149: 0.6, 199: 0.6, 200: 0.0}  # never falls; after the last stage nothing is learnt
    for update, factor in (first | second).items():
        assert math.isclose(curriculum.pace(update, stages), factor), update


def test_rows_are_padded_on_the_right_and_only_figures_have_pixels():
    writer = curriculum.Writer(PROCESSOR, 0)
    rows = [writer.row("describe"), writer.row("look_up"), writer.row("describe")]
    batch = pretrain.Collator(PROCESSOR)(rows)
    lengths = [len(row["ids"]) for row in rows]
    assert batch["input_ids"].shape == batch["targets"].shape == batch["kinds"].shape == (3, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths and batch["pixel_values"].shape == (2, 3, 112, 112)
    for line, row in enumerate(rows):
        assert batch["input_ids"][line, : len(row["ids"])].tolist() == row["ids"]
        assert (batch["targets"][line, len(row["ids"]) :] == -100).all()


@pytest.mark.parametrize(("middle", "loss"), [("blind", (1 + 1 + 2) / 3 + 0.3), ("knowing", (1 + 1 + 2) / 3)])
def test_judgements_weigh_twice_and_the_middle_layer_must_know_values(middle, loss):
    # four words and logits of 0 everywhere: each target costs log(4), and so does a middle layer that knows nothing
    targets, kinds = torch.tensor([[-100, 1, 2, 3]]), torch.tensor([[0, 1, 2, 4]])
    hidden = torch.zeros(1, 4, 4)
    early = torch.nn.functional.one_hot(targets.clamp(min=0), 4) * 100.0 if middle == "knowing" else hidden
    states = [hidden] * pretrain.MIDDLE + [early] + [hidden] * 4
    core = SimpleNamespace(last_hidden_state=hidden, hidden_states=states)

    class Inner:
        language_model = SimpleNamespace(norm=lambda states: states)

        def __call__(self, **inputs):
            return core

    model = SimpleNamespace(device=torch.device("cpu"), model=Inner(), lm_head=lambda states: states)
    found = pretrain.BaseTrainer.compute_loss(None, model, {"targets": targets, "kinds": kinds})
    assert math.isclose(found.item(), loss * math.log(4), rel_tol=1e-5)


# ---- measuring


def frame(**columns) -> pd.DataFrame:
    """Measured places; what is not given is the same everywhere."""
    n = len(columns["kind"])
    return pd.DataFrame({"reading": [True] * n, "starts": [True] * n, "hit": [True] * n} | columns)


def test_a_value_is_right_only_with_every_digit():
    places = frame(
        kind=[1, 1, 1, 2, 3, 4, 4, 4, 4],
        starts=[True, False, True, True, True, True, True, True, True],
        hit=[True, False, True, False, True, True, True, True, True],
        score=[0.0] * 5 + [2.0, 1.0, 1.5, 3.0],
        right=[False] * 5 + [True, False, False, True],
        reading=[True] * 5 + [True, True, False, False],
        look_up=[False] * 4 + [True] + [False] * 4,
    )
    places = pd.concat([places, places.assign(score=-places.score)[5:7].assign(reading=False)])
    # of the readings "1?" with its second digit wrong and one right digit: half; the result wrong, the copy right
    # right scores 2, 3, -2 and wrong ones 1, 1.5, -1: 2 and 3 each beat all three, -2 none: 6 of 9 pairs
    # of readings 2 beats 1; of computations 3 beats 1.5 and -1, -2 beats neither: 2 of 4 pairs
    assert pretrain._skills(places) == {
        **{"reading": 0.5, "arithmetic": 0.0, "copying": 1.0, "looking_up": 1.0},
        **{"judging_auroc": pytest.approx(6 / 9), "judging_auroc_reading": 1.0, "judging_auroc_arithmetic": 0.5},
    }


class Parrot:
    """A model that knows every next token, and whose verdict on every statement is the same."""

    seen: set[int]

    def __init__(self):
        self.seen = set()

    def eval(self):
        return self

    def __call__(self, input_ids, attention_mask, pixel_values):
        self.seen.add(len(input_ids))
        return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids.roll(-1, 1), len(TOKENIZER)).float())


def test_skills_of_a_model_that_knows_values_and_judges_nothing():
    parrot = Parrot()
    skills = pretrain.measure(parrot, PROCESSOR, n=32)
    known = {name: skills.pop(name) for name in ("reading", "arithmetic", "copying", "looking_up")}
    assert set(known.values()) == {1.0} and parrot.seen == {32}
    assert skills == {"judging_auroc": 0.5, "judging_auroc_reading": 0.5, "judging_auroc_arithmetic": 0.5}


def test_a_training_of_two_updates_writes_model_card_and_skills(tmp_path, monkeypatch, capsys):
    measure = pretrain.measure
    monkeypatch.setattr(pretrain, "measure", lambda *args, n=32, **options: measure(*args, n=32, **options))
    small = partial(models.new_base, width=32, layers=pretrain.MIDDLE + 1, vision_layers=1)
    monkeypatch.setattr(pretrain, "new_base", small)
    monkeypatch.setattr(pretrain, "STAGES", tuple(stage._replace(updates=1) for stage in STAGES))
    first, second = tmp_path / "first", tmp_path / "second"
    common = dict(batch=4, learning_rate=1e-3, seed=5)
    skills = pretrain.train(first, **common, watch=2, start="", skip=0)
    facts = json.loads((first / "skills.json").read_text(encoding="utf-8"))
    assert facts["skills"] == skills and all(0 <= value <= 1 for value in skills.values())
    assert (facts["updates"], facts["batch"], facts["seed"]) == (2, 4, 5)
    card = (first / "README.md").read_text(encoding="utf-8")
    assert "2 batches of 4 rows" in card and "seed 5" in card and f"| reading | {skills['reading']:.4f} |" in card
    assert "update 2 of 2" in capsys.readouterr().out
    assert {path.suffix for path in first.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja", ".md"}

    monkeypatch.setattr(pretrain, "measure", lambda *args, **options: skills)
    pretrain.train(second, **common, watch=9, start=str(first), skip=1)  # on from there, the second stage alone
    assert json.loads((second / "skills.json").read_text(encoding="utf-8"))["updates"] == 1
    learnt = [models.load(path)[0].model.language_model.layers[0].mlp.up_proj.weight for path in (first, second)]
    start = small(5).model.language_model.layers[0].mlp.up_proj.weight.to(learnt[0])
    # AdamW moves a weight by about its rate, which is a fiftieth of 1e-3 in an update of a stage's beginning
    steps = [(learnt[0] - start).abs().max(), (learnt[1] - learnt[0]).abs().max()]
    assert all(0 < step < 2e-3 for step in steps), steps
