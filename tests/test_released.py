"""PRMs that others trained: their layouts, literally; every open choice by its name; no code of theirs runs unasked."""

from __future__ import annotations

import copy
import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
import yaml
from safetensors.torch import save_file

from mmprm_lib import benchmark, data, encoding, evaluation, models, parameters, prm, released, scoring, stages, world
from mmprm_lib.convert import CHAT_TEMPLATE
from mmprm_lib.provenance import content
from mmprm_lib.run import Run
from mmprm_lib.schema import Scores
from mmprm_lib.steps import FORMATS, TEMPLATES, chat_template, process_template
from tests import families
from tests.conftest import REPOSITORY
from tests.doubles import problem, solution
from tests.test_evaluation import ToyRun, bench_of

FILES = sorted((REPOSITORY / "params" / "released").glob("*/*.yaml"))
NAMES = {"visualprm_8b", "visualprm_8b_v1_1", "mm_prm_8b", "bis_qwen2_5_vl", "vl_prm_7b"}
ASKED = problem(question="Which bar?")


def chosen(name, **more):
    """The format that a parameters file of params/released states, with the system turn "S"."""
    given = yaml.safe_load((REPOSITORY / "params/released" / name / "05_visualprocessbench.yaml").read_text("utf-8"))
    ((scorer, choices),) = given["formats"].items()
    choices = {k: v for k, v in choices.items() if k != "system_file"} | more
    return released.read_format(scorer, {**choices, "system": "S"}, None, REPOSITORY)[0]


@cache
def tiny():
    return models.new_base(0, width=32, layers=1, vision_layers=1), models.new_processor()


def processor_of(family):
    if why := families.FAMILIES[family].missing:
        pytest.skip(why)
    return families.FAMILIES[family].build()[1]


# -- layouts


@pytest.mark.parametrize(
    ("turn", "separator", "prompt", "pieces"),
    [
        ("closed", "\n\n", "user\n<|im_end|>\n<|im_start|>assistant\n", ["a<prm>", "\n\nb<prm>"]),  # MM-PRM's training
        ("open", "", "user\n<|im_start|>assistant\n", ["a<prm>", "b<prm>"]),  # its evaluation
        ("user", "", "user\n", ["a<prm>", "b<prm>"]),
    ],
)
def test_the_turn_of_a_process_is_a_choice(turn, separator, prompt, pieces):
    layout = process_template(ASKED, ["a", "b"], tiny()[1], chosen("mm_prm_8b", turn=turn, separator=separator))
    begun = "<|im_start|>system\nS<|im_end|>\n<|im_start|>"
    assert layout.prompt == begun + prompt + "<image>\nQuestion: Which bar?\nProcess: "
    assert layout.pieces == pieces


def test_an_unknown_turn_is_an_error():
    with pytest.raises(ValueError, match="turn is 'shut': choose one of closed, open, user"):
        process_template(ASKED, ["a"], tiny()[1], chosen("mm_prm_8b", turn="shut"))


@pytest.mark.parametrize("name", ["visualprm_8b", "visualprm_8b_v1_1"])
def test_visualprm_on_internvl_is_its_wire_format(name):
    layout = chat_template(ASKED, ["a", "b"], processor_of("internvl"), chosen(name))
    assert layout.prompt + "".join(layout.pieces) == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\n### Question:\n<IMG_CONTEXT>\nWhich bar?\n\n### Solution Process:\na<|im_end|>\n"
        "<|im_start|>assistant\n+<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_mm_prm_on_internvl_is_what_its_evaluation_sends():
    layout = process_template(ASKED, ["a", "b"], processor_of("internvl"), chosen("mm_prm_8b"))
    assert layout.prompt + "".join(layout.pieces) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"
        "<IMG_CONTEXT>\nQuestion: Which bar?\nProcess: a<prm>b<prm>"
    )


def test_prms_on_qwen_are_asked_through_its_template():
    processor = processor_of("qwen2_5_vl")
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    layout = process_template(ASKED, ["a", "b"], processor, chosen("bis_qwen2_5_vl"))
    assert layout.prompt + "".join(layout.pieces) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
        f"{image}\nQuestion: Which bar?\nProcess: a<prm>b<prm>"
    )
    for first, said in ((True, f"{image}\n### Question:\nWhich"), (False, f"### Question:\n{image}\nWhich")):
        layout = chat_template(ASKED, ["a"], processor, chosen("vl_prm_7b", image_first=first))
        assert layout.prompt == (
            f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{said} bar?\n\n### Solution Process:\n"
        )
        assert layout.pieces == ["a<|im_end|>\n<|im_start|>assistant\n"]


# -- scores


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return data.from_world({"train": 1}, 0, tmp_path_factory.mktemp("released"))[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as others save it: weights and a processor that knows <prm>, no prm.json."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = models.new_base(0, width=32, layers=1, vision_layers=1), models.new_processor()
    prm.add_marker(model, processor)
    model.config.system_message = "From the checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "token"), [("mm_prm_8b", "<prm>"), ("visualprm_8b", "Ċ")])
def test_a_score_is_read_where_the_paper_reads_it(asked, checkpoint, name, token):
    """MM-PRM at every marker, VisualPRM at the last token of "<|im_start|>assistant\\n"; the right word of two."""
    model, processor = models.load(checkpoint)
    form = chosen(name)
    row = encoding.Encoder(form, processor, 4096).encode(asked, ["a", "b c"], "s")
    at = processor.tokenizer.convert_ids_to_tokens([row.ids[p] for p in row.positions])
    assert at == [token] * 2 and row.positions[-1] == len(row.ids) - 1
    words = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"] if name == "mm_prm_8b" else ["+", "-"])
    assert scoring.label_ids(form, processor.tokenizer) == words
    images = encoding.Encoder(form, processor, 4096).prompt(asked, row.text).images
    with torch.inference_mode():
        z = model(input_ids=torch.tensor([row.ids]), **images).logits[0, row.positions][:, words]
    made = solution("s", ("a", "b c"), problem_id=asked.problem_id)
    (scores,) = scoring.Scorer(form, model, processor).score(asked, [made])
    np.testing.assert_allclose(scores, z.softmax(-1)[:, 0], atol=2e-6)


def test_a_released_prm_is_taken_as_it_is(asked, checkpoint, tmp_path):
    choices = {"format": "process", "labels": ["Yes", "No"], "turn": "open", "system_file": "checkpoint"}
    scorer = evaluation.load_scorer(ToyRun(tmp_path), "theirs", str(checkpoint), choices=choices)
    assert (scorer.form.turn, scorer.form.system, scorer.form.labels) == ("open", "From the checkpoint", ("Yes", "No"))
    (record,) = scorer.score_records([asked], [solution("s", ("a", "b"), problem_id=asked.problem_id)])
    assert isinstance(record, Scores) and len(record.step_scores) == 2
    with pytest.raises(ValueError, match="name it after one of"):  # without choices nobody knows how to ask it
        evaluation.load_scorer(ToyRun(tmp_path), "theirs", str(checkpoint))


def test_a_checkpoint_without_the_marker_is_refused_and_one_of_ours_has_its_own_format(checkpoint, tmp_path):
    choices = {"format": "process"}
    with pytest.raises(ValueError, match="the tokenizer has no <prm> token"):
        evaluation.load_scorer(ToyRun(tmp_path), "theirs", "embedded", choices=choices)
    model, processor = models.load(checkpoint)
    prm.TrainedPRM(FORMATS["marker"], model, processor).save(tmp_path / "04_prm_training" / "marker")
    with pytest.raises(ValueError, match="was saved with its format: leave it out of formats"):
        evaluation.load_scorer(ToyRun(tmp_path), "marker", "04_prm_training/marker", choices=choices)


# -- choices


def test_a_system_prompt_comes_from_a_file_or_the_checkpoint(tmp_path):
    (tmp_path / "prompt.txt").write_text("Line 1\nLine 2\n", encoding="utf-8")
    form, options = released.read_format("v", {"format": "chat", "system_file": "prompt.txt"}, None, tmp_path)
    assert (form.system, options) == ("Line 1\nLine 2", {})
    config = SimpleNamespace(system_message="M")
    choices = {"format": "chat", "system_file": "checkpoint", "history": "predicted"}
    form, options = released.read_format("v", choices, config, tmp_path)
    assert (form.system, options) == ("M", {"history": "predicted"})
    with pytest.raises(ValueError, match="v: the configuration has no system_message"):
        released.read_format("v", choices, SimpleNamespace(), tmp_path)


@pytest.mark.parametrize("kind", ["chat", "chat_advantage", "process"])
def test_without_a_system_prompt_there_is_none_of_ours(kind):
    """What a PRM of others has never seen must not stand before its questions; its own template may write one."""
    form, _ = released.read_format("v", {"format": kind, "system_file": ""}, None, REPOSITORY)
    assert form.system == "" and released.read_format("v", {"format": kind}, None, REPOSITORY)[0] == form
    processor = tiny()[1]
    layout = TEMPLATES[kind](ASKED, ["a"], processor, form)
    begun = "<|im_start|>user\n### Question:\n<image>\nWhich bar?\n\n### Solution Process:\n"
    if kind == "process":
        begun = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<image>\nQuestion: Which bar?\nProcess: "
    assert layout.prompt == begun
    converted = copy.copy(processor)
    converted.chat_template = CHAT_TEMPLATE.replace("SYSTEM", json.dumps("From the checkpoint"))
    own = "<|im_start|>system\nFrom the checkpoint<|im_end|>\n"
    assert TEMPLATES[kind](ASKED, ["a"], converted, form).prompt.startswith(own)


def test_the_file_of_a_system_prompt_is_an_input_of_the_run(asked, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("MMPRM_ROOT", str(REPOSITORY))
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path / "results"))
    path = tmp_path / "prompt.txt"
    path.write_text("Judge.", encoding="utf-8")
    run = Run("05_visualprocessbench", {"run_name": "r"})
    choices = {"format": "chat", "labels": ["+", "-"], "system_file": str(path), "history": "predicted"}
    scorer = evaluation.load_scorer(run, "theirs", str(checkpoint), choices=choices | {"threshold": 0.85})
    assert (scorer.form.system, scorer.history, scorer.threshold) == ("Judge.", "predicted", 0.85)
    run.finish()
    manifest = json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["external"][str(path)] == content(path)
    run = ToyRun(tmp_path)
    evaluation.load_scorer(run, "theirs", str(checkpoint), choices=choices | {"system_file": "checkpoint"})
    assert run.external_paths == [str(checkpoint)]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"format": "chat", "turns": "open"}, "choose among format, marker, instruction, system, labels, separator,"),
        ({"labels": ["+", "-"]}, "format is None, not one of marker, orm, judge, process, chat"),
        ({"format": "chat", "threshold": 85}, "threshold is 85, a score is from 0 to 1"),
        (yaml.safe_load("{format: process, labels: [Yes, No]}"), r"labels are \[True, False\]: give words, in quotes"),
    ],
)
def test_a_wrong_choice_is_named(choices, message):
    with pytest.raises(ValueError, match=f"formats of 'v'.*{message}"):
        released.check_choices({"v": choices})


def test_a_stated_threshold_stands_in_place_of_the_one_from_dev():
    bench = bench_of([[1, -1], [1, -1]])
    scores = {name: {s.solution_id: [0.9, 0.2] for s in bench.solutions} for name in ("a", "b")}
    found = evaluation.thresholds(bench, scores, {"a": {"threshold": 0.85}})
    assert found["a"] == 0.85 and found["b"] == evaluation.thresholds(bench, scores)["b"] != 0.85
    nobody = bench_of([])
    assert evaluation.thresholds(nobody, scores, {"a": {"threshold": 0.85}}) == {"a": 0.85, "b": 0.5}


@pytest.mark.slow
def test_the_notebook_says_that_a_threshold_was_stated(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    problems = data.from_world({"test": 12}, 0, tmp_path / "world")
    rates = {"slip": 0.3, "misconception": 0.5, "neutral": 0.1}
    solutions = evaluation.writer_solutions(problems, "w", 2, 0, **rates)
    truths = [world.truth(next(p for p in problems if p.problem_id == s.problem_id), s.steps) for s in solutions]
    benchmark.write_visualprocessbench(tmp_path / "test.jsonl", problems, solutions, truths)
    given = {
        "run_name": "r", "benchmark_path": str(tmp_path / "test.jsonl"), "dev_share": 0.0, "main_prm": "theirs",
        "prms": {"theirs": str(checkpoint)}, "n_resamples": 100,
        "formats": {"theirs": {"format": "chat", "labels": ["+", "-"], "threshold": 0.85}},
    }  # fmt: skip
    notebook = REPOSITORY / "notebooks" / "05_visualprocessbench.ipynb"
    papermill.execute_notebook(notebook, tmp_path / "05.ipynb", given, progress_bar=False, cwd=notebook.parent)
    table = pd.read_csv(tmp_path / "results" / "r" / "05_visualprocessbench" / "table_metrics.csv")
    assert set(zip(table["threshold_from"], table["threshold"], strict=True)) == {("stated", 0.85), ("half", 0.5)}
    said = (tmp_path / "05.ipynb").read_text(encoding="utf-8")
    assert "at 0.850 (as stated)" in said and "(from the dev part)" not in said


def test_every_released_prm_has_both_notebooks_and_their_choices_agree():
    read = {f: yaml.safe_load(f.read_text("utf-8")) for f in FILES}
    found = {name: {f.stem: values for f, values in read.items() if f.parent.name == name} for name in NAMES}
    assert {f.parent.name for f in FILES} == NAMES
    for name, given in found.items():
        assert list(given) == ["05_visualprocessbench", "06_best_of_n"], name
        for stem, values in given.items():
            declared = parameters.declared(REPOSITORY / "notebooks" / f"{stem}.ipynb")
            parameters.resolve(declared, values, f"{name}/{stem}")
            released.check_choices(values["formats"])
            assert set(values["formats"]) == {values["main_prm"]} == set(values["prms"])
            assert values["trust_remote_code"] is False
        asked = [next(iter(values["formats"].values())) for values in given.values()]
        assert {k: v for k, v in asked[0].items() if k != "threshold"} == asked[1], name  # 06 needs no threshold
        found_stages, missing = stages.plan(f"released/{name}")
        assert [s.name for s in found_stages] == list(given)
    threshold = found["visualprm_8b"]["05_visualprocessbench"]["formats"]["visualprm"]["threshold"]
    assert threshold == 0.85


def test_code_of_a_checkpoint_does_not_run_unless_the_user_says_so(tmp_path):
    ran = tmp_path / "ran"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
    ))  # fmt: skip
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\n")
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="python -m mmprm_lib.convert makes one of InternVL's own"):
        models.load(folder)
    assert not ran.exists()
    with pytest.raises(ValueError, match="register_for_auto_class"):  # this code is of no use, but it ran
        models.load(folder, trust_remote_code=True)
    assert ran.exists()
