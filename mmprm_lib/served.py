"""Any OpenAI-compatible server as a back end of sampling: vLLM, SGLang, LMDeploy, a cloud; one HTTP request a question.

The text of a prefix is continued inside the assistant turn, which takes a server that can (vLLM: the fields
`add_generation_prompt` and `continue_final_message`). Retries, back-off and time limits are those of
`endpoint.Endpoint`, whose key comes from the environment and is in no record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from . import protocol
from .asking import Completion, Finished, More, Request, check_plain, failed, nothing_more
from .decoding import Sampling
from .endpoint import Endpoint, Reply, at_once, image_url
from .fingerprints import fingerprint
from .prompts import cut_at
from .protocol import seed_of
from .steps import STEP_SEPARATOR, neutralise, prefix_text, question_text

# How vLLM and SGLang are told to go on with the last message, and vLLM to say which tokens belong to which choice.
CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
COUNTED = {"return_token_ids": True}


class ServedGenerator:
    """Samples from the chat endpoint of a server; a request is one HTTP request with its image once and `n` choices.

    `processor`: that of the served model, whose special tokens are then kept out of what is sent; without it those of
    common models are. `continuing` and `counting`: fields that tell the server to go on with the last message, and to
    say which tokens belong to which choice ({} if it cannot; then a prefix or opening is an error of its request).
    The seed sent depends on the sampling's seed and the request's key. A request that fails comes back with its error
    and costs itself alone. The weights behind a name are the server's affair: the fingerprint covers the name alone.
    """

    def __init__(
        self, endpoint: Endpoint, processor: Any = None, *, name: str = "",
        continuing: Mapping[str, Any] = CONTINUE, counting: Mapping[str, Any] = COUNTED,
    ) -> None:  # fmt: skip
        self.endpoint, self.name = endpoint, name or endpoint.model
        self.continuing, self.counting, self.n_generated_tokens = dict(continuing), dict(counting), 0
        self._words = processor

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
        check_plain(n, sampling)
        return self._stream(requests, n, sampling, more or nothing_more)

    def _stream(self, requests: Iterable[Request], n: int, sampling: Sampling, more: More) -> Iterator[Finished]:
        waiting: deque[Request] = deque()  # those that go on from a completion, n = 1

        def asked(job: tuple[Request, int]) -> Finished:
            return job[0], self._ask(*job, sampling)

        jobs: Iterable[tuple[Request, int]] = ((request, n) for request in requests)
        while True:
            for request, completions in at_once(self.endpoint.max_concurrency, asked, jobs):
                self.n_generated_tokens += sum(c.n_tokens for c in completions)
                yield request, completions
                follows = (more(request, i, c) for i, c in enumerate(completions))
                waiting.extend(follow for follow in follows if follow)
            if not waiting:
                return
            jobs, waiting = [(request, 1) for request in waiting], deque()

    def _ask(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        """The n completions of a request; n errors if it failed."""
        distinct = n if sampling.temperature else 1  # greedy samples are one another's copies, and servers refuse them
        raw, n_retries, error = self.endpoint.post(lambda: self._body(request, distinct, sampling))
        if not error:
            try:
                completions = protocol.completions(raw, distinct)
            except ValueError as malformed:
                error = str(malformed)
        key = request.seed_key
        if error:
            self.endpoint.count(Reply(key=key, asked=key, error=error), n_retries)
            return failed(request, n, RuntimeError(error))[1]
        n_tokens = sum(c.n_tokens for c in completions)
        self.endpoint.count(Reply(key=key, asked=key, text="-", n_completion_tokens=n_tokens), n_retries)
        if request.prefix and not request.opening:  # a template may trim the separator that the prefix ends with
            completions = [replace(c, text=c.text.removeprefix(STEP_SEPARATOR)) for c in completions]
        return [replace(c, text=cut_at(c.text, sampling.stop)) for c in completions] * (n // distinct)

    def _body(self, request: Request, n: int, sampling: Sampling) -> dict[str, Any]:
        """The fields of the chat. ValueError or OSError if the image cannot be used, or nothing can be continued."""
        problem = request.problem
        url = {"url": image_url(problem, self.endpoint.max_image_side)}
        text = neutralise(question_text(problem) + request.instruction, self._words)
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        before, extra = prefix_text(list(request.prefix)) + request.opening, dict(self.counting)
        if before:
            if not self.continuing:
                raise ValueError("this server cannot go on inside the assistant turn (continuing is {})")
            messages.append({"role": "assistant", "content": neutralise(before, self._words)})
            extra |= self.continuing
        return self.endpoint.fields(messages, sampling, seed_of(sampling.seed, request.seed_key), n=n, extra=extra)
