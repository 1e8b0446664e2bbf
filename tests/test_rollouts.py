"""Many searches on one generator: who asks what, who is answered, and how many go on at once."""

from itertools import islice

import pytest

from mmprm_lib.generation import Request, Sampling
from mmprm_lib.rollouts import Ask, judge, mc_score, run_jobs
from tests.doubles import ToyGenerator, coin_policy, problem, say

SAMPLING = Sampling()


def echo(request, sample, sampling):
    return say(f"{request.key} {sample}")


def asking(name, *numbers):
    """A job that asks for so many samples, one request after the other, and returns all texts."""
    texts = []
    for turn, n in enumerate(numbers):
        request = Request(problem(), key=f"{name}/{turn}")
        answers = yield [Ask(request, n)]
        assert list(answers) == [request.key]
        texts += [c.text for c in answers[request.key]]
    return name, texts


def texts(name, *numbers):
    return [f"{name}/{turn} {i}" for turn, n in enumerate(numbers) for i in range(n)]


def run(jobs, generator=None, at_once=512):
    return list(run_jobs(jobs, generator or ToyGenerator(echo), SAMPLING, at_once))


def test_every_job_gets_its_own_samples_and_as_many_as_it_asked_for():
    shapes = {f"j{i}": [1 + (i + turn) % 4 for turn in range(i % 5)] for i in range(60)}
    results = dict(run(asking(name, *numbers) for name, numbers in shapes.items()))
    assert results == {name: texts(name, *numbers) for name, numbers in shapes.items()}


def test_a_job_may_ask_several_things_at_once_with_different_n():
    def job():
        answers = yield [Ask(Request(problem(), key=name), n) for name, n in (("a", 3), ("b", 1), ("c", 3))]
        return {key: len(completions) for key, completions in answers.items()}

    assert run([job()]) == [{"a": 3, "b": 1, "c": 3}]


def test_a_job_goes_on_only_when_all_its_answers_are_there():
    def job():
        first = yield [Ask(Request(problem(), key=f"k{i}"), 1 + i % 2) for i in range(9)]
        second = yield [Ask(Request(problem(), key="k0"), 1)]  # an answered key is free again
        return sorted(first), sorted(second)

    assert run([job()]) == [([f"k{i}" for i in range(9)], ["k0"])]


def test_jobs_that_ask_nothing_end():
    def silent():
        return "silent"
        yield

    def empty():
        assert (yield []) == {}
        assert (yield []) == {}
        return "empty"

    generator = ToyGenerator(echo)
    results = run([silent(), empty(), asking("j", 2), silent()], generator)
    assert sorted(map(str, results)) == ["('j', ['j/0 0', 'j/0 1'])", "empty", "silent", "silent"]
    assert generator.n_given == 1
    assert run([]) == []


@pytest.mark.parametrize("keys", [["same", "same"], [""]])
def test_a_key_that_is_empty_or_in_use_is_refused(keys):
    def job(key):
        yield [Ask(Request(problem(), key=key), 1)]

    with pytest.raises(ValueError, match=f"request key '{keys[0]}' is empty or asked for twice"):
        run(job(key) for key in keys)


def test_a_key_that_one_job_asks_for_twice_is_refused():
    def job():
        yield [Ask(Request(problem(), key="k"), 1), Ask(Request(problem(), ("one",), "k"), 1)]

    with pytest.raises(ValueError, match="'k' is empty or asked for twice"):
        run([job()])


def walk(name):
    """A job whose next question depends on the last answer."""
    path = ()
    for _ in range(4):
        answers = yield [Ask(Request(problem(), path, f"{name}/{'/'.join(path)}"), 2)]
        path += tuple(c.text[-2:] for c in next(iter(answers.values())))
    return name, path


@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize("at_once", [1, 5, 512])
def test_the_order_and_the_company_change_no_result(window, at_once):
    names = [f"j{i}" for i in range(12)]
    alone = dict(run([walk(name)], ToyGenerator(coin_policy))[0] for name in names)
    together = run(map(walk, reversed(names)), ToyGenerator(coin_policy, window), at_once)
    assert len(together) == 12 and dict(together) == alone
    assert len(set(alone.values())) > 1


@pytest.mark.parametrize("at_once", [1, 4, 30])
def test_no_more_jobs_than_allowed_are_begun_and_not_done(at_once):
    begun, done, most = set(), set(), 0

    def job(name):
        nonlocal most
        begun.add(name)
        most = max(most, len(begun) - len(done))
        result = yield from asking(name, *[2] * (1 + name % 3))
        done.add(name)
        return result

    assert len(run((job(i) for i in range(40)), at_once=at_once)) == 40
    assert most == at_once


def test_jobs_are_begun_as_others_end():
    # 10^9 jobs: whoever begins them all does not come back
    generator = ToyGenerator(echo)
    endless = (asking(f"j{i}", 1, 1) for i in range(10**9))
    assert len(list(islice(run_jobs(endless, generator, SAMPLING, 8), 50))) == 50
    assert generator.n_given <= 2 * (50 + 8)


def test_jobs_that_ask_nothing_may_come_without_end():
    def silent(i):
        return i
        yield

    results = run_jobs((silent(i) for i in range(10**9)), ToyGenerator(echo), SAMPLING, 8)
    assert list(islice(results, 20)) == list(range(20))


def test_requests_that_come_meanwhile_join_the_running_batch():
    class Counting(ToyGenerator):
        n_calls = 0

        def sample(self, requests, n, sampling):
            self.n_calls += 1
            return super().sample(requests, n, sampling)

    generator = Counting(echo, window=8)
    run((asking(f"j{i}", *[3] * 10) for i in range(64)), generator)  # 640 requests that wait for one another
    assert generator.n_given == 640 and generator.n_calls <= 10


def test_an_error_inside_a_job_is_not_swallowed():
    def broken():
        yield [Ask(Request(problem(), key="k"), 1)]
        raise RuntimeError("the tree is broken")

    with pytest.raises(RuntimeError, match="the tree is broken"):
        run([broken()])


def test_a_request_that_the_generator_forgets_is_an_error_and_no_endless_wait():
    class Forgetful(ToyGenerator):
        def sample(self, requests, n, sampling):
            finished = super().sample(requests, n, sampling)
            return ((r, c) for r, c in finished if r.key != "j2/1")

    with pytest.raises(RuntimeError, match="no answer to request 'j2/1'"):
        run((asking(f"j{i}", 1, 1, 1) for i in range(5)), Forgetful(echo))


def test_at_least_one_job_must_run():
    with pytest.raises(ValueError, match="at_once is 0"):
        run([asking("j", 1)], at_once=0)


def test_failed_requests_come_back_as_failures():
    def job():
        answers = yield [Ask(Request(problem(), key="k"), 2)]
        return [judge(problem(), (), c) for c in answers["k"]]

    [verdicts] = run([job()], ToyGenerator(lambda *_: say("", "error", "no image")))
    assert [(v.label, v.reason) for v in verdicts] == [("unknown", "no image")] * 2


def test_score_by_hand():
    assert mc_score(16, 4) == 0.25  # 4 / 16
    assert mc_score(16, 4, 8) == 0.5  # 4 / (16 - 8)
    assert mc_score(3, 0, 3) is None and mc_score(0, 0) is None
