"""Loading scorers, score files, the world's writers, thresholds and groups; models have random weights."""

import numpy as np
import pytest

from mmprm_lib import benchmark, evaluation, models, world
from mmprm_lib.benchmark import Benchmark
from mmprm_lib.schema import Scores, read_records
from mmprm_lib.steps import FORMATS
from tests.doubles import problem, solution


class ToyRun:
    """Keeps what a Run would record."""

    def __init__(self, folder):
        self.folder, self.models, self.external_paths = folder, {}, []

    def input(self, name):
        return self.folder / name

    def external(self, path):
        self.external_paths.append(path)
        return self.folder / path

    def model(self, name, fingerprint, revision=""):
        self.models[name] = fingerprint


class ToyScorer:
    """Scores every step by its length over 100; counts what it was asked."""

    name = "toy"

    def __init__(self, weights="w1", die_after=None):
        self.fingerprint, self.asked, self.die_after = weights, [], die_after

    def score_records(self, problems, solutions, chunk):
        for i, s in enumerate(solutions):
            if i == self.die_after:
                raise KeyboardInterrupt
            self.asked.append(s.solution_id)
            yield Scores(solution_id=s.solution_id, prm=self.name, step_scores=[len(x) / 100 for x in s.steps])


def bench_of(labels, n_problems=None):
    """A benchmark with one solution per list of labels, `n_problems` problems in turn (default: one each)."""
    n = n_problems or len(labels)
    problems = [problem(f"p{i}", source="even" if i % 2 == 0 else "odd") for i in range(n)]
    solutions = [
        solution(f"p{i % n}/s{i}", tuple(f"Bar A is {t}" for t in range(len(each))), policy="toy")
        for i, each in enumerate(labels)
    ]
    return Benchmark(problems, solutions, labels, [], [])


def test_locate_tells_outputs_folders_and_hub_ids_apart(tmp_path):
    run = ToyRun(tmp_path)
    assert evaluation.locate(run, "04_prm_training/marker") == tmp_path / "04_prm_training/marker"
    assert evaluation.locate(run, "embedded") == "embedded"
    assert evaluation.locate(run, "notebooks") == tmp_path / "notebooks"  # a folder that the project has
    assert evaluation.locate(run, "owner/name") == "owner/name"


@pytest.mark.parametrize(("name", "kind"), [("marker_hard", "marker"), ("chat_advantage", "chat_advantage"),
                                            ("chat_predicted", "chat"), ("judge", "judge")])  # fmt: skip
def test_an_untrained_model_is_read_in_the_format_of_the_name(tmp_path, monkeypatch, name, kind):
    processor = models.new_processor()
    model = models.new_base(0, width=32, layers=1, vision_layers=1, tokenizer=processor.tokenizer)
    monkeypatch.setattr(models, "load", lambda *args, **options: (model, processor))
    run = ToyRun(tmp_path)
    scorer = evaluation.load_scorer(run, name, "embedded", history="predicted")
    assert scorer.form == FORMATS[kind] and scorer.name == name and scorer.history == "predicted"
    assert run.models == {name: scorer.fingerprint}
    with pytest.raises(ValueError, match="name it after one of marker, orm"):
        evaluation.load_scorer(run, "other", "embedded")


def test_scores_go_on_after_a_kill_and_never_mix(tmp_path):
    problems, solutions = [problem("p0")], [solution(f"p0/s{i}") for i in range(3)]
    path = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluation.scores_to(path, ToyScorer(die_after=2), problems, solutions)
    again = ToyScorer()
    found = evaluation.scores_to(path, again, problems, solutions)
    assert again.asked == ["p0/s2"]
    assert found == {f"p0/s{i}": [0.03, 0.03, 0.1] for i in range(3)}  # one, two, Answer: 12: 3, 3 and 10 letters
    assert [r.solution_id for r in read_records(path, Scores)] == ["p0/s0", "p0/s1", "p0/s2"]
    with pytest.raises(ValueError, match="the parameters, the model or the data changed"):
        evaluation.scores_to(path, ToyScorer("w2"), problems, solutions)


def test_writers_err_at_their_rates_and_carry_their_name():
    problems = [p for p, _ in world.draw(40, 0, "test")]
    rates = dict(misconception=0.0, neutral=0.0)
    careful = evaluation.writer_solutions(problems, "careful", 1, 0, slip=0.0, **rates)
    sloppy = evaluation.writer_solutions(problems, "sloppy", 2, 0, slip=0.5, **rates)
    assert len(sloppy) == 80 and len({s.solution_id for s in sloppy + careful}) == 120
    assert {s.policy for s in sloppy} == {"sloppy"}
    wrong = [
        sum(-1 in labels for labels in evaluation.truths(problems, each)) / len(each) for each in (careful, sloppy)
    ]
    # a plain wording still meets the misconception in 3 % of the corpus
    assert wrong[0] < 0.2 < 0.6 < wrong[1]
    assert sloppy == evaluation.writer_solutions(problems, "sloppy", 2, 0, slip=0.5, **rates)
    assert sloppy != evaluation.writer_solutions(problems, "sloppy", 2, 1, slip=0.5, **rates)


def test_no_truth_outside_the_world():
    with pytest.raises(ValueError, match="set benchmark_path"):
        evaluation.writer_solutions([problem()], "w", 1, 0, slip=0.0, misconception=0.0, neutral=0.0)
    with pytest.raises(ValueError, match="set benchmark_path"):
        evaluation.truths([problem()], [solution()])


def test_divide_keeps_every_problem_whole():
    bench = bench_of([[1, -1]] * 40, n_problems=20)
    dev, reported = evaluation.divide(bench, 0.25, seed=0)
    assert len(dev.problems) == 5 and len(dev.solutions) == 10 and len(reported.solutions) == 30
    assert not {s.problem_id for s in dev.solutions} & {s.problem_id for s in reported.solutions}
    other = evaluation.divide(bench, 0.25, seed=1)[0]
    assert {p.problem_id for p in other.problems} != {p.problem_id for p in dev.problems}
    assert evaluation.divide(bench, 0.0, seed=0)[0].solutions == []
    assert [s.solution_id for s in evaluation.first(bench, 1).solutions] == ["p0/s0", "p0/s20"]


def test_thresholds_come_from_dev_and_are_half_where_nothing_can_be_chosen():
    dev = bench_of([[1, -1], [1, -1]])
    scores = {"m": {s.solution_id: [0.9, 0.7] for s in dev.solutions}}
    assert evaluation.thresholds(dev, scores) == {"m": pytest.approx(0.8)}  # midway between 0.7 and 0.9
    assert evaluation.thresholds(bench_of([[1], [1]]), {"m": {"p0/s0": [0.9], "p1/s1": [0.1]}}) == {"m": 0.5}


def test_compare_reports_both_thresholds():
    bench = bench_of([[1, -1], [1, -1], [1, 0]])
    scores = {"m": {s.solution_id: [0.9, 0.7] for s in bench.solutions}}
    table = evaluation.compare(bench, scores, {"m": 0.8}, 0, 100)
    best = evaluation.look_up(table, "macro_f1_pooled", scorer="m", threshold_from="dev")
    half = evaluation.look_up(table, "macro_f1_pooled", scorer="m", threshold_from="half")
    assert best["value"] == 1.0 and best["n"] == 5
    assert half["value"] == pytest.approx(0.375)  # all called right: F1 2 * 3 / (2 * 3 + 2) = 0.75, and 0
    with pytest.raises(ValueError, match="2 rows hold macro_f1_pooled"):
        evaluation.look_up(table, "macro_f1_pooled", scorer="m")


def test_a_stated_threshold_is_told_from_one_of_the_dev_part():
    bench = bench_of([[1, -1], [1, -1]])
    scores = {name: {s.solution_id: [0.9, 0.7] for s in bench.solutions} for name in ("m", "theirs")}
    formats = {"theirs": {"threshold": 0.85}, "m": {"labels": ["+", "-"]}, "other": {"threshold": 0.1}}
    chosen = evaluation.thresholds(bench, scores, formats)
    table = evaluation.compare(bench, scores, chosen, 0, 100, formats)
    found = table.drop_duplicates(["scorer", "threshold_from"])[["scorer", "threshold_from", "threshold"]]
    assert found.to_numpy().tolist() == [
        ["m", "dev", pytest.approx(0.8)], ["m", "half", 0.5], ["theirs", "stated", 0.85], ["theirs", "half", 0.5],
    ]  # fmt: skip
    assert set(evaluation.origins(scores, formats).values()) == set(evaluation.ORIGINS)


def test_the_difference_of_two_scorers_is_paired():
    bench = bench_of([[1, -1]] * 6)
    good = {s.solution_id: [0.9, 0.1] for s in bench.solutions}
    blind = {s.solution_id: [0.9, 0.9] for s in bench.solutions}
    gap = evaluation.f1_difference(bench, good, blind, (0.5, 0.5), 0, 200)
    # blind: F1 of right 2 * 6 / (12 + 6) = 2/3, of wrong 0
    assert gap.value == pytest.approx(1 - 1 / 3) and gap.n == 12 and gap.low == pytest.approx(gap.high)
    assert evaluation.f1_difference(bench, good, good, (0.5, 0.05), 0, 200).value > 0  # each at its own threshold


def test_step_table_and_groups():
    bench = bench_of([[1, -1], [1, 0]])
    scores = {"m": {s.solution_id: [0.9, 0.2] for s in bench.solutions}}
    steps = evaluation.step_table(bench, scores)
    assert steps["position"].tolist() == [1, 2, 1, 2] and steps["score_m"].tolist() == [0.9, 0.2, 0.9, 0.2]
    assert set(steps["kind"]) == {"read"} and set(steps["error"]) == {""}
    found = evaluation.by_group(steps, "source", {"m": 0.5}).set_index(["source", "metric"])
    assert found.loc[("even", "macro_f1"), "value"] == 1.0 and found.loc[("even", "share_wrong"), "value"] == 0.5
    assert np.isnan(found.loc[("odd", "auroc"), "value"]) and found.loc[("odd", "auroc"), "n"] == 1
    assert set(evaluation.by_group(steps, "source", {"m": 0.5}, min_steps=2)["source"]) == {"even"}
    assert evaluation.by_group(steps, "source", {"m": 0.1}).set_index(["source", "metric"]).loc[
        ("even", "macro_f1"), "value"
    ] == pytest.approx(1 / 3)  # nothing is below 0.1: F1 of right 2 / 3, of wrong 0
    assert evaluation.caught(steps, {"m": 0.5}).empty


def test_caught_counts_wrong_steps_by_their_reason():
    problems = [p for p, _ in world.draw(30, 0, "test")]
    solutions = evaluation.writer_solutions(problems, "w", 1, 0, slip=0.4, misconception=0.5, neutral=0.0)
    bench = Benchmark(problems, solutions, evaluation.truths(problems, solutions), [], [])
    scores = {"m": {s.solution_id: [0.1] * len(s.steps) for s in solutions}}
    steps = evaluation.step_table(bench, scores, {p.problem_id: p for p in problems})
    found = evaluation.caught(steps, {"m": 0.5})
    assert found["n"].sum() == sum(label == -1 for labels in bench.labels for label in labels)
    assert (found["value"] == 1.0).all() and set(found["error"]) <= {"intent", "image", "logic"}
    assert (evaluation.caught(steps, {"m": 0.05})["value"] == 0.0).all()


def test_telling_examples():
    bench = bench_of([[1, 1], [1, -1], [1, -1, -1]])
    scores = {"p0/s0": [0.9, 0.9], "p1/s1": [0.9, 0.1], "p2/s2": [0.9, 0.8, 0.95]}
    assert evaluation.telling(bench, scores, 0.5) == {"first mistake found": 1, "mistake believed": 2}
    assert evaluation.telling(bench_of([[1]]), {"p0/s0": [0.1]}, 0.5) == {}


def test_a_world_benchmark_survives_its_own_format(tmp_path):
    pairs = world.draw(6, 0, "test")
    problems = []
    for p, image in pairs:
        (tmp_path / "in" / "images").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "in" / p.image, "PNG", compress_level=1)
        p._root = tmp_path / "in"
        problems.append(p)
    solutions = evaluation.writer_solutions(problems, "w", 2, 0, slip=0.3, misconception=0.5, neutral=0.5)
    labels = evaluation.truths(problems, solutions)
    assert 0 in {x for line in labels for x in line}
    path = tmp_path / "out" / "benchmark.jsonl"
    benchmark.write_visualprocessbench(path, problems, solutions, labels)
    bench = benchmark.read_visualprocessbench(path, strict=True)
    assert bench.labels == labels and [s.steps for s in bench.solutions] == [s.steps for s in solutions]
    assert {s.policy for s in bench.solutions} == {"w"}
