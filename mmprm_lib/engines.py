"""A generator by the name of its engine: transformers, vLLM, or the address of a server; alone, or a fleet of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from . import models
from .asking import Generator
from .endpoint import Endpoint
from .engine import VllmGenerator
from .fleet import FleetGenerator
from .generation import TransformersGenerator
from .served import ServedGenerator

SERVERS = ("http://", "https://")
AT_ONCE = 32  # requests to a server at most


def is_server(engine: str) -> bool:
    """Whether `engine` is an address, so that the model's name is the server's affair."""
    return engine.startswith(SERVERS)


def load_generator(
    model: str | Path, engine: str = "transformers", *, batch_size: int = 512, bf16: bool = False,
    trust_remote_code: bool = False, name: str = "", processor: str | Path = "",
) -> Generator:  # fmt: skip
    """A generator of `model` (a folder, a hub id, "embedded"; at a server, its name there) in this process.

    engine: "transformers"; "vllm", in a process beside this one; or the address of an OpenAI-compatible server up to
    and with /v1. batch_size: sequences at once. processor: where the processor of a server's model lies, if anywhere
    here (a folder, a hub id): choices are then asked for by their tokens. ValueError for any other engine; ImportError
    where vLLM is missing.
    """
    if engine == "transformers":
        options = {"dtype": torch.bfloat16 if bf16 else torch.float32, "trust_remote_code": trust_remote_code}
        return TransformersGenerator(*models.load(model, **options), batch_size, name)
    if engine == "vllm":
        dtype = "bfloat16" if bf16 else "float32"
        return VllmGenerator(model, in_flight=batch_size, name=name, trust_remote_code=trust_remote_code, dtype=dtype)
    if is_server(engine):
        words = models.load_processor(processor, trust_remote_code) if processor else None
        return ServedGenerator(Endpoint(engine, str(model), max_concurrency=min(AT_ONCE, batch_size)), words, name=name)
    raise ValueError(f"engine is {engine!r}: write transformers, vllm, or the http(s) address of a server with /v1")


def load_fleet(n_workers: int, model: str | Path, engine: str = "transformers", **options: object) -> Generator:
    """`load_generator`; with `n_workers` at least 1, one in each of so many workers of a Ray cluster."""
    make = partial(load_generator, model, engine, **options)
    return FleetGenerator(make, n_workers) if n_workers else make()
