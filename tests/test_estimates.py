"""Estimates of cost against arithmetic by hand, published sizes on the meta device, and what was run."""

import json
from dataclasses import astuple

import pytest
import torch
from transformers import AutoModelForImageTextToText, InternVLConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from mmprm_lib import estimates, stages, workload
from mmprm_lib.architecture import vision_towers
from mmprm_lib.estimates import KNOWN, Shape
from mmprm_lib.models import load
from tests.conftest import REPOSITORY

EIGHT = Shape(8_000_000_000, 0, 28, 3584, 150_000, 512, 1000)


def plain(**sizes) -> Shape:
    """A decoder of 10 layers of width 1,000 with 10^9 weights, no vision tower, and changes."""
    return Shape(**({"n_weights": 10**9, "n_vision": 0, "layers": 10, "width": 1000, "vocab": 2000, "kv_width": 100,
                     "image_tokens": 50} | sizes))  # fmt: skip


def test_rollouts_of_a_solution_by_hand():
    text = workload.Text(question=0, solution=40, n_steps=5, judged=0)
    assert workload.rollout_tokens(text, 8, "verdict") == 640  # 8 x 4 steps x half of 40
    assert workload.rollout_tokens(text, 8, "rollout") == 648  # and one token of each that ends at once
    assert workload.rollout_tokens(text._replace(n_steps=1), 8, "verdict") == 0


def labeling_run(**changes):
    """The parameters of a labeling run on real data: 100 problems, 4 solutions, 16 rollouts."""
    labeling = {
        "policy": "owner/solver", "n_label_problems": 100, "n_label_dev": 0, "n_solutions": 4, "n_rollouts": 16,
        "max_steps": 12, "last_step": "rollout", "max_new_tokens": 4096, "generation_batch": 256, "bf16": True,
    }  # fmt: skip
    data = {"source": "hub", "n_train": 1000, "n_dev": 10, "n_test": 10}
    return {"01_data": data, "03_mc_labeling": labeling | changes}


def test_labeling_by_hand():
    run = labeling_run()
    found = estimates.estimate("03_mc_labeling", run, lambda name: EIGHT)
    # 16 x (4.6 steps x 95 tokens + 1) = 7,008 of rollouts, 190 of the solution itself, 400 solutions
    assert found.written == pytest.approx(400 * (190 + 7008))
    # 2 x 8e9 FLOPs a token at 0.045 of 312e12 FLOP/s; 2,340 prompts with half a solution at 0.35 of it
    read = 100 * (1 + 4 * 5.6) * (1000 + 100 + 95)
    seconds = 16e9 * (400 * 7198 / 0.045 + read / 0.35) / 312e12
    assert found.gpu_hours == pytest.approx(seconds / 3600) and 0.9 < found.gpu_hours < 1.1
    # weights 16 GB; 256 sequences of 1,100 + 4 x 190 tokens, each 2 x 28 layers x 512 x 2 bytes = 57,344 bytes
    assert found.memory_gb == pytest.approx(16 + 256 * 1860 * 57_344e-9)
    faster = estimates.estimate("03_mc_labeling", labeling_run(engine="vllm"), lambda name: EIGHT)
    assert faster.gpu_hours < found.gpu_hours / 2 and faster.memory_gb == pytest.approx(16 + 1860 * 57_344e-9)
    served = estimates.estimate("03_mc_labeling", labeling_run(engine="http://there/v1"), lambda name: EIGHT)
    assert (served.gpu_hours, served.memory_gb) == (0, 0) and served.written == found.written
    assert estimates.estimate("03_mc_labeling", labeling_run(n_workers=4), lambda name: EIGHT).n_gpus == 4


def test_a_tree_search_by_hand():
    run = labeling_run(strategy="omegaprm", search={"max_rollouts": 800})
    run["04_prm_training"] = {"epochs": {"marker": 2}, "prms": ["marker"], "pack_size": 1}
    found = estimates.estimate("03_mc_labeling", run, lambda name: EIGHT)
    # 800 rollouts of half a solution's 190 tokens, of 100 problems
    assert found.written == pytest.approx(100 * 800 * 95)
    # every 16 of them read a prompt with half a solution
    assert workload.work("03_mc_labeling", run, 1000).read == pytest.approx(100 * 50 * (1100 + 95))
    # 800 / 40 = 20 paths a problem are learnt from, twice, each 190 tokens after 1,100
    assert workload.work("04_prm_training", run, 1000).trained == pytest.approx(2 * 100 * 20 * 1290)
    # 2 searches of 3 halvings each (log2 of 6.6 rounded up), and the root: 16 x 7 rollouts, less than the budget
    few = labeling_run(strategy="omegaprm", search={"max_searches": 2})
    assert workload.work("03_mc_labeling", few, 1000).written == pytest.approx(100 * 112 * 95)


def test_problems_that_the_policy_was_trained_on_are_not_labelled():
    run = labeling_run(policy="02_policy/policy", n_label_problems=900) | {"02_policy": {"n_sft": 950, "model": "x"}}
    assert workload.n_labelled(run) == (50, 0)
    assert workload.n_labelled(labeling_run(n_label_problems=900, n_label_dev=30)) == (900, 10)


def test_the_memory_of_training_by_hand():
    p = {"batch_size": 2, "freeze_vision": True}
    # weights, gradients, two moments of 4 bytes: 16 GB; 2 x 500 tokens x 10 layers x width 1,000 x 34 bytes
    assert estimates.training_gb(plain(), p, 500, 4, logits=False) == pytest.approx(16 + 0.34)
    assert estimates.training_gb(plain(), p, 500, 2, logits=False) == pytest.approx(8 + 0.34)
    assert estimates.training_gb(plain(), p, 500, 4, logits=True) == pytest.approx(16.34 + 1000 * 2000 * 8e-9)
    # a frozen tower has weights and nothing else
    half = plain(n_vision=5 * 10**8)
    assert estimates.training_gb(half, p, 500, 4, logits=False) == pytest.approx(4 + 6 + 0.34)
    # the inputs of ten layers in 2 bytes, and one whole layer
    less = p | {"gradient_checkpointing": True}
    assert estimates.training_gb(plain(), less, 500, 4, logits=False) == pytest.approx(16 + 0.02 + 0.034)
    # shares of 16 bytes a weight, whatever they are kept in; whole: 2 x 2,000 x 1,000 weights of embeddings and head
    # with gradients, 2 bytes each, and two layers of (10^9 - 4 x 10^6) / 10 weights
    shared = p | {"fsdp": True, "n_processes": 4}
    for weight_bytes in (2, 4):
        found = estimates.training_gb(plain(), shared, 500, weight_bytes, logits=False)
        assert found == pytest.approx(4 + 0.016 + 0.3984 + 0.34)
    # twice as many processes: half the shares
    spread = shared | {"n_machines": 2}
    assert estimates.training_gb(plain(), spread, 500, 4, logits=False) == pytest.approx(2 + 0.016 + 0.3984 + 0.34)
    # LoRA: the weights, and 16 bytes for each of rank 8 x 10 layers x 22 widths
    small = estimates.training_gb(plain(), p | {"lora_rank": 8}, 500, 4, logits=False)
    assert small == pytest.approx(4.36816, abs=1e-5)
    assert estimates.learning_gb(plain(), p | {"lora_rank": 8}, 4) == pytest.approx(0.02816)
    assert estimates.learning_gb(half, p, 2) == 4 and estimates.learning_gb(half, shared, 2) == 8


def test_what_is_made_from_a_model_is_as_large_as_it():
    run = {
        "02_policy": {"model": "owner/base"}, "04_prm_training": {"model": "owner/other", "init": "policy"},
        "07_generative_prm": {"model": "02_policy/policy", "policy": "02_policy/policy"},
    }  # fmt: skip
    assert workload.root("04_prm_training/marker", run) == "owner/base"
    assert workload.root("07_generative_prm/critique", run) == "owner/base"
    other = run | {"04_prm_training": {"model": "owner/other", "init": "base"}}
    assert workload.root("results/mine/04_prm_training/chat", other) == "owner/other"
    assert workload.root("owner/anything", {}) == "owner/anything"
    with pytest.raises(ValueError, match="02_policy are not known"):
        workload.root("02_policy/policy", {})
    with pytest.raises(ValueError, match="size of owner/solver is not known without its files"):
        estimates.estimate("03_mc_labeling", labeling_run(), KNOWN.get)


def test_the_words_of_an_estimate():
    words = estimates.Estimate(2_500_000, 900, 0, 12, 40.4, 16.25, 8, 3.0).words()
    assert words == (
        "2.5 million tokens generated, 900 tokens read, 12 teacher calls, 40 GPU hours, "
        "8 x 16.2 GB of GPU memory, 3.0 GB of disk"
    )


# The published configurations, as far as sizes hang on them: width, inner width, layers, heads, key heads, vocabulary.
def text(width, inner, layers, heads, kv_heads, vocab, **more):
    more |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": False}
    return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab, **more}


VIT_300M = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "attention_bias": True, "image_size": [448, 448], "patch_size": [14, 14]}  # fmt: skip
VIT_6B = {**VIT_300M, "hidden_size": 3200, "intermediate_size": 12_800, "num_hidden_layers": 45, "use_qk_norm": True,
          "attention_bias": False, "num_attention_heads": 25, "norm_type": "rms_norm"}  # fmt: skip


def internvl(sizes, vision=VIT_300M, kind="qwen2"):
    vision = {"model_type": "internvl_vision", **vision}
    return InternVLConfig(tie_word_embeddings=False, text_config={"model_type": kind, **sizes}, vision_config=vision)


def qwen2_5_vl(sizes, inner, tied=False):
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": inner, "num_heads": 16}
    return Qwen2_5_VLConfig(
        tie_word_embeddings=tied, text_config=sizes | {"tie_word_embeddings": tied},
        vision_config=vision | {"out_hidden_size": sizes["hidden_size"]},
    )  # fmt: skip


def qwen3_vl(sizes):
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
              "deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304}  # fmt: skip
    return Qwen3VLConfig(
        tie_word_embeddings=False, text_config=sizes, vision_config=vision | {"out_hidden_size": sizes["hidden_size"]}
    )


PUBLISHED = {
    "OpenGVLab/InternVL2_5-8B": internvl(text(4096, 14_336, 32, 32, 8, 92_553), kind="llama"),
    "OpenGVLab/InternVL3-1B-hf": internvl(text(896, 4864, 24, 14, 2, 151_674)),
    "OpenGVLab/InternVL3-2B-hf": internvl(text(1536, 8960, 28, 12, 2, 151_674)),
    "OpenGVLab/InternVL3-8B-hf": internvl(text(3584, 18_944, 28, 28, 4, 151_674)),
    "OpenGVLab/InternVL3-38B-hf": internvl(text(5120, 27_648, 64, 40, 8, 151_674), VIT_6B),
    "OpenGVLab/InternVL3-78B-hf": internvl(text(8192, 29_568, 80, 64, 8, 151_674), VIT_6B),
    "Qwen/Qwen2.5-VL-3B-Instruct": qwen2_5_vl(text(2048, 11_008, 36, 16, 2, 151_936), 3420, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen2_5_vl(text(3584, 18_944, 28, 28, 4, 152_064), 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": qwen2_5_vl(text(5120, 27_648, 64, 40, 8, 152_064), 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": qwen2_5_vl(text(8192, 29_568, 80, 64, 8, 152_064), 3456),
    "Qwen/Qwen3-VL-8B-Instruct": qwen3_vl(text(4096, 12_288, 36, 32, 8, 151_936, head_dim=128)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_known_sizes_are_those_of_the_architecture(name):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(PUBLISHED[name])
    n_vision = sum(p.numel() for tower in vision_towers(model) for p in tower.parameters())
    sizes, known = model.config.text_config, KNOWN[name]
    head = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    assert (sum(p.numel() for p in model.parameters()), n_vision, sizes.num_hidden_layers, sizes.hidden_size,
            sizes.vocab_size, sizes.num_key_value_heads * head) == astuple(known)[:6]  # fmt: skip


def test_every_size_is_counted_here_or_that_of_a_base_that_is():
    assert set(KNOWN) == {"embedded", *PUBLISHED, *estimates.BASES}
    assert all(KNOWN[name] == KNOWN[base] for name, base in estimates.BASES.items())


def test_the_embedded_model_is_as_large_as_it_is_said_to_be():
    model, _ = load()
    known, text = KNOWN["embedded"], model.config.text_config
    assert sum(p.numel() for p in model.parameters()) == known.n_weights
    assert sum(p.numel() for tower in vision_towers(model) for p in tower.parameters()) == known.n_vision
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (known.layers, known.width, known.vocab)


RUN = {stage.name: stage.params for stage in stages.plan("tiny")[0]}


@pytest.mark.parametrize("name", [n for n in RUN if n[:2] in ("02", "03", "05", "06", "07", "08", "12")])
def test_the_tokens_of_the_reference_run_were_foreseen(name):
    manifest = json.loads((REPOSITORY / "results" / "tiny" / name / "manifest.json").read_text(encoding="utf-8"))
    found = workload.work(name, RUN | {name: manifest["params"]}, KNOWN["embedded"].image_tokens)
    # 12 is the farthest off, by 2.2: its strategies share rollouts
    assert 1 / 2.5 < found.written / manifest["generated_tokens"] < 2.5


@pytest.mark.parametrize("name", [n for n in RUN if n[:2] in ("01", "02", "03", "04", "06", "07")])
def test_the_disk_of_the_reference_run_was_foreseen(name):
    manifest = json.loads((REPOSITORY / "results" / "tiny" / name / "manifest.json").read_text(encoding="utf-8"))
    made = {key: entry for key, entry in manifest["outputs"].items() if not key.startswith(("figure_", "table_"))}
    found = estimates.estimate(name, RUN | {name: manifest["params"]}, KNOWN.get)
    assert 1 / 2.5 < found.disk_gb * 1e9 / sum(entry["bytes"] for entry in made.values()) < 2.5


@pytest.mark.parametrize("profile", ["paper", "visualprm", "visualprm_script", "mm_prm_script", "gm_prm"])
def test_what_the_papers_ran_has_a_cost_before_anything_is_fetched(profile):
    planned = stages.plan(profile)[0]
    costs = {s.name: estimates.estimate(s.name, stages.run_of(s, planned), KNOWN.get) for s in planned}
    assert all(cost.gpu_hours > 0.4 for name, cost in costs.items() if name[:2] not in ("01", "09", "10", "11"))
    if profile == "paper":
        assert list(costs) == list(RUN), "every notebook has its parameters"
        # 7,500 + 500 problems, 1,000 rollouts of half of 190 tokens
        assert costs["03_mc_labeling"].written == pytest.approx(8000 * 1000 * 95)
    if profile == "visualprm":
        # 9,500 + 500 problems, 4 solutions of 190 tokens, 16 x (4.6 x 95 + 1) tokens of rollouts each
        assert costs["03_mc_labeling"].written == pytest.approx(10_000 * 4 * (190 + 7008))


@pytest.mark.parametrize(
    ("profile", "each", "alone"),
    [("paper", 30, 35), ("paper_38b", 80, 77), ("paper_38b_lora", 20, 77), ("paper_72b", 170, 145),
     ("paper_72b_lora", 40, 145), ("paper_8b_lora", 12, 16)],
)  # fmt: skip
def test_memory_of_training_is_what_the_files_say(profile, each, alone):
    """GB of each of eight GPUs, and of the one that scores, by the arithmetic in the files' first lines."""
    planned = stages.plan(profile)[0]
    [stage] = [s for s in planned if s.name == "04_prm_training"]
    found = estimates.estimate(stage.name, stages.run_of(stage, planned), KNOWN.get)
    assert found.n_gpus == 8 and each / 1.6 < found.memory_gb < each * 1.05
    if profile != "paper":
        assert alone <= found.alone_gb < alone * 1.15
    assert ("GPU hours not known" in found.words()) is (profile != "paper")


def test_a_model_that_is_trained_need_not_be_the_one_that_generates():
    planned = stages.plan("paper")[0]
    [stage] = [s for s in planned if s.name == "12_labeling_cost"]
    found = estimates.estimate(stage.name, stages.run_of(stage, planned), KNOWN.get)
    assert stage.params["start"] == "OpenGVLab/InternVL3-2B-hf" and 60 < found.memory_gb < 80  # "fit into 80 GB"


def test_a_stage_knows_the_parameters_of_the_runs_that_it_reads():
    [seven, eight] = stages.plan("gm_prm")[0]
    run = stages.run_of(eight, [seven, eight])
    assert run["03_mc_labeling"]["run_name"] == "visualprm" and run["07_generative_prm"] == seven.params
    assert workload.root(eight.params["critic"], run) == "Qwen/Qwen2.5-VL-7B-Instruct"
