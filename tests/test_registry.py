"""The registry of benchmarks: its file, rows in each benchmark's own layout through `datasets`, and shared sources."""

import copy
import io
import json
from types import SimpleNamespace

import pandas as pd
import papermill
import pydantic
import pytest
import yaml
from httpx import ConnectError, Request, Response
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from mmprm_lib import data, grading, registry
from mmprm_lib.schema import Problem
from tests.conftest import REPOSITORY


def picture(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


P = {"bytes": picture(), "path": None}
OLYMPIAD = {"question": "Find all.\n<img_3362>\n", "final_answer": ["$1,2$"], "error": "", "unit": "m",
            "subfield": "Algebra", "image_1": P, "image_2": None}  # fmt: skip
# benchmark -> {(configuration, split): rows}, each row with the columns that the published set has
ROWS = {
    "mm_k12": {("", "test"): [{"id": "k", "question": "What?", "answer": "$2$", "image": P}]},
    "mathvista": {("", "testmini"): [
        {"pid": "1", "question": "The slope is", "decoded_image": P, "choices": ["larger", "equal", "smaller"],
         "unit": None, "precision": None, "answer": "equal", "question_type": "multi_choice", "answer_type": "text",
         "metadata": {"source": "FunctionQA"}},
        {"pid": "2", "question": "How long?", "decoded_image": P, "choices": None, "unit": "cm", "precision": 1.0,
         "answer": "1.2", "question_type": "free_form", "answer_type": "float", "metadata": {"source": "GEOS"}},
    ]},
    "mathvision": {("", "test"): [
        {"id": "9", "question": "Which one?\n<image1>", "options": ["A", "B", "C"], "decoded_image": P, "answer": "C",
         "subject": "counting"},
        {"id": "10", "question": "How many? <image1>", "options": [], "decoded_image": P, "answer": "12",
         "subject": "counting"},
    ]},
    "mathverse_vision_only": {("testmini", "testmini"): [
        {"sample_index": "4", "problem_index": "1", "problem_version": "Text Lite", "question": "x?", "image": P,
         "answer": "A", "question_type": "multi-choice"},
        {"sample_index": "5", "problem_index": "1", "problem_version": "Vision Only", "question": "As in the image.",
         "image": P, "answer": "A", "question_type": "multi-choice"},
    ]},
    "dynamath": {("", f"sample_variant{v}"): [
        {"id": q, "question": f"Question {q}, variant {v}", "decoded_image": P, "ground_truth": truth,
         "answer_type": kind, "question_type": kind}
        for q, truth, kind in ((1, f"{v}.5", "float"), (2, "B", "multiple choice"), (3, "even", "text"))
    ] for v in range(1, 11)},
    "wemath": {("", "testmini"): [
        {"ID": "165", "split": "testmini", "question": "How large is it?", "answer": "B", "image_path": P, "key": key,
         "option": "A. 200.96;B. 3215.36;C. 6280;D. 32; E. No correct answer", "knowledge concept": "area"}
        for key in ("3steps_1", "3steps_multi")
    ]},
    "logicvista": {("", "test"): [
        {"id": "v1_0", "question": "Select from A to E.", "answer": "A, C", "image": P, "skill": "inductive"},
    ]},
    "mmmu": {(config, "validation"): [
        {"id": f"validation_{config}_1", "question": "<image 1> What is it?", "options": "['one', 'two']",
         "answer": "B", "question_type": "multiple-choice", "subfield": "x", "image_1": P, "image_2": None},
        {"id": f"validation_{config}_2", "question": "How much?", "options": "[]", "answer": "['24/7', '3.429']",
         "question_type": "open", "subfield": "x", "image_1": P, "image_2": None},
        {"id": f"validation_{config}_3", "question": "Which? <image 1> <image 2>", "options": "['one', 'two']",
         "answer": "A", "question_type": "multiple-choice", "subfield": "x", "image_1": P, "image_2": P},
    ] for config in registry.benchmark("mmmu").configs[:2]},
    "olympiadbench": {("OE_MM_maths_en_COMP", "train"): [
        {"id": 1, **OLYMPIAD}, {"id": 2, **OLYMPIAD, "final_answer": ["1.0"], "error": "1e-1"},
    ]},
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Writes rows as parquet files under a card like the hub's, and gives the folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    written = []

    def write(tables) -> str:
        folder, configs = tmp_path / f"hub{len(written) or ''}", {}  # datasets caches what it read, by the folder
        written.append(folder)
        for (config, split), rows in tables.items():
            kinds = {key: datasets.Image(decode=False) for key in rows[0] if key.startswith(("image", "decoded"))}
            plain = datasets.Dataset.from_list([{k: v for k, v in r.items() if k not in kinds} for r in rows])
            features = datasets.Features({**plain.features, **kinds})
            (folder / (config or "data")).mkdir(parents=True, exist_ok=True)
            name = f"{config or 'data'}/{split}-00000-of-00001.parquet"
            datasets.Dataset.from_list(rows, features=features).to_parquet(folder / name)
            configs.setdefault(config or "default", []).append({"split": split, "path": name})
        card = [{"config_name": config, "data_files": files} for config, files in configs.items()]
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
        return str(folder)

    return write


@pytest.fixture(autouse=True)
def two_subjects(monkeypatch):
    """MMMU with two of its thirty subjects, for the time that thirty tables take."""
    known = registry.benchmark
    entry = known("mmmu").model_copy(update={"configs": known("mmmu").configs[:2]})
    monkeypatch.setattr(registry, "benchmark", lambda name: entry if name == "mmmu" else known(name))


def read(hub, tmp_path, name, **options):
    return data.from_benchmark(name, tmp_path / "out", dataset_id=hub(ROWS[name]), revision="abc", **options)


def said(problem: Problem) -> tuple:
    place = {key: value for key, value in problem.grading.items() if key != "ask"}
    assert problem.question.endswith(problem.grading.get("ask", ""))
    return problem.problem_id, problem.question, problem.answer, problem.answer_type, problem.choices, place


def test_every_benchmark_of_best_of_n_is_read_here():
    usable = {name for name, entry in registry.registry().benchmarks.items() if entry.use == "selection"}
    assert usable - {"mathvision_mini", "mathverse"} == set(ROWS)  # these two share an entry with another
    assert registry.table()["name"].tolist()[0] == "visualprocessbench"


@pytest.mark.parametrize(
    ("name", "streaming"), [*((name, False) for name in sorted(ROWS)), ("mathvista", True), ("mmmu", True)]
)
def test_rows_in_the_published_layout_become_problems_that_grade_their_own_gold(hub, tmp_path, name, streaming):
    problems, bad = read(hub, tmp_path, name, streaming=streaming)
    several = 2 if name == "mmmu" else 0
    assert [row.reason for row in bad] == ["several_images"] * several
    assert problems and {p.split for p in problems} == {"test"} and {p.source for p in problems} == {"hub@abc"}
    assert {p.grading["benchmark"] for p in problems} == {name}
    for problem in problems:
        Problem.model_validate_json(problem.model_dump_json())
        assert "<im" not in problem.question
        assert grading.verdict(f"Answer: {problem.answer}", problem).label == "correct", problem


def test_mathvista_rows_say_what_their_answer_is(hub, tmp_path):
    problems, _ = read(hub, tmp_path, "mathvista")
    assert [said(p) for p in problems] == [
        ("1", "The slope is\nGive the letter of the right option.", "B", "choice", ["larger", "equal", "smaller"],
         {"benchmark": "mathvista", "rule": "plain", "variant": "FunctionQA"}),
        ("2", "How long?\nThe unit is cm. The answer is a number with 1 decimal place(s).", "1.2", "number", [],
         {"benchmark": "mathvista", "rule": "places", "places": 1, "variant": "GEOS"}),
    ]  # fmt: skip


def test_mathvision_keeps_letters_and_numbers(hub, tmp_path):
    problems, _ = read(hub, tmp_path, "mathvision")
    assert [said(p)[:5] for p in problems] == [
        ("9", "Which one?", "C", "choice", ["A", "B", "C"]), ("10", "How many?", "12", "number", []),
    ]  # fmt: skip


def test_only_the_wanted_version_of_mathverse_is_read(hub, tmp_path):
    (problem,), bad = read(hub, tmp_path, "mathverse_vision_only")
    assert bad == [] and problem.problem_id == "5"
    assert said(problem)[-1] == {
        "benchmark": "mathverse_vision_only", "rule": "plain", "group": "1", "variant": "Vision Only",
    }  # fmt: skip


def test_the_variants_of_a_question_of_dynamath_stand_together(hub, tmp_path):
    problems, bad = read(hub, tmp_path, "dynamath", n=29)
    assert bad == [] and [p.grading["group"] for p in problems] == ["1"] * 10 + ["2"] * 10 + ["3"] * 9
    assert [p.problem_id for p in problems[:2]] == ["1-sample_variant1", "1-sample_variant2"]
    assert said(problems[1])[2:] == (
        "2.5", "number", [],
        {"benchmark": "dynamath", "rule": "absolute", "tolerance": 0.001, "group": "1", "variant": "sample_variant2"},
    )  # fmt: skip
    assert [p.answer_type for p in problems[9:11]] == ["number", "choice"] and problems[-1].answer_type == "text"


def test_the_options_of_we_math_are_taken_apart(hub, tmp_path):
    problems, _ = read(hub, tmp_path, "wemath")
    assert problems[0].choices == ["200.96", "3215.36", "6280", "32", "No correct answer"]
    assert [(p.problem_id, p.grading["group"], p.grading["variant"]) for p in problems] == [
        ("165-3steps_1", "3steps-165", "3steps_1"), ("165-3steps_multi", "3steps-165", "3steps_multi"),
    ]  # fmt: skip


def test_mmmu_reads_all_its_subjects_and_several_golds(hub, tmp_path):
    problems, bad = read(hub, tmp_path, "mmmu")
    assert (len(problems), len(bad)) == (4, 2)
    assert len(registry.registry().benchmarks["mmmu"].configs) == 30
    asked = "What is it?\nGive the letter of the right option."
    assert said(problems[0])[1:5] == (asked, "B", "choice", ["one", "two"])
    assert problems[1].answer == "24/7" and problems[1].grading["alternatives"] == ["3.429"]
    assert grading.verdict("Answer: 3.43", problems[1]).label == "correct"


def test_olympiadbench_carries_its_tolerances(hub, tmp_path):
    one, other = read(hub, tmp_path, "olympiadbench")[0]
    assert one.question == "Find all.\nGive all answers." and one.answer == "$1,2$"
    assert one.grading["unit"] == "m" and "tolerances" not in one.grading
    assert other.grading["tolerances"] == [0.1]
    assert grading.verdict("Answer: 2, 1", one).label == "correct"
    assert grading.verdict("Answer: 1.05", other).label == "correct"


def test_rows_that_do_not_fit_are_named_with_their_reason(hub, tmp_path):
    tables = copy.deepcopy(ROWS["mathvista"])
    good, other = tables["", "testmini"]
    rows = [good, other | {"pid": "3", "answer_type": "essay"}, other | {"pid": "4", "precision": None}]
    rows += [good | {"pid": "5", "answer": "none of them"}, good | {"pid": "6", "decoded_image": None}]
    name = hub({("", "testmini"): rows})
    problems, bad = data.from_benchmark("mathvista", tmp_path / "out", dataset_id=name, revision="abc")
    assert [p.problem_id for p in problems] == ["1"]
    assert [(b.row, b.reason) for b in bad] == [
        (1, "invalid_record"), (2, "invalid_record"), (3, "bad_choices"), (4, "no_image"),
    ]  # fmt: skip
    other_layout = hub(ROWS["logicvista"])
    with pytest.raises(ValueError, match="testmini"):
        data.from_benchmark("mathvista", tmp_path / "out", dataset_id=other_layout, revision="abc")
    wrong = hub({("", "test"): [{"id": "1", "question": "?", "picture": "x"}]})
    _, bad = data.from_benchmark("logicvista", tmp_path / "out", dataset_id=wrong, revision="abc")
    assert [b.reason for b in bad] == ["missing_column"] and "answer" in bad[0].detail


def test_a_notebook_takes_a_benchmark_by_its_name(hub, tmp_path):
    name, sizes = hub(ROWS["logicvista"]), {"train": 0, "dev": 0, "test": 100}
    given = {"dataset_id": name, "revision": "abc", "benchmark": "logicvista"}
    problems, _ = data.load("hub", sizes, 0, tmp_path / "out", **given)
    assert [(p.problem_id, p.split) for p in problems] == [("v1_0", "test")]
    with pytest.raises(ValueError, match="for testing only: set n_train and n_dev to 0"):
        data.load("hub", sizes | {"dev": 1}, 0, tmp_path / "out", **given)
    with pytest.raises(ValueError, match="set source: hub, not files"):
        data.load("files", sizes, 0, tmp_path / "out", **given)
    with pytest.raises(ValueError, match="'mathvita' is unknown: use one of"):
        data.load("hub", sizes, 0, tmp_path / "out", benchmark="mathvita")
    with pytest.raises(ValueError, match="05_visualprocessbench"):
        data.load("hub", sizes, 0, tmp_path / "out", benchmark="visualprocessbench")


def test_the_document_is_what_the_registry_says():
    written = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert written == registry.document(), "python -m mmprm_lib.registry > docs/benchmarks.md brings it up to date"


def test_no_comma_cuts_a_sentence_in_two():
    """In a bracketed list a comma ends an entry: where there are several, all must stand in quotes."""
    for name, entry in yaml.compose(registry.PATH.read_text(encoding="utf-8")).value[0][1].value:
        for key, node in entry.value:
            if key.value in ("differs", "not_verified", "may_not") and node.flow_style and len(node.value) > 1:
                assert all(text.style == '"' for text in node.value), f"{name.value}, {key.value}: quote each entry"
    differs = registry.benchmark("olympiadbench").differs
    assert len(differs) == 3 and differs[-1] == "what cannot be parsed is unknown, not wrong"


def test_a_wrong_entry_is_an_error():
    content = yaml.safe_load(registry.PATH.read_text(encoding="utf-8"))
    for change in ({"revision": "main"}, {"built_from": ["nothing"]}, {"columns": {"id": "{id}"}}, {"colour": "red"},
                   {"kinds": {"": {"rule": "guess"}}}, {"licence": None}, {"may_not": []}):  # fmt: skip
        spoilt = copy.deepcopy(content)
        spoilt["benchmarks"]["mathvista"] |= change
        with pytest.raises(pydantic.ValidationError):
            registry.Registry.model_validate(spoilt)


def test_the_file_says_which_benchmarks_feed_which():
    assert registry.benchmark("visualprocessbench").built_from == [
        "mmmu", "mathvision_mini", "mathverse_vision_only", "dynamath", "wemath",
    ]  # fmt: skip
    assert "mathvista" in registry.shared_sources("mathvista", "visualprocessbench")  # by way of DynaMath's questions
    assert "mathvision" in registry.shared_sources("visualprocessbench", "mathvision")
    assert "geometry3k" in registry.shared_sources("OpenGVLab/VisualPRM400K-v1.1@main", "mathvista")
    assert registry.shared_sources("FanqingM/MMK12", "mm_k12") == ["k12_school_questions"]
    assert registry.shared_sources("world", "mathvista") == registry.shared_sources("my/set", "mathvista") == []
    assert registry.shared_sources("my/set@abc", "my/set") == ["my/set"]


@pytest.mark.slow
def test_a_benchmark_goes_through_the_notebooks_and_reports_its_own_number(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("MMPRM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    given = {"run_name": "dynamath", "source": "hub", "benchmark": "dynamath", "dataset_id": hub(ROWS["dynamath"]),
             "revision": "abc", "n_train": 0, "n_dev": 0, "n_test": 1000}  # fmt: skip
    run(tmp_path, "01_data", given)
    given = yaml.safe_load((REPOSITORY / "params" / "mm_k12" / "06_best_of_n.yaml").read_text(encoding="utf-8"))
    given |= {"run_name": "dynamath", "n_candidates": 2, "ns": [1, 2], "headline_n": 2, "max_new_tokens": 16}
    run(tmp_path, "06_best_of_n", given)
    own = pd.read_csv(tmp_path / "results" / "dynamath" / "06_best_of_n" / "table_benchmark.csv")
    worst = own[own["metric"] == "worst_case_accuracy"]
    assert worst["method"].tolist() == ["one_draw", "greedy", "majority", "marker"]
    assert worst["n"].tolist() == [3] * 4 and worst["n_left_out"].tolist() == [0] * 4
    assert own[own["metric"] == "average_accuracy"]["n"].tolist() == [30] * 4
    metrics = json.loads((tmp_path / "results" / "dynamath" / "06_best_of_n" / "metrics.json").read_text())
    assert metrics["worst_case_accuracy__greedy"]["n"] == 3
    # another run is compared with the problems of this one
    where = tmp_path / "results" / "dynamath" / "01_data" / "problems.jsonl"
    given = {"run_name": "w", "n_train": 30, "n_dev": 5, "n_test": 5, "against": {"dynamath": str(where)}}
    run(tmp_path, "01_data", given)
    shared = pd.read_csv(tmp_path / "results" / "w" / "01_data" / "table_contamination.csv")
    assert shared["n"].tolist() == [30] * 5 and shared["n_benchmark"].tolist()[0] == 0


def run(folder, name, given):
    """Nothing; executes a notebook with these parameters."""
    source = REPOSITORY / "notebooks" / f"{name}.ipynb"
    papermill.execute_notebook(source, folder / f"{name}.ipynb", given, progress_bar=False, cwd=REPOSITORY)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_what_is_not_pinned_is_pinned_and_nothing_else_changes(tmp_path):
    path, before = tmp_path / "benchmarks.yaml", registry.PATH.read_text()
    path.write_text(before)
    unpinned = {e.dataset_id for e in registry.registry().benchmarks.values() if e.revision is None}
    assert "OpenGVLab/VisualProcessBench" in unpinned, "else this test has nothing to pin"
    asked = []

    def commit_of(name: str) -> str:
        asked.append(name)
        if name == "We-Math/We-Math":
            raise ConnectError("no way to the hub")
        return COMMIT

    pinned, failed = registry.pin(commit_of, path)
    assert set(asked) == unpinned and len(asked) == len(unpinned), "each is asked for once"
    assert pinned == dict.fromkeys(unpinned - {"We-Math/We-Math"}, COMMIT)
    assert failed == {"We-Math/We-Math": "ConnectError: no way to the hub"}
    lines, after = before.splitlines(), path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(lines, after, strict=True) if old != new]
    assert changed and set(changed) == {("    revision: null", f"    revision: {COMMIT}")}
    entries = registry.Registry.model_validate(yaml.safe_load(path.read_text())).benchmarks.values()
    assert {e.dataset_id for e in entries if e.revision is None} == {"We-Math/We-Math"}
    known = {e.dataset_id: e.revision for e in registry.registry().benchmarks.values() if e.revision}
    assert known.items() <= {e.dataset_id: e.revision for e in entries}.items(), "what was pinned stays"


@pytest.mark.parametrize("answer", ["main", "", "a" * 39])
def test_what_is_no_commit_is_not_written(tmp_path, answer):
    path = tmp_path / "benchmarks.yaml"
    path.write_text(registry.PATH.read_text())
    pinned, failed = registry.pin(lambda name: answer, path)
    assert not pinned and set(failed.values()) == {f"ValueError: {answer!r} is no commit"}
    assert path.read_text() == registry.PATH.read_text()


def test_pinning_asks_the_hub_and_says_what_it_could_not_have(tmp_path, monkeypatch, capsys):
    path = tmp_path / "benchmarks.yaml"
    path.write_text(registry.PATH.read_text())
    monkeypatch.setattr(registry.pin, "__defaults__", (path,))

    def info(self, name, revision):
        assert revision == "main"
        if name == "MathLLMs/MathVision":
            raise HfHubHTTPError("401 Client Error", response=Response(401, request=Request("GET", "https://h")))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(HfApi, "dataset_info", info)
    assert registry.main(["--pin"]) == 1
    said = capsys.readouterr()
    assert f"AI4Math/MathVerse: pinned at {COMMIT}" in said.out and "MathVision" not in said.out
    assert "MathLLMs/MathVision: not pinned, HfHubHTTPError: 401" in said.err
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, revision: SimpleNamespace(sha=COMMIT))
    assert registry.main(["--pin"]) == 0 and " revision: null\n" not in path.read_text()
    assert registry.main([]) == 0 and "# Benchmarks" in capsys.readouterr().out
