"""Guards around a generator and a checker: whatever goes wrong there costs the requests that it happens to, alone."""

from __future__ import annotations

from collections.abc import Generator as Coroutine
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from .answers import Verdict
from .generation import Completion, Generator, Request, Sampling
from .rollouts import judge
from .schema import Problem

IN_A_ROW = 32  # requests that raise, one after another, before the generator itself is held to be broken
REASON_CHARS = 300
CHECKER = ("the math-verify worker", "the checker failed")  # how the reasons of a checker that is out of order begin
Finished = tuple[Request, list[Completion]]
Lost = tuple[list[Request], Exception | None]


class _Source:
    """An iterator that knows whether it has ended, and whether an error is its own."""

    def __init__(self, items: Iterable[Request]) -> None:
        self.items, self.ended, self.error, self.n_read = iter(items), False, None, 0

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> Request:
        try:
            request = next(self.items)
        except StopIteration:
            self.ended = True
            raise
        except Exception as error:
            self.error = error
            raise
        self.n_read += 1
        return request


class Guarded:
    """A generator whose failures cost the requests that fail, and no others; the keys of requests must be unique.

    Where an exception ends its stream, the requests in flight are asked again by halves, until it is laid to those that
    raise. What is no completion (another number than asked for, a text that is not Unicode, a negative count) and what
    never comes back is an error, too; what nobody asked for is dropped. RuntimeError after IN_A_ROW requests in a row
    have raised: then the generator is broken, and they are not told as failed, so that another run asks for them. So it
    is at once with a ConnectionError, which is raised as it is: a generator raises it once its server is gone for good.
    """

    def __init__(self, generator: Generator) -> None:
        self.inner, self.name, self.fingerprint = generator, generator.name, generator.fingerprint
        self.n_in_a_row = 0
        self.held: list[Finished] = []  # requests that raised, until another one shows that the generator is alive

    @property
    def n_generated_tokens(self) -> int:
        """Tokens of the generator itself, since it was made."""
        return self.inner.n_generated_tokens

    def sample(self, requests: Iterable[Request], n: int, sampling: Sampling) -> Iterator[Finished]:
        """Each request with its n completions, errors where it failed."""
        source, n_read = _Source(requests), -1
        while not source.ended:
            if source.n_read == n_read:
                raise RuntimeError(f"generator {self.name!r} stops without reading its requests: it is broken")
            n_read = source.n_read
            yield from self._settle(source, n, sampling)
        yield from self._released()

    def _released(self) -> Iterator[Finished]:
        while self.held:
            yield self.held.pop()

    def _settle(self, source: _Source, n: int, sampling: Sampling) -> Iterator[Finished]:
        """Answers to all that is read from the source."""
        lost, error = yield from self._attempt(source, n, sampling)
        if error is None:
            for request in lost:
                yield request, _failed(n, "the generator gave no answer")
        elif len(lost) == 1:
            self.held.append((lost[0], _failed(n, _text(error))))
            self.n_in_a_row += 1
            if self.n_in_a_row >= IN_A_ROW:
                self.held.clear()
                raise RuntimeError(
                    f"generator {self.name!r} failed for {IN_A_ROW} requests in a row, last with {_text(error)}: "
                    "mend it and run this again, what was finished is kept"
                ) from error
        elif not lost:
            raise error  # no request's fault: a wrong n, a model that does not load
        else:
            for half in (lost[: len(lost) // 2], lost[len(lost) // 2 :]):
                yield from self._settle(_Source(half), n, sampling)

    def _attempt(self, source: _Source, n: int, sampling: Sampling) -> Coroutine[Finished, None, Lost]:
        """Answers; returns the requests that were read and got none, and the exception that ended the stream."""
        flying: dict[str, Request] = {}

        def feed() -> Iterator[Request]:
            for request in source:
                flying[request.seed_key] = request
                yield request

        try:
            for request, completions in self.inner.sample(feed(), n, sampling):
                if flying.pop(request.seed_key, None) is not None:
                    self.n_in_a_row = 0
                    yield from self._released()
                    yield request, _checked(completions, n)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is laid to the requests that cause it
            if source.error is not None or isinstance(error, ConnectionError):
                raise
            return list(flying.values()), error
        return list(flying.values()), None


def _text(error: object) -> str:
    """What went wrong, as one line that any file can hold."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    text = "".join(c if c.isprintable() else " " for c in text[: 10 * REASON_CHARS].encode("utf-8", "replace").decode())
    return " ".join(text.split())[:REASON_CHARS]


def _failed(n: int, reason: str) -> list[Completion]:
    return [Completion("", 0, "error", reason)] * n


def _checked(completions: Any, n: int) -> list[Completion]:
    if not isinstance(completions, list | tuple) or len(completions) != n:
        what = f"{len(completions)} completions" if isinstance(completions, list | tuple) else repr(completions)[:80]
        return _failed(n, _text(f"garbage from the generator: {what} for {n}"))
    return [_cleaned(c) for c in completions]


def _cleaned(completion: Any) -> Completion:
    if wrong := _wrong(completion):
        return _failed(1, f"garbage from the generator: {wrong}")[0]
    return replace(completion, error=_text(completion.error)) if completion.error else completion


def _wrong(completion: Any) -> str:
    """Why this is no completion; "" if it is one."""
    if not isinstance(completion, Completion) or not isinstance(completion.text, str):
        return "no completion, or one without a text"
    if type(completion.n_tokens) is not int or completion.n_tokens < 0:
        return f"n_tokens {completion.n_tokens!r}"
    if completion.finish_reason not in ("stop", "length", "error"):
        return f"finish_reason {completion.finish_reason!r}"
    if not completion.text.isascii():
        try:
            completion.text.encode()
        except UnicodeEncodeError:
            return "a text that is not Unicode"
    return ""


def is_failure(reason: str, finish_reason: str) -> bool:
    """Whether a text is unknown because a request or the checker failed, so that asking again may tell."""
    return finish_reason == "error" or reason.startswith(CHECKER)


def judged(problem: Problem, prefix: Sequence[str], completion: Completion) -> Verdict:
    """As `rollouts.judge`; what a checker raises on a hostile text is a reason for unknown, too."""
    try:
        return judge(problem, prefix, completion)
    except Exception as error:  # noqa: BLE001 - the text is a model's, and costs itself alone
        return Verdict("unknown", None, f"the checker failed: {_text(error)}")
