"""Adaptive labels: rollouts are spent where they can still change a label, and what is known is never asked again.

VisualPRM draws 16 rollouts from every step, MM-PRM 16 from every node of its search. Here a problem's solutions are
labelled together, as one `Job`, on one tree of prefixes, and three things save tokens:

- Evidence is shared. A solution's own verdict is a sample of every prefix of it, and a rollout that goes on through
  the next steps of a solution is a sample of those prefixes, too. Given that a text passes through a prefix, what
  follows was drawn by the policy from there, whatever made us look: an unbiased sample, counted like any rollout.
- A search for the first error. A correct text proves of all its prefixes that they can still succeed, which is exact
  but tells no rate; and a prefix that can no longer succeed is assumed to doom the steps after it.
- A stopping rule per step (`sequential`). Stopping at a success biases k / n upwards, so a hard label is read as
  above 0 or not; the sequence intervals stay valid however one stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice

from . import world
from .generation import Completion, Generator, Request, Sampling
from .rollouts import Ask, Job, judge, run_jobs
from .schema import Problem, Solution, StepLabels, fingerprint
from .sequential import INTERVALS, JEFFREYS, above_guess, cheapest, hard_verdict
from .steps import split

BLOCK = 256  # most solutions of one problem that share their evidence
SAMPLING = Sampling()  # temperature 1, as VisualPRM
Truth = Callable[[Problem, list[str]], list[int]]
CHOICES = {
    "target": ("hard", "soft"), "search": ("every", "first_error"), "split": ("middle", "cheapest"),
    "after_error": ("zero", "null", "sample"), "interval": tuple(INTERVALS), "last_step": ("verdict", "rollout"),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How much is asked, and when it is enough.

    target: "hard" asks whether a step can still succeed, and stops at the first success; "soft" asks how often, and
    stops once the interval is narrower than `width`. Either gives a step up at n_max known or asked rollouts. A step is
    first asked for `chunk` rollouts, then for twice as many each time.

    search: "every" decides each step by its own counts; "first_error" looks for the first step that cannot succeed
    (`split`: OmegaPRM's middle, or where few tokens are expected), after which steps are assumed 0 (after_error:
    "zero"), left out ("null") or sampled ("sample"). Steps before it are proven; a soft target then measures them.

    p_min: a step without success is given up once P(p > p_min) < `error` under the `prior` (0: never before n_max).
    `error` is also the mass outside of low and high, the ends of p's `interval`: "posterior" or "sequence".

    own_verdict, passing, share_prefixes: the evidence that is used beside a step's own rollouts: the solutions' own
    verdicts; rollouts from earlier steps that pass through it; those of sibling solutions that begin alike. pool (soft
    only): a step's rate is put together from the rates of the steps that its rollouts went on to, each known from more
    rollouts than went there. Unbiased for fixed numbers of rollouts; such a label has no counts.

    guess: labels of choice problems are corrected for right guesses, of chance 1 / number of choices (`sequential`).
    last_step: as in `labeling.Options`.
    """

    target: str = "hard"
    n_max: int = 16
    chunk: int = 1
    search: str = "first_error"
    split: str = "cheapest"
    after_error: str = "zero"
    p_min: float = 0.0
    error: float = 0.05
    width: float = 0.3
    interval: str = "posterior"
    prior: tuple[float, float] = JEFFREYS
    own_verdict: bool = True
    passing: bool = True
    share_prefixes: bool = True
    pool: bool = False
    guess: bool = False
    last_step: str = "verdict"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: choose one of {', '.join(allowed)}")
        if min(self.n_max, self.chunk) < 1 or not 0 < self.error < 1 or not 0 <= self.p_min < 1 or min(self.prior) <= 0:
            raise ValueError(f"{self}: wanted n_max, chunk >= 1, 0 < error < 1, 0 <= p_min < 1 and a prior above 0")
        if self.pool and (self.target == "hard" or self.interval == "sequence"):
            raise ValueError("pool needs target 'soft' and interval 'posterior': a pooled rate has no count of its own")


HARD = Options()
SOFT = Options(target="soft", search="every", chunk=2, width=0.3, pool=True)


# -- evidence


@dataclass
class _Node:
    """A prefix and what is known of it: known and unknown rollouts through it, and where the known ones went on to."""

    steps: tuple[str, ...]
    atoms: tuple[str, ...]  # the steps, with merged ones taken apart: the node's name in the tree
    owner: int  # the first solution that passes it, which bears its tokens
    n_asked: int = 0
    n_waves: int = 0
    n: int = 0  # rollouts with a verdict
    k: int = 0  # right ones among them
    n_unknown: int = 0
    proven: bool = False  # a correct text passes, or a later prefix was found good
    onward: Counter[tuple[str, ...]] = field(default_factory=Counter)  # the next node of the tree -> known rollouts
    n_left: int = 0  # known rollouts that went on through no other node
    k_left: int = 0


@dataclass
class _Path:
    """A solution and the nodes of its steps; where it `ended` by itself its last step has a verdict, and no node."""

    solution: Solution
    nodes: list[_Node]
    ended: bool
    n_tokens: int = 0


def _atoms(steps: Iterable[str]) -> tuple[str, ...]:
    """The steps with merged ones taken apart, so that texts compare equal however they were cut."""
    return tuple(part for step in steps for part in split(step))


class _Tree:
    """The prefixes of solutions that share evidence, by their text."""

    def __init__(self, problem: Problem, solutions: Sequence[Solution], options: Options) -> None:
        self.problem, self.options = problem, options
        self.floor = 1 / len(problem.choices) if options.guess and len(problem.choices) > 1 else 0.0
        self.nodes: dict[tuple[str, ...], _Node] = {}
        self.paths = [self._path(i, s) for i, s in enumerate(solutions)]
        for solution in solutions if options.own_verdict else ():
            self._count(self._passed(_atoms(solution.steps), 0), solution.verdict)
        self._prove()

    def _path(self, owner: int, solution: Solution) -> _Path:
        ended = self.options.last_step == "verdict" and solution.finish_reason == "stop" and bool(solution.steps)
        prefixes = [tuple(solution.steps[: t + 1]) for t in range(len(solution.steps) - ended)]
        nodes = [self.nodes.setdefault(node.atoms, node) for node in (_Node(p, _atoms(p), owner) for p in prefixes)]
        return _Path(solution, nodes, ended)

    def _passed(self, atoms: tuple[str, ...], after: int) -> list[_Node]:
        """The nodes longer than `after` that the text goes on from. One that ends there is no sample of going on."""
        return [node for i in range(after + 1, len(atoms)) if (node := self.nodes.get(atoms[:i]))]

    def _count(self, passed: list[_Node], label: str) -> None:
        """Nothing; a text is one sample of each node that it passes, and unknown is neither right nor wrong."""
        for i, node in enumerate(passed):
            if label == "unknown":
                node.n_unknown += 1
                continue
            node.n, node.k = node.n + 1, node.k + (label == "correct")
            if i + 1 < len(passed):
                node.onward[passed[i + 1].atoms] += 1
            else:
                node.n_left, node.k_left = node.n_left + 1, node.k_left + (label == "correct")

    def _prove(self) -> None:
        """Nothing; marks what lies before a good prefix. Exact, but assumed where right answers may be guesses."""
        for path in self.paths:
            for node in path.nodes[: self.bounds(path)[0]]:
                node.proven = True

    def learn(self, node: _Node, completions: list[Completion]) -> None:
        """Nothing; the rollouts of a node count for it and, if the options say so, for the nodes that they pass."""
        for completion in completions:
            label = judge(self.problem, node.steps, completion).label
            text = node.atoms + _atoms([completion.text])
            on = self._passed(text, len(node.atoms)) if self.options.passing else []
            self._count([node, *on], label)
        self.paths[node.owner].n_tokens += sum(c.n_tokens for c in completions)
        self._prove()

    # -- what is known of a node

    def verdict(self, node: _Node) -> bool | None:
        """Whether the node's own counts say that it can still succeed; None if they are too few."""
        o = self.options
        rule = dict(floor=self.floor, p_min=o.p_min, error=o.error, interval=o.interval, prior=o.prior)
        return hard_verdict(node.n, node.k, o.n_max, **rule)

    def rate(self, node: _Node) -> tuple[float, float]:
        """The node's chance of success, and the number of rollouts that this is worth; (0, 0) if nothing is known."""
        if not node.n or not self.options.pool:
            return (node.k / node.n if node.n else 0.0), node.n
        n, value, square, noise = node.n, float(node.k_left), float(node.k_left), 0.0
        for atoms, m in node.onward.items():
            there, worth = self.rate(self.nodes[atoms])
            value, square = value + m * there, square + m * there**2
            noise += (m / n) ** 2 * there * (1 - there) / worth
        value = min(value / n, 1.0)
        spread = max(square / n - value**2, 0.0) / n + noise  # between the branches, and within them
        return value, max(n, value * (1 - value) / spread) if spread > 1e-12 else n

    def interval(self, node: _Node) -> tuple[float, float]:
        """Low and high of the node's chance of success, beyond guessing where that is asked for."""
        (value, n), o = self.rate(node), self.options
        low, high = INTERVALS[o.interval](n, min(value * n, n), o.error, o.prior)
        return above_guess(low, self.floor), above_guess(high, self.floor)

    def is_open(self, node: _Node, target: str) -> bool:
        """Whether more rollouts of the node are wanted."""
        if max(node.n_asked, node.n) >= self.options.n_max:
            return False
        if target == "hard":
            return not (node.proven and self.options.search == "first_error") and self.verdict(node) is None
        low, high = self.interval(node)
        return high - low > self.options.width

    # -- what to ask next

    def bounds(self, path: _Path) -> tuple[int, int]:
        """(good, error): the first `good` steps can still succeed, step `error` (0-based) is the first that cannot.

        error is the number of nodes if none is known. Counts overrule proof: 0 of n_max is an error wherever it stands.
        """
        found = [self.verdict(node) for node in path.nodes]
        error = found.index(False) if False in found else len(found)
        good = [i + 1 for i, node in enumerate(path.nodes[:error]) if node.proven or found[i]]
        return max(good, default=0), error

    def wanted(self, path: _Path) -> list[_Node]:
        """The nodes of a solution to ask now; only the first of several if its rollouts may settle the others."""
        o, nodes = self.options, path.nodes
        if o.search == "first_error":
            good, error = self.bounds(path)
            if at := [i for i in range(good, error) if self.is_open(nodes[i], "hard")]:
                return [nodes[at[self._cut(path, at)]]]
            nodes = nodes[: error * (o.target == "soft")] + (path.nodes[error + 1 :] * (o.after_error == "sample"))
        left = [node for node in nodes if self.is_open(node, o.target)]
        return left[:1] if o.passing else left

    def _cut(self, path: _Path, at: list[int]) -> int:
        """Which of the open steps to test."""
        if self.options.split == "middle":
            return (len(at) - 1) // 2
        lengths = [len(path.solution.steps) - i for i in at]  # a rollout writes about so many steps
        left = [max(1, self.options.n_max - path.nodes[i].n) for i in at]
        return cheapest(tuple(lengths), tuple(n * length for n, length in zip(left, lengths, strict=True)))[1]

    def asks(self) -> dict[str, tuple[_Node, Ask]]:
        """What to ask now, by key; each node once."""
        found = {}
        for node in {id(node): node for path in self.paths for node in self.wanted(path)}.values():
            n = min(self.options.chunk * 2**node.n_waves, self.options.n_max - max(node.n_asked, node.n))
            # a new key each time, so new random numbers
            key = f"{self.paths[0].solution.solution_id}/{fingerprint(node.steps)}/{node.n_asked}"
            found[key] = node, Ask(Request(self.problem, node.steps, key), n)
            node.n_asked, node.n_waves = node.n_asked + n, node.n_waves + 1
        return found


# -- labels

_Label = tuple[int | None, int | None, int | None, float | None, float | None, float | None]
NOTHING: _Label = (None,) * 6


def _labels(tree: _Tree, path: _Path) -> list[_Label]:
    """(n_rollouts, n_correct, n_unknown, mc_score, low, high) of each step."""
    error = tree.bounds(path)[1] if tree.options.search == "first_error" else len(path.nodes)
    labels = [_label(tree, node, t > error) for t, node in enumerate(path.nodes)]
    if path.ended:  # nothing is left to chance after it, so the interval is a point
        right, known = path.solution.verdict == "correct", path.solution.verdict != "unknown"
        labels.append((1, int(right), int(not known), *((float(right) if known else None,) * 3)))
    if tree.options.after_error == "null":
        labels = [row if t <= error else NOTHING for t, row in enumerate(labels)]
    return labels


def _label(tree: _Tree, node: _Node, after_error: bool) -> _Label:
    """A node's label: the ratio of its counts, or, without counts, what was inferred or corrected.

    Counts come first: where they decide, they are the label. Where they do not, a proven step of a hard target is 1,
    a step after the first error is 0, and a step that neither its counts nor the search could settle (rollouts that
    could not be judged) has no label. `low` and `high` bound the chance of success from the counts alone; of a proven
    step without any they are 0 and 1.
    """
    o, counts = tree.options, (node.n + node.n_unknown, node.k, node.n_unknown)
    ratio: _Label = (*counts, node.k / node.n if node.n else None, *(tree.interval(node) if node.n else (None, None)))
    searched, decided = o.search == "first_error", tree.verdict(node)
    inferred = 1.0 if node.proven else 0.0 if after_error and o.after_error == "zero" else None
    if o.target == "hard" and (tree.floor or (searched and decided is None)):
        value = float(decided) if decided is not None else inferred if searched else None
        if (value == 0.0 and node.n and not tree.floor) or (value is None and node.n_unknown and not node.n):
            return ratio  # 0 of too few to decide alone, and the assumption agrees; or none that could be judged
        return NOTHING if value is None else (None, None, None, value, *tree.interval(node))
    if not node.n and searched and inferred == 0.0:
        return (None, None, None, 0.0, *tree.interval(node))
    if node.n and (tree.floor or o.pool):
        return (None, None, None, above_guess(tree.rate(node)[0], tree.floor), *tree.interval(node))
    return ratio if node.n + node.n_unknown else NOTHING


def label_problem(
    problem: Problem, solutions: Sequence[Solution], options: Options = HARD, truth: Truth | None = None
) -> Job[list[StepLabels]]:
    """A job that returns the labels of all solutions of one problem, in their order. ValueError if one is of another.

    The first solution through a prefix bears the tokens of its rollouts. `truth` as in `labeling.label`.
    """
    if strangers := [s.solution_id for s in solutions if s.problem_id != problem.problem_id]:
        raise ValueError(f"{strangers[0]!r} is no solution of {problem.problem_id!r}: group solutions by problem first")
    groups = [list(solutions)] if options.share_prefixes and solutions else [[s] for s in solutions]
    trees = [_Tree(problem, group, options) for group in groups]
    while asks := {key: (tree, *ask) for tree in trees for key, ask in tree.asks().items()}:
        answers = yield [ask for _, _, ask in asks.values()]
        for key, (tree, node, _) in asks.items():  # in the order of the questions, whatever came first
            tree.learn(node, answers[key])
    return [_record(tree, path, truth) for tree in trees for path in tree.paths]


def _record(tree: _Tree, path: _Path, truth: Truth | None) -> StepLabels:
    columns = [list(column) for column in zip(*_labels(tree, path), strict=True)] or [[] for _ in range(6)]
    known = truth is not None and tree.problem.scene is not None
    return StepLabels(
        solution_id=path.solution.solution_id, problem_id=tree.problem.problem_id, steps=path.solution.steps,
        n_rollouts=columns[0], n_correct=columns[1], n_unknown=columns[2], mc_score=columns[3], low=columns[4],
        high=columns[5], strategy="adaptive", n_generated_tokens=path.n_tokens,
        truth=truth(tree.problem, path.solution.steps) if known else None,
    )  # fmt: skip


def label(
    solutions: Iterable[Solution], problems: Iterable[Problem], generator: Generator, options: Options = HARD,
    sampling: Sampling = SAMPLING, truth: Truth | None = world.truth,
) -> Iterator[StepLabels]:  # fmt: skip
    """Step labels of every solution, as their problems finish; solutions of one problem stand side by side.

    Hundreds of problems advance together (`rollouts.run_jobs`); at most BLOCK solutions of a problem share evidence.
    KeyError if a solution's problem is not among `problems`.
    """
    by_id = {p.problem_id: p for p in problems}

    def jobs() -> Iterator[Job[list[StepLabels]]]:
        for name, group in groupby(solutions, key=lambda s: s.problem_id):
            while block := list(islice(group, BLOCK)):
                if name not in by_id:
                    raise KeyError(f"solution {block[0].solution_id!r} names problem {name!r}, which is not given")
                yield label_problem(by_id[name], block, options, truth)

    for records in run_jobs(jobs(), generator, sampling):
        yield from records
