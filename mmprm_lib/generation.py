"""Sampling from a vision-language model: requests in, completions out as they finish, each with its own seed.

A request is a problem and the first steps of a solution; the text goes on inside the assistant turn, as if the model
had written those steps itself, and is never asked again as a user message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .architecture import context_length, fits_slots, went_on
from .asking import Completion, Finished, Generator, More, Request, failed, nothing_more
from .choices import ChoiceRule, Probs
from .decoding import ChoiceSampling, InverseCdf, Sampling, uniforms
from .prompts import Prompt, Prompts, cut_at, stop_test, text_of
from .schema import Problem, fingerprint
from .slots import Ended, Sequence, Slots, StopTest, lanes_for
from .steps import end_of_turn, policy_prompt, prefix_text

__all__ = ["ChoiceSampling", "Completion", "Generator", "Request", "Sampling", "TransformersGenerator"]

PREPARING = (ValueError, OSError, TypeError, KeyError, IndexError)  # what a request may fail with by itself
PREFILL_TOKENS = 8192  # per forward pass, so that long prompts do not fill the memory


@dataclass
class _Entry:
    """A request that is ready to run, and its completions so far."""

    request: Request
    prompt: Prompt
    ids: list[int]  # prompt and prefix
    budget: int
    before: list[int] = field(default_factory=list)  # the tokens of the assistant turn so far
    n: int = 1  # samples
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def finished(self) -> list[Finished]:
        """The request with its completions, once they are all there; else nothing."""
        return [(self.request, [self.completions[i] for i in range(self.n)])] if len(self.completions) == self.n else []


class _Stops(StoppingCriteria):
    """Ends a row of `generate` by `stop_test`; transformers' own stop strings end some that hold none of them."""

    def __init__(self, ends: StopTest, start: int) -> None:
        self.ends, self.start = ends, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = input_ids[:, self.start :].cpu().numpy()
        return torch.tensor([self.ends(row) for row in rows], device=input_ids.device)


def _parts(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """The entries in order, as many at a time as one forward pass prefills."""
    while entries:
        longest = np.maximum.accumulate([len(e.ids) for e in entries])
        size = max(1, int((longest * np.arange(1, len(entries) + 1) <= PREFILL_TOKENS).sum()))
        yield entries[:size]
        entries = entries[size:]


class TransformersGenerator:
    """Samples with a model of transformers' Auto classes; `batch_size` counts sequences.

    A request costs one image encoding (shared by requests on the same problem) and one prompt prefill, however many
    samples are drawn of it. A sample depends on the seed, the request's key and its own number only; batching may
    change a logit in its last float32 digits, so that once in some 10^5 tokens, where a random number falls on the
    border of two tokens, another one is drawn. Models that do not fit the slots (`architecture.fits_slots`) run through
    `model.generate` with the same random numbers, a batch after the other.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 512, name: str = "") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1 sequence")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        self.tokenizer, self.prompts = processor.tokenizer, Prompts(model, processor)
        self.name = name or str(getattr(model.config, "name_or_path", "")) or model.config.model_type
        self.n_generated_tokens = 0
        eos = model.generation_config.eos_token_id
        eos = {*(eos if isinstance(eos, list | tuple) else [eos]), self.tokenizer.eos_token_id, end_of_turn(processor)}
        self.eos = sorted(t for t in eos if t is not None)
        self.context = context_length(model)

    def close(self) -> None:
        """Nothing; forgets the model, so that its memory is free where nobody else holds it."""
        self.model = self.prompts = None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the weights, their dtype, the vocabulary, the image processor and the fixed text."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        probe = Problem(problem_id="p", question="Q <image>?", image="i", image_sha256="0" * 64, answer="A",
                        answer_type="choice", choices=["x", "y"], source="", split="")  # fmt: skip
        texts = [policy_prompt(probe, self.processor), prefix_text(["a", "b"])]
        words, eye = sorted(self.tokenizer.get_vocab().items()), self.processor.image_processor.to_json_string()
        return fingerprint([weights.hexdigest(), texts, words, eye, self.eos])

    def sample(
        self, requests: Iterable[Request], n: int, sampling: Sampling, more: More | None = None
    ) -> Iterator[Finished]:
        """Each request with its n completions, as they finish. The iterable may be endless: it is read by windows.

        `more` is asked of every completion whether a text goes on from it, and gives the request for that: the same
        problem and instruction, a longer opening. What both texts begin with is not computed again (with slots). Such
        requests come back, too, with one completion each. What cannot be prepared is not asked about.
        """
        if n < 1:
            raise ValueError(f"n is {n}: draw at least 1 sample per request")
        if self.model is None:
            raise ValueError(f"generator {self.name!r} is closed: make a new one")
        run = self._by_slots if self._fits_slots() else self._by_generate
        return run(self._windows(requests, n, sampling), n, sampling, more or nothing_more)

    def _fits_slots(self) -> bool:
        return fits_slots(self.model, self.processor)

    # -- requests to token ids

    def _windows(self, requests: Iterable[Request], n: int, sampling: Sampling) -> Iterator[_Entry | Finished]:
        """Prepared requests, those of similar length together; one that cannot be prepared with its errors instead."""
        size = max(16, 4 * self.batch_size // n)
        requests, downwards = iter(requests), False
        while window := list(islice(requests, size)):
            entries = []
            for request in window:
                try:
                    entries.append(self._prepare(request, sampling, n))
                except PREPARING as error:
                    yield failed(request, n, error)
            # up, then down: the neighbours of two windows are of similar length, too
            yield from sorted(entries, key=lambda e: len(e.ids), reverse=downwards)
            downwards = not downwards

    def _prepare(self, request: Request, sampling: Sampling, n: int = 1) -> _Entry:
        """The request as token ids; ValueError if its image cannot be used or it does not fit the context."""
        prompt = self.prompts.prompt(request.problem, request.instruction)
        before = self.prompts.prefix_ids(request.prefix, request.opening)
        ids = prompt.ids + before
        if len(ids) >= self.context:
            name = request.problem.problem_id
            raise ValueError(f"{name}: {len(ids)} tokens do not fit the model's context of {self.context}")
        return _Entry(request, prompt, ids, min(sampling.max_new_tokens, self.context - len(ids)), before, n)

    def _follow(self, entry: _Entry, sample: int, sampling: Sampling, more: More) -> _Entry | Finished | None:
        """What goes on from a completion, prepared; with its error instead if that fails; None if it ends there."""
        if (request := more(entry.request, sample, entry.completions[sample])) is None:
            return None
        try:
            follow = self._prepare(request, sampling)
        except PREPARING as error:
            return failed(request, 1, error)
        if follow.prompt.ids != entry.prompt.ids or request.problem != entry.request.problem:
            raise ValueError(f"request {request.key!r} goes on from another question than {entry.request.key!r}")
        return follow

    def _completion(
        self, tokens: list[int], entry: _Entry, reason: Literal["stop", "length"], sampling: Sampling,
        probs: tuple[Probs, ...] = (),
    ) -> Completion:  # fmt: skip
        self.n_generated_tokens += len(tokens)
        text = text_of(self.tokenizer, tokens, entry.before)
        return Completion(cut_at(text, sampling.stop), len(tokens), reason, "", probs)

    def _rule(self, sampling: Sampling) -> ChoiceRule | None:
        if not isinstance(sampling, ChoiceSampling):
            return None
        return ChoiceRule(self.tokenizer, sampling.cue, sampling.choices, sampling.take, sampling.patience)

    def _uniforms(self, entry: _Entry, sample: int, sampling: Sampling) -> np.ndarray:
        if sampling.temperature == 0:
            return np.zeros(sampling.max_new_tokens)
        return uniforms(sampling.seed, entry.request.seed_key, sample, sampling.max_new_tokens)

    # -- decoding by slots

    def _by_slots(
        self, feed: Iterator[_Entry | Finished], n: int, sampling: Sampling, more: More
    ) -> Iterator[Finished]:
        ends, rule = stop_test(self.tokenizer, sampling.stop), self._rule(sampling)
        n_lanes = lanes_for(n, sampling.max_new_tokens) if more is nothing_more else 1  # see `resume`
        each = -(-n // n_lanes)  # rows of a request
        room = max(self.batch_size // n_lanes, each)
        slots, drained = None, False
        while slots is None or not drained or slots.n_live:
            free = len(slots.free_rows) if slots else room
            # to prefill for a few rows costs nearly as much as for many, so an eighth of the batch gathers first
            if not drained and free >= max(each, room // 8):
                taken = list(islice(feed, free // each))
                drained = len(taken) < free // each
                if slots is None:  # no larger cache than a few requests need
                    rows = each * len(taken) if drained else room
                    slots = Slots(self.model, rows, n_lanes, sampling, self.eos, ends, rule)
                yield from (item for item in taken if not isinstance(item, _Entry))
                for part in _parts([item for item in taken if isinstance(item, _Entry)]):
                    # at once, for the next part takes the rows that have ended and do not go on
                    yield from self._settle(slots, self._admit(slots, part, n, sampling), sampling, more)
            if slots.n_live:
                yield from self._settle(slots, self._step(slots, drained), sampling, more)

    def _settle(self, slots: Slots, ended: list[Ended], sampling: Sampling, more: More) -> list[Finished]:
        """The requests that are finished with these sequences; where one goes on, its row does, too."""
        finished: list[Finished] = []
        for end in ended:
            entry: _Entry = end.sequence.owner
            found = self._completion(end.tokens, entry, end.finish_reason, sampling, end.choice_probs)
            entry.completions[end.sequence.sample] = found
            finished += entry.finished
            follow = self._follow(entry, end.sequence.sample, sampling, more)
            if isinstance(follow, _Entry):
                self._resume(slots, end, entry, follow, sampling)
            elif follow:
                finished.append(follow)
        return finished

    @torch.inference_mode()
    def _resume(self, slots: Slots, end: Ended, entry: _Entry, follow: _Entry, sampling: Sampling) -> None:
        computed = (entry.ids + end.tokens)[:-1]
        most = min(len(computed), len(follow.ids) - 1)  # one token at least is fed
        same = next((k for k in range(most) if computed[k] != follow.ids[k]), most)
        sequence = Sequence(follow, 0, follow.budget, self._uniforms(follow, 0, sampling), follow.before)
        slots.resume(end.lane, sequence, len(computed) - same, follow.ids[same:])

    @torch.inference_mode()  # never around a `yield`: the caller would run in it, too
    def _step(self, slots: Slots, drained: bool) -> list[Ended]:
        return slots.step(drained)

    @torch.inference_mode()
    def _admit(self, slots: Slots, entries: list[_Entry], n: int, sampling: Sampling) -> list[Ended]:
        """The sequences that end with their first token, after the entries were prefilled and given n rows each."""
        cache, logits = self._prefill(entries)
        groups = [
            [Sequence(e, i, e.budget, self._uniforms(e, i, sampling), e.before) for i in range(n)] for e in entries
        ]
        return slots.admit(groups, [len(e.ids) for e in entries], cache, logits)

    def _prefill(self, entries: list[_Entry]) -> tuple[Any, torch.Tensor]:
        """The cache of the prompts, padded on the left, and the logits after each: (prompt, vocabulary)."""
        ids, mask = self.prompts.pad([e.ids for e in entries])
        features = self.prompts.image_features([e.prompt for e in entries])
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=True,
            logits_to_keep=1,
        )
        return out.past_key_values, out.logits[:, -1]

    # -- decoding by `generate`

    def _by_generate(
        self, feed: Iterator[_Entry | Finished], n: int, sampling: Sampling, more: More
    ) -> Iterator[Finished]:
        while taken := list(islice(feed, max(1, self.batch_size // n))):
            yield from (item for item in taken if not isinstance(item, _Entry))
            samples = [(item, i) for item in taken if isinstance(item, _Entry) for i in range(n)]
            while samples:
                later: list[tuple[_Entry, int]] = []
                for (entry, i), found in zip(samples, self._generate(samples, sampling), strict=True):
                    entry.completions[i] = found
                    yield from entry.finished
                    follow = self._follow(entry, i, sampling, more)
                    if isinstance(follow, _Entry):
                        later.append((follow, 0))
                    elif follow:
                        yield follow
                samples = later

    @torch.inference_mode()
    def _generate(self, samples: list[tuple[_Entry, int]], sampling: Sampling) -> list[Completion]:
        """One completion per (entry, number of the sample), drawn by the same random numbers as in the slots."""
        entries = [e for e, _ in samples]
        ids, mask = self.prompts.pad([e.ids for e in entries])
        uniform = torch.as_tensor(np.stack([self._uniforms(e, i, sampling) for e, i in samples]), device=ids.device)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max(e.budget for e in entries), eos_token_id=self.eos,
            pad_token_id=self.prompts.pad_id,
        )  # fmt: skip
        ends, rule = stop_test(self.tokenizer, sampling.stop), self._rule(sampling)
        tails = [e.before[-rule.tail :] if rule else [] for e in entries]
        drawing = InverseCdf(uniform, ids.shape[1], sampling, rule, tails)
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, **self._begun(entries), generation_config=config,
            logits_processor=[drawing], stopping_criteria=[_Stops(ends, ids.shape[1])] if ends else None,
        )  # fmt: skip
        rows = out[:, ids.shape[1] :].tolist()
        return [self._ended(*each, sampling) for each in zip(entries, rows, drawing.choice_probs, strict=True)]

    def _begun(self, entries: list[_Entry]) -> dict[str, Any]:
        """What `generate` is given beside the tokens: the images; where samples share a prompt, its cache instead,
        computed once, up to the last token.
        """
        alike = list({id(e): e for e in entries}.values())
        images = self.prompts.collate([e.prompt for e in alike], [len(e.ids) for e in alike])
        if len(alike) == len(entries):
            return images
        ids, mask = self.prompts.pad([e.ids for e in alike])
        rows = {name: each[:, :-1] if each.shape == ids.shape else each for name, each in images.items()}
        body, places = self.model.base_model, {id(e): i for i, e in enumerate(alike)}
        cache, _ = went_on(body, {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], **rows})
        chosen = torch.tensor([places[id(e)] for e in entries], device=ids.device)
        cache.batch_select_indices(chosen)
        if hasattr(body, "rope_deltas"):
            body.rope_deltas = body.rope_deltas[chosen]
        return {"past_key_values": cache}

    def _ended(self, entry: _Entry, row: list[int], probs: dict[int, Probs], sampling: Sampling) -> Completion:
        """A row of `generate` as it would have ended by itself; other rows may have kept it running."""
        row, patience = row[: entry.budget], getattr(sampling, "patience", 0)
        if patience:
            cuts = [0, *(place + 1 for place in sorted(probs))]  # where the waiting begins: after every choice
            row = row[: next(a + patience for a, b in zip(cuts, [*cuts[1:], 2**31], strict=True) if b > a + patience)]
        ends = stop_test(self.tokenizer, sampling.stop)
        last = (k for k, t in enumerate(row) if t in self.eos or (ends and ends(np.array(row[: k + 1]))))
        stop = next(last, None)
        tokens, reason = (row, "length") if stop is None else (row[: stop + 1], "stop")
        kept = tuple(p for place, p in sorted(probs.items()) if place < len(tokens))
        return self._completion(tokens, entry, reason, sampling, kept)
