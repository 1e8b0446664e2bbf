"""How a token is drawn: what may be asked for, the random numbers of each sample, and the draw itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor

from .choices import ChoiceRule, Probs


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 are off; `stop` strings end a text."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(f"{self}: wanted temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_new_tokens >= 1")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"stop {self.stop!r}: give a tuple of strings that are not empty")


@dataclass(frozen=True)
class ChoiceSampling(Sampling):
    """As `Sampling`; where a text ends with `cue`, its next token is the first of one of the `choices`.

    It is drawn (or, greedy, taken) among these tokens alone; what the model gave them of all tokens is kept in
    `Completion.choice_probs`. `take` writes that choice (its number) whatever was drawn: teacher forcing; -1 is off.
    `patience`: a text ends ("length") so many tokens after its beginning or its last choice; 0 is off. A class of its
    own, so that the fingerprint of a plain `Sampling` is what it was.
    """

    cue: str = ""
    choices: tuple[str, ...] = ()
    take: int = -1
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cue or len(self.choices) < 2 or isinstance(self.choices, str):
            raise ValueError(f"cue {self.cue!r}, choices {self.choices!r}: give a text and at least two texts")
        if not -1 <= self.take < len(self.choices) or self.patience < 0:
            raise ValueError(f"take {self.take}, patience {self.patience}: give a choice's number or -1, and 0 or more")


def uniforms(seed: int, key: str, sample: int, length: int) -> np.ndarray:
    """(length,) float64 in [0, 1): the random numbers of one sample of one request, one per token.

    They depend on the arguments alone (counter-based Philox), so neither the batch, nor the order, nor the number of
    samples changes what a sample draws; a longer `length` only adds numbers at the end.
    """
    name = hashlib.sha256(f"{seed}|{sample}|{key}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(name, "little"))).random(length)


def draw(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(row,) token ids from (row, vocabulary) logits: the inverse of each row's cumulative distribution at `uniform`.

    The token is the first whose cumulative probability exceeds the row's uniform number, tokens in the order of their
    ids, after temperature, then top_k, then top_p, as in `generate`. A token of probability 0 is never drawn.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / sampling.temperature, -1)
    if 0 < sampling.top_k < probs.shape[-1]:
        probs = probs.masked_fill(probs < probs.topk(sampling.top_k, -1).values[:, -1:], 0.0)
    if sampling.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens; the likeliest always stays
        dropped = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        probs = probs.masked_fill(dropped, 0.0)
    cdf = probs.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    # rounding may lift the product to the total itself, behind the last token
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True)[:, 0]


class InverseCdf(LogitsProcessor):
    """Makes greedy `generate` use `draw`: the drawn token gets logit 0, every other -inf. For models without slots."""

    def __init__(
        self, uniform: torch.Tensor, prompt_length: int, sampling: Sampling, rule: ChoiceRule | None = None,
        before: list[list[int]] | None = None,
    ) -> None:  # fmt: skip
        self.uniform, self.prompt_length, self.sampling = uniform, prompt_length, sampling  # uniform: (row, token)
        self.rule, self.before = rule, before
        # of each row, the number of the token that was a choice -> the probabilities
        self.choice_probs: list[dict[int, Probs]] = [{} for _ in uniform]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        count = input_ids.shape[1] - self.prompt_length
        if self.rule:
            tails = [b + t for b, t in zip(self.before, input_ids[:, self.prompt_length :].tolist(), strict=True)]
            at = np.flatnonzero([self.rule.ends(tail) for tail in tails])
            scores, probs = self.rule.restrict(scores, at)
            for row, p in zip(at, probs, strict=True):
                self.choice_probs[row][count] = p
        tokens = draw(scores, self.uniform[:, count], self.sampling)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)
