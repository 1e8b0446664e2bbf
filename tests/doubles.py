"""Toy doubles: problems without images and generators without models, whose every answer is known beforehand."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from mmprm_lib.decoding import uniforms
from mmprm_lib.generation import Completion, Request, Sampling
from mmprm_lib.schema import Critique, CritiqueStep, Problem, Solution

Script = Callable[[Request, int, Sampling], Completion]


def problem(name: str = "p0", answer: str = "12", **fields) -> Problem:
    """A number problem whose image is never opened."""
    values = dict(question="How many?", image="none.png", image_sha256="0" * 64, answer_type="number")
    return Problem(problem_id=name, answer=answer, **(values | dict(source="toy", split="test") | fields))


def solution(name: str = "p0/s0", steps: tuple[str, ...] = ("one", "two", "Answer: 12"), **fields) -> Solution:
    """A correct three-step solution of `problem()`."""
    values = dict(problem_id=name.split("/")[0], answer="12", verdict="correct", policy="toy", seed=0, n_tokens=9)
    return Solution(solution_id=name, steps=list(steps), **(values | dict(finish_reason="stop") | fields))


def say(text: str, finish_reason: str = "stop", error: str = "") -> Completion:
    """A completion of one token per word, and one for the end."""
    return Completion(text, len(text.split()) + 1, finish_reason, error)


class ToyGenerator:
    """Answers sample i of a request with `script(request, i, sampling)`; reads `window` requests, gives them reversed.

    `kill_after`: the process kills itself, as by `kill -9`, before it gives back request number so and so.
    """

    name = "toy"

    def __init__(self, script: Script, window: int = 3, kill_after: int | None = None) -> None:
        self.script, self.window, self.kill_after = script, window, kill_after
        self.fingerprint = "toy-weights"
        self.n_generated_tokens = self.n_read = self.n_given = 0

    def sample(
        self, requests: Iterable[Request], n: int, sampling: Sampling
    ) -> Iterator[tuple[Request, list[Completion]]]:
        """Every request with its completions; counts what it read and gave."""
        requests = iter(requests)
        while window := list(islice(requests, self.window)):
            self.n_read += len(window)
            for request in reversed(window):
                if self.n_given == self.kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                completions = [self.script(request, i, sampling) for i in range(n)]
                self.n_generated_tokens += sum(c.n_tokens for c in completions)
                self.n_given += 1
                yield request, completions


def coin_policy(request: Request, sample: int, sampling: Sampling) -> Completion:
    """Two steps and an answer, right or wrong by the request's own random numbers, as a seeded policy is."""
    right = uniforms(sampling.seed, request.seed_key, sample, 1)[0] < 0.5
    answer = f"Answer: {request.problem.answer if right else 'none of 99'}"
    return say(answer if request.prefix else f"one\n\ntwo\n\n{answer}")


class ToyCritic:
    """A critic of solutions that read bars: a step "Bar A is 4" is wrong if `values` says that A is 7.

    The first wrong step gets p_correct 0.2 and is corrected, unless its text is in `mute`; the steps before it get 0.9.
    A solution in `unreadable`, or without steps, gets a critique that could not be read.
    """

    name = fingerprint = "toy-critic"

    def __init__(self, values: dict[str, int], mute: tuple[str, ...] = (), unreadable: tuple[str, ...] = ()) -> None:
        self.values, self.mute, self.unreadable = values, mute, unreadable

    def critique(
        self, problems: Iterable[Problem], solutions: Iterable[Solution], **options: object
    ) -> Iterator[Critique]:
        """The critiques, the last solution's first."""
        yield from (self._one(s) for s in reversed(list(solutions)))

    def _one(self, solution: Solution) -> Critique:
        name, judged = solution.solution_id, []
        if name in self.unreadable or not solution.steps:
            return Critique(solution_id=name, steps=[], first_error=None, corrected_step=None, parse="failed: no step")
        for step in solution.steps:
            bar = step[4] if step.startswith("Bar ") else ""
            wrong = bar in self.values and step != f"Bar {bar} is {self.values[bar]}"
            fields = dict(intent="Read", image="-", logic="-", verdict="incorrect" if wrong else "correct")
            judged.append(CritiqueStep(**fields, p_correct=0.2 if wrong else 0.9))
            if wrong:
                right = None if step in self.mute else f"Bar {bar} is {self.values[bar]}"
                found = dict(steps=judged, first_error=len(judged), corrected_step=right, parse="ok")
                return Critique(solution_id=name, **found)
        return Critique(solution_id=name, steps=judged, first_error=0, corrected_step=None, parse="ok")
