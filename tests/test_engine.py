"""vLLM, really started: in process, and as a server on the loopback; both pass one suite. Needs `make vllm-env`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mmprm_lib import data, evaluation, models
from mmprm_lib.asking import Request
from mmprm_lib.critic import Critic
from mmprm_lib.decoding import ChoiceSampling, Sampling
from mmprm_lib.endpoint import Endpoint
from mmprm_lib.generation import TransformersGenerator
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.run import write_json
from mmprm_lib.schema import StepLabels, read_records
from mmprm_lib.served import ServedGenerator
from mmprm_lib.steps import split
from tests.conftest import REPOSITORY
from tests.servers import free_port

pytest.importorskip("vllm", reason="no vLLM in this environment: make test-vllm runs these tests in one that has it")
from mmprm_lib.engine import VllmGenerator, readable  # noqa: E402

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else an engine takes nearly all memory of a CPU
FREE = Sampling(max_new_tokens=64, seed=3)
GREEDY = Sampling(temperature=0.0, max_new_tokens=64)
LOGPROB_TOLERANCE = 1e-3  # nats, float32 on both sides
PROBABILITY_TOLERANCE = 1e-4  # of a choice
# nothing is compiled, which takes minutes; the engine of the notebook below is one as users have it
SETTINGS = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "gpu_memory_utilization": 0.3}
DIGITS = {"cue": "is", "choices": (" 1", " 2", " 3", " 4", " 5", " 6", " 7", " 8", " 9")}  # "Bar A is 3"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return data.from_world({"test": 200}, 0, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def reference():
    return TransformersGenerator(*models.load("embedded"))


@pytest.fixture(scope="module")
def engine():
    with VllmGenerator("embedded", **SETTINGS) as generator:
        yield generator


class VllmServe:
    """`vllm serve` on the loopback; `stop` and `start` as of a server that dies and comes back."""

    def __init__(self, folder: Path) -> None:
        self.log, self.port, self.process = folder / "log", free_port(), None
        (folder / "model").mkdir()
        self.checkpoint = readable(str(models.EMBEDDED), folder / "model")

    def start(self) -> None:
        # what `vllm serve` runs; the command itself asks for a package called vllm, and that of a CPU is vllm-cpu
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.checkpoint]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--no-enable-chunked-prefill"]
        command += ["--gpu-memory-utilization", "0.3", "--load-format", "safetensors"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()[-3000:]
                time.sleep(1)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = VllmServe(tmp_path_factory.mktemp("serve"))
    server.start()
    endpoint = Endpoint(f"http://127.0.0.1:{server.port}/v1", "tiny", max_concurrency=16)
    generator = ServedGenerator(endpoint, models.new_processor())
    generator.server = server
    yield generator
    server.stop()


@pytest.fixture(params=["engine", "served"])
def generator(request):
    return request.getfixturevalue(request.param)


def texts(generator, requests, n=1, sampling=FREE, more=None):
    """{key: texts}, every request once."""
    found = {request.key: [c.text for c in done] for request, done in generator.sample(requests, n, sampling, more)}
    assert len(found) >= len(requests)
    return found


def keyed(problems, prefix=()):
    return [Request(p, prefix, f"k{i}") for i, p in enumerate(problems)]


@pytest.fixture(scope="module")
def expected(reference, problems):
    """({key: texts} of transformers, the requests): 100 without a prefix, 100 that go on from a first step."""
    whole = texts(reference, keyed(problems), sampling=GREEDY)
    begun = [Request(p, tuple(split(whole[f"k{i}"][0])[:1]), f"p{i}") for i, p in enumerate(problems)]
    return whole | texts(reference, begun[100:], sampling=GREEDY), [*keyed(problems[:100]), *begun[100:]]


def test_weights_that_are_no_safetensors_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    folder = shutil.copytree(models.EMBEDDED, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(models.new_base(width=32, layers=1).state_dict(), folder / "pytorch_model.bin")
    monkeypatch.setattr("vllm.LLM.__init__", lambda *args, **options: pytest.fail("vLLM was asked to load it"))
    with pytest.raises(ValueError, match=r"model holds no \.safetensors file"):
        VllmGenerator(folder, **SETTINGS)


def test_vllm_itself_unpickles_nothing(engine):
    """A hub id's files are not seen before vLLM has them."""
    assert engine._llm.llm_engine.vllm_config.load_config.load_format == "safetensors"


def test_greedy_is_that_of_transformers_with_and_without_a_prefix(generator, expected):
    theirs, requests = expected
    ours = texts(generator, requests, sampling=GREEDY)
    same = np.mean([ours[r.key] == theirs[r.key] for r in requests])
    assert len(requests) == 200 and same >= 0.99, f"{same:.1%} of 200 are the same"


def test_log_probabilities_of_given_tokens_are_those_of_transformers(engine, reference, problems):
    requests = [Request(p, ("Bar A is 3.", "So 4."), "k") for p in problems[:20]]
    worst = 0.0
    for request in requests:
        prompt = reference.prompts.prompt(request.problem)
        ids = prompt.ids + reference.prompts.prefix_ids(request.prefix)
        tensors = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        pixels = reference.processor(text=["<image>"], images=[data.open_image(request.problem)], return_tensors="pt")
        with torch.inference_mode():
            logits = reference.model(**tensors, pixel_values=pixels["pixel_values"]).logits[0]
        theirs = torch.log_softmax(logits.double(), -1)
        given = engine._prompt(request)
        params = engine._vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        [out] = engine._llm.generate([given], params, use_tqdm=False)
        assert list(out.prompt_token_ids) == ids, "the two see different prompts"
        for place in range(len(prompt.ids), len(ids)):
            ours = out.prompt_logprobs[place][ids[place]].logprob
            worst = max(worst, abs(ours - float(theirs[place - 1, ids[place]])))
    assert worst < LOGPROB_TOLERANCE, f"{worst:.2e} nats apart"


def test_the_prefix_is_continued_inside_the_assistant_turn(generator, problems):
    whole = texts(generator, keyed(problems[:8]), sampling=GREEDY)
    for i, problem in enumerate(problems[:8]):
        first, _, remaining = whole[f"k{i}"][0].partition("\n\n")
        [rest] = texts(generator, [Request(problem, (first,), "p")], sampling=GREEDY)["p"]
        assert rest.startswith(remaining), (rest, remaining)  # it may go on where the whole was cut


def test_seed_key_and_number_name_a_sample(generator, problems):
    four = texts(generator, keyed(problems[:4]), n=4)
    assert four == texts(generator, keyed(problems[:4])[::-1], n=4)
    assert {k: v[:1] for k, v in four.items()} == texts(generator, keyed(problems[:4]))
    other = texts(generator, keyed(problems[:4]), n=4, sampling=Sampling(max_new_tokens=64, seed=4))
    assert other != four and any(len(set(v)) > 1 for v in four.values())
    renamed = texts(generator, [Request(problems[0], (), "another")], n=4)["another"]
    assert renamed != four["k0"]


def test_finish_reasons_token_counts_and_stop_strings(generator, problems):
    before = generator.n_generated_tokens
    [(_, [short])] = generator.sample(keyed(problems[:1]), 1, Sampling(temperature=0.0, max_new_tokens=3))
    assert (short.finish_reason, short.n_tokens) == ("length", 3) and generator.n_generated_tokens == before + 3
    long = {"temperature": 0.0, "max_new_tokens": 400}
    [(_, [whole])] = generator.sample(keyed(problems[:1]), 1, Sampling(**long))
    [(_, [cut])] = generator.sample(keyed(problems[:1]), 1, Sampling(**long, stop=("\n\n",)))
    assert cut.text == whole.text.partition("\n\n")[0] and cut.finish_reason == "stop"


def test_a_request_passes_its_image_once_however_many_samples_are_drawn(engine, problems, monkeypatch):
    opened = []
    monkeypatch.setattr("mmprm_lib.engine.open_image", lambda p: opened.append(p.problem_id) or data.open_image(p))
    assert sum(len(done) for _, done in engine.sample(keyed(problems[:3]), 4, FREE)) == 12
    assert opened == [p.problem_id for p in problems[:3]]
    requests = [Request(p, (), f"c{i}", opening="Bar A is") for i, p in enumerate(problems[3:6])]
    found = chosen(engine, requests, 2, temperature=1.0)
    assert max(len(c.choice_probs) for done in found.values() for c in done) > 1, "no text has several pieces"
    assert opened[3:] == [p.problem_id for p in problems[3:6]]


@pytest.fixture
def asked(engine, monkeypatch):
    """What vLLM was asked for, as it is asked."""
    numbers, add = [], engine._llm.llm_engine.add_request
    monkeypatch.setattr(engine._llm.llm_engine, "add_request", lambda name, *a: numbers.append(name) or add(name, *a))
    return numbers


def test_an_image_that_the_engine_no_longer_holds_is_sent_again(engine, problems, asked):
    """vLLM leaves out an image that it takes to be there, and answers without a token where it is not."""
    requests = [Request(p, (), f"c{i}", opening="Bar A is") for i, p in enumerate(problems[:2])]
    expected = texts(engine, keyed(problems[:2]), 2), chosen(engine, requests)
    for draw, its in ((lambda: texts(engine, keyed(problems[:2]), 2), 0), (lambda: chosen(engine, requests), 1)):
        asked.clear()
        assert draw() == expected[its]
        n_undisturbed = len(asked)
        engine._llm.llm_engine.engine_core.reset_mm_cache()  # the engine's alone: what asks it does not know
        asked.clear()
        assert draw() == expected[its] and len(asked) > n_undisturbed


def test_what_the_engine_fails_at_twice_is_an_error(engine, problems, asked, monkeypatch):
    step = engine._llm.llm_engine.step

    def broken():
        outputs = step()
        for one in (one for output in outputs if output.finished for one in output.outputs):
            one.finish_reason, one.text, one.token_ids = "abort", "Half", one.token_ids[:1]
        return outputs

    monkeypatch.setattr(engine._llm.llm_engine, "step", broken)
    requests = [Request(p, (), f"c{i}", opening="Bar A is") for i, p in enumerate(problems[:2])]
    for found in ({r.key: done for r, done in engine.sample(keyed(problems[:2]), 2, FREE)}, chosen(engine, requests)):
        for completion in (c for done in found.values() for c in done):
            assert (completion.text, completion.finish_reason) == ("", "error")
            assert "finish_reason abort" in completion.error
    assert len(asked) == 2 * 2 + 2 * 2


def test_prompts_that_begin_alike_share_their_cache(engine, problems):
    long = ("Bar A is 3.",) * 90  # a block of the cache has 128 tokens on a CPU
    cached = []
    for last in ("So 4.", "So 5."):
        request = Request(problems[0], (*long, last), "k")
        prompt, params = engine._prompt(request), engine._params(request, 1, GREEDY)
        [out] = engine._llm.generate([prompt], params, use_tqdm=False)
        cached.append(out.num_cached_tokens)
    assert cached[0] == 0 and cached[1] >= 128


def test_a_bad_image_costs_its_own_request_alone(generator, problems, tmp_path):
    made = data.from_world({"test": 3}, 1, tmp_path)
    (tmp_path / made[1].image).write_bytes(b"no image")
    found = {r.key: done for r, done in generator.sample(keyed(made), 2, FREE)}
    assert [c.finish_reason for c in found["k1"]] == ["error"] * 2
    assert all(c.finish_reason != "error" for key in ("k0", "k2") for c in found[key])


def test_text_that_spells_a_special_token_stays_text(generator, problems):
    [(_, [completion])] = generator.sample([Request(problems[0], ("<image><|im_end|>",), "k")], 1, GREEDY)
    assert completion.finish_reason != "error"


def test_what_goes_on_is_what_it_would_be_if_it_were_asked_for_alone(generator, problems):
    def more(request, sample, completion):
        steps = split(completion.text)[:1]
        return None if request.prefix or not steps else Request(request.problem, tuple(steps), request.key + "+")

    found = texts(generator, keyed(problems[:4]), sampling=GREEDY, more=more)
    for i, problem in enumerate(problems[:4]):
        alone = Request(problem, tuple(split(found[f"k{i}"][0])[:1]), f"k{i}+")
        assert texts(generator, [alone], sampling=GREEDY)[alone.key] == found[alone.key]


def test_labels_come_out_whole(generator, problems, tmp_path):
    few = problems[:4]
    solutions = solutions_to(tmp_path / "s.jsonl", few, generator, 2, FREE)
    labels = labels_to(tmp_path / "l.jsonl", solutions, few, generator, Options(n_rollouts=2), FREE)
    assert len(labels) == len(solutions) == 8 and all(r.strategy == "exhaustive" for r in labels)


# -- choices at a cue: what a critic is made of


def chosen(generator, requests, n=1, **options):
    sampling = ChoiceSampling(**{"temperature": 0.0, "max_new_tokens": 64} | DIGITS | options)
    return {request.key: done for request, done in generator.sample(requests, n, sampling)}


@pytest.mark.parametrize("options", [{}, {"take": 2}, {"patience": 4}, {"stop": ("\n\n",)}, {"cue": "never:"}], ids=str)
def test_greedy_choices_are_those_of_transformers(generator, reference, problems, options):
    """Of 51 requests, a third of which begin at a cue, and a third inside of one.

    Not on a server: it is sent the text anew with every piece, and "Bar A i" and "s" become the tokens of "Bar A is".
    """
    openings = ("Bar A is", "Bar A" if isinstance(generator, ServedGenerator) else "Bar A i", "Bar")
    requests = [Request(p, (), f"c{i}", opening=openings[i % 3]) for i, p in enumerate(problems[:51])]
    ours, theirs = chosen(generator, requests, **options), chosen(reference, requests, **options)
    for key in theirs:
        [our], [their] = ours[key], theirs[key]
        assert (our.text, our.n_tokens, our.finish_reason) == (their.text, their.n_tokens, their.finish_reason)
        assert len(our.choice_probs) == len(their.choice_probs)
        assert np.allclose(our.choice_probs, their.choice_probs, atol=PROBABILITY_TOLERANCE)
    found = [p for [c] in theirs.values() for p in c.choice_probs]
    # some are sure, some are not, and where no digit fits, the coverage is small
    assert (len(found) > 17 and np.ptp(np.max(found, axis=1)) > 0.2) or "never" in str(options)


def test_drawn_choices_hang_on_the_seed_the_key_and_the_number_alone(generator, problems):
    requests = [Request(p, (), f"c{i}", opening="Bar A is") for i, p in enumerate(problems[:12])]
    found = chosen(generator, requests, 3, temperature=2.0, seed=1)
    assert chosen(generator, requests[::-1], 3, temperature=2.0, seed=1) == found
    assert [c.text for c in chosen(generator, requests[:1], 3, temperature=2.0, seed=1)["c0"]] == [
        c.text for c in found["c0"]
    ]
    assert chosen(generator, requests, 3, temperature=2.0, seed=2) != found
    assert len({c.text[:2] for done in found.values() for c in done}) > 4, "all of them choose alike"


def test_the_first_choice_is_drawn_by_the_random_number_of_transformers(generator, reference, problems):
    requests = [Request(p, (), f"c{i}", opening="Bar A is") for i, p in enumerate(problems[:50])]
    ours, theirs = (chosen(g, requests, 2, temperature=2.0, max_new_tokens=1) for g in (generator, reference))
    assert [c.text for r in requests for c in ours[r.key]] == [c.text for r in requests for c in theirs[r.key]]


def test_a_server_that_is_asked_by_words_knows_the_likely_ones(served, reference, problems):
    """Without a tokenizer, among the 20 likeliest; a digit that is not there is unknown."""
    blind = ServedGenerator(served.endpoint)
    requests = [Request(p, (), f"c{i}", opening="Bar A is") for i, p in enumerate(problems[:20])]
    theirs, ours = (chosen(g, requests, choices=(" 3", " 4"), max_new_tokens=1) for g in (reference, blind))
    known = [r.key for r in requests if not ours[r.key][0].error]
    assert known and all("probability is unknown" in c.error for [c] in ours.values() if c.error)
    for key in known:
        assert ours[key][0].text == theirs[key][0].text
        assert np.allclose(ours[key][0].choice_probs, theirs[key][0].choice_probs, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"judge_all": True}], ids=str)
def test_a_critic_writes_what_it_writes_on_transformers(generator, reference, problems, options):
    solutions = evaluation.writer_solutions(problems[:50], "w", 1, 0, slip=0.3, misconception=0.0, neutral=0.0)
    short = {"step_tokens": 8, "max_new_tokens": 24, **options}
    ours, theirs = (
        {c.solution_id: c for c in Critic(g, "verdict_only").critique(problems, solutions, **short)}
        for g in (generator, reference)
    )
    assert len(ours) == 50 and len({c.model_dump_json() for c in theirs.values()}) > 1
    for name, their in theirs.items():
        our = ours[name]
        told = [(c.parse, c.first_error, c.corrected_step) for c in (our, their)]
        assert told[0] == told[1]
        assert [s.verdict for s in our.steps] == [s.verdict for s in their.steps]
        assert np.allclose([s.p_correct for s in our.steps], [s.p_correct for s in their.steps], atol=1e-3)


def test_a_server_that_dies_and_comes_back_loses_nothing(served, problems):
    endpoint = Endpoint(served.endpoint.base_url, "tiny", max_concurrency=2, max_retries=0)
    patient, post, n_posts = ServedGenerator(endpoint, models.new_processor()), endpoint.post, []
    undisturbed = texts(served, keyed(problems[:8]), sampling=GREEDY)

    def restart():
        time.sleep(1)  # by then what is asked is on its way to a server that does nothing any more
        served.server.stop()
        served.server.start()

    restarting = threading.Thread(target=restart)

    def posted(body):
        n_posts.append(1)
        if len(n_posts) == 4:
            os.killpg(served.server.process.pid, signal.SIGSTOP)
            restarting.start()
        return post(body)

    endpoint.post = posted
    assert texts(patient, keyed(problems[:8]), sampling=GREEDY) == undisturbed
    restarting.join()
    assert endpoint.usage.n_retries >= 1 and len(n_posts) > 8


KEY = "sk-to-be-written-nowhere"


def run_notebooks(root, *only):
    """Nothing; the notebooks of the project at `root`, of its profile `engines`, in a process of their own."""
    environment = {**os.environ, "MMPRM_ROOT": str(root), "PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": KEY}
    command = [sys.executable, "-m", "mmprm_lib.runner", "--profile", "engines", "--run-name", "engines"]
    done = subprocess.run([*command, "--only", *only], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The root of a project whose first notebook has run."""
    root = tmp_path_factory.mktemp("engines") / "project"
    (root / "params" / "engines").mkdir(parents=True)
    (root / "requirements.lock").write_text("")
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
    # JSON is YAML
    write_json(root / "params" / "engines" / "01_data.yaml", {"n_train": 8, "n_dev": 2, "n_test": 2})
    run_notebooks(root, "01")
    return root


@pytest.mark.parametrize(
    ("engine", "n_workers"), [("vllm", 0), ("served", 0), ("transformers", 1)], ids=["vllm", "server", "ray"]
)
def test_a_notebook_runs_on_each_engine_by_its_parameters_alone(engine, n_workers, request, project, tmp_path):
    policy = "embedded"
    if engine == "served":
        policy, engine = "tiny", request.getfixturevalue("served").endpoint.base_url
    root = shutil.copytree(project, tmp_path / "project")
    given = {"policy": policy, "engine": engine, "n_workers": n_workers, "n_label_problems": 3, "n_label_dev": 1}
    given |= {"n_solutions": 2, "n_rollouts": 2, "max_new_tokens": 48, "n_shown": 1, "generation_batch": 16}
    write_json(root / "params" / "engines" / "03_mc_labeling.yaml", given)
    run_notebooks(root, "03")
    folder = root / "results" / "engines" / "03_mc_labeling"
    labels = read_records(folder / "labels.jsonl", StepLabels)
    assert len(labels) == 8 and sum(len(r.mc_score) for r in labels) > 8
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["params"]["engine"] == engine and manifest["models"]["policy"]
    written = [path for path in (root / "results").rglob("*") if path.is_file()]
    assert len(written) > 5 and not [path for path in written if KEY.encode() in path.read_bytes()]


def test_closing_ends_the_engines_process(engine):
    """Last in this file: the engine is gone after it."""
    ours = [p for p in psutil.Process().children(recursive=True) if "VLLM::" in " ".join(p.cmdline())]
    ours = [p for p in ours if not any("api_server" in " ".join(q.cmdline()) for q in p.parents())]
    assert ours and sum(p.memory_info().rss for p in ours) > 2**28, "the engine has no process of its own"
    engine.close()
    engine.close()
    assert not psutil.wait_procs(ours, timeout=30)[1], "an engine process is still there"
    with pytest.raises(ValueError, match="is closed"):
        engine.sample([], 1, FREE)
