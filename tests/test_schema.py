"""Records: what is refused, what survives a crash, what is named by its content."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mmprm_lib import schema
from mmprm_lib.schema import Critique, Problem, RecordLog, Scores, Solution, StepLabels, fingerprint

SHA = "0" * 64


def problem(**changes):
    values = {
        "problem_id": "p1",
        "question": "How high is bar B?",
        "image": "images/p1.png",
        "image_sha256": SHA,
        "answer": "12",
        "answer_type": "number",
        "source": "world",
        "split": "test",
    }
    return Problem(**{**values, **changes})


def labels(**changes):
    values = {
        "solution_id": "s1",
        "problem_id": "p1",
        "steps": ["a", "b", "c"],
        "n_rollouts": [16, 4, None],
        "n_correct": [12, 0, None],
        "n_unknown": [0, 4, None],
        "mc_score": [0.75, None, None],  # 12 / (16 - 0); 4 - 4 leaves nothing known; not sampled
        "strategy": "exhaustive",
        "n_generated_tokens": 10,
    }
    return StepLabels(**{**values, **changes})


def scores(name="s1", values=(0.25, 1.0)):
    return Scores(solution_id=name, prm="marker", step_scores=list(values))


def test_labels_keep_null_apart_from_zero(tmp_path):
    schema.write_records(tmp_path / "labels.jsonl", [labels()])
    assert '"mc_score":[0.75,null,null]' in (tmp_path / "labels.jsonl").read_text()
    assert schema.read_records(tmp_path / "labels.jsonl", StepLabels) == [labels()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mc_score": [0.5, None, None]}, r"step 0: mc_score 0.5 should be 12 / \(16 - 0\) = 0.75"),
        ({"mc_score": [0.75, 0.0, None]}, "step 1: mc_score 0.0 should be"),
        ({"n_correct": [17, 0, None], "mc_score": [1.0, None, None]}, "step 0: n_correct 17"),
        ({"n_correct": [12, 0, 0]}, "all three or none"),
        ({"n_rollouts": [16, 4]}, "n_rollouts has 2 entries for 3 steps"),
        ({"truth": [1]}, "truth has 1 entries for 3 steps"),
        ({"truth": [1, 1, 2]}, "truth"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        labels(**changes)


def test_a_ratio_without_counts_is_what_some_published_files_have():
    nothing = [None] * 3
    found = labels(n_rollouts=nothing, n_correct=nothing, n_unknown=nothing, mc_score=[0.5, 1.0, None])
    assert found.mc_score == [0.5, 1.0, None]


@pytest.mark.parametrize("image", ["../a.png", "/etc/passwd", "images/../../a.png", "", "a\0.png"])
def test_an_image_path_stays_below_its_folder(image):
    with pytest.raises(ValidationError):
        problem(image=image)


def test_image_path_starts_at_the_folder_of_the_records_and_no_link_leads_out(tmp_path):
    schema.write_records(tmp_path / "data" / "problems.jsonl", [problem(), problem(problem_id="p2", image="link.png")])
    found, linked = schema.read_records(tmp_path / "data" / "problems.jsonl", Problem)
    assert found.image_path == (tmp_path / "data" / "images" / "p1.png").resolve()
    assert found == problem()
    (tmp_path / "secret.png").write_bytes(b"x")
    os.symlink(tmp_path / "secret.png", tmp_path / "data" / "link.png")
    with pytest.raises(ValueError, match="leads out of"):
        _ = linked.image_path
    with pytest.raises(ValueError, match="has no folder yet"):
        _ = problem().image_path


@pytest.mark.parametrize(
    "changes", [{"answer": ""}, {"answer_type": "integer"}, {"extra": 1}, {"image_sha256": "abc"}, {"question": 3}]
)
def test_a_wrong_problem_is_refused(changes):
    with pytest.raises(ValidationError):
        problem(**changes)


def test_nothing_is_converted_silently_and_nothing_is_not_a_number():
    for wrong in ([True], ["0.5"], [1.5], [-0.1], [float("nan")]):
        with pytest.raises(ValidationError):
            scores(values=wrong)
    assert scores(values=[1]).step_scores == [1.0]


def test_a_solution_and_a_critique_hold_what_the_design_names():
    solution = Solution(
        solution_id="s", problem_id="p", steps=[], answer=None, verdict="unknown", policy="x", seed=0, n_tokens=0,
        finish_reason="length", reason="no answer found",
    )  # fmt: skip
    assert solution.record_id == "s"
    step = {"intent": "read", "image": "bar B", "logic": "", "verdict": "incorrect", "p_correct": 0.1}
    critique = Critique(solution_id="s", steps=[step], first_error=1, corrected_step="B is 12.", parse="ok")
    assert critique.steps[0].verdict == "incorrect"
    with pytest.raises(ValidationError, match="parse"):
        Critique(solution_id="s", steps=[], first_error=None, corrected_step=None, parse="failed")


def test_a_bad_line_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"solution_id": "a", "prm": "m", "step_scores": []}\n{"solution_id": "b", "step_scores": [2]}\n')
    with pytest.raises(ValueError, match=r"scores.jsonl:2: not a Scores record: prm: Field required; step_scores.0: "):
        schema.read_records(path, Scores)


def test_line_separators_inside_text_do_not_split_a_record(tmp_path):
    record = problem(question="a\u2028b\u0085c\nd\re")
    schema.write_records(tmp_path / "p.jsonl", [record])
    assert schema.read_records(tmp_path / "p.jsonl", Problem) == [record]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "scores.jsonl"
    schema.write_records(path, [scores("old")])

    def breaks():
        yield scores("new")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        schema.write_records(path, breaks())
    with pytest.raises(ValueError, match="two records have the id 'a'"):
        schema.write_records(path, [scores("a"), scores("a")])
    assert [record.solution_id for record in schema.read_records(path, Scores)] == ["old"]
    assert os.listdir(tmp_path) == ["scores.jsonl"]


def test_a_record_spoilt_after_its_checks_is_not_written(tmp_path):
    record = scores()
    record.step_scores.append(7.0)
    with pytest.raises(ValidationError):
        schema.write_records(tmp_path / "s.jsonl", [record])
    assert not (tmp_path / "s.jsonl").exists()


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(min_value=0, max_value=200))
def test_a_log_cut_at_any_byte_loses_at_most_the_line_in_flight(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "scores.jsonl"
    with RecordLog(path, Scores, "key") as log:
        for name in "abc":
            log.append(scores(name))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    expected = whole[:cut].count(b"\n")  # whole lines that are left
    with RecordLog(path, Scores, "key") as log:
        assert log.done == set("abc"[:expected])
        for name in "abc":
            if name not in log.done:
                log.append(scores(name))
    assert path.read_bytes() == whole


def test_a_last_line_of_garbage_is_cut_off_but_not_one_in_the_middle(tmp_path):
    path = tmp_path / "scores.jsonl"
    with RecordLog(path, Scores, "key") as log:
        log.append(scores("a"))
    good = path.read_bytes()
    path.write_bytes(good + b"\0\0\0\0\n")
    with RecordLog(path, Scores, "key") as log:
        assert log.done == {"a"} and path.read_bytes() == good
    path.write_bytes(b"\0\0\n" + good)
    with pytest.raises(ValueError, match="scores.jsonl:1"), RecordLog(path, Scores, "key"):
        pass


def test_records_of_two_keys_never_mix(tmp_path):
    path = tmp_path / "scores.jsonl"
    with RecordLog(path, Scores, "temperature-1.0") as log:
        log.append(scores())
    with (
        pytest.raises(ValueError, match="made under key temperature-1.0, this run has key temperature-0.7"),
        RecordLog(path, Scores, "temperature-0.7"),
    ):
        pass
    path.with_suffix(".key").unlink()
    with pytest.raises(ValueError, match="made under key None"), RecordLog(path, Scores, "temperature-1.0"):
        pass


def test_nothing_is_written_twice_or_of_another_kind(tmp_path):
    with RecordLog(tmp_path / "s.jsonl", Scores, "k") as log:
        log.append(scores("a"))
        with pytest.raises(ValueError, match="'a' is of another kind or already there"):
            log.append(scores("a"))
        with pytest.raises(ValueError, match="of another kind"):
            log.append(labels())
        assert log.records() == [scores("a")]
    with pytest.raises(RuntimeError, match="is not open"):
        log.append(scores("b"))


def test_two_writers_are_one_too_many(tmp_path):
    path = tmp_path / "s.jsonl"
    with (
        RecordLog(path, Scores, "k"),
        pytest.raises(RuntimeError, match="another process"),
        RecordLog(path, Scores, "k"),
    ):
        pass


def test_a_killed_process_loses_nothing_that_it_appended(tmp_path):
    path = tmp_path / "s.jsonl"
    code = (
        "import os, sys, signal\nfrom mmprm_lib.schema import RecordLog, Scores\n"
        "log = RecordLog(sys.argv[1], Scores, 'k').__enter__()\n"
        "for i in range(5): log.append(Scores(solution_id=str(i), prm='m', step_scores=[0.5]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(schema.__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, check=False)
    assert done.returncode == -9
    with RecordLog(path, Scores, "k") as log:
        assert log.done == {"0", "1", "2", "3", "4"}


def test_a_fingerprint_names_the_content():
    assert fingerprint({"a": 1, "b": [1.5]}) == fingerprint({"b": [1.5], "a": 1})
    # sha256 of '{"a":1}', the canonical JSON
    assert fingerprint({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:16]
    assert len({fingerprint(x) for x in (1, 1.0, "1", [1], True, None, {"a": 1}, problem(), scores())}) == 9
    assert fingerprint(problem()) != fingerprint(problem(answer="13"))
    assert fingerprint({2, 1}) == fingerprint({1, 2})
    for wrong in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            fingerprint(wrong)


def test_sha256_of_bytes_and_of_a_file_agree(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example of "abc"
    assert (
        schema.sha256_of(b"abc") == schema.sha256_of(tmp_path / "f") == schema.sha256_of(str(tmp_path / "f")) == known
    )
