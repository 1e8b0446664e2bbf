"""OmegaPRM on hand-built trees, against a slow reference that recomputes everything, and through kills."""

import json
import math
import os
import random
import signal
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm_lib import world
from mmprm_lib.answers import Verdict
from mmprm_lib.decoding import uniforms
from mmprm_lib.generation import Request, Sampling
from mmprm_lib.labeling import label
from mmprm_lib.omegaprm import (
    OPTIONS,
    ORIGINAL,
    Node,
    Options,
    Row,
    Tree,
    from_mm_prm,
    grow,
    labels_of,
    labels_to,
    paths,
    q_value,
    search,
    solutions_of,
    to_mm_prm,
    trees_to,
    u_value,
)
from mmprm_lib.rollouts import judge
from mmprm_lib.schema import Solution, StepLabels, fingerprint, read_records, write_records
from tests.doubles import ToyGenerator, problem, say, solution

RIGHT, WRONG = "Answer: 12", "Answer: 13"


def text(steps):
    """'a b c' as the steps a, b, c; a last letter R or W is a right or a wrong answer."""
    names = {"R": RIGHT, "W": WRONG}
    return "\n\n".join(names.get(step, step) for step in steps.split())


def scripted(table):
    """A generator that goes on from a prefix ('a b') as the table says: a list of texts, in turn."""
    table = {tuple(text(k).split("\n\n")) if k else (): v for k, v in table.items()}

    def script(request, sample, sampling):
        found = table[request.prefix][sample]
        return say("", "error", "no image") if found == "!" else say(text(found))

    return ToyGenerator(script)


def grown(table, options=None, **fields):
    """The tree of `problem()`, and the prefixes in the order in which they were rolled out."""
    generator, asked = scripted(table), []

    def script(request, sample, sampling, inner=generator.script):
        if sample == 0:
            asked.append(" ".join(request.prefix))
        return inner(request, sample, sampling)

    generator.script = script
    [tree] = search([problem()], generator, options or Options(n_rollouts=4), **fields)
    return tree, asked


def shown(tree):
    """The nodes as (place of the parent, span, mc_value, visits)."""
    names = {RIGHT: "R", WRONG: "W"}
    return [(n.parent, " ".join(names.get(s, s) for s in n.span), n.mc_value, n.visit_count) for n in tree.nodes]


# -- scores


def test_q_by_hand():
    options = Options(alpha=0.5, beta=0.9, length_scale=2)
    # 0.5^(1 - 0.5) * 0.9^(4 / 2) = 0.7071068 * 0.81 = 0.5727565; 4 words in 2 steps
    assert q_value(0.5, ("a b", "c\nd"), options) == pytest.approx(0.5727565, abs=1e-7)
    assert q_value(1.0, (), options) == 1.0
    # MM-PRM's numbers: 300 words cost 0.9^(300 / 2000) = 0.98432
    assert q_value(1.0, ("w " * 300,)) == pytest.approx(0.98432, abs=1e-5)
    assert q_value(0.0, ("a",), Options(alpha=0.25, beta=1.0)) == 0.25


def test_u_by_hand():
    assert u_value(0, 0) == 0.0
    assert u_value(2, 9) == pytest.approx(0.125)  # 0.125 * sqrt(9) / (1 + 2)
    assert u_value(0, 16, Options(c_puct=1.0)) == 4.0


def test_the_defaults_are_mm_prms_numbers_and_the_original_puts_every_fault_back():
    assert (OPTIONS.n_rollouts, OPTIONS.alpha, OPTIONS.beta, OPTIONS.length_scale) == (16, 0.5, 0.9, 2000)
    assert (OPTIONS.c_puct, OPTIONS.max_searches, OPTIONS.max_rollouts, OPTIONS.threshold) == (0.125, 200, 1000, 0.0)
    faults = [name for name, value in vars(ORIGINAL).items() if value is True]
    assert faults == ["unknown_is_wrong", "empty_in_pool", "rejudge_last", "overshoot", "estimate_again"]
    assert replace(ORIGINAL, **dict.fromkeys(faults, False)) == OPTIONS


@pytest.mark.parametrize(
    "wrong",
    [{"n_rollouts": 0}, {"alpha": 0.0}, {"beta": 1.1}, {"threshold": 1.0}, {"parallel": 0}, {"c_puct": -1.0}]
    + [{"length_scale": 0}, {"max_searches": -1}, {"max_rollouts": 15}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(**wrong)


# -- hand-built trees

HAND = {
    "": ["a R", "a b c W", "d W", "d W"],
    "d": ["e W", "e W", "W", "W"],
    "a b": ["R", "c R", "x W", "x y z W"],
    "a b c": ["W"] * 4,
    "a b x": ["R", "R", "R", "W"],
    "a b x y": ["W", "W", "W", "W"],
}


def test_a_tree_by_hand():
    tree, asked = grown(HAND)
    # 1. The root has 1 of 4 right. Its wrong rollouts: (a b c W) of 5 words, (d W) of 3; the shorter one comes first.
    #    T = 2: the middle of [0, 1] is 0: (d) has 0 of 4, so left of it: nothing left. Its rollouts are never searched.
    # 2. (a b c W), T = 4: the middle of [0, 3] is 1: (a b) has 2 of 4 -> right of it, below (a b): [2, 3] -> 2:
    #    (a b c) has 0 of 4 -> left of it: nothing left.
    # 3. Below (a b) wait (x W) and (x y z W): x of T = 2 first: (a b x) has 3 of 4 -> right: the last step, by verdict.
    # 4. U of (a b) is 0.125 * sqrt(3) / 2 = 0.108 + Q 0.5^0.5 = 0.707; of (a b x) 0.125 * sqrt(3) = 0.217 + 0.5^0.25 =
    #    0.841: (W) below (a b x) is chosen: its only step is the node that step 3 made.
    # 5. (x y z W) of (a b), T = 4: the middle of [0, 3] is 1: (a b x y) has 0 of 4 -> left: [0, 0]: (a b x) is known,
    #    3 of 4, -> right of it, where nothing is left.
    assert asked == ["", "d", "a b", "a b c", "a b x", "a b x y"]
    assert shown(tree) == [
        (None, "", 0.25, 2),
        (0, "a R", 1.0, 0),
        (0, "d", 0.0, 0),
        (0, "a b", 0.5, 2),
        (3, "R", 1.0, 0),
        (3, "c R", 1.0, 0),
        (3, "c", 0.0, 0),
        (3, "x", 0.75, 1),
        (7, "R", 1.0, 0),
        (7, "W", 0.0, 0),
        (3, "x y", 0.0, 0),
    ]
    assert (tree.n_searches, tree.n_rollouts) == (5, 24)
    assert tree.nodes[0].incorrect_rollouts == [["a", "b", "c", WRONG], ["d", WRONG]]  # distinct, and kept
    assert tree.nodes[7].correct_rollouts == [[RIGHT]]  # three times the same: one leaf, counted three times
    assert [n.n_correct for n in tree.nodes] == [1, 1, 0, 2, 1, 1, 0, 3, 1, 0, 0]
    assert [n.n_rollouts for n in tree.nodes] == [4, 1, 4, 4, 1, 1, 4, 4, 1, 1, 4]
    assert [n.estimated for n in tree.nodes] == [n.n_rollouts == 4 for n in tree.nodes]


def test_the_tokens_of_a_tree_are_all_that_were_drawn():
    generator = scripted(HAND)
    [tree] = search([problem()], generator, Options(n_rollouts=4))
    assert tree.n_generated_tokens == generator.n_generated_tokens > 0


def test_the_original_makes_a_second_node_of_a_prefix_reached_again():
    tree, asked = grown(HAND, replace(ORIGINAL, n_rollouts=4))
    # 5. again, now (a b x) is estimated anew below (a b), and its (W) is searched in 6.: judged again, as a last step
    assert asked == ["", "d", "a b", "a b c", "a b x", "a b x y", "a b x"]
    # 4. makes the last step of (a b x) a second time
    spans = [(3, "x"), (7, "R"), (7, "W"), (7, "W"), (3, "x y"), (3, "x"), (12, "R"), (12, "W")]
    assert [(parent, span) for parent, span, _, _ in shown(tree)[7:]] == spans
    assert (tree.n_searches, tree.n_rollouts) == (6, 28)


@pytest.mark.parametrize("answers", ["RRRR", "WWWW"])
def test_a_root_that_is_always_right_or_never_ends_at_once(answers):
    tree, asked = grown({"": list(answers)})
    assert asked == [""] and tree.n_searches == 0 and tree.n_rollouts == 4
    assert shown(tree) == [(None, "", float(answers == "RRRR"), 0)] + [(0, "R", 1.0, 0)] * (answers == "RRRR")
    assert paths(tree, min_words=0) == []


TWO = {
    "": ["R", "a b W", "c d W", "e f W"],
    "a": ["R", "R", "W", "g h W"],
    "a b": ["R", "R", "W", "g h W"],
    "c d": ["W"] * 4,
    "c": ["W"] * 4,
    "e f": ["W"] * 4,
    "e": ["W"] * 4,
    "a g": ["W"] * 4,
    "a g h": ["W"] * 4,
    "a b g": ["W"] * 4,
    "a b g h": ["W"] * 4,
}


def selected(options):
    """The first steps of what is asked, in its order: what the selection led to."""
    return grown(TWO, options)[1]


def test_the_first_of_equals_is_taken():
    # T = 3 of (a b W): the middle of [0, 2] is 1. All three of the root have Q = 0.5^0.75 and 4 words.
    assert selected(Options(n_rollouts=4, max_searches=1)) == ["", "a b"]  # 0.5 there -> right: last step by verdict


CHOICE = {
    "": ["R", "R", "a W", "b x W"],
    "a": ["R", "R", "R", "p q r s t W"],
    "a p q r": ["R"] * 4,
    "a p q r s": ["R"] * 4,
    "a p q r s t": ["R"] * 4,
    "b x": ["R"] * 4,
}


@pytest.mark.parametrize(
    "chosen, values",
    [
        # the second search has (b x W), 4 words, of the root, 2 of 4 right and chosen once, against (p q r s t W),
        # 7 words, of (a), 3 of 4 right and never chosen
        ("a p q r", {"c_puct": 0.0}),  # 0.5^0.5 * 0.9^(4 / 2000) = 0.707 < 0.5^0.25 * 0.9^(7 / 2000) = 0.841
        ("b x", {"c_puct": 0.0, "alpha": 1.0}),  # 0.9^(4 / 2000) > 0.9^(7 / 2000)
        ("b x", {"c_puct": 0.0, "length_scale": 1}),  # 0.7071 * 0.9^4 = 0.4639 > 0.8409 * 0.9^7 = 0.4022
        ("a p q r", {"c_puct": 0.0, "length_scale": 1, "beta": 1.0}),  # 0.7071 < 0.8409
        ("a p q r", {"length_scale": 1}),  # 0.4639 + 0.125 / 2 = 0.5264 < 0.4022 + 0.125 = 0.5272
        ("b x", {"length_scale": 1, "c_puct": 0.12}),  # 0.4639 + 0.06 = 0.5239 > 0.4022 + 0.12 = 0.5222
        ("b x", {"c_puct": 0.0, "alpha": 1.0, "beta": 1.0}),  # 1 = 1: the node that was made first
    ],
)
def test_alpha_beta_length_scale_and_c_puct_move_the_choice(chosen, values):
    asked = grown(CHOICE, Options(n_rollouts=4, max_searches=2, **values))[1]
    assert asked[:3] == ["", "a", chosen]


def test_a_state_chosen_often_falls_behind():
    # beta = alpha = 1: Q = 1 everywhere. Search 1: the root (first). Then N(root) = 1, N(a b) = 0:
    # search 2: U(root) = c / 2 < U(a b) = c. Search 3: root sqrt(2) c / 2 = (a b) sqrt(2) c / 2: a tie, the root: (c d)
    options = Options(n_rollouts=4, alpha=1.0, beta=1.0, c_puct=0.125)
    assert selected(replace(options, max_searches=2)) == ["", "a b"]
    assert selected(replace(options, max_searches=3)) == ["", "a b", "c d", "c"]
    tree, _ = grown(TWO, replace(options, max_searches=3))
    assert [n.visit_count for n in tree.nodes if n.visit_count] == [2, 1]


def test_max_searches_ends_the_search():
    for n in range(6):
        assert grown(HAND, Options(n_rollouts=4, max_searches=n))[0].n_searches == min(n, 5)


def test_the_budget_of_rollouts_is_kept_or_passed_by_one_search_as_in_the_original():
    # the second search of HAND takes two estimates, of which a budget of 12 pays the first
    kept, asked = grown(HAND, Options(n_rollouts=4, max_rollouts=12))
    assert kept.n_rollouts == 12 and asked == ["", "d", "a b"]
    passed, asked = grown(HAND, Options(n_rollouts=4, max_rollouts=12, overshoot=True))
    assert passed.n_rollouts == 16 and asked == ["", "d", "a b", "a b c"]
    odd, asked = grown(HAND, Options(n_rollouts=4, max_rollouts=11))
    assert odd.n_rollouts == 8 and asked == ["", "d"]
    odd, asked = grown(HAND, Options(n_rollouts=4, max_rollouts=11, overshoot=True))
    assert odd.n_rollouts == 16 and asked == ["", "d", "a b", "a b c"]  # 8 < 11: one more search, whatever it takes


def test_the_threshold_moves_the_first_error():
    # with 0.5, (a b) of 2 of 4 is wrong: left of it is (a)
    table = HAND | {"a": ["R", "R", "R", "b W"]}
    tree, asked = grown(table, Options(n_rollouts=4, threshold=0.5))
    assert asked == [""] and tree.n_searches == 0  # and the root, of 1 of 4, has nothing to search
    table[""] = ["a R", "R", "R", "a b c W"]
    tree, asked = grown(table, Options(n_rollouts=4, threshold=0.5))
    # (a b) 0.5 -> left: (a) 0.75 -> nothing right of it; then (b W) of (a): the middle of [0, 1] is 0: (a b), known
    assert asked == ["", "a b", "a"] and tree.n_searches == 2


# -- what is mended, and how to put it back


def test_unknown_is_kept_apart_or_counts_as_wrong():
    table = {"": ["R", "a hm", "!", "b W"], "a": ["R"] * 4, "b": ["W"] * 4}
    tree, asked = grown(table)
    root = tree.nodes[0]
    assert (root.n_rollouts, root.n_correct, root.n_unknown, root.mc_value) == (4, 1, 2, 0.5)  # 1 / (4 - 2)
    assert root.incorrect_rollouts == [["b", WRONG]] and asked == ["", "b"]
    tree, asked = grown(table, Options(n_rollouts=4, unknown_is_wrong=True))
    root = tree.nodes[0]
    assert (root.n_rollouts, root.n_correct, root.n_unknown, root.mc_value) == (4, 1, 0, 0.25)
    assert root.incorrect_rollouts == [["a", "hm"], [], ["b", WRONG]] and asked == ["", "a", "b"]


def test_a_generator_that_fails_gives_unknown_and_not_zero():
    tree, _ = grown({"": ["!"] * 4})
    assert tree.nodes[0].mc_value is None and tree.nodes[0].n_unknown == 4 and tree.n_searches == 0
    tree, _ = grown({"": ["!"] * 4}, Options(n_rollouts=4, unknown_is_wrong=True))
    assert tree.nodes[0].mc_value == 0.0


def test_a_prefix_of_which_nothing_is_known_ends_the_search():
    tree, asked = grown({"": ["R", "R", "R", "a b c W"], "a b": ["!"] * 4})
    assert asked == ["", "a b"]  # neither (a) nor (a b c)
    assert shown(tree)[-1] == (0, "a b", None, 0)
    assert [row.labels for row in paths(tree, min_words=0, balance=False)] == [[1.0]]


def test_an_empty_rollout_is_not_searched():
    table = {"": ["R", "R", "", "a W"], "a": ["W"] * 4}
    tree, asked = grown(table)
    assert tree.n_searches == 1 and tree.nodes[0].mc_value == 2 / 3  # "" has no answer: unknown
    tree, asked = grown(table, Options(n_rollouts=4, empty_in_pool=True))
    assert tree.n_searches == 2 and tree.nodes[0].visit_count == 2 and tree.nodes[0].mc_value == 0.5
    # it has the highest Q of its state: with one search, that is all that is done
    tree, asked = grown(table, Options(n_rollouts=4, empty_in_pool=True, max_searches=1))
    assert asked == [""] and tree.n_searches == 1


def test_an_empty_rollout_after_the_answer_makes_no_leaf():
    table = {"": ["R", "R", "R", "R x W"], "R x": ["", "", "", "W"]}
    tree, _ = grown(table)
    [node] = [n for n in tree.nodes if n.span == [RIGHT, "x"]]
    assert node.n_correct == 3 and node.correct_rollouts == [[]]
    assert all(n.span for n in tree.nodes[1:])


def test_the_last_step_has_the_verdict_of_its_rollout_or_is_judged_again():
    table = {"": ["R", "R", "R", "a W"], "a": ["R", "R", "R", "R"]}
    n_judged = 0

    def fickle(problem, prefix, completion):
        nonlocal n_judged
        n_judged += 1
        return judge(problem, prefix, completion) if n_judged <= 8 else Verdict("correct", "12")

    for again, expected in ((False, 0.0), (True, 1.0)):
        n_judged = 0
        tree, _ = grown(table, Options(n_rollouts=4, rejudge_last=again), check=fickle)
        assert n_judged == 8 + again
        assert shown(tree)[-1] == (2, "W", expected, 0) and tree.nodes[-1].n_rollouts == 1


def test_a_judge_that_fails_at_the_last_step_leaves_it_unknown():
    table = {"": ["R", "R", "R", "W"]}

    def failing(problem, prefix, completion):
        failed = completion.n_tokens == 0
        return Verdict("unknown", None, "no judge") if failed else judge(problem, prefix, completion)

    tree, _ = grown(table, Options(n_rollouts=4, rejudge_last=True), check=failing)
    assert tree.nodes[-1].mc_value is None and tree.nodes[-1].n_unknown == 1
    tree, _ = grown(table, replace(ORIGINAL, n_rollouts=4), check=failing)
    assert tree.nodes[-1].mc_value == 0.0 and tree.nodes[-1].n_unknown == 0


# -- against a slow reference


def policy(request, sample, sampling):
    """One to five steps of three sorts, then an answer; sometimes nothing, a failure, or an end without an answer."""
    u = uniforms(sampling.seed, request.seed_key, sample, 16)
    if u[0] < 0.1:
        return say("") if u[1] < 0.5 else say("", "error", "lost")
    steps = [f"{'x ' * int(3 * x)}{'abc'[int(3 * x)]}" for x in u[2 : 2 + int(5 * u[1])]]
    hopeless = steps[:1] == ["a"] and request.prefix
    end = "hm" if u[8] < 0.1 else RIGHT if u[9] < 0.4 and not hopeless else WRONG
    return say("\n\n".join([*steps, end]))


class Spent(Exception):
    """The budget does not pay the next estimate."""


class Naive:
    """Section by section as MM-PRM is described, one search at a time; every score is computed anew every time."""

    def __init__(self, problem, options, sampling):
        self.problem, self.options, self.sampling = problem, options, sampling
        self.nodes, self.asked, self.n_searches, self.n_rollouts = [], [], 0, 0
        self.run()

    def add(self, parent, span, k, n, unknown, estimated=False, right=(), wrong=()):
        above = self.nodes[parent]["prefix"] if parent is not None else ()
        mc = k / (n - unknown) if n > unknown else None
        known = dict(parent=parent, span=span, prefix=above + span, k=k, n=n, unknown=unknown, mc=mc, visits=0)
        self.nodes.append(known | dict(estimated=estimated, right=list(right), wrong=list(wrong), pool=[]))
        return len(self.nodes) - 1

    def estimate(self, parent, span):
        o = self.options
        prefix = (self.nodes[parent]["prefix"] if parent is not None else ()) + span
        if not o.overshoot and self.n_rollouts + o.n_rollouts > o.max_rollouts:
            raise Spent
        self.asked.append(prefix)
        again = self.asked.count(prefix)
        key = f"p0/{fingerprint(prefix)}" + (f"/{again}" if again > 1 else "")
        self.n_rollouts += o.n_rollouts
        right, wrong, k, unknown = [], [], 0, 0
        for i in range(o.n_rollouts):
            drawn = policy(Request(self.problem, prefix, key), i, self.sampling)
            rollout = tuple(drawn.text.split("\n\n")) if drawn.text else ()
            verdict = judge(self.problem, prefix, drawn).label
            if verdict == "unknown" and o.unknown_is_wrong or o.empty_in_pool and not rollout:
                verdict = "wrong"
            k, unknown = k + (verdict == "correct"), unknown + (verdict == "unknown")
            if verdict == "correct" and rollout not in right:
                right.append(rollout)
            if verdict == "wrong" and rollout not in wrong:
                wrong.append(rollout)
        place = self.add(parent, span, k, o.n_rollouts, unknown, True, right, wrong)
        for rollout in right:
            if rollout:
                self.add(place, rollout, 1, 1, 0)
        mc = self.nodes[place]["mc"]
        if mc is not None and mc > o.threshold:
            self.nodes[place]["pool"] = [r for r in wrong if r or o.empty_in_pool]
        return place

    def search(self, s, r, left, right):
        if left > right:
            return
        mid, o = (left + right) // 2, self.options
        here = self.nodes[s]["prefix"] + r[left : mid + 1]
        if left == right == len(r) - 1:
            known = [n for n in self.nodes[1:] if n["prefix"] == here and not n["estimated"] and n.get("end")]
            if o.estimate_again or not known:
                self.nodes[self.add(s, r[left:], 0, 1, 0)]["end"] = True
            return
        known = [i for i, n in enumerate(self.nodes) if n["prefix"] == here and n["estimated"]]
        b = known[0] if known and not o.estimate_again else self.estimate(s, r[left : mid + 1])
        mc = self.nodes[b]["mc"]
        if mc is not None and mc <= o.threshold:
            self.search(s, r, left, mid - 1)
        elif mc is not None:
            self.search(b, r, mid + 1, right)

    def run(self):
        o = self.options
        self.estimate(None, ())
        room = 0 if o.overshoot else o.n_rollouts - 1
        while self.n_searches < o.max_searches and self.n_rollouts + room < o.max_rollouts:
            total, scored = sum(n["visits"] for n in self.nodes), []
            for i, n in enumerate(self.nodes):
                for r in n["pool"]:
                    words = len("\n".join(r).split())
                    q = o.alpha ** (1 - n["mc"]) * o.beta ** (words / o.length_scale)
                    u = o.c_puct * math.sqrt(total) / (1 + n["visits"])
                    scored.append((q + u, -i, q, -n["wrong"].index(r)))
            if not scored:
                return
            best = max(scored)
            s, r = -best[1], self.nodes[-best[1]]["wrong"][-best[3]]
            self.nodes[s]["pool"].remove(r)
            self.n_searches += 1
            try:
                self.search(s, r, 0, len(r) - 1)
            except Spent:
                self.nodes[s]["visits"] += 1
                return
            self.nodes[s]["visits"] += 1

    def tree(self):
        return [
            (n["parent"], list(n["span"]), n["estimated"], n["mc"], n["n"], n["k"], n["unknown"], n["visits"])
            + ([list(r) for r in n["right"]], [list(r) for r in n["wrong"]])
            for n in self.nodes
        ]


switches = st.fixed_dictionaries(
    dict.fromkeys(["unknown_is_wrong", "empty_in_pool", "rejudge_last", "overshoot", "estimate_again"], st.booleans())
)
numbers = st.fixed_dictionaries(
    dict(
        n_rollouts=st.integers(1, 8), alpha=st.sampled_from([0.1, 0.5, 1.0]), beta=st.sampled_from([0.5, 0.9, 1.0]),
        length_scale=st.sampled_from([1, 5, 2000]), c_puct=st.sampled_from([0.0, 0.125, 1.0]),
        max_searches=st.sampled_from([0, 3, 200]), max_rollouts=st.integers(8, 160),
        threshold=st.sampled_from([0.0, 0.25]),
    )
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), switches, numbers)
def test_every_tree_is_the_one_of_the_slow_reference(seed, faults, values):
    options, sampling = Options(**faults, **values), Sampling(seed=seed)
    naive = Naive(problem(), options, sampling)
    [tree] = search([problem()], ToyGenerator(policy), options, sampling)
    found = [
        (n.parent, n.span, n.estimated, n.mc_value, n.n_rollouts, n.n_correct, n.n_unknown, n.visit_count)
        + (n.correct_rollouts, n.incorrect_rollouts)
        for n in tree.nodes
    ]
    assert found == naive.tree()
    assert (tree.n_searches, tree.n_rollouts) == (naive.n_searches, naive.n_rollouts)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), numbers)
def test_whatever_the_order_no_prefix_is_estimated_twice_and_the_budgets_hold(seed, parallel, values):
    options, asked = Options(**values, parallel=parallel), []

    def script(request, sample, sampling):
        asked.extend([request] if sample == 0 else [])
        return policy(request, sample, sampling)

    [tree] = search([problem()], ToyGenerator(script), options, Sampling(seed=seed))
    assert len({r.prefix for r in asked}) == len(asked) == len({r.key for r in asked})
    assert all(r.key == f"p0/{fingerprint(r.prefix)}" for r in asked)
    assert tree.n_rollouts == len(asked) * options.n_rollouts <= options.max_rollouts
    assert tree.n_searches == sum(n.visit_count for n in tree.nodes) <= options.max_searches


def waves(options):
    """How many requests the job of a tree asks for at a time."""
    job, sizes, sampling = grow(problem(), options), [], Sampling(seed=1)
    asks = next(job)
    while asks:
        sizes.append(len(asks))
        answers = {a.request.key: [policy(a.request, i, sampling) for i in range(a.n)] for a in asks}
        try:
            asks = job.send(answers)
        except StopIteration as end:
            return sizes, end.value


def test_several_searches_of_a_tree_go_side_by_side():
    (alone, _), (side, tree) = waves(Options()), waves(Options(parallel=8))
    assert set(alone) == {1} and sum(alone) == 62  # 62 * 16 = 992 of the 1,000 rollouts
    assert max(side) > 4 and sum(side) == 62 and len(side) < len(alone) / 3
    assert tree.n_rollouts == 992


def test_two_searches_that_want_one_prefix_share_it():
    table = {"": ["R", "R", "a W", "a V W"], "a": ["R", "R", "R", "W"]} | {"a V": ["W"] * 4}
    for parallel in (1, 2):
        _, asked = grown(table, Options(n_rollouts=4, parallel=parallel))
        assert sorted(asked) == ["", "a", "a V"]


# -- many trees


@pytest.mark.parametrize("window", [1, 64])
def test_hundreds_of_trees_side_by_side_are_those_of_one_at_a_time(window):
    problems, options = [problem(f"p{i}") for i in range(200)], Options(n_rollouts=3, max_rollouts=30)
    alone = {p.problem_id: next(search([p], ToyGenerator(policy), options)) for p in problems}
    generator = ToyGenerator(policy, window)
    together = list(search(problems[::-1], generator, options))
    assert {tree.problem_id: tree for tree in together} == alone and len(together) == 200
    assert sum(tree.n_generated_tokens for tree in together) == generator.n_generated_tokens
    assert len({tuple(len(n.span) for n in tree.nodes) for tree in together}) > 100


def test_a_sampling_seed_makes_other_trees_and_the_same_one_the_same():
    def trees(seed):
        return list(search([problem()], ToyGenerator(policy), Options(max_rollouts=64), Sampling(seed=seed)))

    assert trees(0) == trees(0) != trees(1)


def test_two_problems_of_one_id_are_refused_while_both_grow():
    with pytest.raises(ValueError, match="is empty or asked for twice"):
        list(search([problem(), problem()], ToyGenerator(policy)))


def test_trees_are_made_as_they_are_asked_for():
    problems = (problem(f"p{i}") for i in range(10**9))
    trees = search(problems, ToyGenerator(policy), Options(n_rollouts=2, max_rollouts=8), at_once=4)
    assert len(list(islice(trees, 20))) == 20


def test_a_prefix_has_the_rollouts_that_exhaustive_labeling_gives_it():
    from mmprm_lib.labeling import Options as Exhaustive

    [tree] = search([problem()], ToyGenerator(policy), Options(n_rollouts=4, max_rollouts=80), Sampling())
    node = next(n for n in tree.nodes[1:] if n.estimated and n.parent == 0)
    steps = (*node.span, WRONG)
    [record] = label([solution(steps=steps)], [problem()], ToyGenerator(policy), Exhaustive(n_rollouts=4), Sampling())
    at = len(node.span) - 1
    counted = (record.n_rollouts[at], record.n_correct[at], record.n_unknown[at])
    assert counted == (node.n_rollouts, node.n_correct, node.n_unknown)


# -- files


def chain(folder, kill_after=None):
    problems = [problem(f"p{i}") for i in range(8)]
    options = Options(n_rollouts=5, max_rollouts=50)
    return trees_to(folder / "trees.jsonl", problems, ToyGenerator(policy, 4, kill_after), options, Sampling(seed=3))


def killed(folder, kill_after, work=chain):
    """Whether the work, in a process of its own, killed itself before its request number `kill_after` was answered."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(folder, kill_after)
            status = 0
        finally:
            os._exit(status)  # nothing of the test runner may run twice
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    whole = chain(tmp_path / "whole")
    assert [tree.problem_id for tree in whole] == [f"p{i}" for i in range(8)]
    assert sum(killed(tmp_path / "killed", k) for k in (40, 5, 0, 14, 30)) >= 3
    assert chain(tmp_path / "killed") == whole
    assert (tmp_path / "killed/trees.jsonl").read_bytes() == (tmp_path / "whole/trees.jsonl").read_bytes()
    assert read_records(tmp_path / "whole/trees.jsonl", Tree) == whole


def test_a_finished_file_costs_no_sample(tmp_path):
    assert chain(tmp_path) == chain(tmp_path, kill_after=0)


def labelled(folder, kill_after=None, **fields):
    """Labels and solutions of eight trees, in three files."""
    folder.mkdir(exist_ok=True)
    problems = [problem(f"p{i}") for i in range(8)]
    options = Options(n_rollouts=5, max_rollouts=50)
    return labels_to(folder, problems, ToyGenerator(policy, 4, kill_after), options, Sampling(seed=3),
                     **({"min_words": 0} | fields))  # fmt: skip


def test_labels_of_trees_that_were_killed_are_those_of_an_uninterrupted_run(tmp_path):
    trees, solutions, labels = labelled(tmp_path / "whole")
    assert sum(killed(tmp_path / "killed", k, labelled) for k in (40, 5, 0, 14, 30)) >= 3
    assert labelled(tmp_path / "killed")[1:] == (solutions, labels)
    for name in ("trees", "solutions", "labels"):
        pair = [(tmp_path / folder / f"{name}.jsonl").read_bytes() for folder in ("whole", "killed")]
        assert pair[0] == pair[1] and pair[0], name
    assert list(trees) == chain(tmp_path / "other")
    assert read_records(tmp_path / "whole/labels.jsonl", StepLabels) == labels
    assert read_records(tmp_path / "whole/solutions.jsonl", Solution) == solutions


def test_labels_of_trees_are_of_the_steps_of_their_solutions(tmp_path):
    _, solutions, labels = labelled(tmp_path / "steps")
    _, joined, of_spans = labelled(tmp_path / "spans", spans=True)
    for pair in (zip(solutions, labels, strict=True), zip(joined, of_spans, strict=True)):
        assert all((s.solution_id, s.steps) == (r.solution_id, r.steps) for s, r in pair)
    assert any(None in r.mc_score for r in labels) and not any(None in r.mc_score for r in of_spans)
    assert [[m for m in r.mc_score if m is not None] for r in labels] == [r.mc_score for r in of_spans]
    assert len({s.verdict for s in solutions}) > 1 and {r.strategy for r in labels} == {"omegaprm"}


def test_the_options_of_paths_choose_the_labels_of_trees(tmp_path):
    every = labelled(tmp_path / "a", balance=False, skip_settled=False)[2]
    assert len(every) > len(labelled(tmp_path / "b")[2]) > len(labelled(tmp_path / "c", min_words=11)[2])


def test_a_request_that_raises_costs_its_own_rollouts(tmp_path):
    whole = {tree.problem_id: tree for tree in chain(tmp_path / "whole")}
    problems = [problem(f"p{i}") for i in range(8)]

    def script(request, sample, sampling):
        if request.problem.problem_id == "p5" and request.prefix:
            raise OSError("no room on the device")
        return policy(request, sample, sampling)

    options = Options(n_rollouts=5, max_rollouts=50)
    trees = trees_to(tmp_path / "t.jsonl", problems, ToyGenerator(script, 4), options, Sampling(seed=3))
    changed = [tree for tree in trees if tree != whole[tree.problem_id]]
    assert [tree.problem_id for tree in changed] == ["p5"]
    failed = [n for n in changed[0].nodes[1:] if n.estimated]
    assert failed and all((n.n_unknown, n.mc_value) == (5, None) for n in failed)


def test_a_checker_that_raises_costs_its_own_rollouts(tmp_path, monkeypatch):
    def broken(problem, prefix, completion):
        if "13" in completion.text:
            raise ZeroDivisionError("the checker divides")
        return judge(problem, prefix, completion)

    monkeypatch.setattr("mmprm_lib.guards.judge", broken)
    for tree in chain(tmp_path):
        assert tree.nodes[0].n_correct + tree.nodes[0].n_unknown == 5 and tree.n_searches == 0


@pytest.mark.parametrize("change", ["weights", "seed", "question", "alpha", "estimate_again"])
def test_any_change_of_what_shapes_a_tree_is_refused(tmp_path, change):
    def attempt(weights="a", seed=0, question="How many?", **options):
        generator = ToyGenerator(policy)
        generator.fingerprint = weights
        options = Options(n_rollouts=2, max_rollouts=8, **options)
        trees_to(tmp_path / "t.jsonl", [problem(question=question)], generator, options, Sampling(seed=seed))

    attempt()
    attempt()
    other = dict(weights="b", seed=1, question="How few?", alpha=0.4, estimate_again=True)
    with pytest.raises(ValueError, match="holds records made under key"):
        attempt(**{change: other[change]})


def test_a_tree_whose_parents_do_not_come_first_is_refused():
    root = Node(parent=None, span=[], estimated=True, mc_value=0.5)
    for nodes in ([], [root, root], [root, Node(parent=1, span=["a"], estimated=True, mc_value=0.5)]):
        with pytest.raises(ValueError, match="'p0'"):
            Tree(problem_id="p0", nodes=nodes, n_searches=0)


# -- MM-PRM's JSON

THEIRS = {
    "question": "How many?", "answer": "12", "image_path": "none.png", "id": "p0",
    "mc_value": 0.5, "visit_count": 1,
    "correct_rollouts": [["a", "Answer: 12"]], "incorrect_rollouts": [["b", "Answer: 13"]],
    "children": [
        {"partial_solution": ["a", "Answer: 12"], "mc_value": 1.0, "visit_count": 0,
         "correct_rollouts": [], "incorrect_rollouts": [], "children": []},
        {"partial_solution": ["b"], "mc_value": 0.5, "visit_count": 0,
         "correct_rollouts": [["Answer: 12"]], "incorrect_rollouts": [["Answer: 13"]],
         "children": [
             {"partial_solution": ["Answer: 12"], "mc_value": 1.0, "visit_count": 0,
              "correct_rollouts": [], "incorrect_rollouts": [], "children": []},
             {"partial_solution": ["Answer: 13"], "mc_value": 0.0, "visit_count": 0,
              "correct_rollouts": [], "incorrect_rollouts": [], "children": []},
         ]},
    ],
}  # fmt: skip


def test_a_tree_is_written_as_mm_prm_writes_it():
    [tree] = search([problem()], scripted({"": ["a R", "b W"], "b": ["R", "W"]}), Options(n_rollouts=2, max_searches=1))
    assert to_mm_prm(tree, problem()) == THEIRS
    read = from_mm_prm(THEIRS, "p0")
    assert [(n.parent, n.span, n.mc_value, n.visit_count, n.estimated) for n in read.nodes] == [
        (n.parent, n.span, n.mc_value, n.visit_count, n.estimated) for n in tree.nodes
    ]
    assert all(n.n_rollouts is n.n_correct is n.n_unknown is None for n in read.nodes)
    assert (read.n_searches, read.n_rollouts, read.n_generated_tokens) == (1, None, None)


def test_a_tree_of_mm_prm_gives_the_labels_that_it_holds():
    read = from_mm_prm(json.loads(json.dumps(THEIRS)), "p0")
    records = labels_of(read, problem(), paths(read, min_words=0, balance=False))
    assert [(r.steps, r.mc_score) for r in records] == [
        (["a", RIGHT], [None, 1.0]),
        (["b", RIGHT], [0.5, 1.0]),
        (["b", WRONG], [0.5, 0.0]),
    ]
    assert records[0].n_rollouts == [None, None] and records[0].n_generated_tokens == 0


def test_a_node_without_a_key_is_named():
    broken = json.loads(json.dumps(THEIRS))
    del broken["children"][1]["mc_value"]
    with pytest.raises(ValueError, match="p0: node 2 has no 'mc_value'"):
        from_mm_prm(broken, "p0")


rollouts = st.lists(st.lists(st.text(max_size=4), max_size=3), max_size=2)


def entries(children):
    spans = st.lists(st.text(max_size=4), min_size=1, max_size=3)
    columns = dict(partial_solution=spans, mc_value=st.none() | st.floats(0, 1), visit_count=st.integers(0, 9))
    return st.fixed_dictionaries(
        columns | dict(correct_rollouts=rollouts, incorrect_rollouts=rollouts, children=children)
    )


below = st.recursive(st.just([]), lambda inner: st.lists(entries(inner), max_size=3), max_leaves=12)


@given(below, st.floats(0, 1), rollouts)
def test_their_json_comes_back_as_it_was(children, mc, wrong):
    head = dict(question="How many?", answer="12", image_path="none.png", id="p0", mc_value=mc, visit_count=3)
    entry = head | dict(correct_rollouts=[], incorrect_rollouts=wrong, children=children)
    tree = from_mm_prm(entry, "p0")
    assert to_mm_prm(tree, problem()) == entry
    assert from_mm_prm(json.loads(json.dumps(to_mm_prm(tree, problem()))), "p0") == tree
    assert Tree.model_validate_json(tree.model_dump_json()) == tree


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_our_trees_keep_their_rows_through_their_json(seed, original):
    options = replace(ORIGINAL if original else OPTIONS, n_rollouts=4, max_rollouts=60)
    [tree] = search([problem()], ToyGenerator(policy), options, Sampling(seed=seed))
    read = from_mm_prm(to_mm_prm(tree, problem()), "p0")

    def rows(tree):
        return [(row.process, row.labels, row.positive) for row in paths(tree, min_words=0)]

    assert rows(read) == rows(tree) and len(read.nodes) == len(tree.nodes) and read.n_searches == tree.n_searches
    keep = {"problem_id", "n_searches"}
    assert read.model_dump(include=keep) == tree.model_dump(include=keep)


# -- rows

LONG = "w1 w2 w3 w4 w5"


def node(parent, span, mc, estimated=True, n=4):
    count = None if mc is None else round(mc * n)
    return Node(parent=parent, span=span.split(), estimated=estimated, mc_value=mc, n_rollouts=n, n_correct=count or 0,
                n_unknown=n if mc is None else 0)  # fmt: skip


def forest():
    """A root with a leaf, a wrong prefix, and a good prefix of two steps with two leaves and a wrong end below."""
    nodes = [node(None, "", 0.5), node(0, "a z", 1.0, False, 1), node(0, "b", 0.0), node(0, "c d", 0.75)]
    nodes += [node(3, "e f", 1.0, False, 1), node(3, "g", 1.0, False, 1), node(3, "h", 0.0, False, 1)]
    return Tree(problem_id="p0", nodes=[*nodes, node(0, "i", None)], n_searches=2, n_rollouts=16, n_generated_tokens=99)


def rows_of(tree, **options):
    return [(row.process, row.labels, row.positive) for row in paths(tree, **{"min_words": 0} | options)]


ALL = [
    ("a\n\nz<prm>", [1.0], True),
    ("b<prm>", [0.0], False),
    ("c\n\nd<prm>\n\ne\n\nf<prm>", [0.75, 1.0], True),
    ("c\n\nd<prm>\n\ng<prm>", [0.75, 1.0], True),
    ("c\n\nd<prm>\n\nh<prm>", [0.75, 0.0], False),
]


def test_rows_by_hand():
    assert rows_of(forest(), balance=False) == ALL
    assert isinstance(paths(forest(), min_words=0)[0], Row)


def test_rows_are_balanced_by_the_seed():
    seen = set()
    for seed in range(20):
        rows = rows_of(forest(), seed=seed)
        assert rows == rows_of(forest(), seed=seed)
        assert [row for row in rows if not row[2]] == [row for row in ALL if not row[2]]
        assert len(rows) == 4 and all(row in ALL for row in rows)  # 2 negatives, so 2 of 3 positives
        seen.add(str(rows))
    assert len(seen) == 3
    assert len({str(rows_of(forest(), seed=None)) for _ in range(40)}) > 1  # as MM-PRM: by chance


def test_positives_that_are_fewer_than_the_negatives_all_stay():
    tree = forest()
    tree.nodes += [node(0, "j", 0.0), node(0, "k", 0.0)]
    assert sum(row[2] for row in rows_of(tree)) == 3


def test_rows_without_negatives_are_balanced_to_none():
    tree = Tree(problem_id="p0", nodes=[node(None, "", 0.5), node(0, "a", 1.0, False, 1)], n_searches=0)
    assert rows_of(tree) == [] and len(rows_of(tree, balance=False)) == 1


def test_the_same_text_is_kept_once_per_sign():
    tree = forest()
    tree.nodes += [node(0, "b", 0.0), node(0, "b", 0.5), node(0, "a z", 0.25), node(0, "b", 0.75)]
    # a second negative (b), a second positive (a z) and a second positive (b) go, the first of each stays
    assert rows_of(tree, balance=False) == [*ALL, ("b<prm>", [0.5], True)]


def test_short_rows_are_dropped_by_words_between_single_spaces():
    steps = ["w " * 9 + "w", "w " * 10 + "w"]  # 10 and 11 words
    nodes = [node(None, "", 0.5)] + [
        Node(parent=0, span=[step], estimated=True, mc_value=0.0) for step in steps
    ]  # fmt: skip
    tree = Tree(problem_id="p0", nodes=nodes, n_searches=0)
    assert [row.steps for row in paths(tree)] == [[steps[1]]]
    assert [row.steps for row in paths(tree, min_words=10)] == [[step] for step in steps]


@pytest.mark.parametrize("mc", [0.0, 1.0, None])
def test_settled_roots_give_no_rows_unless_asked(mc):
    tree = forest()
    tree.nodes[0].mc_value = mc
    assert rows_of(tree, balance=False) == [] and rows_of(tree, balance=False, skip_settled=False) == ALL


def test_the_threshold_cuts_rows():
    found = rows_of(forest(), balance=False, threshold=0.75)
    assert found == [ALL[0], ALL[1], ("c\n\nd<prm>", [0.75], False)]


# -- records


def test_labels_stand_where_a_node_ends_and_nowhere_else():
    records = labels_of(forest(), problem(), paths(forest(), min_words=0, balance=False))
    assert [r.solution_id for r in records] == [f"p0/o{i}" for i in range(5)]
    assert [(r.steps, r.mc_score) for r in records] == [
        (["a", "z"], [None, 1.0]),
        (["b"], [0.0]),
        (["c", "d", "e", "f"], [None, 0.75, None, 1.0]),
        (["c", "d", "g"], [None, 0.75, 1.0]),
        (["c", "d", "h"], [None, 0.75, 0.0]),
    ]
    assert records[2].n_rollouts == [None, 4, None, 1] and records[2].n_correct == [None, 3, None, 1]
    assert records[2].n_unknown == [None, 0, None, 0] and records[2].truth is None
    assert {r.strategy for r in records} == {"omegaprm"}


def test_labels_of_spans_are_what_mm_prm_trains():
    records = labels_of(forest(), problem(), paths(forest(), min_words=0, balance=False), spans=True)
    assert [(r.steps, r.mc_score) for r in records][2] == (["c\n\nd", "e\n\nf"], [0.75, 1.0])
    assert all(None not in r.mc_score for r in records)


def test_the_tokens_of_a_tree_are_carried_once():
    records = labels_of(forest(), problem(), paths(forest(), min_words=0))
    assert [r.n_generated_tokens for r in records] == [99, 0, 0, 0]


def test_without_rows_the_default_ones_are_taken():
    tree = forest()
    assert labels_of(tree, problem()) == [] == solutions_of(tree, problem())  # all texts are short
    tree.nodes += [node(0, f"{LONG} {LONG}", 0.0)]
    tree.nodes[-1].span = [" ".join([LONG] * 3)]
    [record] = labels_of(tree, problem())
    assert record.mc_score == [0.0] and record.n_generated_tokens == 99


def test_the_truth_is_of_steps_or_of_spans():
    def truth(problem, steps):
        return [{"c": 0, "d": 1, "e": 1, "f": -1}.get(step, 0) for step in steps]

    toy, rows = problem(scene={"family": "toy"}), paths(forest(), min_words=0, balance=False)
    assert labels_of(forest(), toy, rows, truth=truth)[2].truth == [0, 1, 1, -1]
    spans = labels_of(forest(), toy, rows, spans=True, truth=truth)
    assert spans[2].truth == [1, -1] and spans[0].truth == [0]  # a wrong step spoils its span, a right one makes it
    assert labels_of(forest(), toy, rows, truth=None)[2].truth is None
    assert labels_of(forest(), problem(), rows, truth=truth)[2].truth is None


def test_trees_of_the_embedded_world_bring_its_truth():
    [(drawn, _)] = world.draw(1, seed=3, choice_share=0.0)

    def script(request, sample, sampling):
        rng = random.Random(f"{request.seed_key} {sample}")
        written = world.corpus_solution(drawn, rng, slip=0.2, misconception=0.0)[len(request.prefix) :]
        return say("\n\n".join(written or [f"Answer: {drawn.answer}"]))

    [tree] = search([drawn], ToyGenerator(script), Options(length_scale=50, max_rollouts=160))
    rows = paths(tree, min_words=0)
    records = labels_of(tree, drawn, rows)
    assert records and all(r.truth == world.truth(drawn, r.steps) for r in records)
    for row, record in zip(rows, records, strict=True):  # here a prefix goes wrong only where a step is
        assert (-1 in record.truth) or row.positive


def test_rows_as_solutions():
    table = {"": ["a R", "b W", "c d W", "R"], "b": ["R", "R", "R", "W"], "c d": ["W"] * 4, "c": ["W"] * 4}
    tree, _ = grown(table)
    rows = paths(tree, min_words=0, balance=False)
    solutions, records = solutions_of(tree, problem(), rows, policy="toy", seed=7), labels_of(tree, problem(), rows)
    assert [(s.solution_id, s.steps) for s in solutions] == [(r.solution_id, r.steps) for r in records]
    found = {" ".join(s.steps): (s.verdict, s.answer, s.finish_reason) for s in solutions}
    assert found["a Answer: 12"] == ("correct", "12", "stop")
    assert found["b Answer: 13"] == ("wrong", "13", "stop")
    assert found["c d"] == ("unknown", None, "length")
    prefix = next(s for s in solutions if s.steps == ["c", "d"])
    assert prefix.reason == "a prefix, left where its mc_score is 0" and (prefix.policy, prefix.seed) == ("toy", 7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_the_records_of_any_tree_agree_with_it_and_can_be_written(tmp_path_factory, seed, original, spans):
    options = replace(ORIGINAL if original else OPTIONS, n_rollouts=4, max_rollouts=60)
    [tree] = search([problem()], ToyGenerator(policy), options, Sampling(seed=seed))
    rows = paths(tree, min_words=0)
    records = labels_of(tree, problem(), rows, spans=spans)
    write_records(tmp_path_factory.mktemp("rows") / "labels.jsonl", records)
    assert len({r.solution_id for r in records}) == len(records) == len(rows)
    assert sum(r.n_generated_tokens for r in records) == (tree.n_generated_tokens if rows else 0)
    for row, record in zip(rows, records, strict=True):
        assert [m for m in record.mc_score if m is not None] == row.labels
        assert record.mc_score[-1] is not None and all(m > 0 for m in row.labels[:-1])
        assert row.positive == (row.labels[-1] > 0)
