"""The dry run: the command line is really called, and names everything that is missing, without loading anything."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoProcessor

from mmprm_lib import dryrun, modelcheck, stages
from mmprm_lib.dryrun import Machine
from mmprm_lib.estimates import Estimate
from mmprm_lib.models import EMBEDDED
from mmprm_lib.steps import FORMATS
from tests.conftest import REPOSITORY
from tests.servers import ChatServer, free_port, ok


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function: (exit code, output as one text) of the dry run in this process, which has its libraries already."""

    def call(*arguments: str, root: Path = REPOSITORY, **environment: str) -> tuple[int, str]:
        for name, value in {"MMPRM_ROOT": str(root), **environment}.items():
            monkeypatch.setenv(name, value)
        code = dryrun.main(list(arguments))
        return code, "".join(capsys.readouterr())

    return call


def lines_of(text: str, stage: str) -> list[str]:
    """What is told of a stage."""
    rest = text.split(f"\n{stage}: ", 1)[1]
    return [line.strip() for line in rest.splitlines()[1:] if line.startswith("  ")][: _n_lines(rest)]


def _n_lines(rest: str) -> int:
    lines = rest.splitlines()[1:]
    return next((i for i, line in enumerate(lines) if not line.startswith("  ")), len(lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the notebooks of this one and no parameters yet."""
    (tmp_path / "params").mkdir()
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    return tmp_path


def profile(root: Path, **files: str) -> None:
    """Nothing; writes params/mine with a file per notebook, named by its number."""
    (root / "params" / "mine").mkdir(exist_ok=True)
    for number, text in files.items():
        [notebook] = (root / "notebooks").glob(f"{number.lstrip('n')}_*.ipynb")
        (root / "params" / "mine" / f"{notebook.stem}.yaml").write_text(text)


def test_in_the_tiny_profile_everything_is_there(dry, tmp_path):
    code, out = dry("--profile", "tiny", MMPRM_RESULTS=str(tmp_path / "none"))
    assert code == 0, out
    assert "MISSING" not in out and out.rstrip().endswith("nothing is missing")
    assert "ok       02_policy: this run makes it" in out and "ok       model embedded: embedded" in out
    assert "02_policy: 147,200 tokens generated" in out
    assert not (tmp_path / "none").exists(), "a dry run writes nothing"


def test_at_paper_scale_what_is_missing_is_told_and_nothing_crashes():
    command = [sys.executable, "-m", "mmprm_lib.runner", "--dry-run", "--profile", "paper"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=environment, check=False, timeout=300, **pipes)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    for words in (
        "InternVL3-8B-hf is not in the cache, and the hub cannot be reached",
        "Cierra0506/MM-K12 is not in the cache, and the hub cannot be reached",
        "key OPENAI_API_KEY is not set in the environment",
        "solutions_path ../mm_policy/worked_solutions.jsonl: there is no such file",
        "things are missing",
    ):
        assert words in done.stdout, done.stdout
    assert "in all: " in done.stdout and "no train problem is left" not in done.stdout


def test_parameters_that_do_not_fit_are_all_told_before_anything_else(dry, root):
    profile(root, n01="n_trian: 5\n", n03='temperature: "1e-1"\nn_rollouts: 0\n')
    code, out = dry("--profile", "mine", root=root)
    assert code == 2 and "n_trian is unknown" in out and "write 1.0e-1" in out and "n_rollouts is 0" in out


def test_each_kind_of_thing_that_can_be_missing_is_named(dry, root):
    (root / "rows.jsonl").write_text("{}\n")
    (root / "empty").mkdir()
    profile(
        root, n01="source: files\npath: nowhere.jsonl\n", n02="model: empty\nsolutions_path: rows.jsonl\n",
        n03=f"policy: solver\nengine: http://127.0.0.1:{free_port()}/v1\n", n04="model: no such model\ninit: base\n",
        n06="policy: 02_policy/policy\nengine: vllm\nn_workers: 2\n", n09="sweep_name: nothing\n",
    )  # fmt: skip
    code, out = dry("--profile", "mine", root=root)
    assert code == 1, out
    told = {name: " ".join(lines_of(out, name)) for name in ("01_data", "02_policy", "03_mc_labeling",
            "04_prm_training", "06_best_of_n", "09_soft_labels")}  # fmt: skip
    assert "MISSING  path nowhere.jsonl: there is no such file" in told["01_data"]
    assert "ok       solutions_path rows.jsonl" in told["02_policy"]
    assert "MISSING  empty holds no .safetensors file" in told["02_policy"]
    assert "MISSING  empty cannot be loaded" in told["02_policy"]
    assert "cannot be reached" in told["03_mc_labeling"] and "solver is not" not in told["03_mc_labeling"]
    assert "there is no such folder, and it is no hub id" in told["04_prm_training"]
    assert "ok       04_prm_training: this run makes it" in told["06_best_of_n"]
    for package in ("vllm", "ray"):
        there = dryrun.importlib.util.find_spec(package) is not None
        assert (f"package {package} is missing: make vllm-env" in told["06_best_of_n"]) is not there
    assert "sweep 'nothing' has no file" in told["09_soft_labels"]


def test_what_an_earlier_notebook_must_make_is_there_or_named(root, monkeypatch):
    profile(root, n01="n_train: 5\n", n03="policy: embedded\n", n04="prms: [marker]\ninit: base\n", n06="orm: ''\n")
    monkeypatch.setenv("MMPRM_ROOT", str(root))
    monkeypatch.setenv("MMPRM_RESULTS", str(root / "results"))
    everything = stages.plan("mine")[0]
    six = everything[-1]
    # 06's default names four PRMs of 04 and the policy of 02, which this profile does not run
    assert dict.fromkeys(dryrun.needed_stages(six)) == dict.fromkeys(["01_data", "02_policy", "04_prm_training"])
    assert [(ok, words) for ok, words in dryrun.inputs(six, everything) if not ok] == [
        (False, "02_policy of run 'mine' has not run, and this run does not make it: "
                "make run PROFILE=... RUN_NAME=mine ONLY=02, with a profile that has it")
    ]  # fmt: skip
    folder = root / "results" / "mine" / "02_policy"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"params": {"model": "embedded"}, "outputs": {"other": {}}}))
    assert (False, "02_policy of run 'mine' wrote no policy") in list(dryrun.inputs(six, everything))
    (folder / "manifest.json").write_text(json.dumps({"params": {"model": "embedded"}, "outputs": {"policy": {}}}))
    assert all(ok for ok, _ in dryrun.inputs(six, everything))
    alone = [words for ok, words in dryrun.inputs(six, [six]) if not ok]
    assert [words.split()[0] for words in alone] == ["01_data", "04_prm_training"]


def test_an_output_of_another_run_is_looked_for_there(root, monkeypatch):
    profile(root, n08="critic: results/other/07_generative_prm/critique\n")
    monkeypatch.setenv("MMPRM_ROOT", str(root))
    monkeypatch.setenv("MMPRM_RESULTS", str(root / "results"))
    [eight] = stages.plan("mine")[0]
    (said,) = [words for ok, words in dryrun.inputs(eight, [eight]) if "run 'other'" in words and not ok]
    assert said.startswith("07_generative_prm of run 'other' has not run, and this run does not make it: make run")
    folder = root / "results" / "other" / "07_generative_prm"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"params": {}, "outputs": {"critique": {}}}))
    there = [words for ok, words in dryrun.inputs(eight, [eight]) if ok]
    assert there == ["results/other/07_generative_prm: of run 'other'"]


def test_where_no_problem_is_left_to_label_that_is_told(root, monkeypatch):
    profile(root, n01="n_train: 100\n", n02="n_sft: 100\n", n03="")
    monkeypatch.setenv("MMPRM_ROOT", str(root))
    planned = stages.plan("mine")[0]
    told = list(dryrun.counts(planned[2], stages.run_of(planned[2], planned)))
    assert told == [(False, "no train problem is left to label: 02 trains on n_sft = 100 of n_train = 100")]


def test_where_no_policy_is_trained_and_nothing_is_drawn_to_train_on_that_is_told_too(root, monkeypatch):
    profile(root, n01="n_train: 0\n", n03="policy: embedded\n")
    monkeypatch.setenv("MMPRM_ROOT", str(root))
    planned = stages.plan("mine")[0]
    told = list(dryrun.counts(planned[1], stages.run_of(planned[1], planned)))
    assert told == [(False, "no train problem is left to label: n_train = 0")]


@pytest.mark.parametrize("engine", ["transformers", "http://127.0.0.1:1/v1"])
def test_where_a_benchmark_is_read_nobody_needs_a_policy(root, monkeypatch, engine):
    shared = "policy: owner/solver\nprms: {judge: embedded, marker: owner/solver}\nmain_prm: judge\n"
    profile(root, n05=f"{shared}benchmark_path: test.jsonl\nengine: {engine}\n", n06=f"{shared}engine: {engine}\n")
    monkeypatch.setenv("MMPRM_ROOT", str(root))
    names = [dryrun.names_of(stage) for stage in stages.plan("mine")[0]]
    # what is read as a PRM is needed, under whatever other name it stands
    assert names[0] == ["embedded", "owner/solver"]
    assert names[1][0] == ("owner/solver" if engine == "transformers" else "embedded") and len(names[1]) == 2


BENCHMARK = "source: hub\nbenchmark: dynamath\nn_train: 0\nn_dev: 0\nn_test: 1000000\n"  # as docs/benchmarks.md has it


def test_of_a_benchmark_by_its_name_the_registry_says_what_is_read_and_how_much(dry, root, monkeypatch):
    assert BENCHMARK in (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    asked = []
    monkeypatch.setattr(dryrun, "on_hub", lambda *given: asked.append(given) or ("the hub", ""))
    profile(root, n01=BENCHMARK)
    code, out = dry("--profile", "mine", root=root)
    assert code == 0 and asked == [("DynaMath/DynaMath_Sample", "main", "dataset")]
    assert "ok       data set DynaMath/DynaMath_Sample: in the hub" in out
    assert "0.5 GB of disk" in out  # 5,010 problems of 101 kB, not a million
    profile(root, n01=BENCHMARK.replace("dynamath", "olympiadbench"))
    dry("--profile", "mine", root=root)
    profile(root, n01=f"{BENCHMARK}dataset_id: owner/copy\nrevision: v2\n")
    dry("--profile", "mine", root=root)
    pinned = "91184b52131e7fc9455fef848035173aea8cc01a"
    assert asked[1:] == [("Hothan/OlympiadBench", pinned, "dataset"), ("owner/copy", "v2", "dataset")]
    profile(root, n01=BENCHMARK.replace("dynamath", "dynamite"))
    code, out = dry("--profile", "mine", root=root)
    assert code == 1 and "MISSING  benchmark 'dynamite' is unknown: use one of" in out and len(asked) == 3


def test_a_data_set_may_be_a_folder(dry, root, monkeypatch):
    monkeypatch.setattr(dryrun, "on_hub", lambda *given: ("", "the hub was asked"))
    for name, folder in ((str(root / "mine"), root / "mine"), ("../mine", root / "mine")):
        folder.mkdir(exist_ok=True)
        for more in ("", "benchmark: dynamath\nn_train: 0\nn_dev: 0\n"):
            profile(root, n01=f"source: hub\ndataset_id: {name}\nrevision: abc\n{more}")
            code, out = dry("--profile", "mine", root=root)
            assert code == 0 and f"ok       data set {name}: a folder" in out


TINY = stages.plan("tiny")[0]


@pytest.mark.parametrize("stage", TINY, ids=lambda stage: stage.name)
def test_the_inputs_that_are_foreseen_are_those_that_were_read(stage):
    manifest = json.loads((REPOSITORY / "results" / "tiny" / stage.name / "manifest.json").read_text(encoding="utf-8"))
    assert set(dryrun.needed_stages(stage)) == {Path(path).parts[0] for path in manifest["inputs"]}


def test_a_server_counts_as_there_if_it_answers(root, monkeypatch):
    with ChatServer([ok("x")]) as server:
        profile(root, n07=f"teacher: {{base_url: '{server.url}', model: toy}}\n")
        monkeypatch.setenv("MMPRM_ROOT", str(root))
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        told = list(dryrun.services(stages.plan("mine")[0][0]))
        assert told == [(True, "key OPENAI_API_KEY"), (True, f"server {server.url}")]


def changed(tmp_path: Path, template: str) -> str:
    """A copy of the embedded checkpoint with another chat template."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_a_model_that_is_there_is_counted_and_its_templates_are_tried(tmp_path):
    template = (EMBEDDED / "chat_template.jinja").read_text()
    kinds = [*FORMATS, modelcheck.CRITIQUE]
    found = modelcheck.find("embedded", kinds=kinds)
    assert (found.where, found.faults) == ("embedded", ())
    assert (found.shape.n_weights, found.shape.image_tokens) == (2_356_608, 16)
    blind = modelcheck.find(changed(tmp_path / "a", template.replace("<image>", "")))
    assert "its chat template names the image 0 times" in blind.faults[0]
    broken = modelcheck.find(changed(tmp_path / "b", "{{ raise_exception('no turns') }}"))
    assert len(broken.faults) == 1 and "no turns" in broken.faults[0]
    # a template that numbers its turns cannot be a chat PRM's, and serves every other form
    numbered = template.replace("<|im_end|>", "{{ loop.index }}<|im_end|>")
    found = modelcheck.find(changed(tmp_path / "c", numbered), kinds=kinds)
    assert [fault.split(": ")[0].rpartition(", ")[2] for fault in found.faults] == ["chat", "chat_advantage"]


@pytest.mark.parametrize("name", ["visualprm_8b", "visualprm_8b_v1_1", "mm_prm_8b", "bis_qwen2_5_vl", "vl_prm_7b"])
def test_for_a_released_prm_its_size_is_known_and_what_to_do_first_is_told(name, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert dryrun.run(f"released/{name}") == 1
    said = capsys.readouterr().out
    [[folder]] = {tuple(s.params["prms"].values()) for s in stages.plan(f"released/{name}")[0]}
    own_code = name in ("visualprm_8b", "visualprm_8b_v1_1", "mm_prm_8b")
    convert = f"fetch the published one, then python -m mmprm_lib.convert SOURCE {folder}"
    remedy = convert if own_code else "put it there"
    assert said.count(f"MISSING  {folder}: there is no such checkpoint: {remedy}") == 2
    assert said.count("make run PROFILE=paper ONLY=01") == 1 and "cost not known" not in said
    # all 2,866 solutions with their image, through 8 billion weights
    assert re.search(r"05_visualprocessbench: [\d.]+ million tokens read, 0\.\d GPU hours, 1[6-9]\.\d GB of GPU", said)
    asked = "system_file models/VL-PRM-7B-system.txt: write the system message of vl_prm into it"
    assert (asked in said) is (name == "vl_prm_7b")


FORMATS_05 = """
benchmark_path: rows.jsonl
prms: {{theirs: {folder}, marker_theirs: {folder}, judge: embedded}}
main_prm: theirs
formats:
  theirs: {{format: process, labels: [{words}]}}
  marker_theirs: {{format: chat, system_file: {system}}}
"""


def test_a_prm_of_others_is_tried_as_it_is(dry, root):
    """Its words, its marker and its system message are looked for in its own files; no marker is added for it."""
    (root / "rows.jsonl").write_text("{}\n")
    shutil.copytree(EMBEDDED, root / "theirs")
    profile(root, n05=FORMATS_05.format(folder="theirs", words='"Yes", "No"', system="checkpoint"))
    code, out = dry("--profile", "mine", root=root)
    assert code == 1 and [line for line in lines_of(out, "05_visualprocessbench") if line.startswith("MISSING")] == [
        "MISSING  theirs, marker_theirs: ValueError: marker_theirs: the configuration has no system_message: "
        "set system_file to a text file",
        "MISSING  theirs, theirs: its tokenizer has no <prm> token, which a PRM in this format was trained with",
    ]
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    processor.tokenizer.add_tokens([AddedToken("<prm>", special=True, normalized=False)], special_tokens=True)
    processor.save_pretrained(root / "theirs")
    (root / "prompt.txt").write_text("Judge.")
    profile(root, n05=FORMATS_05.format(folder="theirs", words='"Yes", "No"', system="prompt.txt"))
    code, out = dry("--profile", "mine", root=root)
    assert code == 0 and "ok       model theirs: a folder" in out, out
    profile(root, n05=FORMATS_05.format(folder="theirs", words="certainly, never", system="prompt.txt"))
    code, out = dry("--profile", "mine", root=root)
    assert code == 1 and "MISSING  theirs, theirs: ValueError: no single tokens for the labels" in out
    profile(root, n05=FORMATS_05.format(folder="theirs", words='"Yes", "No"', system="prompt.txt, thresold: 0.5"))
    code, out = dry("--profile", "mine", root=root)
    assert code == 2 and "formats of 'marker_theirs'" in out


def test_a_checkpoint_with_code_of_its_own_is_named_with_the_command_for_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat", "auto_map": {"AutoConfig": "x.X"}}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = modelcheck.find(str(tmp_path))
    command = f"python -m mmprm_lib.convert {tmp_path} TARGET"
    assert found.faults == (f"{tmp_path} has code of its own: name the folder that {command} makes of it",)
    (tmp_path / "config.json").write_text("[")
    assert not modelcheck.has_own_code(tmp_path)


def test_memory_is_held_against_what_is_at_hand():
    need = Estimate(memory_gb=30.0, n_gpus=2)
    words = "GPU memory: needs 2 x 30.0 GB, at hand: 80 GB, 80 GB"
    assert dryrun.fits(need, Machine((80.0, 80.0), 20, 1)) == (True, words)
    assert not dryrun.fits(need, Machine((80.0, 24.0), 500, 1))[0], "one of the two is too small"
    assert not dryrun.fits(need, Machine((80.0,), 500, 1))[0]
    assert dryrun.fits(need, Machine((), 64, 1)) == (True, "memory: needs 2 x 30.0 GB, no GPU, 64 GB at hand")
    assert not dryrun.fits(need, Machine((), 59, 1))[0]
    one = Estimate(memory_gb=30.0, n_gpus=2, alone_gb=70.0)  # two train together, one must hold the model to score
    assert dryrun.fits(one, Machine((80.0, 40.0), 1, 1))[0] and not dryrun.fits(one, Machine((60.0, 60.0), 1, 1))[0]
    assert dryrun.fits(one, Machine((), 69, 1)) == (
        False, "memory: needs 2 x 30.0 GB, one of 70.0 GB, no GPU, 69 GB at hand"
    )  # fmt: skip


def test_a_run_that_nobody_has_timed_says_its_cost_before_it_starts(root):
    profile(root, n01="source: files\npath: nowhere.jsonl\n")
    command = [sys.executable, "-m", "mmprm_lib.runner", "--profile", "mine"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MMPRM_ROOT": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert "01_data: estimated 0.0 GPU hours" in done.stdout and "some of unknown length" in done.stdout
    assert done.stdout.index("estimated") < done.stdout.index("01_data: running")
