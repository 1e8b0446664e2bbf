"""Any OpenAI-compatible server as a back end of sampling: vLLM, SGLang, LMDeploy, a cloud; one HTTP request a question.

The text of a prefix is continued inside the assistant turn, which takes a server that can (vLLM: the fields
`add_generation_prompt` and `continue_final_message`). Retries, back-off and time limits are those of
`endpoint.Endpoint`, whose key comes from the environment and is in no record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from . import protocol
from .asking import Completion, Finished, More, Request, check_number, failed, follows, nothing_more
from .choices import ChoiceRule
from .decoding import ChoiceSampling, Sampling
from .endpoint import Endpoint, Reply, image_url
from .fingerprints import fingerprint
from .pieces import Chain
from .prompts import cut_at, text_of
from .protocol import seed_of
from .steps import STEP_SEPARATOR, neutralise, prefix_text, question_text
from .threads import at_once

# How vLLM and SGLang are told to go on with the last message, and vLLM to say which tokens belong to which choice.
CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
COUNTED = {"return_token_ids": True}
TOLD = {"logprobs": True, "top_logprobs": 20}  # of the token after a cue; more than 20 no server tells
PATIENCE_S = 600.0  # for a server that is started again: vLLM takes minutes to load a model
PAUSE_S = 8.0  # as long as the longest back-off of the `openai` package

T = TypeVar("T")


class ServedGenerator:
    """Samples from the chat endpoint of a server; a request is one HTTP request with its image once and `n` choices.

    `processor`: that of the served model, whose special tokens are then kept out of what is sent; without it those of
    common models are. `continuing` and `counting`: fields that tell the server to go on with the last message, and to
    say which tokens belong to which choice ({} if it cannot; then a prefix or opening is an error of its request).
    The seed sent depends on the sampling's seed and the request's key. A request that fails comes back with its error
    and costs itself alone. A server that has answered and goes away is waited for, `patience_s` in all; if none is
    there by then, or none ever was, ConnectionError: a later run asks for what was not answered. The weights behind a
    name are the server's affair: the fingerprint covers the name alone.

    With ChoiceSampling a text is asked for in pieces (see `pieces`), and the server must say which stop string it met
    (vLLM: `stop_reason`, SGLang: `matched_stop`). With a `processor` the choices are asked for by their tokens (vLLM:
    `logprob_token_ids`). Without, they are looked for among the 20 likeliest tokens, which is all that the protocol
    tells; one that is not there has no known probability, which is an error of the request and never a 0. The server
    is sent the text anew with every piece: it cuts it into tokens anew, and its template may take away white space that
    an answer without prefix and opening begins with.
    """

    def __init__(
        self, endpoint: Endpoint, processor: Any = None, *, name: str = "",
        continuing: Mapping[str, Any] = CONTINUE, counting: Mapping[str, Any] = COUNTED, patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self.endpoint, self.name = endpoint, name or endpoint.model
        self.continuing, self.counting, self.n_generated_tokens = dict(continuing), dict(counting), 0
        self.processor, self.patience_s = processor, patience_s
        self._heard, self._away_since = False, float("inf")  # whether the server ever answered; inf: it is there

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the endpoint's settings and the texts that are sent."""
        return fingerprint([self.endpoint.fingerprint, self.continuing, prefix_text(["a", "b"])])

    def close(self) -> None:
        """Nothing to free: the server is not ours."""

    def sample(
        self, requests: Iterable[Request], n: int, sampling: Sampling, more: More | None = None
    ) -> Iterator[Finished]:
        """Each request with its n completions, as they finish; `more` as of TransformersGenerator."""
        check_number(n)
        if isinstance(sampling, ChoiceSampling) and not self.continuing:
            raise ValueError("choices at a cue need a server that goes on inside the assistant turn (continuing is {})")
        return self._stream(requests, n, sampling, more or nothing_more)

    def _stream(self, requests: Iterable[Request], n: int, sampling: Sampling, more: More) -> Iterator[Finished]:
        chosen, ids = isinstance(sampling, ChoiceSampling), list[int]()
        if chosen and self.processor:
            ids = ChoiceRule(self.processor.tokenizer, sampling.cue, sampling.choices).ids

        def asked(job: tuple[Request, int]) -> Finished:
            request, n = job
            distinct = n if sampling.temperature else 1  # greedy samples are one another's copies; servers refuse them
            try:
                if chosen:
                    found = [self._chain(request, i, sampling, ids) for i in range(distinct)]
                else:
                    found = self._ask(request, distinct, sampling)
            except RuntimeError as error:
                return failed(request, n, error)
            return request, found * (n // distinct)

        def going_on(done: Finished) -> Iterator[tuple[Request, int]]:
            return ((request, 1) for request in follows(*done, more))

        jobs = ((request, n) for request in requests)
        for request, completions in at_once(self.endpoint.max_concurrency, asked, jobs, going_on):
            self.n_generated_tokens += sum(c.n_tokens for c in completions)
            yield request, completions

    def _ask(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        """The n completions of a request. RuntimeError if it failed."""
        body, read = partial(self._body, request, n, sampling), partial(protocol.completions, n=n)
        completions = [self._whole(request, c) for c in self._sent(request.seed_key, body, read)]
        return [replace(c, text=cut_at(c.text, sampling.stop)) for c in completions]

    def _whole(self, request: Request, completion: Completion) -> Completion:
        """Without the separator that the prefix ended with, where the server's template had trimmed it."""
        if not request.prefix or request.opening:
            return completion
        return replace(completion, text=completion.text.removeprefix(STEP_SEPARATOR))

    def _chain(self, request: Request, sample: int, sampling: ChoiceSampling, ids: list[int]) -> Completion:
        """A text with choices, one HTTP request per piece. RuntimeError if one of them failed."""
        chain, done = Chain(request, sample, sampling, self._before(request), ids or range(len(sampling.choices))), None
        while done is None:
            asked, how = chain.piece(exact=bool(self.processor and self.counting))
            asked = replace(asked, opening=request.opening + chain.text)
            done = self._choice(chain, asked, ids) if chain.due else self._free(chain, asked, how)
        return done

    def _choice(self, chain: Chain, asked: Request, ids: list[int]) -> Completion | None:
        told = TOLD | ({"logprob_token_ids": ids, "return_tokens_as_token_ids": True} if ids else {})
        body = partial(self._body, asked, 1, Sampling(temperature=0.0, max_new_tokens=1), told)
        read = partial(protocol.likely, choices=chain.sampling.choices, ids=ids)
        words, logprobs = zip(*self._sent(asked.key, body, read), strict=True)
        chosen = chain.choose(logprobs)
        word = self.processor.tokenizer.decode([ids[chosen]]) if ids else words[chosen]
        return chain.wrote(chain.text + word, chain.n_tokens + 1)

    def _free(self, chain: Chain, asked: Request, how: Sampling) -> Completion | None:
        found, met, tokens = self._sent(asked.key, partial(self._body, asked, 1, how), protocol.piece)
        if found.error:
            return found
        if self.processor and tokens:  # the text as the server gives it ends where the stop string does
            found, met = replace(found, text=text_of(self.processor.tokenizer, tokens)), met and ""
        text, reason = chain.text + self._whole(asked, found).text + (met or ""), found.finish_reason
        # a piece without a count is a token at least, so that the text has an end
        return chain.wrote(text, chain.n_tokens + max(1, found.n_tokens), reason if met is None else "")

    def _sent(self, key: str, body: Callable[[], dict[str, Any]], read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer to the fields of `body`, both counted. RuntimeError saying what failed."""
        raw, n_retries, error = self._posted(body)
        try:
            found = None if error else read(raw)
        except ValueError as malformed:
            error = str(malformed)
        n_tokens = None if error else protocol.n_completion_tokens(raw)
        reply = Reply(key=key, asked=key, text="" if error else "-", n_completion_tokens=n_tokens, error=error)
        self.endpoint.count(reply, n_retries)
        if error:
            raise RuntimeError(error)
        return found

    def _posted(self, body: Callable[[], dict[str, Any]]) -> tuple[bytes, int, str]:
        """As `Endpoint.post`, once the server is there. ConnectionError if it stays away.

        A request that is lost while others are answered fails alone: the server is there, and does not bear it.
        """
        began, n_before = float("inf"), 0
        while True:
            try:
                raw, n_retries, error = self.endpoint.post(body)
                self._heard, self._away_since = True, float("inf")
                return raw, n_before + n_retries, error
            except ConnectionError as error:
                now = time.monotonic()
                began, self._away_since = min(began, now), min(self._away_since, now)
                if self._heard and now - min(began, self._away_since) < self.patience_s:
                    time.sleep(PAUSE_S)
                elif self.endpoint.answers():
                    return b"", 0, str(error)
                else:
                    raise
            n_before += 1 + self.endpoint.max_retries

    def _before(self, request: Request) -> str:
        """The text that the assistant turn begins with."""
        return neutralise(prefix_text(list(request.prefix)) + request.opening, self.processor)

    def _body(
        self, request: Request, n: int, sampling: Sampling, more: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """The fields of the chat. ValueError or OSError if the image cannot be used, or nothing can be continued."""
        problem = request.problem
        url = {"url": image_url(problem, self.endpoint.max_image_side)}
        text = neutralise(question_text(problem) + request.instruction, self.processor)
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        extra = self.counting | dict(more)
        if before := self._before(request):
            if not self.continuing:
                raise ValueError("this server cannot go on inside the assistant turn (continuing is {})")
            messages.append({"role": "assistant", "content": before})
            extra |= self.continuing
        return self.endpoint.fields(messages, sampling, seed_of(sampling.seed, request.seed_key), n=n, extra=extra)
