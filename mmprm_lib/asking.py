"""What is asked of a generator, and what comes back: the interface between labeling, selection and whatever samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .choices import Probs
from .decoding import Sampling
from .schema import Problem, fingerprint


@dataclass(frozen=True)
class Request:
    """A problem and the steps to go on from. `key` names the request: it joins the answer to the question and seeds it.

    Two requests of one key and one seed draw the same random numbers. Without a key, its content makes one.
    `instruction` follows the question in the user turn (what a critic is asked); `opening` is text that the assistant
    turn goes on from, after the steps of `prefix`.
    """

    problem: Problem
    prefix: tuple[str, ...] = ()
    key: str = ""
    instruction: str = ""
    opening: str = ""

    @property
    def seed_key(self) -> str:
        """What the random numbers derive from, next to `Sampling.seed` and the number of the sample."""
        more = [self.instruction, self.opening] if self.instruction or self.opening else []
        return self.key or fingerprint([self.problem.problem_id, list(self.prefix), *more])


@dataclass(frozen=True)
class Completion:
    """A continuation. `text` ends before the stop string; `n_tokens` counts the end token; `error` says what failed.

    `choice_probs`: of `ChoiceSampling`, the probability of each choice among all tokens, one tuple per cue in the text.
    """

    text: str
    n_tokens: int
    finish_reason: Literal["stop", "length", "error"]
    error: str = ""
    choice_probs: tuple[Probs, ...] = ()


class Generator(Protocol):
    """What draws samples. `fingerprint` names all that shapes a text beside the request and the sampling."""

    name: str
    n_generated_tokens: int

    @property
    def fingerprint(self) -> str: ...

    def sample(
        self, requests: Iterable[Request], n: int, sampling: Sampling
    ) -> Iterator[tuple[Request, list[Completion]]]:
        """Each request with its n completions, as they finish, in any order.

        A request that fails comes back with n errors and costs itself alone.
        """
        ...

    def close(self) -> None:
        """Nothing; frees the engine's memory. A generator that is closed draws no more."""
        ...


def check_number(n: int) -> None:
    """Nothing; ValueError for no samples."""
    if n < 1:
        raise ValueError(f"n is {n}: draw at least 1 sample per request")


Finished = tuple[Request, list[Completion]]
# (request, number of the sample, its completion) -> the request of one sample that goes on from there, or None
More = Callable[[Request, int, Completion], Request | None]


def nothing_more(request: Request, sample: int, completion: Completion) -> None:
    """None: no text goes on from its completion."""


def follows(request: Request, completions: Sequence[Completion], more: More) -> Iterator[Request]:
    """What goes on from completions, as `more` says; of what failed it is not asked."""
    for sample, completion in enumerate(completions):
        if not completion.error and (follow := more(request, sample, completion)) is not None:
            yield follow


def failed(request: Request, n: int, error: Exception) -> Finished:
    """A request that could not be prepared, with its n errors."""
    return request, [Completion("", 0, "error", f"{type(error).__name__}: {error}")] * n
