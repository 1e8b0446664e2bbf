"""A server as a back end of sampling: what is sent, what is made of what comes back, and that failures cost little."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from dataclasses import replace
from itertools import count, islice

import pytest

from mmprm_lib import data, models, protocol, served
from mmprm_lib.asking import Request
from mmprm_lib.decoding import ChoiceSampling, Sampling
from mmprm_lib.endpoint import Endpoint
from mmprm_lib.labeling import Options, labels_to, solutions_to
from mmprm_lib.schema import Solution, read_records
from mmprm_lib.served import ServedGenerator
from tests.servers import ChatServer, body, drop, status


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return data.from_world({"test": 4}, 0, tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(served, "PAUSE_S", 0.05)


def choices(*texts, tokens=None, total=None, finish="stop", delay=0.0):
    """An answer with these texts as choices; `tokens`: how many each has, as vLLM tells it."""
    found = []
    for i, text in enumerate(texts):
        own = {} if tokens is None else {"token_ids": [7] * tokens[i]}
        message = {"role": "assistant", "content": text}
        found.append({"index": i, "message": message, "finish_reason": finish} | own)
    usage = {"prompt_tokens": 5, "completion_tokens": sum(tokens) if total is None else total, "total_tokens": 0}
    return body(json.dumps({"choices": found, "usage": usage, "model": "toy-1"}).encode(), delay=delay)


def sampled(generator, requests, n=1, **options):
    """{key: completions} of what a generator made of requests."""
    found = list(generator.sample(requests, n, Sampling(**options)))
    assert len({request.key for request, _ in found}) == len(found)
    return {request.key: completions for request, completions in found}


def test_a_prefix_is_continued_inside_the_assistant_turn_and_the_image_is_sent_once(problems):
    with ChatServer([choices("a", "b", tokens=[3, 4])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        request = Request(problems[0], ("One.", "Two."), "k")
        found = sampled(generator, [request], n=2, temperature=0.7, top_k=5, max_new_tokens=9, stop=("\n\n",))
        [sent] = server.requests
    user, assistant = sent["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"] and user["role"] == "user"
    picture = base64.b64decode(user["content"][0]["image_url"]["url"].partition(",")[2])
    assert picture.startswith(b"\x89PNG") and problems[0].question in user["content"][1]["text"]
    assert assistant == {"role": "assistant", "content": "One.\n\nTwo.\n\n"}
    assert sent["add_generation_prompt"] is False and sent["continue_final_message"] and sent["return_token_ids"]
    assert (sent["n"], sent["temperature"], sent["top_k"], sent["max_tokens"], sent["stop"]) == (2, 0.7, 5, 9, ["\n\n"])
    assert [(c.text, c.n_tokens, c.finish_reason) for c in found["k"]] == [("a", 3, "stop"), ("b", 4, "stop")]
    assert generator.n_generated_tokens == 7 and generator.endpoint.usage.n_completion_tokens == 7


def test_a_request_without_a_prefix_asks_for_an_open_turn(problems):
    with ChatServer([choices("a", tokens=[1])]) as server:
        sampled(ServedGenerator(Endpoint(server.url, "toy")), [Request(problems[0], (), "k")])
        [sent] = server.requests
    assert len(sent["messages"]) == 1 and "continue_final_message" not in sent


def test_the_seed_hangs_on_the_sampling_and_the_key(problems):
    with ChatServer([choices("a", tokens=[1])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_concurrency=1))
        for key, seed in (("k", 0), ("k", 0), ("k", 1), ("l", 0)):
            sampled(generator, [Request(problems[0], (), key)], seed=seed)
        seeds = [sent["seed"] for sent in server.requests]
    assert seeds[0] == seeds[1] and len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_greedy_samples_are_asked_for_once(problems):
    with ChatServer([choices("a", tokens=[2])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        found = sampled(generator, [Request(problems[0], (), "k")], n=3, temperature=0.0)
        assert "n" not in server.requests[0] and [c.text for c in found["k"]] == ["a"] * 3


@pytest.mark.parametrize("known", [True, False])
def test_text_that_spells_a_special_token_is_sent_as_text(problems, known):
    request = Request(problems[0], ("<image> <|im_end|>",), "k", instruction=" <|im_start|>")
    with ChatServer([choices("a", tokens=[1])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"), models.new_processor() if known else None)
        sampled(generator, [request])
        user, assistant = server.requests[0]["messages"]
    assert assistant["content"] == "< image> < |im_end|>\n\n" and user["content"][1]["text"].endswith(" < |im_start|>")


def test_tokens_that_no_server_tells_apart_are_shared_out_and_sum_up(problems):
    with ChatServer([choices("a", "b", "c", total=8)]) as server:
        found = sampled(ServedGenerator(Endpoint(server.url, "toy")), [Request(problems[0], (), "k")], n=3)
    assert [c.n_tokens for c in found["k"]] == [3, 3, 2]


def test_what_a_template_trimmed_is_no_part_of_the_answer(problems):
    with ChatServer([choices("\n\nThree.\n\nFour.", tokens=[4], finish="length")]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        [completion] = sampled(generator, [Request(problems[0], ("One.",), "k")])["k"]
    assert (completion.text, completion.finish_reason) == ("Three.\n\nFour.", "length")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([body(b"{")], "malformed answer"),
        ([body(b'{"choices": []}')], "malformed answer: choices"),
        ([choices("a", tokens=[1])], "1 choices came where 2 were asked for"),
        ([status(400, "no such model")], "no such model"),
        ([choices("a", "b", tokens=[1, 1], delay=0.6)], "timeout 0.2 s"),
    ],
)
def test_an_answer_of_no_use_costs_its_request_alone(problems, script, error):
    good = choices("a", "b", tokens=[1, 1])
    turns = iter([script[0]])

    def scripted(request):
        return next(turns, good) if "bad" in request["messages"][-1]["content"] else good

    with ChatServer(scripted) as server:
        endpoint = Endpoint(server.url, "toy", max_retries=0, timeout_s=0.2)
        requests = [Request(problems[0], ("bad",), "bad"), *(Request(p, (), p.problem_id) for p in problems[1:])]
        found = sampled(ServedGenerator(endpoint), requests, n=2)
    bad = found.pop("bad")
    assert [c.finish_reason for c in bad] == ["error"] * 2 and all(error in c.error for c in bad)
    assert all([c.text for c in completions] == ["a", "b"] for completions in found.values()) and len(found) == 3
    assert endpoint.usage.n_errors == 1


def test_the_error_says_what_happened(problems):
    with ChatServer([body(b"{")]) as server:
        [completion] = sampled(ServedGenerator(Endpoint(server.url, "toy")), [Request(problems[0], (), "k")])["k"]
    assert completion.error.startswith("RuntimeError: malformed answer") and completion.n_tokens == 0


def test_a_server_that_dies_and_comes_back_loses_nothing(problems):
    with ChatServer([drop(), status(503), choices("a", tokens=[1])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_retries=20, max_concurrency=2))
        stream = generator.sample((Request(problems[i % 4], (), f"k{i}") for i in range(12)), 1, Sampling())
        first = next(stream)
        server.stop()
        threading.Thread(target=lambda: (time.sleep(0.3), server.start()), daemon=True).start()
        found = [first, *stream]
    assert len(found) == 12 and all(c.text == "a" for _, [c] in found)


@pytest.mark.parametrize(
    ("words", "ended"),
    [
        (("stop", None, "", "tool_calls", "eos", "eos_token", "STOP", "end_turn"), "stop"),
        (("length", "max_tokens", "model_length", "MAX_TOKENS", "repetition"), "length"),
        (("abort", "error", "cancelled", "insufficient_system_resource", "load"), "error"),
    ],
)
def test_every_word_for_an_end_is_an_end_and_any_other_is_none(words, ended):
    assert {protocol.how_it_ended(word) for word in words} == {ended}


def test_a_text_that_the_server_broke_off_is_asked_for_again(problems):
    """As vLLM does that is shut down: what it wrote so far, and "abort"."""
    answers = [choices("Half a", "b", tokens=[2, 1], finish="abort"), choices("a", "b", tokens=[3, 4])]
    with ChatServer(answers) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        found = sampled(generator, [Request(problems[0], (), "k")], n=2)["k"]
    assert [(c.text, c.n_tokens, c.finish_reason) for c in found] == [("a", 3, "stop"), ("b", 4, "stop")]
    assert len(server.requests) == 2 and generator.endpoint.usage.n_retries == 1


def test_a_text_that_is_broken_off_every_time_is_an_error_and_no_solution(problems, tmp_path):
    with ChatServer([choices("Answer: 1", tokens=[2], finish="abort")]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        [found] = solutions_to(tmp_path / "s.jsonl", problems[:1], generator, 1, Sampling())
    assert (found.finish_reason, found.steps, found.verdict) == ("error", [], "unknown")
    assert "broken off by the server (finish_reason abort)" in found.reason and len(server.requests) == 3


def test_a_piece_that_the_server_broke_off_is_no_text_to_go_on_from(problems):
    script = [choices("Half", tokens=[2], finish="abort")]
    with ChatServer(script) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        [(_, [found])] = generator.sample([Request(problems[0], (), "k")], 1, CHOICES)
    assert found.finish_reason == "error" and "broken off by the server" in found.error and len(server.requests) == 3


def test_a_restart_that_outlasts_the_retries_loses_nothing(problems):
    server = ChatServer([choices("a", tokens=[1])])

    def away():
        server.stop()
        time.sleep(0.5)
        server.start()

    def script(sent):
        if len(server.requests) == 3:
            threading.Thread(target=away, daemon=True).start()
        return drop() if 3 <= len(server.requests) <= 4 else choices("a", tokens=[1])

    server.script = script
    with server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_retries=0, max_concurrency=2), patience_s=30.0)
        found = list(generator.sample((Request(problems[i % 4], (), f"k{i}") for i in range(12)), 1, Sampling()))
    assert len(found) == 12 and all(c.text == "a" for _, [c] in found)
    assert generator.endpoint.usage.n_retries > 0


def test_what_stands_before_a_server_that_is_away_is_no_server(problems):
    """A proxy answers 502 to 504 as long as there is none behind it."""
    with ChatServer([choices("a", tokens=[1]), *[status(503)] * 4, choices("b", tokens=[1])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_retries=0), patience_s=30.0)
        asked = [sampled(generator, [Request(problems[0], (), key)])[key][0].text for key in "kl"]
    assert asked == ["a", "b"]


def test_a_server_that_is_gone_ends_the_run_and_another_run_goes_on(problems, tmp_path):
    """No request that was not answered is stored as failed; what was answered is kept, and never asked for again."""
    answer = choices("Bar A is 1.\n\nAnswer: 1", tokens=[3])
    with ChatServer([answer]) as whole:
        generator = ServedGenerator(Endpoint(whole.url, "toy"))
        expected = solutions_to(tmp_path / "whole.jsonl", problems, generator, 1, Sampling())
    server = ChatServer([answer])

    def script(sent):
        if len(server.requests) == 3:
            threading.Thread(target=server.stop, daemon=True).start()
        return answer if len(server.requests) < 3 else drop()

    server.script = script
    with server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_retries=1, max_concurrency=1), patience_s=0.3)
        with pytest.raises(ConnectionError, match="refused"):
            solutions_to(tmp_path / "s.jsonl", problems, generator, 1, Sampling())
    assert [s.finish_reason for s in read_records(tmp_path / "s.jsonl", Solution)] == ["stop"] * 2
    with ChatServer([answer]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        assert solutions_to(tmp_path / "s.jsonl", problems, generator, 1, Sampling()) == expected
    assert len(server.requests) == 2
    assert (tmp_path / "s.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_server_that_never_was_there_is_not_waited_for(problems):
    with ChatServer([]) as server:
        url = server.url
    generator, began = ServedGenerator(Endpoint(url, "toy", max_retries=1)), time.monotonic()
    with pytest.raises(ConnectionError, match=url):
        sampled(generator, [Request(problems[0], (), "k")])
    assert time.monotonic() - began < 10


def test_a_request_that_its_server_does_not_bear_fails_alone(problems):
    """Its connection breaks every time, and the server is there."""
    good = choices("a", tokens=[1])
    with ChatServer(lambda sent: drop() if "bad" in sent["messages"][-1]["content"] else good) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_retries=0), patience_s=0.3)
        requests = [Request(problems[0], ("bad",), "bad"), *(Request(p, (), p.problem_id) for p in problems[1:])]
        found = sampled(generator, requests)
    [bad] = found.pop("bad")
    assert bad.finish_reason == "error" and "Connection" in bad.error
    assert len(found) == 3 and all(c.text == "a" for [c] in found.values())


def test_no_more_requests_are_open_than_allowed_and_they_are_read_as_there_is_room(problems):
    read = []

    def requests():
        for i in range(20):
            read.append(i)
            yield Request(problems[0], (), f"k{i}")

    with ChatServer(lambda _: choices("a", tokens=[1], delay=0.02)) as server:
        stream = ServedGenerator(Endpoint(server.url, "toy", max_concurrency=3)).sample(requests(), 1, Sampling())
        next(stream)
        assert len(read) <= 7
        assert len(list(stream)) == 19 and server.most_open <= 3


def test_what_goes_on_is_asked_for_and_comes_back(problems):
    def more(request, sample, completion):
        if len(request.prefix) < 2:
            return Request(request.problem, (*request.prefix, completion.text), f"{request.key}.{sample}")
        return None

    with ChatServer(lambda sent: choices(*["x"] * sent.get("n", 1), tokens=[1] * sent.get("n", 1))) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        found = [r.key for r, _ in generator.sample([Request(problems[0], (), "k")], 2, Sampling(), more)]
    assert sorted(found) == ["k", "k.0", "k.0.0", "k.1", "k.1.0"]


def test_a_server_that_cannot_continue_says_so_before_anything_is_sent(problems):
    with ChatServer([choices("a", tokens=[1])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"), continuing={})
        [completion] = sampled(generator, [Request(problems[0], ("One.",), "k")])["k"]
        assert "cannot go on inside the assistant turn" in completion.error and not server.requests


def test_bad_calls_are_refused(problems):
    generator = ServedGenerator(Endpoint("http://127.0.0.1:9/v1", "toy"))
    with pytest.raises(ValueError, match="n is 0"):
        generator.sample([], 0, Sampling())
    with pytest.raises(ValueError, match="goes on inside the assistant turn"):
        ServedGenerator(generator.endpoint, continuing={}).sample([], 1, CHOICES)


# -- choices at a cue, piece by piece

CHOICES = ChoiceSampling(0.0, max_new_tokens=200, cue="Judgement:", choices=(" Correct", " Incorrect"), stop=("\n\n",))
TOLD = {" Incorrect": 0.5, " Correct": 0.3, " In": 0.1, " ": 0.05, "Correct": 0.01}


def writes(text, told=TOLD, says_why=True, **options):
    """A server whose model writes `text`, a token a letter, up to a stop string; `told` is likely after a cue."""

    def script(sent):
        last = sent["messages"][-1]
        rest = text[len(last["content"]) if last["role"] == "assistant" else 0 :]
        if sent.get("logprobs"):
            likely = [{"token": token, "logprob": math.log(p)} for token, p in told.items()]
            choice = {"logprobs": {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": likely}]}}
            rest, stop = rest[:1], None
        else:
            stop = min((s for s in sent["stop"] if s in rest), key=rest.index, default=None)
            choice, whole = {}, rest
            rest = whole[: whole.index(stop)] if stop else whole
        n_tokens = len(rest + (stop or ""))
        choice |= {"index": 0, "message": {"role": "assistant", "content": rest}, "finish_reason": "stop"}
        choice |= {"stop_reason": stop} if says_why else {}
        usage = {"prompt_tokens": 5, "completion_tokens": n_tokens, "total_tokens": 0}
        return body(json.dumps({"choices": [choice], "usage": usage, "model": "toy-1"}).encode())

    return ChatServer(script)


def test_a_verdict_is_asked_for_where_it_is_due_and_the_text_goes_on_from_it(problems):
    text = "Read 3.\nJudgement: Incorrect.\n\nnever read"
    with writes(text) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        [(_, [found])] = generator.sample([Request(problems[0], (), "k")], 1, CHOICES)
        words, verdict, rest = server.requests
    # 18 letters up to the cue, a choice, 3 letters: the point and the stop string, which is no part of the text
    assert (found.text, found.n_tokens) == ("Read 3.\nJudgement: Incorrect.", 22) and generator.n_generated_tokens == 22
    assert found.finish_reason == "stop" and found.choice_probs == (pytest.approx((0.3, 0.5)),)
    assert words["stop"] == ["\n\n", "Judgement:"] and "logprobs" not in words and len(words["messages"]) == 1
    assert (verdict["logprobs"], verdict["top_logprobs"], verdict["max_tokens"]) == (True, 20, 1)
    assert verdict["messages"][-1]["content"] == "Read 3.\nJudgement:" and verdict["continue_final_message"]
    assert rest["messages"][-1]["content"] == "Read 3.\nJudgement: Incorrect" and rest["max_tokens"] == 200 - 19
    assert generator.endpoint.usage.n_completion_tokens == 18 + 1 + 3


def test_choices_are_asked_for_by_their_tokens_where_the_tokenizer_is_known(problems):
    processor = models.new_processor()
    ids = [processor.tokenizer(c)["input_ids"][0] for c in CHOICES.choices]
    told = {f"token_id:{ids[1]}": 1e-6, f"token_id:{ids[0]}": 0.9, "token_id:1": 0.1}
    with writes("Judgement:?\n\n", told) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"), processor)
        [(_, [found])] = generator.sample([Request(problems[0], (), "k")], 1, CHOICES)
        sent = server.requests[1]
    assert sent["logprob_token_ids"] == ids and sent["return_tokens_as_token_ids"]
    assert found.choice_probs == (pytest.approx((0.9, 1e-6)),)
    assert found.text.startswith("Judgement:" + processor.tokenizer.decode(ids[:1]))


def test_a_server_that_spells_its_tokens_is_understood_where_the_tokenizer_is_known(problems):
    with writes("Judgement:?\n\n") as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"), models.new_processor())
        [(_, [found])] = generator.sample([Request(problems[0], (), "k")], 1, CHOICES)
    assert found.choice_probs == (pytest.approx((0.3, 0.5)),) and found.text.startswith("Judgement: In")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"told": {" Incorrect": 0.9, "Correct": 0.1}}, "choice ' Correct' is not among the 2 likeliest tokens"),
        ({"told": {" ": 0.9, " Incorrect": 0.1}}, "choice ' Correct' is not among the 2 likeliest tokens"),
        ({"told": {}}, "among the 0 likeliest tokens that the server tells: its probability is unknown"),
        ({"says_why": False}, "does not say what stopped a text"),
    ],
)
def test_what_a_server_does_not_tell_is_unknown_and_never_0(problems, options, error):
    with writes("Judgement: Correct\n\n", **options) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        [(_, [found])] = generator.sample([Request(problems[0], (), "k")], 1, CHOICES)
    assert found.finish_reason == "error" and error in found.error and not found.choice_probs


def test_several_drawn_texts_with_choices_differ_and_hang_on_the_seed(problems):
    def verdicts(seed):
        sampling = replace(CHOICES, temperature=1.0, seed=seed)
        [(_, found)] = generator.sample([Request(problems[0], (), "k")], 8, sampling)
        return [c.text.removeprefix("Judgement:")[:3] for c in found]

    with writes("Judgement:" + "." * 99 + "\n\n") as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        first, again, other = verdicts(0), verdicts(0), verdicts(1)
        seeds = {sent["seed"] for sent in server.requests[:8]}
    assert first == again != other and {" Co", " In"} <= set(first) and len(seeds) > 1


# -- what goes on comes first


def test_what_goes_on_comes_before_new_requests(problems):
    """Of an endless iterable, too; else a search would hold everything open."""

    def more(request, sample, completion):
        return Request(request.problem, (*request.prefix, "x"), request.key + "+") if len(request.prefix) < 2 else None

    endless = (Request(problems[0], (), f"k{i}") for i in count())
    with ChatServer([choices("x", tokens=[1])]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy", max_concurrency=1))
        stream = generator.sample(endless, 1, Sampling(), more)
        assert [r.key for r, _ in islice(stream, 6)] == ["k0", "k0+", "k0++", "k1", "k1+", "k1++"]
        stream.close()


def test_what_failed_does_not_go_on(problems):
    with ChatServer([status(400, "no such model")]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        found = generator.sample([Request(problems[0], (), "k")], 1, Sampling(), lambda *_: pytest.fail("it was asked"))
        assert [c.finish_reason for _, [c] in found] == ["error"]


def test_no_key_reaches_a_fingerprint_or_an_error(problems, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key-0123456789")
    with ChatServer([status(401, "bad key secret-key-0123456789")]) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy", api_key_env="MY_KEY"))
        [completion] = sampled(generator, [Request(problems[0], (), "k")])["k"]
        assert "secret" not in completion.error and "[key]" in completion.error
        assert server.headers[0]["authorization"] == "Bearer secret-key-0123456789"
        other = ServedGenerator(Endpoint("http://127.0.0.1:9/v1", "toy"))
        assert generator.fingerprint == other.fingerprint != ServedGenerator(Endpoint(server.url, "t")).fingerprint


def test_labels_come_from_a_server_as_from_a_model(problems, tmp_path):
    def solve(sent):
        n, begun = sent.get("n", 1), len(sent["messages"]) > 1
        text = "Answer: 1" if begun else "Bar A is 1.\n\nAnswer: 1"
        return choices(*[text] * n, tokens=[3] * n)

    with ChatServer(solve) as server:
        generator = ServedGenerator(Endpoint(server.url, "toy"))
        solutions = solutions_to(tmp_path / "s.jsonl", problems, generator, 2, Sampling())
        labels = labels_to(tmp_path / "l.jsonl", solutions, problems, generator, Options(n_rollouts=4), Sampling())
    assert len(labels) == 8 and all(r.n_rollouts[0] == 4 for r in labels)
