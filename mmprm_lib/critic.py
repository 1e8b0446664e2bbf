"""The generative PRM as a judge: what it writes of many solutions side by side, and how sure it was of each verdict.

Source: GM-PRM (arXiv:2508.04088): the score of a step is the probability of "Correct". How the critique is decoded and
how the probability is normalised is not published. Ours, for one step after the other: the step is put there, the
words about it are free, the step is put there once more, the verdict is one forced token (GenPRM, ThinkPRM), p_correct
= p("Correct") / (p("Correct") + p("Incorrect")), and the correction follows where the verdict is Incorrect. All
solutions go side by side, and none of their texts is computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from . import critique as critiques
from .critic_training import train, training_texts
from .critique import (
    BLOCK_SEPARATOR,
    CORRECTION_CUE,
    CUES,
    FORMATS,
    INSTRUCTION,
    STEP_CUE,
    VERDICT_CUE,
    VERDICTS,
    Format,
)
from .generation import ChoiceSampling, Completion, Generator, Request
from .labeling import _named, _resumed
from .schema import Critique, Problem, Solution, fingerprint

__all__ = ["Critic", "Options", "critiques_to", "step_scores", "train", "training_texts", "vote"]

FORMAT = 3  # of the critiques: a change of what they hold changes the keys of their files
NOT_WRITTEN = "-"  # stands in a field that was cut before it began
COUNTS = ("n_critiques", "n_reused", "n_verdicts", "n_low_coverage", "n_forced", "n_unreadable", "n_tokens")
LOW_COVERAGE = 0.5  # both verdicts together: under it, the model wanted to write something else


@dataclass(frozen=True)
class Options:
    """How solutions are judged.

    `n_votes` critiques are drawn per solution at `temperature` and `top_p` (1 at temperature 0) and put together by
    `vote`. A step of which `step_tokens` were written without a verdict gets its verdict forced there; once a critique
    has `max_new_tokens`, its verdicts are forced without any words. `judge_all`: no verdict ends the critique;
    "Correct" is written after every step, so that every step is judged as if those before it were right, and nothing
    is corrected.
    """

    n_votes: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    step_tokens: int = 160
    max_new_tokens: int = 1024
    judge_all: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_votes < 1 or (self.n_votes > 1 and not self.temperature):
            raise ValueError(f"n_votes is {self.n_votes}: give 1, or more and a temperature over {self.temperature}")
        if not 0 < self.step_tokens <= self.max_new_tokens:
            raise ValueError(f"step_tokens is {self.step_tokens}: wanted 1 to max_new_tokens, {self.max_new_tokens}")

    @property
    def sampling(self) -> ChoiceSampling:
        """How the tokens of a critique are drawn."""
        return ChoiceSampling(
            self.temperature, self.top_p, max_new_tokens=self.step_tokens, seed=self.seed, cue=VERDICT_CUE,
            choices=VERDICTS, take=0 if self.judge_all else -1, stop=(BLOCK_SEPARATOR, f"\n{STEP_CUE}"),
        )  # fmt: skip


@dataclass
class _Chain:
    """One critique on its way: its text so far, and what the model thought of each verdict.

    begun: where in the text the words about the present step begin; correcting: the correction is being written.
    """

    text: str
    begun: int
    probs: list[tuple[float, ...]] = field(default_factory=list)
    error: str = ""
    cut: bool = False
    correcting: bool = False
    n_tokens: int = 0
    n_asked: int = 1


@dataclass
class _Work:
    """Solutions of one problem and the same steps, whose critique is on its way."""

    key: str
    problem: Problem
    steps: list[str]
    names: list[str]
    chains: list[_Chain] = field(default_factory=list)
    n_open: int = 0


class Critic:
    """A generative PRM, drawn by any generator that knows `more` and choices: solutions in, critiques out.

    Solutions of one problem with the same steps are judged once, within a call and from call to call. `counts` adds up
    n_critiques (drawn), n_reused (solutions that got the critique of another), n_verdicts, n_low_coverage (verdicts),
    n_forced (verdicts at a cap), n_unreadable (critiques) and n_tokens (generated).
    """

    def __init__(self, generator: Generator, form: Format | str = "critique") -> None:
        self.form = FORMATS[form] if isinstance(form, str) else form
        self.generator = generator
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self._known: dict[str, Critique] = {}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights, the processor and the form."""
        begin = [INSTRUCTION, critiques.opening(1, self.form, "a")]
        return fingerprint([FORMAT, self.generator.fingerprint, asdict(self.form), begin])

    def critique(
        self, problems: Iterable[Problem], solutions: Iterable[Solution], **options: Any
    ) -> Iterator[Critique]:
        """The critique of each solution, as they finish; `options` are those of `Options`.

        A critique has p_correct at every judged step: those up to the first error, which is the last. One that cannot
        be read has no steps, and `parse` says why. Neither batch nor order changes a critique. KeyError if a problem
        is missing.
        """
        chosen, by_id = Options(**options), {p.problem_id: p for p in problems}
        works: dict[str, _Work] = {}
        ready: list[Critique] = []

        def more(request: Request, sample: int, completion: Completion) -> Request | None:
            key, _, chain = request.key.partition("/")
            work, number = works[key], int(chain.partition("/")[0]) if chain else sample
            follow = self._advance(work, number, completion, chosen)
            if not work.n_open:
                ready.extend(self._finish(works.pop(key), chosen))
            return follow

        requests = self._requests(by_id, solutions, chosen, works, ready)
        for request, completions in self.generator.sample(requests, chosen.n_votes, chosen.sampling, more):
            for i, completion in enumerate(completions):
                if completion.error:  # it could not be asked
                    more(request, i, completion)
            yield from ready
            ready.clear()
        yield from ready

    def _requests(
        self, problems: dict[str, Problem], solutions: Iterable[Solution], options: Options, works: dict[str, _Work],
        ready: list[Critique],
    ) -> Iterator[Request]:  # fmt: skip
        """What is to be asked; solutions whose critique is known or on its way wait for that one."""
        for solution in solutions:
            if solution.problem_id not in problems:
                name = solution.problem_id
                raise KeyError(f"solution {solution.solution_id!r} names problem {name!r}, which is not given")
            problem, steps = problems[solution.problem_id], list(solution.steps)
            key = fingerprint([_named([problem]), steps, asdict(options)])
            if not steps:
                ready.append(_unreadable(solution.solution_id, "the solution has no steps"))
            elif key in self._known or key in works:
                self.counts["n_reused"] += 1
                if key in works:
                    works[key].names.append(solution.solution_id)
                else:
                    ready.append(_of(self._known[key], solution.solution_id))
            else:
                self.counts["n_critiques"] += options.n_votes
                begin = critiques.opening(1, self.form, steps[0])
                begun = len(critiques.header(1, steps[0]))
                chains = [_Chain(begin, begun) for _ in range(options.n_votes)]
                works[key] = _Work(key, problem, steps, [solution.solution_id], chains, options.n_votes)
                yield Request(problem, (), key, INSTRUCTION, begin)

    def _advance(self, work: _Work, number: int, completion: Completion, options: Options) -> Request | None:
        """The request that goes on with a chain: the verdict that is due, the next step, the correction; or None."""
        chain, n_read = work.chains[number], len(work.chains[number].probs)
        self.counts["n_tokens"] += completion.n_tokens
        chain.n_tokens += completion.n_tokens
        due = not chain.correcting and not completion.choice_probs
        hopeless = due and chain.text.endswith(VERDICT_CUE)
        chain.text += completion.text
        chain.probs += completion.choice_probs
        chain.error, chain.cut = completion.error, completion.finish_reason == "length"
        if chain.error or hopeless or chain.correcting or len(completion.choice_probs) > 1:
            more = ""
        elif due:
            said = chain.text[chain.begun :]
            awaited = completion.finish_reason == "stop" and f"\n{CUES[self.form.fields[-1]]}" in said  # the step
            self.counts["n_forced"] += not awaited
            more = _up_to_the_verdict(chain.text, chain.begun, self.form, work.steps[n_read])
        else:
            more = self._next(work, chain, n_read + 1, options)
        if not more:
            work.n_open -= 1
            return None
        chain.text, chain.n_asked = more, chain.n_asked + 1
        # named by how often was asked, so that the batch does not matter
        return Request(work.problem, (), f"{work.key}/{number}/{chain.n_asked}", INSTRUCTION, more)

    def _next(self, work: _Work, chain: _Chain, k: int, options: Options) -> str:
        """The text of a chain up to where it goes on after the verdict on step k; "" if nothing is left to say."""
        said = chain.text.rpartition(VERDICT_CUE)[2].rstrip()
        if said == VERDICTS[1]:
            chain.correcting = True
            return chain.text.rstrip() + BLOCK_SEPARATOR + CORRECTION_CUE
        if said != VERDICTS[0] or k == len(work.steps):
            chain.cut = False
            return ""
        text, step = chain.text.rstrip() + BLOCK_SEPARATOR, work.steps[k]
        chain.begun = len(text + critiques.header(k + 1, step))
        text += critiques.opening(k + 1, self.form, step)
        if chain.n_tokens < options.max_new_tokens:
            return text
        self.counts["n_forced"] += 1
        return _up_to_the_verdict(text, chain.begun, self.form, step)

    def _finish(self, work: _Work, options: Options) -> list[Critique]:
        """The critique, once for each of the solutions."""
        found = [_read(chain, len(work.steps), self.form, options.judge_all) for chain in work.chains]
        probs = [p for chain in work.chains for p in chain.probs]
        self.counts["n_verdicts"] += len(probs)
        self.counts["n_low_coverage"] += sum(sum(p) < LOW_COVERAGE for p in probs)
        self.counts["n_unreadable"] += sum(c.parse != "ok" for c in found)
        merged = vote(found)
        if not any(chain.error for chain in work.chains):  # what failed may go well another time
            self._known[work.key] = merged
        return [_of(merged, name) for name in work.names]


def _of(critique: Critique, solution_id: str) -> Critique:
    return critique.model_copy(update={"solution_id": solution_id}, deep=True)


def _unreadable(solution_id: str, why: str) -> Critique:
    return Critique(solution_id=solution_id, steps=[], first_error=None, corrected_step=None, parse=f"failed: {why}")


def _up_to_the_verdict(text: str, begun: int, form: Format, step: str) -> str:
    """A text that awaits its step once more, or was cut, up to and with the next verdict's cue.

    Fields that it did not reach hold NOT_WRITTEN. begun: where the words about the present step begin.
    """
    head, block = text[:begun], text[begun:].removesuffix(f"\n{VERDICT_CUE}").rstrip("\n")
    lines = [block]
    for name in form.fields:
        if f"\n{CUES[name]}" not in block:
            lines.append(f"{CUES[name]} {NOT_WRITTEN}")
        elif block.rstrip().endswith(f"\n{CUES[name]}"):
            lines[0] = f"{block.rstrip()} {NOT_WRITTEN}"
    return head + "\n".join([*lines, critiques.closing(form, step)])


def _read(chain: _Chain, n_steps: int, form: Format, judge_all: bool) -> Critique:
    """The critique of a chain with its probabilities; one that cannot be read says why."""
    found = critiques.parse("critique", chain.text, n_steps, form)
    totals = [sum(p) for p in chain.probs]
    if chain.error or found.parse != "ok":
        return _unreadable("critique", chain.error) if chain.error else found
    if chain.cut:
        return _unreadable("critique", "the text was cut before its end")
    if len(totals) != len(found.steps) or 0.0 in totals:
        n = sum(total > 0 for total in totals)
        return _unreadable("critique", f"{n} verdicts have a probability, {len(found.steps)} steps are judged")
    p_correct = [p[0] / total for p, total in zip(chain.probs, totals, strict=True)]
    for step, p in zip(found.steps, p_correct, strict=True):
        step.p_correct = p
        if judge_all:  # "Correct" was written, whatever was thought
            step.verdict = "correct" if p >= 0.5 else "incorrect"
    if judge_all:
        found.first_error = next((k for k, p in enumerate(p_correct, start=1) if p < 0.5), 0)
    return found


def vote(found: Sequence[Critique]) -> Critique:
    """One critique out of several of the same solution; those that cannot be read have no vote.

    The first error is the most frequent one (the earliest of equals, "none" before all); texts, verdicts and correction
    are those of the surest critique that found it: with the lowest p_correct there, or the highest mean where none was
    found. p_correct is the mean over the critiques that judged the step. Unreadable if all are.
    """
    readable = [c for c in found if c.parse == "ok"]
    if len(readable) <= 1:
        return (readable or found)[0]
    tally = Counter(c.first_error for c in readable)
    place = min(tally, key=lambda k: (-tally[k], k))
    agreeing = [c for c in readable if c.first_error == place]

    def certainty(critique: Critique) -> float:
        p_correct = [step.p_correct for step in critique.steps]
        return 1 - p_correct[place - 1] if place else fmean(p_correct)

    surest = max(agreeing, key=certainty)
    steps = [step.model_copy() for step in surest.steps]
    for i, step in enumerate(steps):
        step.p_correct = fmean(c.steps[i].p_correct for c in readable if i < len(c.steps))
    return surest.model_copy(update={"steps": steps})


def critiques_to(
    path: str | Path, critic: Critic, problems: Collection[Problem], solutions: Collection[Solution], **options: Any
) -> list[Critique]:
    """Critiques of all solutions, in their order, also in the file at `path`; a killed run goes on where it stopped.

    `options` are those of `Options`. ValueError if the file was made by another critic, of other solutions or options.
    """
    wanted = {s.problem_id for s in solutions}
    named = _named(p for p in problems if p.problem_id in wanted)
    marks = [[s.solution_id, s.problem_id, s.steps] for s in solutions]
    key = fingerprint(["critiques", critic.fingerprint, asdict(Options(**options)), marks, named])

    def make(done: set[str]) -> Iterator[Critique]:
        return critic.critique(problems, (s for s in solutions if s.solution_id not in done), **options)

    return _resumed(Path(path), Critique, key, [s.solution_id for s in solutions], make)


def step_scores(critique: Critique, n_steps: int, pad: float = 0.0) -> list[float]:
    """One score in [0, 1] per step: p_correct of the judged steps, `pad` for those after the first error.

    Empty for a critique that could not be read: it has no scores, and must be left out or counted, never averaged.
    The paper's convention, the mean over the judged steps alone, is `critique.score`.
    """
    if critique.parse != "ok":
        return []
    return [step.p_correct for step in critique.steps] + [pad] * (n_steps - len(critique.steps))
