"""What goes wrong while labels are made: kills, full disks, two writers, changed settings, generators that fail."""

import os
import random
import resource
import signal
import time
import tracemalloc
from pathlib import Path

import pytest

from mmprm_lib import adaptive, guards, mathcheck
from mmprm_lib.generation import Completion, Request, Sampling
from mmprm_lib.guards import IN_A_ROW, Guarded, is_failure, judged
from mmprm_lib.labeling import Options, labels_to, relabel, resample, solutions_to, unknown_reasons
from mmprm_lib.labeling_files import Records
from mmprm_lib.schema import Solution, StepLabels, read_records
from tests.doubles import ToyGenerator, coin_policy, problem, say, solution

WAYS = {
    "exhaustive": Options(n_rollouts=4),
    "apart": Options(n_rollouts=2, share_prefixes=False),
    "early_stop": Options(n_rollouts=2, early_stop=True),
    "adaptive": Options("adaptive", adaptive=adaptive.Options(target="soft", search="every", n_max=6, width=0.2)),
}
every_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
PROBLEMS = [problem(f"p{i}") for i in range(6)]


def walk(request, sample, sampling):
    """Solutions of three to four steps that differ; from every prefix the answer is right or wrong or missing."""
    draw = random.Random(f"{sampling.seed}|{request.seed_key}|{sample}")
    end = draw.choice(["Answer: 12", "Answer: 12", "Answer: 13", "hm"])
    steps = [draw.choice(["one", "two"]) for _ in range(draw.randrange(2, 4) - len(request.prefix))]
    return say("\n\n".join([*steps, end]))


class Faulty(ToyGenerator):
    """A ToyGenerator that does `fault(request, completions)` to the requests whose key `hits`; keeps the keys asked."""

    def __init__(self, fault=None, hits=lambda key: True, window=3):
        super().__init__(walk, window)
        self.fault, self.hits, self.keys = fault, hits, []

    def sample(self, requests, n, sampling):
        """As the double, with its faults."""
        for request, completions in super().sample(requests, n, sampling):
            self.keys.append(request.key)
            if self.fault and self.hits(request.key):
                yield from self.fault(request, completions)
            else:
                yield request, completions


def chain(folder: Path, options: Options, generator=None, again: bool = False) -> list[StepLabels]:
    """18 solutions of 6 problems and their labels; `again` redoes what had failed."""
    generator = generator or ToyGenerator(walk)
    sample, work = (resample, relabel) if again else (solutions_to, labels_to)
    solutions = sample(folder / "solutions.jsonl", PROBLEMS, generator, 3)
    return work(folder / "labels.jsonl", solutions, PROBLEMS, generator, options)


def files(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_child(work) -> int:
    """The process id of a child that does `work`; its exit status is 0, or 3 for a disk that is full, or 1."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except OSError as error:
            status = 3 if "free some space" in str(error) else 4
        finally:
            os._exit(status)  # nothing of the test runner may run twice
    return child


def ended(child: int) -> int:
    """How a child ended: its status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- kills


@pytest.mark.parametrize("options, n_kills", [(WAYS[way], 50 if way == "exhaustive" else 12) for way in WAYS], ids=WAYS)
def test_killed_at_fifty_random_moments_the_files_are_those_of_an_undisturbed_run(tmp_path, options, n_kills):
    started = time.monotonic()
    chain(tmp_path / "whole", options)
    seconds = time.monotonic() - started
    rng, n_killed, n = random.Random(0), 0, 0
    while n_killed < n_kills:
        folder = tmp_path / f"killed{n}"
        child = in_child(lambda: chain(folder, options))  # noqa: B023 - it runs at once
        time.sleep(rng.uniform(0, 0.7 * seconds))
        os.kill(child, signal.SIGKILL)
        status = ended(child)
        assert status in (0, -signal.SIGKILL)
        n_killed += status != 0
        if (
            status == 0 or n_killed == n_kills or rng.random() < 0.15
        ):  # else the next run goes on, and is killed in its turn
            chain(folder, options)
            assert files(folder) == files(tmp_path / "whole")
            n += 1
    assert n >= 1


def test_a_killed_redoing_is_redone(tmp_path):
    options = WAYS["exhaustive"]
    whole = chain(tmp_path / "whole", options)
    failing = lambda: Faulty(fails, hits=lambda key: sum(key.encode()) % 4 == 0)  # noqa: E731
    chain(tmp_path / "failed", options, failing())
    rng = random.Random(1)
    for _ in range(12):
        child = in_child(lambda: chain(tmp_path / "failed", options, again=True))
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        ended(child)
        if rng.random() < 0.3:  # a run that does not redo goes on, too, with what it has
            solutions = solutions_to(tmp_path / "failed/solutions.jsonl", PROBLEMS, ToyGenerator(walk), 3)
            try:
                labels_to(tmp_path / "failed/labels.jsonl", solutions, PROBLEMS, ToyGenerator(walk), options)
            except ValueError as error:
                assert "holds records made under key" in str(error)  # noqa: PT017 - solutions were redone, labels not
    assert chain(tmp_path / "failed", options, again=True) == whole
    assert files(tmp_path / "failed") == files(tmp_path / "whole")


# -- disks, writers, torn lines


@every_way
def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(tmp_path, options):
    chain(tmp_path / "whole", options)
    most = max(len(data) for data in files(tmp_path / "whole").values())
    statuses = []
    for part in (0.1, 0.3, 0.6, 0.9):

        def cramped(limit=int(part * most)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            chain(tmp_path / "full", options)

        statuses.append(ended(in_child(cramped)))
        lines = [line for data in files(tmp_path / "full").values() for line in data.splitlines(True)]
        assert all(line.endswith(b"\n") for line in lines)
    assert set(statuses) == {3}
    chain(tmp_path / "full", options)
    assert files(tmp_path / "full") == files(tmp_path / "whole")


def test_a_disk_that_is_full_at_the_very_end_leaves_a_file_to_go_on_with(tmp_path, monkeypatch):
    whole = chain(tmp_path / "whole", WAYS["exhaustive"])

    def full(path, data):
        raise OSError(28, "No space left on device")

    solutions = solutions_to(tmp_path / "solutions.jsonl", PROBLEMS, ToyGenerator(walk), 3)
    monkeypatch.setattr("mmprm_lib.labeling_files.write_bytes", full)
    with pytest.raises(OSError, match=r"labels.jsonl was not put in order .*No space left.*; nothing is lost"):
        labels_to(tmp_path / "labels.jsonl", solutions, PROBLEMS, ToyGenerator(walk), WAYS["exhaustive"])
    monkeypatch.undo()
    generator = ToyGenerator(walk)
    assert labels_to(tmp_path / "labels.jsonl", solutions, PROBLEMS, generator, WAYS["exhaustive"]) == whole
    assert generator.n_given == 0


def test_two_runs_on_one_folder_are_one_and_a_refusal(tmp_path):
    options, seen = WAYS["exhaustive"], []

    class Nosy(ToyGenerator):
        def sample(self, requests, n, sampling):
            if not seen:  # a second run, begun while the first one samples
                for work in (solutions_to, resample):
                    with pytest.raises(RuntimeError, match="is being written by another process"):
                        work(tmp_path / "solutions.jsonl", PROBLEMS, ToyGenerator(walk), 3)
                seen.append("solutions")
            elif (tmp_path / "labels.jsonl").exists() and len(seen) == 1:
                solutions = read_records(tmp_path / "solutions.jsonl", Solution)
                for work in (labels_to, relabel):
                    with pytest.raises(RuntimeError, match="is being written by another process"):
                        work(tmp_path / "labels.jsonl", solutions, PROBLEMS, ToyGenerator(walk), options)
                seen.append("labels")
            yield from super().sample(requests, n, sampling)

    chain(tmp_path, options, Nosy(walk))
    assert seen == ["solutions", "labels"]
    chain(tmp_path / "whole", options)
    assert (
        files(tmp_path / "whole").items()
        <= {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}.items()
    )


@every_way
def test_a_broken_last_line_of_any_file_is_mended(tmp_path, options):
    chain(tmp_path / "whole", options)
    whole = files(tmp_path / "whole")
    for name in ("solutions.jsonl", "labels.jsonl", "labels.unknown.jsonl"):
        for keep in (1, len(whole[name]) // 2, len(whole[name]) - 1):
            for other, data in whole.items():
                (tmp_path / "whole" / other).write_bytes(data)
            (tmp_path / "whole" / name).write_bytes(whole[name][:keep])
            if name == "labels.unknown.jsonl":  # it says why labels are unknown, so the labels go with it
                (tmp_path / "whole/labels.jsonl").write_bytes(b"")
            chain(tmp_path / "whole", options)
            assert files(tmp_path / "whole") == whole


# -- changed settings


def attempt(folder, what, model="a", question="How many?", image="0" * 64, answer="12", truth=None, **sampling):
    """One small run under settings of which any may differ; `what` is the work of the last stage."""
    generator = ToyGenerator(walk)
    generator.fingerprint = model
    problems, drawn = [problem(question=question, image_sha256=image, answer=answer)], Sampling(**sampling)
    if what in (solutions_to, resample):
        return what(folder / "s.jsonl", problems, generator, 2, drawn)
    return what(folder / "l.jsonl", [solution()], problems, generator, WAYS["exhaustive"], drawn, truth)


CHANGES = {
    "model": "b", "question": "How few?", "image": "1" * 64, "answer": "13", "seed": 1, "temperature": 0.5,
    "top_p": 0.9, "top_k": 5, "max_new_tokens": 9, "stop": ("x",),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("what", [(solutions_to, resample), (labels_to, relabel)], ids=["solutions", "labels"])
def test_a_changed_setting_under_the_same_folder_is_refused(tmp_path, what, name):
    attempt(tmp_path, what[0])
    before = files(tmp_path)
    for work in what:
        attempt(tmp_path, work)  # nothing changed, nothing happens
        with pytest.raises(ValueError, match="holds records made under key .* or use another run_name"):
            attempt(tmp_path, work, **{name: CHANGES[name]})
    assert files(tmp_path) == before


def test_every_option_is_in_the_key_of_the_strategy_that_reads_it():
    changed = [Options(), Options(n_rollouts=3), Options(last_step="rollout"), Options(early_stop=True)]
    changed += [Options(share_prefixes=False), Options("adaptive")]
    changed += [Options("adaptive", adaptive=adaptive.Options(n_max=5))]
    assert len({str(options.shaping()) for options in changed}) == len(changed)
    assert Options(adaptive=adaptive.Options(n_max=5)).shaping() == Options().shaping()
    assert Options("adaptive", n_rollouts=3).shaping() == Options("adaptive").shaping()


def test_a_run_that_wrote_nothing_yet_binds_nobody(tmp_path):
    (tmp_path / "l.jsonl").write_bytes(b"")
    (tmp_path / "l.key").write_text("of another setting\n")
    assert len(attempt(tmp_path, labels_to)) == 1


# -- generators that fail


def fails(request, completions):
    """One rollout of the request comes back as an error."""
    yield request, [say("", "error", "TimeoutError: 5 s"), *completions[1:]]


def raises(request, completions):
    """The stream breaks, with all that is in flight."""
    raise TimeoutError("the server is silent")
    yield


def silent(request, completions):
    """The request never comes back."""
    return iter(())


def too_few(request, completions):
    """One completion is missing."""
    yield request, completions[:-1]


def no_list(request, completions):
    """Not even a list."""
    yield request, None


def garbage(request, completions):
    """What is no completion, one kind per sample."""
    kinds = [None, Completion(None, 1, "stop"), Completion("\ud800", 1, "stop"), Completion("x", -1, "stop")]
    yield request, [kinds[i % 4] for i in range(len(completions))]


FAULTS = [fails, raises, silent, too_few, no_list, garbage]


@every_way
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_request_costs_itself_alone_and_is_redone_alone(tmp_path, options, fault):
    whole = chain(tmp_path / "whole", options)
    solutions = solutions_to(tmp_path / "failed/solutions.jsonl", PROBLEMS, ToyGenerator(walk), 3)
    asked = Faulty()
    labels_to(tmp_path / "asked/labels.jsonl", solutions, PROBLEMS, asked, options)
    struck = {next(key for key in asked.keys if key.startswith(name)) for name in ("p1/", "p4/")}

    generator = Faulty(fault, hits=lambda key: key in struck)
    path = tmp_path / "failed/labels.jsonl"
    labels = labels_to(path, solutions, PROBLEMS, generator, options)
    differ = {a.problem_id for a, b in zip(labels, whole, strict=True) if a != b}
    assert differ <= {"p1", "p4"} and len(differ) >= 1
    n_before = sum(unknown_reasons(tmp_path / "whole/labels.jsonl").values())
    assert sum(unknown_reasons(path).values()) > n_before or options.strategy == "adaptive"

    mended = Faulty()
    assert relabel(path, solutions, PROBLEMS, mended, options) == whole
    assert files(tmp_path / "failed") == files(tmp_path / "whole")
    if not options.early_stop and options.strategy == "exhaustive":
        assert set(mended.keys) == struck  # the others are remembered
    assert len(mended.keys) < len(asked.keys) / 2


def test_failed_rollouts_are_unknown_and_counted(tmp_path):
    solutions = [solution("p0/s0"), solution("p1/s0")]
    right = ToyGenerator(lambda *_: say("Answer: 12"))

    class Breaks(Faulty):
        pass

    generator = Breaks(raises, hits=lambda key: key.startswith("p0"))
    generator.script = right.script
    records = labels_to(tmp_path / "l.jsonl", solutions, PROBLEMS, generator, Options(n_rollouts=4))
    assert records[0].n_unknown == [4, 4, 0] and records[0].mc_score == [None, None, 1.0]
    assert records[1].n_unknown == [0, 0, 0] and records[1].mc_score == [1.0, 1.0, 1.0]
    assert unknown_reasons(tmp_path / "l.jsonl") == {"TimeoutError: the server is silent": 8}  # 2 requests of 4
    assert unknown_reasons(tmp_path / "nothing.jsonl") == {}
    # a failure that stays: the same file again, and the same two requests
    before, again = files(tmp_path), Breaks(raises, hits=lambda key: key.startswith("p0"))
    relabel(tmp_path / "l.jsonl", solutions, PROBLEMS, again, Options(n_rollouts=4))
    assert files(tmp_path) == before and {key.split("/")[0] for key in again.keys} == {"p0"}


@every_way
def test_solutions_that_failed_are_drawn_again_and_their_labels_made(tmp_path, options):
    whole = chain(tmp_path / "whole", options)
    generator = Faulty(fails, hits=lambda key: key == "p2")
    labels = chain(tmp_path / "failed", options, generator)
    assert labels[6].steps == [] and labels[6].solution_id == "p2/s0"
    assert read_records(tmp_path / "failed/solutions.jsonl", Solution)[6].finish_reason == "error"
    mended = Faulty()
    assert chain(tmp_path / "failed", options, mended, again=True) == whole
    assert files(tmp_path / "failed") == files(tmp_path / "whole")
    assert {key.split("/")[0] for key in mended.keys} == {"p2"} and mended.keys.count("p2") == 1


def test_solutions_may_be_redone_before_their_labels_are_finished(tmp_path):
    options = WAYS["exhaustive"]
    chain(tmp_path / "whole", options)

    def begin():
        solutions = solutions_to(tmp_path / "s" / "solutions.jsonl", PROBLEMS, Faulty(fails, lambda k: k == "p5"), 3)
        labels_to(tmp_path / "s" / "labels.jsonl", solutions, PROBLEMS, ToyGenerator(walk, 3, 12), options)

    assert ended(in_child(begin)) == -signal.SIGKILL  # before the problem of the failed solution is reached
    assert 0 < len(read_records(tmp_path / "s/labels.jsonl", StepLabels)) < 18
    chain(tmp_path / "s", options, again=True)
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_redoing_with_other_settings_or_other_solutions_is_refused(tmp_path):
    options = WAYS["exhaustive"]
    chain(tmp_path, options, Faulty(fails, hits=lambda key: key in ("p2", "p3")))
    solutions = resample(tmp_path / "solutions.jsonl", PROBLEMS, ToyGenerator(walk), 3)
    other = [s if s.solution_id != "p0/s0" else solution(steps=("won", "Answer: 12")) for s in solutions]
    before = files(tmp_path)
    for args in ((other, options), (solutions, Options(n_rollouts=5))):
        with pytest.raises(ValueError, match="holds records made under key"):
            relabel(tmp_path / "labels.jsonl", args[0], PROBLEMS, ToyGenerator(walk), args[1])
    assert files(tmp_path) == before


def test_what_is_remembered_of_other_settings_is_never_used(tmp_path):
    options, path = WAYS["exhaustive"], tmp_path / "labels.jsonl"
    chain(tmp_path, options, Faulty(fails))
    path.unlink()  # as the refusal of a changed setting advises
    path.with_suffix(".key").unlink()
    solutions = [solution("p0/s0"), solution("p1/s0")]
    other = ToyGenerator(lambda *_: say("Answer: 12"))
    other.fingerprint = "other-weights"
    for work in (labels_to, relabel):
        path.unlink(missing_ok=True)
        path.with_suffix(".key").unlink(missing_ok=True)
        records = work(path, solutions, PROBLEMS, other, options)
        assert [r.mc_score for r in records] == [[1.0, 1.0, 1.0]] * 2
        chain(tmp_path / "more", options, Faulty(fails))
        for name in ("labels.unknown.jsonl", "labels.unknown.key"):
            (tmp_path / "more" / name).replace(tmp_path / name)


def test_special_tokens_and_hostile_texts_are_texts(tmp_path):
    texts = ["<image><|im_end|>", "\0\u2028\r\n", "Answer: \\boxed{\\frac{", "<prm> Answer: 12", '{"a": "\\', "(" * 999]
    generator = ToyGenerator(lambda request, i, s: say(texts[i] if request.prefix else texts[i] + "\n\nAnswer: 12"))
    solutions = solutions_to(tmp_path / "s.jsonl", [problem()], generator, len(texts))
    assert [s.steps[0].strip("\r\n") for s in solutions] == [text.strip("\r\n") for text in texts]
    labels = labels_to(tmp_path / "l.jsonl", solutions, [problem()], generator, Options(n_rollouts=len(texts)))
    assert read_records(tmp_path / "l.jsonl", StepLabels) == labels
    assert all(sum(r.n_rollouts) >= 6 for r in labels)


def test_a_checker_that_raises_is_unknown_and_redone(tmp_path, monkeypatch):
    options = WAYS["exhaustive"]
    whole = chain(tmp_path / "whole", options)
    true_judge = guards.judge

    def breaks(problem, prefix, completion):
        if problem.problem_id == "p3":
            raise RecursionError("too deep")
        return true_judge(problem, prefix, completion)

    monkeypatch.setattr(guards, "judge", breaks)
    labels = chain(tmp_path / "failed", options)
    assert {a.problem_id for a, b in zip(labels, whole, strict=True) if a != b} == {"p3"}
    assert unknown_reasons(tmp_path / "failed/labels.jsonl")["the checker failed: RecursionError: too deep"] > 0
    monkeypatch.undo()
    assert chain(tmp_path / "failed", options, again=True) == whole
    assert files(tmp_path / "failed") == files(tmp_path / "whole")


def test_a_checker_that_does_not_start_is_a_failure_and_not_an_answer(monkeypatch):
    mathcheck._stop()
    monkeypatch.setattr(mathcheck.sys, "executable", "/bin/false")
    asked = problem(answer="x^2+\\pi", answer_type="expression")
    found = judged(asked, (), say("Answer: \\pi+x^2+0"))
    assert found.label == "unknown" and is_failure(found.reason, "stop"), found
    assert not is_failure(judged(asked, (), say("We look at it, and wait.")).reason, "stop")


def test_a_broken_generator_is_told_from_broken_requests(tmp_path):
    options, problems = Options(n_rollouts=2), [problem(f"p{i}") for i in range(3 * IN_A_ROW)]
    solutions = [solution(f"p{i}/s0") for i in range(3 * IN_A_ROW)]
    dead = Faulty(raises, hits=lambda key: int(key.split("/")[0][1:]) >= IN_A_ROW)
    with pytest.raises(RuntimeError, match=f"failed for {IN_A_ROW} requests in a row, last with TimeoutError: the s"):
        labels_to(tmp_path / "l.jsonl", solutions, problems, dead, options)
    done = read_records(tmp_path / "l.jsonl", StepLabels)
    assert IN_A_ROW - 3 <= len(done) <= IN_A_ROW  # what was finished is kept, and nothing is told as failed
    labels_to(tmp_path / "l.jsonl", solutions, problems, ToyGenerator(walk), options)
    labels_to(tmp_path / "whole/l.jsonl", solutions, problems, ToyGenerator(walk), options)
    assert (tmp_path / "l.jsonl").read_bytes() == (tmp_path / "whole/l.jsonl").read_bytes()
    assert "TimeoutError" not in str(unknown_reasons(tmp_path / "l.jsonl"))


def test_a_server_that_is_gone_ends_a_run_at_once_and_nothing_is_told_as_failed(tmp_path):
    def gone(request, completions):
        raise ConnectionError("no server")
        yield

    problems = [problem(f"p{i}") for i in range(9)]
    dead = Faulty(gone, hits=lambda key: key == "p3", window=1)
    with pytest.raises(ConnectionError, match="no server"):
        solutions_to(tmp_path / "s.jsonl", problems, dead, 2)
    assert [s.solution_id for s in read_records(tmp_path / "s.jsonl", Solution)] == [
        f"p{i}/s{j}" for i in range(3) for j in range(2)
    ]
    assert dead.keys == ["p0", "p1", "p2", "p3"]


def test_guards_let_through_what_is_no_requests_fault():
    requests = [Request(problem(), key=str(i)) for i in range(5)]

    def source():
        yield from requests[:3]
        raise KeyError("no such problem")

    with pytest.raises(KeyError, match="no such problem"):
        list(Guarded(Faulty()).sample(source(), 1, Sampling()))

    class Refuses(ToyGenerator):
        def sample(self, requests, n, sampling):
            raise ValueError(f"n is {n}")

    with pytest.raises(ValueError, match="n is 0"):
        list(Guarded(Refuses(walk)).sample(requests, 0, Sampling()))

    class Idle(ToyGenerator):
        def sample(self, requests, n, sampling):
            return iter(())

    with pytest.raises(RuntimeError, match="stops without reading its requests"):
        list(Guarded(Idle(walk)).sample(requests, 1, Sampling()))


def test_guards_give_every_request_once():
    requests = [Request(problem(), key=str(i)) for i in range(20)]

    def twice(request, completions):
        yield request, completions
        yield request, completions
        yield Request(problem(), key="stranger"), completions

    for fault in (twice, raises, silent):
        generator = Faulty(fault, hits=lambda key: int(key) % 7 == 3, window=6)
        given = {}
        for request, completions in Guarded(generator).sample(iter(requests), 2, Sampling()):
            assert request.key not in given and len(completions) == 2
            given[request.key] = completions
        assert sorted(given, key=int) == [r.key for r in requests]
        wrong = {key for key, completions in given.items() if completions[0].finish_reason == "error"}
        assert wrong == (set() if fault is twice else {"3", "10", "17"})


def test_a_guarded_generator_is_the_generator_to_those_who_ask_its_name():
    generator = ToyGenerator(walk)
    guarded = Guarded(generator)
    list(guarded.sample([Request(problem(), key="a")], 2, Sampling()))
    assert (guarded.name, guarded.fingerprint) == (generator.name, generator.fingerprint)
    assert guarded.n_generated_tokens == generator.n_generated_tokens > 0


# -- memory


class Wordy(ToyGenerator):
    """Solutions and rollouts of some kilobytes."""

    def __init__(self):
        super().__init__(lambda request, i, sampling: say(("w" * 4000 + "\n\n") * 2 + "Answer: 12"), 16)


def peak_of(folder: Path, n: int, n_rollouts: int = 2) -> int:
    """The most bytes that labeling of n solutions held at once, beside its inputs; the first call warms up."""
    problems = [problem(f"p{i}") for i in range(n // 2)]
    tracemalloc.start()
    try:
        solutions = solutions_to(folder / "s.jsonl", problems, Wordy(), 2, keep=False)
        labels = labels_to(folder / "l.jsonl", solutions, problems, Wordy(), Options(n_rollouts=n_rollouts), keep=False)
        assert isinstance(labels, Records) and len(labels) == n and labels[n - 1].mc_score == [1.0] * 3
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_ids_and_not_with_records(tmp_path):
    peak_of(tmp_path / "warm", 60)
    few, many = peak_of(tmp_path / "few", 100), peak_of(tmp_path / "many", 600)
    # a solution and its labels are 8 kB each; its id, its place, and its problem's are some hundred bytes
    assert (many - few) / 500 < 1500, (few, many)


@pytest.mark.slow
def test_a_hundred_thousand_solutions_hold_memory_flat(tmp_path):
    few = rss_growth(tmp_path / "few", 10_000)
    many = rss_growth(tmp_path / "many", 100_000)
    assert (many - few) / 90_000 < 1500, (few, many)  # bytes per solution


def rss_growth(folder: Path, n: int) -> int:
    """How many bytes the resident memory of a fresh process had grown by at its highest, labelling n solutions."""
    found = folder.with_suffix(".txt")

    def work():
        problems = [problem(f"p{i}") for i in range(n // 4)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        generator = ToyGenerator(coin_policy, 64)
        solutions = solutions_to(folder / "s.jsonl", problems, generator, 4, keep=False)
        labels_to(folder / "l.jsonl", solutions, problems, generator, Options(n_rollouts=4), keep=False)
        found.write_text(str(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))

    assert ended(in_child(work)) == 0
    return int(found.read_text())
