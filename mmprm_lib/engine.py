"""vLLM as a back end of sampling: the same requests and completions, in an engine with a process of its own.

Needs an environment with vLLM (`make vllm-env`, or the extra `vllm` on CUDA). The engine's memory, a GPU's too, is free
again when the generator is closed, because it is another process that ends.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import models
from .asking import Completion, Finished, More, Request, check_number, failed, follows, nothing_more
from .choices import ChoiceRule
from .data import open_image
from .decoding import ChoiceSampling, Sampling
from .fingerprints import fingerprint, sha256_of
from .generation import PREPARING
from .pieces import Chain
from .prompts import cut_at, text_of
from .protocol import how_it_ended, seed_of
from .run import write_json
from .steps import adds_special_tokens, neutralise, policy_prompt, prefix_text

TOWER = "vision_tower."
IN_FLIGHT = 512  # sequences that the engine is given at once; it batches them itself


@dataclass
class _Flight:
    """What is in the engine: a request of n samples, or (`chain`) one sample of it that has choices, piece by piece.

    prompt: as vLLM takes it; again: the engine failed, and was asked once more.
    """

    request: Request
    prompt: dict[str, Any]
    n: int
    n_distinct: int
    n_wanted: int
    chain: Chain | None = None
    again: bool = False
    found: dict[int, Completion] = field(default_factory=dict)  # of all chains of the request


def readable(source: str, folder: Path) -> str:
    """The checkpoint itself, or a copy in `folder` whose weights have names that vLLM reads.

    transformers 5 leaves `vision_model.` out of the names of LLaVA's vision tower, and vLLM 0.32 looks for it.
    """
    files = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    names = set().union(*(safe_open(file, "pt").keys() for file in files))
    if not any(name.startswith(f"{TOWER}embeddings.") for name in names):
        return source

    def renamed(name: str) -> str:
        return name.replace(TOWER, f"{TOWER}vision_model.", 1) if name.startswith(TOWER) else name

    for path in (p for p in Path(source).iterdir() if p.is_file()):
        if path in files:
            save_file({renamed(k): v for k, v in load_file(path).items()}, folder / path.name, {"format": "pt"})
        elif path.name == "model.safetensors.index.json":
            index = json.loads(path.read_text(encoding="utf-8"))
            index["weight_map"] = {renamed(k): v for k, v in index["weight_map"].items()}
            write_json(folder / path.name, index)
        else:
            shutil.copyfile(path, folder / path.name)
    return str(folder)


class VllmGenerator:
    """Samples with vLLM, `vllm.LLM` in a process of its own; use it as a context manager, or call `close`.

    `model`: a checkpoint folder, a hub id, or "embedded". A request opens its image once, however many samples are
    drawn, and prompts that begin alike share their cache (prefix caching). A sample depends on the seed, the request's
    key and its own number; other requests in the batch may change a logit in its last digits. `options` go to
    `vllm.LLM` (dtype, tensor_parallel_size, max_model_len, gpu_memory_utilization, ...). Only safetensors are read:
    ValueError for a folder without them. With ChoiceSampling a text is asked for in pieces (see `pieces`), each with
    the image that was opened for the first; vLLM knows it by its hash, and keeps what it made of it as long as its
    caches hold it. What the engine fails at is asked of it once more, and is an error if it fails again.
    """

    def __init__(
        self, model: str | Path, *, in_flight: int = IN_FLIGHT, name: str = "", trust_remote_code: bool = False,
        revision: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}: give at least 1 sequence")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ImportError(f"no vLLM in this environment ({error}): make vllm-env makes one") from None
        source = str(models.EMBEDDED if str(model) == "embedded" else model)
        models.check_index(Path(source))  # vLLM would unpickle .bin files
        code = {"trust_remote_code": trust_remote_code, "revision": revision}
        self.processor = models.load_processor(source, **code)
        self.tokenizer, self.in_flight, self.name = self.processor.tokenizer, in_flight, name or Path(source).name
        self.n_generated_tokens, self._n_asked, self._vllm, self._source = 0, 0, vllm, source
        settings = {"dtype": "auto", "enable_prefix_caching": True, "limit_mm_per_prompt": {"image": 1}}
        if current_platform.is_cpu():
            settings["enable_chunked_prefill"] = False  # half a prompt with a seed ends vLLM 0.32's engine on a CPU
        settings |= {"disable_log_stats": True, "seed": 0, **options}
        self._shaping = {"vllm": vllm.__version__, "revision": revision} | {k: str(v) for k, v in settings.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="mmprm_vllm_")
        files = {"model": readable(source, Path(self._folder.name)), "load_format": "safetensors"}
        self._llm = vllm.LLM(**files, **code, **settings)
        self.context = int(self._llm.llm_engine.model_config.max_model_len)

    def __enter__(self) -> VllmGenerator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing; ends the engine's process, which frees its memory. A second call changes nothing."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            self._folder.cleanup()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the weights' files (a hub id: its name and revision), the template and the settings."""
        folder = Path(self._source)
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        weights = [sha256_of(file) for file in files] or [self._source]
        texts = [str(self.processor.chat_template), prefix_text(["a", "b"])]
        return fingerprint([weights, texts, sorted(self.tokenizer.get_vocab().items()), self._shaping])

    def sample(
        self, requests: Iterable[Request], n: int, sampling: Sampling, more: More | None = None
    ) -> Iterator[Finished]:
        """Each request with its n completions, as they finish; `more` as of TransformersGenerator."""
        check_number(n)
        if self._llm is None:
            raise ValueError(f"generator {self.name!r} is closed: make a new one")
        return self._stream(iter(requests), n, sampling, more or nothing_more)

    def _stream(self, requests: Iterator[Request], n: int, sampling: Sampling, more: More) -> Iterator[Finished]:
        engine, flying, drained = self._llm.llm_engine, dict[str, _Flight](), False
        chosen = isinstance(sampling, ChoiceSampling)
        ids = ChoiceRule(self.tokenizer, sampling.cue, sampling.choices).ids if chosen else []
        try:
            while flying or not drained:
                while not drained and (not flying or sum(f.n for f in flying.values()) + n <= self.in_flight):
                    if (request := next(requests, None)) is None:
                        drained = True
                    else:
                        yield from self._add(flying, request, n, sampling, ids)
                for output in engine.step() if flying else ():
                    if output.finished and (done := self._landed(flying, output, sampling)):
                        yield done
                        for follow in follows(*done, more):
                            yield from self._add(flying, follow, 1, sampling, ids)
        finally:
            if flying and self._llm is not None:  # the caller wants no more, or an error ended it
                engine.abort_request(list(flying))

    def _add(
        self, flying: dict[str, _Flight], request: Request, n: int, sampling: Sampling, ids: list[int]
    ) -> Iterator[Finished]:
        """Nothing, and the request is in flight; or its n errors, if it cannot be prepared."""
        distinct = n if sampling.temperature else 1  # greedy samples are one another's copies
        try:
            prompt = self._prompt(request)
            flights = [_Flight(request, prompt, distinct, distinct, n)]
            if isinstance(sampling, ChoiceSampling):
                before = neutralise(prefix_text(list(request.prefix)) + request.opening, self.tokenizer)
                chains, found = [Chain(request, i, sampling, before, ids) for i in range(distinct)], {}
                flights = [_Flight(request, prompt, 1, distinct, n, chain, found=found) for chain in chains]
            for flight in flights:
                self._fly(flying, flight, sampling)
        except PREPARING as error:  # of the first of them: they differ in their seed alone
            yield failed(request, n, error)

    def _fly(self, flying: dict[str, _Flight], flight: _Flight, sampling: Sampling) -> None:
        """Nothing; the engine has the request, or the next piece of its chain. ValueError if vLLM does not take it."""
        self._n_asked += 1
        ids = flight.prompt["prompt_token_ids"] + (flight.chain.ids if flight.chain else [])
        params = self._params(flight.request, flight.n, sampling, flight.chain)
        self._llm.llm_engine.add_request(str(self._n_asked), flight.prompt | {"prompt_token_ids": ids}, params)
        flying[str(self._n_asked)] = flight

    def _prompt(self, request: Request) -> dict[str, Any]:
        """The prompt as vLLM takes it. ValueError or OSError if the image is of no use."""
        problem, tokens = request.problem, self.tokenizer
        text = policy_prompt(problem, self.processor, request.instruction)
        ids = tokens(text, add_special_tokens=adds_special_tokens(text, tokens))["input_ids"]
        before = prefix_text(list(request.prefix)) + request.opening
        ids += tokens(neutralise(before, tokens), add_special_tokens=False)["input_ids"] if before else []
        return {
            "prompt_token_ids": ids,  # the image's placeholder once: vLLM expands it
            "multi_modal_data": {"image": open_image(problem)},
            "multi_modal_uuids": {"image": problem.image_sha256},
        }

    def _params(self, request: Request, n: int, sampling: Sampling, chain: Chain | None = None) -> Any:
        """vLLM's sampling parameters of a request, or of the next piece of its chain."""
        if chain:
            request, sampling = chain.piece()
        last = {"output_kind": self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY}
        if chain and chain.due:  # the token is not used, and the probabilities are those before any sampling
            choices = {"logprob_token_ids": list(chain.order)}
            return self._vllm.SamplingParams(max_tokens=1, temperature=0.0, **choices, **last)
        return self._vllm.SamplingParams(
            n=n, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens, stop=list(sampling.stop) or None,
            seed=seed_of(sampling.seed, request.seed_key), skip_special_tokens=True,
            spaces_between_special_tokens=False, **last,
        )  # fmt: skip

    def _landed(self, flying: dict[str, _Flight], output: Any, sampling: Sampling) -> Finished | None:
        """The request with its completions, if that was the last of them; a chain that goes on is in flight again."""
        flight = flying.pop(output.request_id)
        request, chain, copies = flight.request, flight.chain, flight.n_wanted // flight.n_distinct
        broken = any(how_it_ended(o.finish_reason) == "error" for o in output.outputs)
        if broken and not flight.again:  # such as an image that is no longer in the engine's cache: now it is sent
            flight.again = True
            self._fly(flying, flight, sampling)
            return None
        if not chain:
            found = [self._completion(o, sampling) for o in sorted(output.outputs, key=lambda o: o.index)]
            return request, found * copies
        flight.again = False
        if (completion := self._piece(chain, output.outputs[0])) is None:
            try:
                self._fly(flying, flight, sampling)
            except PREPARING as error:
                [completion] = failed(request, 1, error)[1]
        if completion:
            flight.found[chain.sample] = completion
        whole = completion and len(flight.found) == flight.n_distinct
        return (request, [flight.found[i] for i in range(flight.n_distinct)] * copies) if whole else None

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        n_tokens, reason = len(output.token_ids), how_it_ended(output.finish_reason)
        self.n_generated_tokens += n_tokens
        if reason == "error":
            return Completion("", n_tokens, reason, f"vLLM broke it off (finish_reason {output.finish_reason})")
        return Completion(cut_at(output.text, sampling.stop), n_tokens, reason)

    def _piece(self, chain: Chain, output: Any) -> Completion | None:
        """The completion of a chain, if it ends with this piece."""
        if (ended := how_it_ended(output.finish_reason)) == "error":
            return self._completion(output, chain.sampling)
        if chain.due:
            tokens, reason = [chain.order[chain.choose([output.logprobs[0][i].logprob for i in chain.order])]], ""
        else:
            tokens, reason = list(output.token_ids), "" if isinstance(output.stop_reason, str) else ended
        chain.ids += tokens
        self.n_generated_tokens += len(tokens)
        return chain.wrote(text_of(self.tokenizer, chain.ids), len(chain.ids), reason)
