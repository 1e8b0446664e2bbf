"""OmegaPRM as MM-PRM codes it: one tree of rollouts per problem, grown where a promising prefix went wrong.

From a prefix, rollouts are drawn; a wrong one, chosen by how promising its prefix is, is searched by halves for its
first error, and every prefix that the search looks at becomes a node with rollouts of its own. MM-PRM (2505.13427,
`data_pipeline/omegaprm.py`) grows one tree at a time; here a tree is a `rollouts.Job`, and hundreds grow together.

Differences from MM-PRM that have no switch: a prefix is continued inside the assistant turn, never sent as a user
message; a rollout is split by `steps.split`, which also cuts text without tags; the answer is judged by rules
(`rollouts.judge`) unless another judge is given; ties are broken by a stated rule. The other faults are mended, and
each can be put back: `ORIGINAL` puts back all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from collections.abc import Generator as Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .answers import Verdict
from .generation import Completion, Generator, Request, Sampling
from .guards import Guarded, judged
from .labeling_files import named, resumed
from .rollouts import AT_ONCE, Answers, Ask, Job, judge, mc_score, run_jobs
from .schema import Problem, Solution, StepLabels, fingerprint, write_records
from .steps import split
from .trees import Node, Row, Tree, from_mm_prm, labels_of, pairs_of, paths, solutions_of, to_mm_prm

__all__ = [
    "OPTIONS", "ORIGINAL", "SAMPLING", "Node", "Options", "Row", "Tree", "from_mm_prm", "grow", "labels_of",
    "labels_to", "pairs_of", "paths", "q_value", "search", "solutions_of", "to_mm_prm", "trees_to", "u_value",
]  # fmt: skip

FORMAT = 1  # of the trees written here: a change of what they mean changes the key of every file
SAMPLING = Sampling(temperature=1.0, top_k=50, top_p=0.9, max_new_tokens=4096)  # MM-PRM's; without repetition_penalty
Steps = tuple[str, ...]
Judge = Callable[[Problem, Iterable[str], Completion], Verdict]
Want = tuple[int | None, Steps]  # a node that a search asks for: the parent's place, the span
Search = Coroutine[Want, int, None]  # is sent the place of the node


@dataclass(frozen=True)
class Options:
    """How trees are grown. MM-PRM's numbers are the defaults.

    n_rollouts: continuations per estimated prefix. alpha, beta, length_scale (words), c_puct: see `q_value`, `u_value`;
    where solutions are as short as the embedded world's (some 30 words), a length_scale of 2000 makes the length count
    for nothing: give 50 there. max_searches, max_rollouts: the budget of a problem. threshold: a prefix with mc_value
    <= threshold is wrong.
    parallel: searches of one tree that go on side by side; 1 is the original. More shortens the chain of waits, and
    chooses with less knowledge: a choice does not see what the searches under way will find.

    The faults of the original, False where mended:
    unknown_is_wrong: a rollout without a verdict counts as wrong; else it is counted as unknown and left out.
    empty_in_pool: a rollout without a step counts as wrong and is searched, first of all and for nothing.
    rejudge_last: the last step of a wrong rollout is judged again; else the rollout's own verdict stands.
    overshoot: the budget of rollouts is looked at between searches only; else it is never passed, and a search that
    cannot be paid is left where it stands.
    estimate_again: a prefix that two searches reach becomes two nodes, each with rollouts of its own; else it is
    estimated once, and the search goes on from the node that is there.
    """

    n_rollouts: int = 16
    alpha: float = 0.5
    beta: float = 0.9
    length_scale: int = 2000
    c_puct: float = 0.125
    max_searches: int = 200
    max_rollouts: int = 1000
    threshold: float = 0.0
    parallel: int = 1
    unknown_is_wrong: bool = False
    empty_in_pool: bool = False
    rejudge_last: bool = False
    overshoot: bool = False
    estimate_again: bool = False

    def __post_init__(self) -> None:
        if min(self.n_rollouts, self.length_scale, self.parallel) < 1 or min(self.max_searches, self.c_puct) < 0:
            raise ValueError(f"{self}: wanted n_rollouts, length_scale, parallel >= 1, max_searches, c_puct >= 0")
        if not (0 < self.alpha <= 1 and 0 < self.beta <= 1 and 0 <= self.threshold < 1):
            raise ValueError(f"{self}: wanted alpha and beta in (0, 1] and threshold in [0, 1)")
        if self.max_rollouts < self.n_rollouts:
            raise ValueError(f"max_rollouts {self.max_rollouts} does not pay n_rollouts {self.n_rollouts} of the root")


OPTIONS = Options()
ORIGINAL = Options(unknown_is_wrong=True, empty_in_pool=True, rejudge_last=True, overshoot=True, estimate_again=True)


def q_value(mc_value: float, rollout: Iterable[str], options: Options = OPTIONS) -> float:
    """alpha^(1 - mc_value) * beta^(words / length_scale), in (0, 1]: high for a short wrong rollout of a good prefix.

    Words are what white space divides (MM-PRM, `Q`; OmegaPRM, 2406.06592, eq. 2).
    """
    n_words = len("\n".join(rollout).split())
    return options.alpha ** (1 - mc_value) * options.beta ** (n_words / options.length_scale)


def u_value(n_visits: int, n_all_visits: int, options: Options = OPTIONS) -> float:
    """c_puct * sqrt(visits of all nodes) / (1 + visits of this one): high for a prefix seldom chosen (MM-PRM, `U`)."""
    return options.c_puct * math.sqrt(n_all_visits) / (1 + n_visits)


# -- a tree


@dataclass
class _Growth:
    """A tree under way. `pools[s]` holds the wrong rollouts of node s not searched yet, the best one last."""

    problem: Problem
    options: Options
    check: Judge
    nodes: list[Node] = field(default_factory=list)
    prefixes: list[Steps] = field(default_factory=list)
    pools: dict[int, list[tuple[float, int, Steps]]] = field(default_factory=dict)
    known: dict[tuple[Steps, bool], int] = field(default_factory=dict)  # (prefix, estimated) -> node
    n_asked: Counter[str] = field(default_factory=Counter)  # by request key
    n_searches: int = 0
    n_rollouts: int = 0
    n_tokens: int = 0

    def add(self, parent: int | None, span: Steps, counts: tuple[int, int, int], **found: list | bool) -> int:
        """The place of a new node; counts are (rollouts, correct, unknown)."""
        names = ("n_rollouts", "n_correct", "n_unknown")
        values = dict(zip(names, counts, strict=True), mc_value=mc_score(*counts), estimated=False) | found
        self.nodes.append(Node(parent=parent, span=list(span), **values))
        self.prefixes.append(span if parent is None else self.prefixes[parent] + span)
        return len(self.nodes) - 1

    def estimate(self, wants: list[Want]) -> Coroutine[list[Ask], Answers, list[int | None]]:
        """The place of each wanted node, once its rollouts are there; None for what the budget does not pay."""
        n, asks, keys = self.options.n_rollouts, {}, []
        for parent, span in wants:
            prefix = (() if parent is None else self.prefixes[parent]) + span
            key = self._key(prefix)
            if key not in asks:
                if not self.options.overshoot and self.n_rollouts + n > self.options.max_rollouts:
                    keys.append(None)
                    continue
                asks[key] = Ask(Request(self.problem, prefix, key), n)
                self.n_rollouts += n
            keys.append(key)
        answers = yield list(asks.values())
        made: dict[str | None, int | None] = {None: None}
        for key, (parent, span) in zip(keys, wants, strict=True):
            if key not in made:
                made[key] = self._estimated(parent, span, asks[key].request.prefix, answers[key])
        return [made[key] for key in keys]

    def _key(self, prefix: Steps) -> str:
        """The key of a request; a prefix that is estimated again gets a number, and with it rollouts of its own."""
        key = f"{self.problem.problem_id}/{fingerprint(prefix)}"
        if not self.options.estimate_again:
            return key
        self.n_asked[key] += 1
        return key if self.n_asked[key] == 1 else f"{key}/{self.n_asked[key]}"

    def _estimated(self, parent: int | None, span: Steps, prefix: Steps, drawn: list[Completion]) -> int:
        """The place of the node that the rollouts make, its leaves and its part of the pool made, too."""
        right, wrong, counts = self._sorted(prefix, drawn)
        place = self.add(
            parent, span, counts, estimated=True,
            correct_rollouts=[list(r) for r in right], incorrect_rollouts=[list(r) for r in wrong],
        )  # fmt: skip
        self.known[prefix, True] = place
        for rollout in right:
            if rollout:
                self.add(place, rollout, (1, 1, 0))
        mc, options = self.nodes[place].mc_value, self.options
        if mc is not None and mc > options.threshold:
            pool = [(q_value(mc, r, options), -i, r) for i, r in enumerate(wrong) if r or options.empty_in_pool]
            if pool:
                self.pools[place] = sorted(pool)
        return place

    def _sorted(self, prefix: Steps, drawn: list[Completion]) -> tuple[list[Steps], list[Steps], tuple[int, int, int]]:
        """The distinct correct and the distinct wrong rollouts, as drawn, and (rollouts, correct, unknown)."""
        found: dict[str, Counter[Steps]] = {label: Counter() for label in ("correct", "wrong", "unknown")}
        for completion in drawn:
            self.n_tokens += completion.n_tokens
            rollout = tuple(split(completion.text))
            label = self.check(self.problem, prefix, completion).label
            if (label == "unknown" and self.options.unknown_is_wrong) or (not rollout and self.options.empty_in_pool):
                label = "wrong"
            found[label][rollout] += 1
        counts = (len(drawn), found["correct"].total(), found["unknown"].total())
        return list(found["correct"]), list(found["wrong"]), counts

    def may_search(self) -> bool:
        """Whether there is something to search and the budget for it."""
        room = 1 if self.options.overshoot else self.options.n_rollouts
        paid = self.n_rollouts + room <= self.options.max_rollouts
        return bool(self.pools) and paid and self.n_searches < self.options.max_searches

    def select(self) -> tuple[int, Steps]:
        """The node and its wrong rollout of the highest Q + U, taken from the pool; the node is visited once more.

        Ties: the node that was made first; within a node the higher Q, then the rollout that was drawn first. U is the
        same for all rollouts of a node, so the best of each is enough. MM-PRM counts the visit after the search, which
        with one search at a time makes no difference.
        """

        def score(place: int) -> tuple[float, int]:
            visits = self.nodes[place].visit_count
            return self.pools[place][-1][0] + u_value(visits, self.n_searches, self.options), -place

        best = max(self.pools, key=score)
        rollout = self.pools[best].pop()[2]
        if not self.pools[best]:
            del self.pools[best]
        self.nodes[best].visit_count += 1
        self.n_searches += 1
        return best, rollout

    def halve(self, parent: int, rollout: Steps) -> Search:
        """Asks for nodes until the first error of the rollout, which goes on from `parent`, is found.

        A prefix whose rollouts are all unknown says neither left nor right: the search ends there.
        """
        left, right, last = 0, len(rollout) - 1, len(rollout) - 1
        while left <= right:
            middle = (left + right) // 2
            if left == right == last:
                self._end(parent, rollout, left)
                return
            span = rollout[left : middle + 1]
            place = None if self.options.estimate_again else self.known.get((self.prefixes[parent] + span, True))
            if place is None:
                place = yield parent, span
            mc = self.nodes[place].mc_value
            if mc is None:
                return
            if mc <= self.options.threshold:
                right = middle - 1
            else:
                parent, left = place, middle + 1

    def _end(self, parent: int, rollout: Steps, last: int) -> None:
        """Nothing; the last step of a wrong rollout is a node, with the rollout's verdict."""
        prefix = self.prefixes[parent] + rollout[last:]
        if (prefix, False) in self.known and not self.options.estimate_again:
            return
        label = "wrong"
        if self.options.rejudge_last:
            label = self.check(self.problem, prefix[:-1], Completion(rollout[last], 0, "stop")).label
        unknown = label == "unknown" and not self.options.unknown_is_wrong
        self.known[prefix, False] = self.add(parent, rollout[last:], (1, int(label == "correct"), int(unknown)))

    def tree(self) -> Tree:
        """The record."""
        return Tree(
            problem_id=self.problem.problem_id, nodes=self.nodes, n_searches=self.n_searches,
            n_rollouts=self.n_rollouts, n_generated_tokens=self.n_tokens,
        )  # fmt: skip


def _sent(search: Search, place: int | None) -> list[tuple[Search, Want]]:
    """The search with what it wants next; nothing if it has ended. `place` is None at its start."""
    try:
        return [(search, search.send(place))]
    except StopIteration:
        return []


def grow(problem: Problem, options: Options = OPTIONS, check: Judge = judge) -> Job[Tree]:
    """A job whose result is the problem's tree (MM-PRM, `OmegaPRM.run`).

    The root is estimated; then, while the budget lasts and wrong rollouts of good prefixes are left, one is chosen
    (`q_value` + `u_value`), searched by halves for its first error, and counted. Request keys are
    `<problem_id>/<fingerprint of the prefix>`, as exhaustive labeling with shared prefixes has them. `check` gives the
    verdict on a prefix and a continuation.
    """
    growth = _Growth(problem, options, check)
    yield from growth.estimate([(None, ())])
    active: list[tuple[Search, Want]] = []
    while True:
        while len(active) < options.parallel and growth.may_search():
            active += _sent(growth.halve(*growth.select()), None)
        if not active:
            return growth.tree()
        places = yield from growth.estimate([want for _, want in active])
        going = [(search, place) for (search, _), place in zip(active, places, strict=True) if place is not None]
        active = [one for search, place in going for one in _sent(search, place)]


def search(
    problems: Iterable[Problem], generator: Generator, options: Options = OPTIONS, sampling: Sampling = SAMPLING, *,
    at_once: int = AT_ONCE, check: Judge = judge,
) -> Iterator[Tree]:  # fmt: skip
    """The trees of the problems, as they finish; at most `at_once` grow side by side, on one full generator.

    A tree depends on its problem, the options and `sampling.seed` alone. ValueError if two problems share an id.
    """
    return run_jobs((grow(problem, options, check) for problem in problems), generator, sampling, at_once)


def trees_to(
    path: str | Path, problems: Collection[Problem], generator: Generator, options: Options = OPTIONS,
    sampling: Sampling = SAMPLING, *, keep: bool = True,
) -> Sequence[Tree]:  # fmt: skip
    """The trees of all problems, in their order, also in the file at `path`; a killed run goes on where it stopped.

    A tree that was growing at the kill is grown anew and comes out the same. A request that fails, or a checker that
    raises, costs its own rollouts, which are unknown. keep=False: `labeling_files.Records`, which stay in the file.
    """
    key = fingerprint(["trees", FORMAT, generator.fingerprint, sampling, options, named(problems)])

    def make(done: set[str]) -> Iterator[Tree]:
        left = (p for p in problems if p.problem_id not in done)
        return search(left, Guarded(generator), options, sampling, check=judged)

    return resumed(Path(path), Tree, key, [p.problem_id for p in problems], make, keep)


def labels_to(
    folder: str | Path, problems: Collection[Problem], generator: Generator, options: Options = OPTIONS,
    sampling: Sampling = SAMPLING, *, spans: bool = False, **rows: Any,
) -> tuple[Sequence[Tree], list[Solution], list[StepLabels]]:  # fmt: skip
    """The trees of the problems and what `pairs_of` makes of them, also in `folder`: trees, solutions and labels.jsonl.

    A killed run goes on as in `trees_to`; the other two files follow from the trees. What all of it took only the trees
    know: one without rows has no labels to carry it. rows: options of `paths`.
    """
    path = Path(folder)
    trees = trees_to(path / "trees.jsonl", problems, generator, options, sampling, keep=False)
    shape = dict(spans=spans, policy=generator.name, seed=sampling.seed, threshold=options.threshold, **rows)
    pairs = [pair for tree, p in zip(trees, problems, strict=True) for pair in pairs_of(tree, p, **shape)]
    solutions, labels = [solution for solution, _ in pairs], [record for _, record in pairs]
    write_records(path / "solutions.jsonl", solutions)
    write_records(path / "labels.jsonl", labels)
    return trees, solutions, labels
