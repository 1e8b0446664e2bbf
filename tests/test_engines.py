"""Which engine a name stands for, what a policy is called there, and what each worker of a cluster is given."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from mmprm_lib import data, engines, evaluation, fleet, models
from mmprm_lib.asking import Request
from mmprm_lib.decoding import Sampling
from mmprm_lib.engines import load_generator
from mmprm_lib.generation import TransformersGenerator
from mmprm_lib.served import ServedGenerator
from tests.doubles import solution
from tests.servers import ChatServer, ok
from tests.test_evaluation import ToyRun


def test_transformers_is_the_default_and_takes_every_option():
    found = load_generator("embedded", batch_size=7, bf16=True, name="mine")
    assert isinstance(found, TransformersGenerator) and (found.batch_size, found.name) == (7, "mine")
    assert str(found.model.dtype) == "torch.bfloat16"
    assert str(load_generator("embedded").model.dtype) == "torch.float32"


@pytest.mark.parametrize("engine", ["vlm", "", "localhost:8000/v1", "ray"])
def test_an_unknown_engine_is_named_with_what_there_is(engine):
    with pytest.raises(ValueError, match=f"engine is '{engine}': write transformers, vllm, or the http"):
        load_generator("embedded", engine)


def test_an_address_is_a_server_and_the_policy_its_name_there(tmp_path):
    problem, *_ = data.from_world({"test": 1}, 0, tmp_path)
    with ChatServer([ok("Answer: 1")]) as server:
        run = ToyRun(tmp_path / "nowhere")
        policy = evaluation.load_policy(run, "owner/solver-7b", engine=server.url, batch_size=4)
        assert isinstance(policy, ServedGenerator) and policy.name == "solver-7b"
        [(_, [found])] = policy.sample([Request(problem, (), "k")], 1, Sampling(max_new_tokens=8))
        [sent] = server.requests
    assert sent["model"] == "owner/solver-7b" and found.text == "Answer: 1"
    assert policy.endpoint.max_concurrency == 4 and run.models == {"policy": policy.fingerprint}
    many = load_generator("m", "http://localhost:1/v1", batch_size=512)
    assert many.endpoint.max_concurrency == engines.AT_ONCE


def test_a_critic_is_loaded_with_its_form_whatever_draws_it(tmp_path):
    processor, folder = models.new_processor(), tmp_path / "07_generative_prm" / "critique"
    models.new_base(0, processor.tokenizer, width=64, layers=2, vision_layers=1).save_pretrained(folder)
    processor.save_pretrained(folder)
    run = ToyRun(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no critic; run notebooks/07"):
        evaluation.load_critic(run, "critic", "07_generative_prm/critique")
    (folder / "critic.json").write_text('{"format": 1, "fields": ["logic"]}')
    here = evaluation.load_critic(run, "critic", "07_generative_prm/critique", batch_size=7)
    assert here.form.fields == ("logic",) and here.generator.batch_size == 7
    assert run.models == {"critic": here.fingerprint}
    assert evaluation.load_critic(run, "critic", folder).fingerprint == here.fingerprint
    served = evaluation.load_critic(run, "critic", "07_generative_prm/critique", engine="http://localhost:1/v1")
    assert served.generator.endpoint.model == "07_generative_prm/critique" and served.form == here.form
    assert served.generator.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_closed_generator_holds_no_model_and_says_so():
    generator = load_generator("embedded", name="mine")
    generator.close()
    generator.close()
    assert generator.model is None and generator.name == "mine"
    with pytest.raises(ValueError, match="'mine' is closed"):
        list(generator.sample([], 1, Sampling()))


def test_a_closed_scorer_holds_no_model_and_says_so(tmp_path):
    problems = data.from_world({"test": 1}, 0, tmp_path)
    with evaluation.load_scorer(ToyRun(tmp_path), "judge", "embedded") as scorer:
        written = solution(f"{problems[0].problem_id}/s0", problem_id=problems[0].problem_id)
        assert len(next(scorer.score_records(problems, [written])).step_scores) == 3
    scorer.close()
    assert scorer.head is None and scorer.name == "judge"
    with pytest.raises(ValueError, match="'judge' is closed"):
        list(scorer.score_records(problems, [written]))


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
def test_workers_without_ray_say_where_it_is():
    with pytest.raises(ImportError, match="make vllm-env"):
        engines.load_fleet(2, "embedded")


@pytest.mark.parametrize(
    ("nodes", "n_workers", "share"),
    [
        ([{"CPU": 8.0}], 2, (4, 0)),
        ([{"CPU": 8.0}], 3, (2, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 4, (2, 0)),  # two a machine, and the smaller one has 4 cores
        ([{"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}], 4, (4, 1)),  # the head has no GPU and takes no worker
    ],
)
def test_workers_share_the_cores_and_have_a_gpu_each(nodes, n_workers, share):
    assert fleet.share_of(nodes, n_workers) == share


@pytest.mark.parametrize(
    ("nodes", "n_workers", "words"),
    [
        ([{"CPU": 2.0}], 3, "n_workers is 3: the Ray cluster has 2 cores"),
        ([{"CPU": 16.0, "GPU": 2.0}], 3, "n_workers is 3: the Ray cluster has 2 GPUs"),
        ([{"CPU": 2.0}], 0, "n_workers is 0"),
    ],
)
def test_too_many_workers_are_refused_and_never_waited_for(nodes, n_workers, words):
    with pytest.raises(ValueError, match=words):
        fleet.share_of(nodes, n_workers)
