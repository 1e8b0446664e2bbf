"""Published questions and solutions through notebooks 01 to 08, with random weights of two families.

The numbers mean nothing. What is held: every notebook ends, every record is valid, every figure that has something to
show is drawn, what has nothing to show says so, and memory stays bounded with 4-megapixel images and 4,000-token texts.
The two families make few tokens of any image. A third, Qwen2.5-VL, makes 5,246 of 4 megapixels, and goes through
01, 03, 05 and 06 with a few questions; its processor needs torchvision (`make test-vllm`).
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
from transformers.utils import is_torchvision_available

from mmprm_lib import models
from mmprm_lib.critique import TeacherCritique
from mmprm_lib.schema import Critique, Problem, Scores, Solution, StepLabels, read_records
from tests import families
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
SPLITS = {"train": 150, "dev": 40, "test": 60}  # in the order of the rows; 03 and 06 read the first of a split
N_LARGE = 2  # of each split
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


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL with its own processor and limits of its size, which ends a text only rarely."""
    torch.manual_seed(1)
    model, processor = families.qwen2_5_vl()
    processor.image_processor.size["longest_edge"] = 16384 * 28 * 28  # as published; 1,280 tokens in the other tests
    model.config.text_config.max_position_embeddings = 32768
    with torch.no_grad():
        head = model.lm_head.weight
        head.mul_(4 / head.norm(dim=1).mean())  # logits of some 4 either way, 0 for what ends a text
        head[model.generation_config.eos_token_id] = 0
    return model, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {"llava": llava, "gemma3": gemma3}


def write_data(folder: Path, splits: dict[str, int]) -> None:
    """Nothing; the published rows with some images enlarged, long worked solutions, and long rows of the benchmark."""
    names = [name for name, n in splits.items() for _ in range(n)]
    rows = [row | {"split": name} for row, name in zip(json.loads(K12.read_text()), names, strict=False)]
    shutil.copytree(DATA / "mm_k12" / "images", folder / "images", copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "images").chmod(0o755)
    for row in [row for name in splits for row in [r for r in rows if r["split"] == name][:N_LARGE]]:
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
    picture = folder / "vpb" / long["image"][0]
    Image.open(picture).convert("RGB").resize(LARGE).save(picture)
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


def first_notebook(data: Path, splits: dict[str, int]) -> dict[str, Any]:
    """The parameters of 01."""
    columns = {"id": "id", "question": "question", "answer": "answer", "image": "image_path", "split": "split"}
    sizes = {f"n_{name}": n for name, n in splits.items()}
    return {"source": "files", "path": str(data / "k12.json"), "columns": columns, **sizes}


def write_profile(folder: Path, model: Path, data: Path, url: str) -> None:
    """Nothing; params/mm_k12 as far as it goes, every model the one at `model`, and the rest of 01 to 08."""
    where = str(model)
    kinds = ["marker_hard", "marker", "chat", "chat_advantage", "orm"]
    trained = {name: f"04_prm_training/{name}" for name in kinds}
    small = {"learning_rate": 1.0e-4, "batch_size": 2, "pack_size": 1}
    changes = {
        "01_data": first_notebook(data, SPLITS),
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
    write_parameters(folder, changes)


def write_parameters(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Nothing; params/mm_k12 with these changes, a file per notebook."""
    folder.mkdir(parents=True)
    for name, change in changes.items():
        path = REPOSITORY / "params" / "mm_k12" / f"{name}.yaml"
        given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**given, **change, "run_name": "real"}))


def prepared(root: Path, family: Callable[[], tuple[Any, Any]], splits: dict[str, int]) -> None:
    """Nothing; a project at `root` with its notebooks, the family's checkpoint and the data."""
    for model in family():
        model.save_pretrained(root / "model")
    (root / "data").mkdir()
    write_data(root / "data", splits)
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
    shutil.copyfile(REPOSITORY / "requirements.lock", root / "requirements.lock")


def run_all(root: Path, *only: str) -> Path:
    """The results of one run of the profile; the test fails with the runner's words if it failed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MMPRM_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    environment |= {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"}
    environment.pop("MPLBACKEND", None)
    # eight notebooks may take longer than one test may (faulthandler_timeout)
    faulthandler.dump_traceback_later(HOURS * 3600, exit=True, file=sys.__stderr__)
    command = [sys.executable, "-m", "mmprm_lib.runner", "--profile", "real", *(["--only", *only] if only else [])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    done = subprocess.run(command, env=environment, text=True, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    return root / "results" / "real"


@pytest.fixture(scope="module", params=FAMILIES)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run of 01 to 08."""
    root = tmp_path_factory.mktemp(request.param)
    prepared(root, FAMILIES[request.param], SPLITS)
    with ChatServer(teacher) as server:
        write_profile(root / "params" / "real", root / "model", root / "data", server.url)
        return run_all(root)


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


def enlarged(results: Path, splits: dict[str, int]) -> set[str]:
    """The ids of the problems whose images have 4 megapixels, as 01 has stored them."""
    problems = read_records(results / "01_data" / "problems.jsonl", Problem)
    large = [p for p in problems if Image.open(p.image_path).size == LARGE]
    assert {name: sum(p.split == name for p in large) for name in splits} == dict.fromkeys(splits, N_LARGE)
    return {p.problem_id for p in large}


def reached(results: Path, large: set[str]) -> dict[str, int]:
    """How many problems with a large image 03 has labelled, 05 has scored and 06 has sampled for and scored."""
    folders = {name: results / name for name in ("03_mc_labeling", "05_visualprocessbench", "06_best_of_n")}
    labels = read_records(folders["03_mc_labeling"] / "labels.jsonl", StepLabels)
    scored = {s.solution_id for s in read_records(folders["06_best_of_n"] / "scores_marker.jsonl", Scores)}
    tried = read_records(folders["06_best_of_n"] / "candidates.jsonl", Solution)
    bench = [json.loads(line) for line in (folders["05_visualprocessbench"] / "benchmark.jsonl").open()]
    scores = read_records(folders["05_visualprocessbench"] / "scores_marker_hard.jsonl", Scores)
    assert len({s.solution_id for s in scores}) == len(bench)
    return {
        "03": len({label.problem_id for label in labels} & large),
        "05": sum(Image.open(folders["05_visualprocessbench"] / row["image"][0]).size == LARGE for row in bench),
        "06": len({s.problem_id for s in tried if s.solution_id in scored} & large),
    }


def longest(tokenizer: Any, texts: list[list[str]]) -> int:
    """The number of tokens of the longest of some solutions."""
    return max(len(tokenizer("\n\n".join(steps))["input_ids"]) for steps in texts)


def test_memory_stays_bounded_with_large_images_and_long_solutions(results):
    tokenizer = hf.AutoTokenizer.from_pretrained(results / "02_policy" / "policy")
    judged = [json.loads(line) for line in (results / "05_visualprocessbench" / "benchmark.jsonl").open()]
    learnt = set(json.loads((results / "02_policy" / "sft_problems.json").read_text()))
    worked = [json.loads(line) for line in (results.parents[1] / "data" / "worked.jsonl").open()]
    assert longest(tokenizer, [row["response"]["steps"] for row in judged]) >= LONG
    assert longest(tokenizer, [row["steps"] for row in worked if row["problem_id"] in learnt]) >= LONG
    large = enlarged(results, SPLITS)
    counts = reached(results, large)
    assert counts["03"] >= N_LARGE and counts["05"] == 1 and counts["06"] == N_LARGE
    peaks = {name: manifest(results, name)["machine"]["peak_memory_gb"] for name in NOTEBOOKS}
    assert max(peaks.values()) < MEMORY_GB, peaks


# -- a family whose tokens grow with the image

FEW = {"train": 4, "dev": 4, "test": 4}
# a third more than it takes; in 03 rows of 10,000 tokens attend to one another, four at a time
GROWN_GB = {"01_data": 0.8, "03_mc_labeling": 3.0, "05_visualprocessbench": 2.0, "06_best_of_n": 2.0}


def write_few(folder: Path, model: Path, data: Path) -> None:
    """Nothing; 01, 03, 05 and 06 with a few questions, every model the one at `model`, untrained."""
    where = str(model)
    long = {"policy": where, "max_new_tokens": LONG, "max_steps": 2, "temperature": 1.0}
    write_parameters(folder, {
        "01_data": first_notebook(data, FEW),
        "03_mc_labeling": long | {"n_label_problems": 1, "n_label_dev": 0, "n_solutions": 1, "n_rollouts": 2,
                                  "generation_batch": 8},
        "05_visualprocessbench": {
            "benchmark_path": str(data / "vpb" / "test.jsonl"), "batch_size": 4,
            "prms": dict.fromkeys(("marker_hard", "chat", "judge"), where),
        },
        "06_best_of_n": long | {"n_problems": N_LARGE, "n_candidates": 2, "ns": [1, 2], "headline_n": 2,
                                "batch_size": 4, "prms": dict.fromkeys(("marker", "chat", "orm"), where)},
    })  # fmt: skip


@pytest.mark.skipif(not is_torchvision_available(), reason="Qwen2.5-VL's processor needs torchvision, which is missing")
def test_images_that_become_thousands_of_tokens_go_through_with_long_solutions(tmp_path):
    prepared(tmp_path, qwen2_5_vl, FEW)
    write_few(tmp_path / "params" / "real", tmp_path / "model", tmp_path / "data")
    results = run_all(tmp_path, "01", "03", "05", "06")
    large = enlarged(results, FEW)
    assert reached(results, large) == {"03": 1, "05": 1, "06": N_LARGE}
    processor = models.load_processor(tmp_path / "model")
    for problem in read_records(results / "01_data" / "problems.jsonl", Problem):
        picture = Image.open(problem.image_path)
        ids = processor(text=["<|image_pad|>"], images=[picture], return_tensors="pt")["input_ids"][0]
        # 2400 x 1700 is rounded to 2408 x 1708: 86 x 61 squares of 28
        assert problem.problem_id not in large or len(ids) == 86 * 61
    for name in ("03_mc_labeling/solutions", "06_best_of_n/candidates"):
        solutions = read_records(results / f"{name}.jsonl", Solution)
        assert max(s.n_tokens for s in solutions if s.problem_id in large) >= LONG
        assert longest(processor.tokenizer, [s.steps for s in solutions]) > LONG / 2  # what went on to be scored
    judged = [json.loads(line) for line in (results / "05_visualprocessbench" / "benchmark.jsonl").open()]
    assert longest(processor.tokenizer, [row["response"]["steps"] for row in judged]) >= LONG
    peaks = {name: manifest(results, name)["machine"]["peak_memory_gb"] for name in GROWN_GB}
    assert all(peaks[name] < most for name, most in GROWN_GB.items()), peaks
