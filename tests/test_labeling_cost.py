"""What labels cost and what they are worth: hand cases."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from mmprm_lib import data, labeling_cost, labeling_value, world
from mmprm_lib.benchmark import Benchmark
from mmprm_lib.generation import Sampling
from mmprm_lib.labeling_cost import LabelSet
from mmprm_lib.schema import Solution, StepLabels

from .doubles import ToyGenerator, coin_policy, problem, say


def labels(name: str, mc: list[float | None], n: int = 4, steps: list[str] | None = None, n_tokens: int = 40, **fields):
    """Labels of a solution `<problem>/s<i>` from rates of n rollouts."""
    counts = [None if m is None else round(m * n) for m in mc]
    return StepLabels(
        solution_id=name, problem_id=name.split("/")[0], steps=steps or [f"step {t}" for t in range(len(mc))],
        n_rollouts=[None if m is None else n for m in mc], n_correct=counts,
        n_unknown=[None if m is None else 0 for m in mc], mc_score=mc, strategy="exhaustive",
        n_generated_tokens=n_tokens, **fields,
    )  # fmt: skip


def test_prefixes_are_named_once_and_last_steps_left_out():
    first = labels("p0/s0", [1.0, 0.5, 0.0], steps=["a", "b", "c"])
    second = labels("p0/s1", [1.0, None, 0.0], steps=["a", "d", "e"])
    found = labeling_cost.prefixes([first, second])
    assert list(found.values()) == [("p0", ("a",)), ("p0", ("a", "b"))]  # "a" once, "a d" has no label


def test_the_reference_counts_every_rollout_and_leaves_out_what_nobody_could_judge(tmp_path):
    def script(request, i, sampling):
        text = {"a": "Answer: 12" if i < 3 else "Answer: 13", "b": ""}[request.prefix[-1]]
        return say(text)

    wanted = {"x": ("p0", ("a",)), "y": ("p0", ("a", "b"))}
    path = tmp_path / "reference.jsonl"
    rates = labeling_cost.reference_to(path, wanted, [problem()], ToyGenerator(script), 8, Sampling())
    assert rates == {"x": 3 / 8}
    generator = ToyGenerator(script)
    assert labeling_cost.reference_to(path, wanted, [problem()], generator, 8, Sampling()) == rates
    assert generator.n_given == 0  # all of it was in the file
    with pytest.raises(ValueError, match="holds records made under key"):
        labeling_cost.reference_to(path, wanted, [problem()], generator, 4, Sampling())


def test_thinned_labels_follow_the_hypergeometric_law_and_share_draws():
    steps = ["same", "other"]
    records = [labels(f"p{i}/s0", [0.25, 1.0], n=8, steps=steps) for i in range(400)]
    drawn = [r.mc_score[0] * 2 for r in labeling_cost.thinned(records, 2)]
    expected = hypergeom.pmf([0, 1, 2], 8, 2, 2)  # 15/28, 12/28, 1/28
    assert np.allclose(np.bincount(np.array(drawn, int), minlength=3) / 400, expected, atol=0.08)
    pair = labeling_cost.thinned([labels("p0/s0", [0.5, 1.0], 8, steps), labels("p0/s1", [0.5, 0.5], 8, steps)], 3)
    assert pair[0].mc_score == pair[1].mc_score  # equal prefixes: the first of them draws
    assert [r.n_generated_tokens for r in pair] == [15, 15]  # 40 x 3 / 8


def test_thinned_labels_depend_on_the_seed_and_keep_what_was_not_sampled():
    records = [labels(f"p{i}/s0", [0.5, None, 1.0], n=8) for i in range(20)]
    by_seed = [[r.mc_score[0] for r in labeling_cost.thinned(records, 2, seed)] for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    assert all(r.mc_score[1] is None and r.n_rollouts[1] is None for r in labeling_cost.thinned(records, 2))
    with pytest.raises(ValueError, match="k is 9"):
        labeling_cost.thinned(records, 9)


def test_only_last_steps_that_a_verdict_settled_are_left_out():
    solved = labels("p0/s0", [1.0, 1.0], n=1)  # its last step: one rollout, its own verdict
    path = labels("p0/o0", [1.0, 0.0], n=16)  # a tree's path ends where nothing succeeded any more
    frame = labeling_cost.step_rows([solved, path], [problem()], {}, 0.1)
    assert frame[["solution_id", "place"]].values.tolist() == [["p0/s0", 1], ["p0/o0", 1], ["p0/o0", 2]]


def rows(mc: list[list[float | None]], truth: list[list[int]], reference: float = 0.5, floor: float = 0.1):
    """Rows of one-solution problems; every prefix has the same reference rate."""
    records = [labels(f"p{i}/s0", m, truth=t) for i, (m, t) in enumerate(zip(mc, truth, strict=True))]
    for record in records:  # the last step has its verdict
        record.n_rollouts[-1], record.n_correct[-1] = 1, int(record.mc_score[-1])
    problems = [problem(f"p{i}") for i in range(len(mc))]
    rates = dict.fromkeys(labeling_cost.prefixes(records), reference)
    return labeling_cost.step_rows(records, problems, rates, floor)


def test_quality_by_hand():
    # without last steps: scores 1, 0.25 | 0, - ; truths right, wrong | wrong, right
    frame = rows([[1.0, 0.25, 1.0], [0.0, None, 1.0]], [[1, -1, 1], [-1, 1, 1]])
    found = labeling_cost.quality(frame).set_index(["against", "metric"])["value"]
    assert found["all steps", "labelled"] == 3 / 4
    # hard labels 1, 1, 0 against 1, 0, 0: F1 of right 2/3, of wrong 2/3
    assert found["step truth", "macro_f1"] == pytest.approx(2 / 3)
    assert found["step truth", "auroc"] == 1.0
    # against a rate of 0.5: squares 0.25, 0.0625, 0.25
    assert found["reference", "rmse"] == pytest.approx((0.5625 / 3) ** 0.5)
    higher = labeling_cost.quality(frame, threshold=0.5).set_index(["against", "metric"])["value"]
    assert higher["step truth", "macro_f1"] == 1.0


def test_the_floor_says_what_the_reference_calls_right():
    frame = rows([[1.0, 0.25, 1.0]], [[1, 1, 1]], reference=0.05, floor=0.1)
    assert frame["reference_right"].tolist() == [False, False]
    assert rows([[1.0, 0.25, 1.0]], [[1, 1, 1]], reference=0.05, floor=0.01)["reference_right"].tolist() == [True] * 2


def test_the_gap_of_two_labelings_is_paired_on_the_steps_that_both_label():
    truth = [[1, -1, 1]] * 6
    good, bad = rows([[1.0, 0.0, 1.0]] * 6, truth), rows([[1.0, 1.0, 1.0]] * 6, truth)
    # good: macro F1 1; bad: F1 of right 2/3 (precision 1/2), of wrong 0, so 1/3
    gap = labeling_cost.f1_gap(good, bad, "step truth")
    assert gap.value == pytest.approx(2 / 3) and gap.n == 12
    with pytest.raises(ValueError, match="no labelled step in common"):
        labeling_cost.f1_gap(good, rows([[None, None, 1.0]] * 6, truth), "step truth")


def test_a_budget_buys_whole_problems():
    records = [labels(f"p{i}/s{j}", [1.0], n_tokens=10) for i in range(3) for j in range(2)]
    # each problem: 2 x 10 for labels and 5 for its solutions, so 50 tokens buy two
    bought = labeling_value.affordable(records, {f"p{i}": 5 for i in range(3)}, 50)
    assert [r.solution_id for r in bought] == ["p0/s0", "p0/s1", "p1/s0", "p1/s1"]
    assert labeling_value.affordable(records, {}, 19) == []


def test_seeds_are_averaged_with_their_range():
    frame = labeling_cost.quality(rows([[1.0, 0.0, 1.0]], [[1, -1, 1]]))
    frame = frame.assign(strategy="a", setting="1")
    two = [frame.assign(seed=s, n_tokens=t, value=v) for s, t, v in ((0, 10, 0.2), (1, 20, 0.4))]
    row = labeling_cost.over_seeds(pd.concat(two)).set_index("metric").loc["rmse"]
    assert (row["value"], row["low"], row["high"]) == (pytest.approx(0.3), 0.2, 0.4)
    assert (row["n_tokens"], row["n_seeds"]) == (15, 2)


def test_a_killed_reference_goes_on(tmp_path):
    wanted = {f"k{i}": ("p0", (f"s{i}",)) for i in range(9)}
    whole = labeling_cost.reference_to(
        tmp_path / "a.jsonl", wanted, [problem()], ToyGenerator(coin_policy), 4, Sampling()
    )
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:10])  # what a kill leaves
    (tmp_path / "b.key").write_bytes((tmp_path / "a.key").read_bytes())
    again = labeling_cost.reference_to(
        tmp_path / "b.jsonl", wanted, [problem()], ToyGenerator(coin_policy), 4, Sampling()
    )
    assert again == whole and (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_a_killed_run_trains_no_prm_twice(tmp_path, monkeypatch):
    made = data.from_world({"test": 4}, 0, tmp_path)
    steps = {p.problem_id: world.solve(p) for p in made}
    records = [labels(f"{p.problem_id}/s0", [1.0] * len(steps[p.problem_id]), steps=steps[p.problem_id]) for p in made]
    solutions = [
        Solution(solution_id=r.solution_id, problem_id=r.problem_id, steps=r.steps, answer=None, verdict="unknown",
                 policy="hand", seed=0, n_tokens=1, finish_reason="stop")
        for r in records
    ]  # fmt: skip
    truths = [[1] * (len(s.steps) - 1) + [-1] for s in solutions]
    bench = Benchmark(made, solutions, truths, [], [])
    settings = dict(
        start="embedded", n_updates=1, learning_rate=1e-4, batch_size=4, bf16=False, pack_size=1, threshold=0.0,
        dev_share=0.5, seed=0,
    )  # fmt: skip
    first = labeling_value.trained_on(LabelSet(records, 4), made, bench, tmp_path / "prm", **settings)
    assert {"macro_f1_pooled", "auroc"} <= set(first["metric"])
    monkeypatch.setattr(labeling_value.prm, "train", None)  # a second training would fail
    again = labeling_value.trained_on(LabelSet(records, 4), made, bench, tmp_path / "prm", **settings)
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(TypeError, match="NoneType"):  # another seed is another PRM
        labeling_value.trained_on(LabelSet(records, 4), made, bench, tmp_path / "prm", **settings | {"seed": 1})
