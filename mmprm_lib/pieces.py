"""A text with choices in it, written piece by piece: for engines that can be told where to stop and nothing more.

A piece is free text, up to a cue or its end, or the one token after a cue. The engine says what it thought of the
choices there, and one of them is drawn here, by the random number that the transformers back end takes at this token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from .asking import Completion, Request
from .choices import Probs
from .decoding import ChoiceSampling, Sampling, draw, uniforms
from .prompts import cut_at


@dataclass
class Chain:
    """One sample of a request on its way. before: the text that it goes on from; text: what was written, uncut.

    order: the choices' tokens, or whatever sorts the choices as their tokens do. ids: the tokens of the text, where the
    engine tells them. limit: the number of tokens with which the text ends.
    """

    request: Request
    sample: int
    sampling: ChoiceSampling
    before: str
    order: Sequence[int]
    text: str = ""
    ids: list[int] = field(default_factory=list)
    n_tokens: int = 0
    probs: list[Probs] = field(default_factory=list)
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self._wait_from(0)

    def _wait_from(self, n_tokens: int) -> None:
        most, patience = self.sampling.max_new_tokens, self.sampling.patience
        self.limit = min(most, n_tokens + patience) if patience else most

    @property
    def due(self) -> bool:
        """Whether the next token is a choice."""
        return (self.before + self.text).endswith(self.sampling.cue)

    def piece(self, exact: bool = True) -> tuple[Request, Sampling]:
        """How the next free text is asked for: a name of its own, which seeds it, its stop strings and its length.

        A stop string may begin in the text that is there: what is left of it stops, too, and is looked at again. Not if
        the engine gives no more of the text than up to a stop string (`exact` is False): a stop in vain would cost the
        rest of a token.
        """
        asked, ends = self.sampling, (*self.sampling.stop, self.sampling.cue)
        written = [self.text] * len(asked.stop) + [self.before + self.text]
        rests = [s[k:] for s, t in zip(ends, written, strict=True) for k in range(1, len(s)) if t.endswith(s[:k])]
        stop = (*ends, *rests) if exact else ends
        left = self.limit - self.n_tokens
        how = Sampling(asked.temperature, asked.top_p, asked.top_k, left, asked.seed, stop)
        return replace(self.request, key=f"{self.request.seed_key}|{self.sample}|{self.n_tokens}"), how

    def wrote(self, text: str, n_tokens: int, reason: str = "") -> Completion | None:
        """The completion, if the text ends here, now that all of it is `text` and `n_tokens`.

        reason: "stop" if the model ended it, "length" if it was cut, "" if it was stopped by a string.
        """
        self.text, self.n_tokens = text, n_tokens
        stopped = reason == "stop" or any(s in text for s in self.sampling.stop)
        if not stopped and reason != "length" and n_tokens < self.limit:
            return None
        cut, how = cut_at(text, self.sampling.stop), "stop" if stopped else "length"
        return Completion(cut, n_tokens, how, "", tuple(self.probs))

    def choose(self, logprobs: Sequence[float]) -> int:
        """The number of the choice that is to be written, of log-probabilities among all tokens, which are kept."""
        self.probs.append(tuple(math.exp(p) for p in logprobs))
        rank, count = sorted(range(len(self.order)), key=self.order.__getitem__), self.n_tokens
        uniform = torch.from_numpy(uniforms(self.sampling.seed, self.request.seed_key, self.sample, count + 1)[-1:])
        drawn = rank[int(draw(torch.tensor([[logprobs[i] for i in rank]]), uniform, self.sampling))]
        self._wait_from(count + 1)
        return drawn if self.sampling.take < 0 else self.sampling.take
