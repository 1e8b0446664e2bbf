"""Published questions and solutions through notebooks 01 to 08, with random weights of two families.

The numbers mean nothing. What is held: every notebook ends, every record is valid, every figure that has something to
show is drawn, what has nothing to show says so, and memory stays bounded with 4-megapixel images and 4,000-token texts.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from PIL import Image

from mmprm_lib import models
from mmprm_lib.critique import TeacherCritique
from mmprm_lib.schema import Critique, Problem, Scores, Solution, StepLabels, read_records
from tests.conftest import REPOSITORY
from tests.servers import ChatServer, ok

DATA = REPOSITORY.parent / "shared" / "data"
K12, BENCH = DATA / "mm_k12" / "k12.json", DATA / "visualprocessbench" / "test.jsonl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (K12.exists() and BENCH.exists()), reason="../shared/data is not there: no published rows"),
]
HOURS = 2  # of one family at most
MEMORY_GB = 3.0  # of a notebook's kernel at most, 0.5 of which are the libraries
LONG = 4_000  # tokens of the longest solutions
LARGE = (2400, 1700)  # pixels, 4 megapixels
N_LARGE = 6  # of the questions
READ, ANSWER = "Bar A is 4", "Answer: 987"  # all that the policy learns to say, which is the answer to nothing
SAME = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
GEMMA = (
    SAME + "{% for p in m['content'] %}{% if p['type'] == 'image' %}<start_of_image>{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llava() -> tuple[Any, Any]:
    """The architecture of the embedded base with random weights: LLaVA, SigLIP and Qwen2."""
    return models.new_base(seed=1, width=64, layers=2), models.new_processor()


def gemma3() -> tuple[Any, Any]:
    """Gemma 3 with its own processor and random weights: SigLIP, pooled image tokens that see one another."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    core = models.new_tokenizer()
    core.add_special_tokens({"additional_special_tokens": list(names.values())})
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        extra_special_tokens=names | {"start_token": "<|im_start|>"},
    )  # fmt: skip
    pixels = hf.models.gemma3.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(pixels, tokenizer, chat_template=GEMMA, image_seq_length=4)
    text = dict(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=32,
                num_attention_heads=2, num_key_value_heads=1, sliding_window=64, max_position_embeddings=16384,
                layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    eye = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    ids = {f"{n[:3]}_token_index": tokenizer.convert_tokens_to_ids(w) for n, w in names.items() if n != "image_token"}
    config = hf.Gemma3Config(
        text_config=text, vision_config=eye | dict(patch_size=14, vision_use_head=False), mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids(names["image_token"]), **ids,
    )  # fmt: skip
    torch.manual_seed(1)
    model = hf.Gemma3ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {"llava": llava, "gemma3": gemma3}


def write_data(folder: Path) -> None:
    """Nothing; the published rows with some images enlarged, long worked solutions, and long rows of the benchmark."""
    rows = json.loads(K12.read_text())
    shutil.copytree(DATA / "mm_k12" / "images", folder / "images", copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "images").chmod(0o755)
    for row in rows[:N_LARGE]:
        Image.open(folder / row["image_path"]).convert("RGB").resize(LARGE).save(folder / row["image_path"])
    (folder / "k12.json").write_text(json.dumps(rows))
    worked = []
    for place, row in enumerate(rows):
        # a word and a digit are tokens: five a clause
        long = [" ".join(["and 1 + 2"] * (LONG // 40))] * 10 if place % 100 == 0 else []
        worked.append({"problem_id": row["id"], "steps": [READ, *long, ANSWER]})
    (folder / "worked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worked))
    shutil.copytree(BENCH.parent / "images", folder / "vpb" / "images", copy_function=shutil.copyfile)
    bench = [json.loads(line) for line in BENCH.read_text().splitlines()]
    long = bench[0]
    steps = long["response"]["steps"]
    each = LONG // len(steps)
    long["response"]["steps"] = [f"{step} " + " ".join(["so 3"] * (each // 4)) for step in steps]
    (folder / "vpb" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench))


def teacher(request: dict[str, Any]):
    """An answer that finds the first step wrong, in the lines that are asked for; one in seven is no critique."""
    if zlib.crc32(json.dumps(request["messages"]).encode()) % 7 == 0:
        return ok("I cannot say.")
    lines = ["Step 1", "Intent: to begin", "Image: a figure", "Logic: it does not follow", "Judgement: Incorrect"]
    return ok("\n".join([*lines, "Correct Step: So 5"]))


def write_profile(folder: Path, model: Path, data: Path, url: str) -> None:
    """Nothing; params/mm_k12 as far as it goes, every model the one at `model`, and the rest of 01 to 08."""
    where = str(model)
    kinds = ["marker_hard", "marker", "chat", "chat_advantage", "orm"]
    trained = {name: f"04_prm_training/{name}" for name in kinds}
    small = {"learning_rate": 1.0e-4, "batch_size": 2, "pack_size": 1}
    changes = {
        "01_data": {"path": str(data / "k12.json"), "n_train": 150, "n_dev": 40, "n_test": 60},
        "02_policy": small | {
            "model": where, "solutions_path": str(data / "worked.jsonl"), "n_sft": 100, "epochs": 2.0, "n_eval": 6,
            "n_samples": 2, "max_new_tokens": 48, "n_base": 3, "generation_batch": 16, "gradient_accumulation": 1,
            "learning_rate": 3.0e-3,
        },
        "03_mc_labeling": {
            "policy": "02_policy/policy", "n_label_problems": 6, "n_label_dev": 3, "n_solutions": 2, "n_rollouts": 4,
            "max_new_tokens": 48,
        },
        "04_prm_training": small | {
            "model": where, "init": "policy", "prms": kinds, "score_batch": 8, "gradient_accumulation": 2,
            "epochs": dict.fromkeys(kinds, 1),
        },
        "05_visualprocessbench": {
            "benchmark_path": str(data / "vpb" / "test.jsonl"), "batch_size": 4,
            "prms": {name: trained[name] for name in kinds[:-1]} | {"judge": where},
        },
        "06_best_of_n": {
            "policy": "02_policy/policy", "n_problems": 4, "n_candidates": 2, "ns": [1, 2], "headline_n": 2,
            "temperature": 3.0, "max_new_tokens": LONG, "batch_size": 8,
            "prms": {name: trained[name] for name in ("marker", "marker_hard", "chat", "orm")},
        },
        "07_generative_prm": {
            "teacher": {"base_url": url, "model": "toy"}, "model": where, "n_tries": 0,
            "n_train": 20, "epochs": {"critique": 1, "verdict_only": 1}, "n_problems": 12, "n_votes": 2,
            "judge_batch": 8, "learning_rate": 1.0e-4, "batch_size": 2,
        },
        "08_refined_best_of_n": {
            "n_problems": 4, "ns": [2], "headline_n": 2, "modes": ["correction", "resample", "fresh"],
            "max_new_tokens": 48, "judge_batch": 8, "step_tokens": 24, "critique_tokens": 64, "generation_batch": 16,
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name, change in changes.items():
        path = REPOSITORY / "params" / "mm_k12" / f"{name}.yaml"
        given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**given, **change, "run_name": "real"}))


@pytest.fixture(scope="module", params=FAMILIES)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run of 01 to 08; the tests fail with the runner's words if it failed."""
    root = tmp_path_factory.mktemp(request.param)
    for model in FAMILIES[request.param]():
        model.save_pretrained(root / "model")
    (root / "data").mkdir()
    write_data(root / "data")
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
    shutil.copyfile(REPOSITORY / "requirements.lock", root / "requirements.lock")
    with ChatServer(teacher) as server:
        write_profile(root / "params" / "real", root / "model", root / "data", server.url)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MMPRM_ROOT": str(root), "OMP_NUM_THREADS": "1"}
        environment |= {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"}
        environment.pop("MPLBACKEND", None)
        # eight notebooks may take longer than one test may (faulthandler_timeout)
        faulthandler.dump_traceback_later(HOURS * 3600, exit=True, file=sys.__stderr__)
        command = [sys.executable, "-m", "mmprm_lib.runner", "--profile", "real"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, env=environment, text=True, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    return root / "results" / "real"


NOTEBOOKS = [
    "01_data", "02_policy", "03_mc_labeling", "04_prm_training", "05_visualprocessbench", "06_best_of_n",
    "07_generative_prm", "08_refined_best_of_n",
]  # fmt: skip
RECORDS = {
    "01_data/problems": Problem, "02_policy/base_solutions": Solution, "02_policy/solutions": Solution,
    "02_policy/greedy": Solution, "03_mc_labeling/solutions": Solution, "03_mc_labeling/labels": StepLabels,
    "06_best_of_n/candidates": Solution, "06_best_of_n/greedy": Solution,
    "07_generative_prm/critiques": TeacherCritique,
    "08_refined_best_of_n/critiques_initial": Critique, "08_refined_best_of_n/critiques_refined": Critique,
} | {f"07_generative_prm/critiques_{form}_{reading}": Critique
     for form in ("critique", "verdict_only") for reading in ("all", "first_error")}  # fmt: skip
# Every figure that needs no truth of the embedded world.
FIGURES = {
    "01_data": ["problems", "answer_forms", "steps", "answers"],
    "02_policy": ["loss", "accuracy", "by_trait", "example_wrong"],
    "03_mc_labeling": ["solution_0", "bands_by_place", "bands_by_form"],
    "04_prm_training": ["training", "reliability_by_epoch", "comparison", "reliability"],
    "05_visualprocessbench": ["steps", "benchmark", "by_kind", "by_position", "example_mistake_believed"],
    "06_best_of_n": ["best_of_n", "aggregators", "score_against_steps", "by_form", "candidates"],
    "07_generative_prm": ["loss", "verdicts", "reliability"],
    "08_refined_best_of_n": ["flips", "refined", "tokens", "diversity", "card_before", "card_after"],
}


def manifest(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / name / "manifest.json").read_text(encoding="utf-8"))


def printed(results: Path, name: str, stream: str = "stdout") -> str:
    """All that a notebook printed."""
    cells = json.loads((results / name / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", []) if output.get("name") == stream]
    return "".join("".join(output["text"]) for output in outputs)


def test_no_notebook_warns(results):
    assert {name: printed(results, name, "stderr") for name in NOTEBOOKS} == dict.fromkeys(NOTEBOOKS, "")


def test_every_record_is_valid_and_every_score_a_number(results):
    for name, kind in RECORDS.items():
        assert read_records(results / f"{name}.jsonl", kind), name
    for path in results.glob("0[4-7]*/scores_*.jsonl"):
        for record in read_records(path, Scores):
            assert all(math.isfinite(score) and 0 <= score <= 1 for score in record.step_scores), path
    labels = read_records(results / "03_mc_labeling" / "labels.jsonl", StepLabels)
    for record in labels:  # what was not judged is not wrong
        pairs = zip(record.mc_score, record.n_rollouts, record.n_unknown, strict=True)
        assert all((score is None) == (not n or n == unknown) for score, n, unknown in pairs)


def test_every_published_question_came_through_but_the_one_with_a_broken_gold(results):
    assert len(read_records(results / "01_data" / "problems.jsonl", Problem)) == 249
    assert "1 of 250 rows could not be used" in printed(results, "01_data")
    kept = (results / "05_visualprocessbench" / "benchmark.jsonl").read_text().splitlines()
    assert len(kept) == 12 and sum(len(json.loads(line)["response"]["steps"]) for line in kept) == 69


def test_every_figure_is_drawn(results):
    for name, figures in FIGURES.items():
        there = {path.stem.removeprefix("figure_") for path in (results / name).glob("figure_*.png")}
        assert set(figures) <= there, f"{name}: {sorted(set(figures) - there)} are not drawn"


def test_what_cannot_be_known_is_said(results):
    assert "no truth outside the embedded world" in printed(results, "03_mc_labeling")
    assert "every label is 0: nothing tells right from wrong" in printed(results, "04_prm_training")
    assert "nothing can be balanced" in printed(results, "07_generative_prm")
    metrics = {name: json.loads((results / name / "metrics.json").read_text()) for name in NOTEBOOKS}
    assert metrics["06_best_of_n"]["pass_at_1"]["value"] == 0.0
    assert metrics["04_prm_training"]["auroc"]["value"] is None, "one class has no AUROC"
    assert metrics["03_mc_labeling"]["share_correct"]["value"] == 0.0


def test_memory_stays_bounded_with_large_images_and_long_solutions(results):
    tokenizer = hf.AutoTokenizer.from_pretrained(results / "02_policy" / "policy")
    judged = [json.loads(line) for line in (results / "05_visualprocessbench" / "benchmark.jsonl").open()]
    learnt = set(json.loads((results / "02_policy" / "sft_problems.json").read_text()))
    worked = [json.loads(line) for line in (results.parents[1] / "data" / "worked.jsonl").open()]
    for texts in (
        [row["response"]["steps"] for row in judged],
        [row["steps"] for row in worked if row["problem_id"] in learnt],
    ):
        assert max(len(tokenizer("\n\n".join(steps))["input_ids"]) for steps in texts) >= LONG
    problems = read_records(results / "01_data" / "problems.jsonl", Problem)
    assert sum(Image.open(p.image_path).size == LARGE for p in problems) == N_LARGE
    peaks = {name: manifest(results, name)["machine"]["peak_memory_gb"] for name in NOTEBOOKS}
    assert max(peaks.values()) < MEMORY_GB, peaks
