"""Replies from a real server on the loopback, in all the ways in which one fails; what is counted; what is kept."""

import base64
import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import time

import openai
import pytest
from PIL import Image

from mmprm_lib.decoding import Sampling
from mmprm_lib.endpoint import Chat, Endpoint, Reply, Usage, image_url, replies_to, usage_of
from mmprm_lib.schema import fingerprint, read_records, sha256_of
from tests.doubles import problem
from tests.servers import ChatServer, body, completion, drop, ok, status

KEY = "sk-1234567890abcdefSECRET"


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch):
    """Back-off of milliseconds, and nothing taken from the environment of whoever runs the tests."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def chat(key="a", text="How many?", of=None):
    return Chat(key, [{"role": "user", "content": text}], of)


def asked(script, sampling=None, what=None, **options):
    """(reply, server, endpoint) of one chat against a scripted server."""
    with ChatServer(script) as server:
        endpoint = Endpoint(server.url, "toy", **{"max_retries": 3, "timeout_s": 5.0} | options)
        reply = endpoint.ask(what or chat(), *([sampling] if sampling else []))
    return reply, server, endpoint


def pictured(tmp_path, size=(8, 6), colour="red"):
    """A problem with an image."""
    raw = io.BytesIO()
    Image.new("RGB", size, colour).save(raw, "PNG")
    (tmp_path / "x.png").write_bytes(raw.getvalue())
    found = problem(image="x.png", image_sha256=sha256_of(raw.getvalue()))
    found._root = tmp_path
    return found


def sent_image(server):
    [part] = [p for p in server.requests[0]["messages"][-1]["content"] if p["type"] == "image_url"]
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


# -- what is sent


def test_a_chat_is_sent_as_the_protocol_says():
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=20, max_new_tokens=77, seed=3, stop=("END",))
    reply, server, _ = asked([ok("12")], sampling)
    [request] = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert request["messages"] == [{"role": "user", "content": "How many?"}]
    named = ("model", "temperature", "top_p", "top_k", "max_tokens", "stop")
    assert [request[name] for name in named] == ["toy", 0.5, 0.9, 20, 77, ["END"]]
    assert reply == Reply(
        key="a", asked=chat().fingerprint, text="12", n_prompt_tokens=7, n_completion_tokens=3, finish_reason="stop",
        model="toy-1",
    )  # fmt: skip


def test_what_is_off_is_not_sent():
    _, server, _ = asked([ok("12")])
    assert set(server.requests[0]) == {"model", "messages", "temperature", "top_p", "seed", "max_tokens"}


def test_the_server_dependent_names_can_be_changed():
    options = {"limit_name": "max_completion_tokens", "omit": ("seed", "top_p"), "extra": {"reasoning_effort": "low"}}
    _, server, _ = asked([ok("12")], Sampling(max_new_tokens=9), **options)
    assert server.requests[0] == {
        "model": "toy", "messages": [{"role": "user", "content": "How many?"}], "temperature": 1.0,
        "max_completion_tokens": 9, "reasoning_effort": "low",
    }  # fmt: skip


def test_the_seed_depends_on_the_sampling_and_on_the_key_alone():
    def seed(key, number):
        return asked([ok("12")], Sampling(seed=number), chat(key))[1].requests[0]["seed"]

    seeds = [seed("a/v0", 0), seed("a/v1", 0), seed("a/v0", 1)]
    assert len(set(seeds)) == 3 and all(0 <= s < 2**31 for s in seeds)
    assert seed("a/v0", 0) == seeds[0]


def test_the_image_stands_before_the_text_of_the_first_user_message(tmp_path):
    found = pictured(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    _, server, _ = asked([ok("12")], what=Chat("a", messages, found))
    system, user = server.requests[0]["messages"]
    assert system == messages[0]
    assert [p["type"] for p in user["content"]] == ["image_url", "text"] and user["content"][1]["text"] == "How many?"
    assert sent_image(server).size == (8, 6) and sent_image(server).getpixel((0, 0)) == (255, 0, 0)


def test_a_large_image_is_scaled_down_and_a_small_one_never_up(tmp_path):
    found = pictured(tmp_path, (400, 200))
    _, server, _ = asked([ok("12")], what=chat(of=found), max_image_side=100)
    assert sent_image(server).size == (100, 50)
    _, server, _ = asked([ok("12")], what=chat(of=found), max_image_side=401)
    assert sent_image(server).size == (400, 200)


def test_an_image_too_large_as_a_file_costs_its_chat_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mmprm_lib.endpoint.MAX_IMAGE_BYTES", 10)
    with pytest.raises(ValueError, match="lower max_image_side"):
        image_url(pictured(tmp_path))
    reply, server, _ = asked([ok("12")], what=chat(of=pictured(tmp_path)))
    assert "lower max_image_side" in reply.error and server.requests == []


def test_an_image_that_was_changed_is_not_sent(tmp_path):
    found = pictured(tmp_path)
    (tmp_path / "x.png").write_bytes(b"other")
    reply, server, _ = asked([ok("12")], what=chat(of=found))
    assert "the file was changed" in reply.error and server.requests == []


@pytest.mark.parametrize(
    "messages", [[], [{"role": "system", "content": "x"}], [{"role": "user", "content": "x", "name": "y"}]]
)
def test_a_chat_without_a_user_is_refused(messages):
    with pytest.raises(ValueError, match="one of them of the user"):
        Chat("a", messages)


# -- what goes wrong


@pytest.mark.parametrize(
    "failing", [status(429, retry_after=0.05), status(500), status(503), status(408), drop(), drop(b'{"choices": [')]
)
def test_a_passing_failure_is_retried(failing):
    reply, server, endpoint = asked([failing, failing, ok("12")])
    assert (reply.text, reply.error, len(server.requests)) == ("12", "", 3)
    assert endpoint.usage == Usage(1, 0, 2, 0, 7, 3)


def test_retry_after_is_waited_for():
    began = time.monotonic()
    reply, _, _ = asked([status(429, retry_after=0.3), ok("12")])
    assert reply.text == "12" and 0.3 <= time.monotonic() - began < 3


@pytest.mark.parametrize(
    "answer, n_requests, reason",
    [
        (status(500, "overloaded"), 4, "InternalServerError: .*500.*overloaded"),  # 1 try and 3 retries
        (status(429, "slow down", retry_after=0.01), 4, "RateLimitError: .*slow down"),
        (status(429, "tomorrow", retry_after=500), 1, "RateLimitError: .*tomorrow"),
        (status(400, "no image, please"), 1, "BadRequestError: .*no image, please"),
        (status(404, "no such model"), 1, "NotFoundError: .*no such model"),
        (drop(), 4, "APIConnectionError at http://127.0.0.1:.*disconnected"),
        (body(b'{"choices": [{"mess'), 1, "malformed answer: body: Invalid JSON"),
        (body(b"<html>busy</html>"), 1, "malformed answer: body: Invalid JSON"),
        (body(b"[" * 100_000), 1, "malformed answer: body: Invalid JSON: recursion"),
        (body(b"[]"), 1, "malformed answer: body"),
        (body(b'{"choices": []}'), 1, "malformed answer: choices: List should have at least 1 item"),
        (body(b'{"choices": [{"message": {"content": 12}}]}'), 1, "choices.0.message.content: .*valid string"),
        (body(rb'{"choices": [{"message": {"content": "\ud800"}}]}'), 1, "malformed answer: body: Invalid JSON"),
        (ok(""), 1, r"empty answer \(finish_reason stop\)"),
        (ok(" \n"), 1, r"empty answer \(finish_reason stop\)"),
        (ok(None, finish="length"), 1, r"empty answer \(finish_reason length\)"),
        (ok("1", finish="content_filter"), 1, "cut by the server's content filter"),
        (ok("", refusal="I will not"), 1, "refused: I will not"),
    ],
)
def test_a_lasting_failure_is_an_error_with_its_reason(answer, n_requests, reason):
    reply, server, endpoint = asked([answer])
    assert len(server.requests) == n_requests
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reply.error)
    assert endpoint.usage.n_errors == 1


def test_a_slow_answer_is_given_up():
    began = time.monotonic()
    reply, server, _ = asked([ok("12", delay=1.0)], timeout_s=0.1, max_retries=1)
    assert reply.error.startswith("APITimeoutError at ") and "timeout 0.1 s" in reply.error
    assert len(server.requests) == 2 and time.monotonic() - began < 0.9


def test_max_retries_0_tries_once():
    _, server, _ = asked([status(500)], max_retries=0)
    assert len(server.requests) == 1


def test_a_server_that_dies_and_comes_back_costs_nothing(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.1)
    server = ChatServer([ok("before"), ok("after")])
    with server:
        endpoint = Endpoint(server.url, "toy", max_retries=6)
        assert endpoint.ask(chat()).text == "before"
        server.stop()
        back = threading.Timer(0.3, server.start)
        back.start()
        assert endpoint.ask(chat()).text == "after"
        back.join()


def test_a_server_that_is_not_there_is_named():
    server = ChatServer([ok("12")])
    with server:
        url = server.url
    reply = Endpoint(url, "toy", max_retries=1).ask(chat())
    assert url in reply.error and "refused" in reply.error


def test_an_answer_cut_at_its_limit_is_kept_and_says_so():
    reply, _, _ = asked([ok("12 an", finish="length")])
    assert (reply.text, reply.finish_reason, reply.error) == ("12 an", "length", "")


def test_an_answer_that_the_server_broke_off_is_asked_for_again_and_is_an_error_at_last():
    reply, server, endpoint = asked([ok("12 an", finish="abort"), ok("12 and")])
    assert (reply.text, reply.error) == ("12 and", "") and len(server.requests) == 2 and endpoint.usage.n_retries == 1
    reply, server, _ = asked([ok("12 an", finish="abort")])
    assert reply.error == "broken off by the server (finish_reason abort)" and len(server.requests) == 3


def test_the_text_is_data():
    text = "__import__('os').abort() {0} %s \\frac <image> \x07"
    assert asked([ok(text)])[0].text == text


# -- the key


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TOY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with ChatServer([status(401, f"wrong key {KEY}"), ok(f"your key is {KEY}")]) as server:
        endpoint = Endpoint(server.url, "toy", "TOY_KEY", max_retries=0)
        failed = endpoint.ask(chat())
        replies_to(tmp_path / "replies.jsonl", [chat()], endpoint)
    assert [h["authorization"] for h in server.headers] == [f"Bearer {KEY}"] * 2
    assert "wrong key [key]" in failed.error
    shown = [repr(endpoint), str(endpoint), fingerprint(endpoint.fingerprint), caplog.text, failed.error]
    shown += [file.read_text() for file in tmp_path.iterdir()]
    assert "your key is [key]" in shown[-1] + shown[-2] and not [text for text in shown if KEY in text]


def test_a_word_for_a_key_is_left_in_replies(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert asked([ok("an EMPTY set")])[0].text == "an EMPTY set"
    assert "bad key [key]" in asked([status(400, "bad key EMPTY")])[0].error


def test_a_server_of_ones_own_needs_no_key():
    reply, server, _ = asked([ok("12")])
    assert reply.text == "12" and server.headers[0]["authorization"] == "Bearer no-key"


def test_a_missing_key_is_told_when_the_server_wants_one():
    assert "OPENAI_API_KEY is not set" in asked([status(401)])[0].error
    assert "OPENAI_API_KEY" not in asked([status(400)])[0].error


def test_a_key_given_instead_of_a_name_is_refused_and_not_repeated(monkeypatch):
    with pytest.raises(ValueError, match="never the key itself") as caught:
        Endpoint("http://127.0.0.1:1/v1", "toy", KEY)
    assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "a\nb")
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds characters"):
        Endpoint("http://127.0.0.1:1/v1", "toy")


@pytest.mark.parametrize(
    "url", ["http://me:sesame@host/v1", "me:sesame@host", "https://host/v1?key=sesame", "host/v1", "file:///v1", ""]
)
def test_an_address_without_a_host_or_with_a_secret_is_refused(url):
    with pytest.raises(ValueError, match="base_url") as caught:
        Endpoint(url, "toy")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"max_retries": -1}, {"timeout_s": 0}, {"max_concurrency": 0}, {"max_image_side": 0}, {"prices": (-1, 1)}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Endpoint("http://127.0.0.1:1/v1", "toy", **wrong)


# -- many


def by_text(request):
    """Answers "ask n" with "n", fails for those that are to fail, in ways of their own."""
    word = request["messages"][0]["content"].split()[-1]
    return {"500": status(500), "drop": drop(), "bad": body(b"{"), "none": ok("")}.get(word, ok(word, delay=0.02))


def test_each_failure_costs_itself_alone():
    words = ["1", "500", "2", "drop", "3", "bad", "4", "none", "5"]
    with ChatServer(by_text) as server:
        endpoint = Endpoint(server.url, "toy", max_retries=1, max_concurrency=3)
        replies = {r.key: r for r in endpoint.ask_many(chat(f"k{w}", f"ask {w}") for w in words)}
    assert set(replies) == {f"k{w}" for w in words}
    assert {k: r.text for k, r in replies.items() if not r.error} == {f"k{i}": f"{i}" for i in range(1, 6)}
    # each answer takes 7 + 3 tokens: those of 5 good ones, and of the empty one
    assert endpoint.usage == Usage(9, 4, 0, 0, 42, 18)


def test_at_most_so_many_are_in_flight_and_chats_are_read_as_there_is_room():
    read = []

    def chats():
        for i in range(12):
            read.append(i)
            yield chat(f"k{i}", f"ask {i}")

    with ChatServer(by_text) as server:
        replies = Endpoint(server.url, "toy", max_concurrency=4).ask_many(chats())
        next(replies)
        assert 5 <= len(read) <= 8  # 4 at first, then one for each that was done
        assert len(list(replies)) == 11
    assert server.most_open == 4


def test_a_caller_who_stops_listening_stops_the_asking():
    with ChatServer(by_text) as server:
        replies = Endpoint(server.url, "toy", max_concurrency=2).ask_many(chat(f"k{i}", f"ask {i}") for i in range(99))
        next(replies)
        replies.close()
        time.sleep(0.1)
        assert len(server.requests) <= 6


def test_it_works_where_an_event_loop_is_running():
    import asyncio

    async def cell():
        with ChatServer(by_text) as server:
            return [r.text for r in Endpoint(server.url, "toy").ask_many([chat("a", "ask 1")])]

    assert asyncio.run(cell()) == ["1"]


# -- what it costs


def test_tokens_and_costs_are_added_up():
    with ChatServer([ok("1", n_prompt=1000, n_completion=10), ok("2", n_prompt=500, n_completion=30)]) as server:
        endpoint = Endpoint(server.url, "toy", prices=(2.5, 10.0))
        replies = [endpoint.ask(chat("a")), endpoint.ask(chat("b"))]
    # (1500 x 2.5 + 40 x 10) / 10^6 = (3750 + 400) / 10^6
    assert endpoint.usage == Usage(2, 0, 0, 0, 1500, 40) == usage_of(replies)
    assert endpoint.cost == usage_of(replies).cost((2.5, 10.0)) == 0.00415


def test_an_unknown_price_or_count_makes_the_cost_unknown():
    assert asked([ok("1")])[2].cost is None
    bare = completion("1") | {"usage": None}
    for odd in (None, {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": "7 or so"}, [3]):
        reply, _, endpoint = asked([body(json.dumps(bare | {"usage": odd}).encode())], prices=(1.0, 1.0))
        assert reply.text == "1" and reply.n_completion_tokens is None
        assert endpoint.usage.n_unmetered == 1 and endpoint.cost is None
    # a request that never got an answer has no known cost, and hides no other's
    assert asked([status(400)], prices=(1.0, 1.0))[2].cost == 0.0


# -- the file


def chats_of(words):
    return [chat(f"k{w}", f"ask {w}") for w in words]


def test_replies_come_in_order_and_only_the_good_ones_are_kept(tmp_path):
    path = tmp_path / "replies.jsonl"
    with ChatServer(by_text) as server:
        endpoint = Endpoint(server.url, "toy", max_retries=0)
        replies = replies_to(path, chats_of(["1", "bad", "2"]), endpoint)
        assert [(r.key, r.text, bool(r.error)) for r in replies] == [
            ("k1", "1", False), ("kbad", "", True), ("k2", "2", False),
        ]  # fmt: skip
        assert read_records(path, Reply) == [replies[0], replies[2]]
        server.script = lambda request: ok("mended")
        again = replies_to(path, chats_of(["1", "bad", "2"]), endpoint)  # only what failed is asked again
        assert [r.text for r in again] == ["1", "mended", "2"] and len(server.requests) == 4
        assert replies_to(path, chats_of(["1", "bad", "2", "3"]), endpoint)[3].text == "mended"  # and what is new
        assert len(server.requests) == 5
    assert [r.key for r in read_records(path, Reply)] == ["k1", "kbad", "k2", "k3"]


def test_replies_never_mix(tmp_path):
    path = tmp_path / "replies.jsonl"
    with ChatServer(by_text) as server:
        endpoint = Endpoint(server.url, "toy")
        replies_to(path, chats_of(["1", "2"]), endpoint)
        elsewhere = Endpoint("http://127.0.0.1:1/v1", "toy", max_retries=0)
        assert [r.text for r in replies_to(path, chats_of(["1", "2"]), elsewhere)] == ["1", "2"]
        for other in (Endpoint(server.url, "big"), Endpoint(server.url, "toy", max_image_side=9)):
            with pytest.raises(ValueError, match="the model or the data changed"):
                replies_to(path, chats_of(["1", "2"]), other)
        with pytest.raises(ValueError, match="the model or the data changed"):
            replies_to(path, chats_of(["1", "2"]), endpoint, Sampling(seed=5))
        with pytest.raises(ValueError, match="'k2' was asked with another text or image"):
            replies_to(path, [*chats_of(["1"]), chat("k2", "ask 3")], endpoint)
        with pytest.raises(ValueError, match="'k2' was asked with another text or image"):
            replies_to(path, [*chats_of(["1"]), chat("k2", "ask 2", problem())], endpoint)
        with pytest.raises(ValueError, match="'k2' is not asked now"):
            replies_to(path, chats_of(["1"]), endpoint)
        with pytest.raises(ValueError, match="give each its own"):
            replies_to(path, chats_of(["1", "1"]), endpoint)
        assert len(server.requests) == 2


def die_after(path, url, words, n):
    endpoint, given = Endpoint(url, "toy", max_concurrency=2), 0
    ask_many = endpoint.ask_many

    def counted(chats, sampling):
        nonlocal given
        for reply in ask_many(chats, sampling):
            if given == n:
                os.kill(os.getpid(), signal.SIGKILL)
            given += 1
            yield reply

    endpoint.ask_many = counted
    replies_to(path, chats_of(words), endpoint)


def test_a_killed_run_goes_on_and_its_file_is_that_of_an_undisturbed_one(tmp_path):
    words = [str(i) for i in range(8)]
    with ChatServer(by_text) as server:
        whole = replies_to(tmp_path / "whole.jsonl", chats_of(words), Endpoint(server.url, "toy"))
        path = tmp_path / "killed.jsonl"
        process = multiprocessing.get_context("fork").Process(target=die_after, args=(path, server.url, words, 4))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and len(read_records(path, Reply)) == 4
        with path.open("ab") as file:
            file.write(b'{"key": "k9", "te')  # a line that a crash cut
        before = len(server.requests)
        assert replies_to(path, chats_of(words), Endpoint(server.url, "toy")) == whole
        assert len(server.requests) - before == 4
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_client_is_the_one_of_the_lock():
    assert int(openai.__version__.split(".")[0]) == 3
