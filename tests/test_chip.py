"""The benchmark of whole chips, on the smallest model of its kind: speeds, and FLOPs that are those of the work."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from transformers.utils import is_torchvision_available

from mmprm_lib import data
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(not is_torchvision_available(), reason="Qwen2.5-VL's processor needs torchvision")
SCRIPT = [sys.executable, str(REPOSITORY / "benchmarks" / "bench_chip.py")]
SMALL = "--size tiny --problems 2 --n 4 --max-new-tokens 8 --image-tokens 64 --side 256 --rounds 2 --no-vllm".split()


def test_a_chip_is_measured(tmp_path):
    file = tmp_path / "bench.json"
    done = subprocess.run([*SCRIPT, *SMALL, "--out", file], capture_output=True, text=True, check=True)
    found = json.loads(file.read_text())
    assert set(found) == {"chip_generate", "chip_scores"}
    for name, row in found.items():
        assert 0 < row["low"] <= row["value"] <= row["high"] < 1.5, (name, row)
        assert name in done.stdout and row["baseline"].startswith("products of 256 x 256 matrices in float32")
    assert found["chip_generate"]["tokens_per_s"] > 0 and found["chip_scores"]["times_alone"] > 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM: make test-vllm runs this where it is")
def test_vllm_on_a_chip_is_measured(tmp_path):
    file, environment = tmp_path / "bench.json", {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run([*SCRIPT, *SMALL[:-1], "--out", file], capture_output=True, check=True, env=environment)
    row = json.loads(file.read_text())["chip_vllm"]
    assert row["tokens_per_s"] > 0 and 0 < row["low"] <= row["value"] <= row["high"] < 1.5 and row["n"] == 2


def test_every_round_samples_from_images_of_its_own(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import bench_chip

    class Listed:
        n_generated_tokens, images = 0, []

        def sample(self, requests, n, sampling):
            self.images.append({r.problem.image_sha256 for r in requests})
            self.n_generated_tokens += n * len(requests)
            return iter(())

    problems = data.from_world({"test": 16 * 4}, 0, tmp_path)
    work = bench_chip.sampler(Listed(), problems, SimpleNamespace(problems=16, n=4, max_new_tokens=8))
    speeds, _ = bench_chip.measure(work, 3)
    assert [len(images) for images in Listed.images] == [16] * 4 and len(speeds) == 3
    assert len(set.union(*Listed.images)) == 64  # else a cache of images and prompts would spare some of the work


def test_flops_are_counted_as_matrix_products_have_them(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import bench_chip
    import torch

    a, b = torch.ones(8, 16), torch.ones(16, 4)
    assert bench_chip.counted(lambda turn: float((a @ b).sum())) == 2 * 8 * 16 * 4
    row = bench_chip.entry(1e9, [0.5, 1.0, 2.0], (1e9, "products"), tokens_per_s=3.0)
    assert (row["low"], row["value"], row["high"], row["n"], row["tokens_per_s"]) == (0.5, 1.0, 2.0, 3, 3.0)
    assert row["baseline"] == "products, 0.0 TFLOP/s" and "of_peak" not in row


def test_the_peak_of_a_known_chip_is_named(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import bench_chip

    peaks = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
    for name, peak in peaks.items():
        monkeypatch.setattr(bench_chip, "place", lambda name=name: name)
        assert bench_chip.entry(1e14, [1.0], (1e14, "products"))["of_peak"] == pytest.approx(1e14 / peak)


def test_a_large_model_wants_a_gpu():
    done = subprocess.run([*SCRIPT, "--size", "7b"], capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and "no GPU for a 7b model: --size tiny runs on a CPU" in done.stderr
