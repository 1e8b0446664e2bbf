"""Replies of any chat endpoint that speaks OpenAI's protocol: with an image, counted, and never asked for twice.

The `openai` package retries: lost connections, timeouts, 408, 409, 429 and 5xx, after what Retry-After says (up to two
minutes) or else 0.5 s, 1 s, ... 8 s; an answer that the server broke off is asked for again at once. What still fails
comes back as a reply with an error, and costs itself alone. The text of a reply is data: it is never evaluated, and
what it means is for the caller to parse.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
from PIL import Image

from . import protocol
from .data import open_image
from .decoding import Sampling
from .images import png
from .run import progress
from .schema import Count, Id, Problem, Record, RecordLog, fingerprint, write_records
from .steps import neutralise
from .threads import at_once

FORMAT = 1  # of the stored replies and of what is sent: a change makes older files unusable
GREEDY = Sampling(temperature=0.0, max_new_tokens=1024)
NO_KEY = "no-key"  # servers of one's own want none, but the protocol has a place for it
MAX_IMAGE_BYTES = 20 * 2**20  # of the PNG
MAX_ANSWER_BYTES = 64 * 2**20  # of an answer, unpacked; a longer one is broken off
BROKEN_OFF = 2  # times that an answer is asked for again which the server broke off
AWAY = (502, 503, 504)  # what stands before a server says that there is none
Prices = tuple[float, float]  # per million prompt tokens, per million completion tokens


@dataclass(frozen=True)
class Chat:
    """What is asked: messages of {"role", "content"}; the problem's image stands before the first user message's text.

    `key` names the chat among all that are asked together; together with the seed it decides the seed that is sent,
    so that several votes on one question (of keys of their own) differ.
    """

    key: str
    messages: Sequence[Mapping[str, str]]
    problem: Problem | None = None

    def __post_init__(self) -> None:
        roles = [m.get("role") for m in self.messages]
        if not self.key or any(set(m) != {"role", "content"} for m in self.messages) or "user" not in roles:
            raise ValueError(f"chat {self.key!r}: give a key and messages of role and content, one of them of the user")

    @property
    def fingerprint(self) -> str:
        """A name for the text and the image; where the image lies does not matter."""
        return fingerprint([[dict(m) for m in self.messages], self.problem and self.problem.image_sha256])


class Reply(Record):
    """An answer. `error` is "" or why `text` is of no use; `finish_reason` is the server's word, "error" if none came.

    `asked` is the chat's fingerprint; the counts (None where it gives none) and `model` are the server's words.
    """

    key: Id
    asked: str
    text: str = ""
    n_prompt_tokens: Count | None = None
    n_completion_tokens: Count | None = None
    finish_reason: str = "error"
    model: str = ""
    error: str = ""


@dataclass(frozen=True)
class Usage:
    """What replies took; `n_unmetered` came without counts; `n_retries` of what failed in the end are not known."""

    n_replies: int = 0
    n_errors: int = 0
    n_retries: int = 0
    n_unmetered: int = 0
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0

    def cost(self, prices: Prices | None) -> float | None:
        """The cost in the prices' currency; None where a price or a count is not known."""
        if prices is None or self.n_unmetered:
            return None
        return (self.n_prompt_tokens * prices[0] + self.n_completion_tokens * prices[1]) / 1e6


def usage_of(replies: Iterable[Reply]) -> Usage:
    """The usage of replies, those read from a file too; how often they were retried is not kept with them (0)."""
    return reduce(_plus, replies, Usage())


def _plus(total: Usage, reply: Reply, n_retries: int = 0) -> Usage:
    return Usage(
        total.n_replies + 1,
        total.n_errors + bool(reply.error),
        total.n_retries + n_retries,
        total.n_unmetered + (not reply.error and reply.n_completion_tokens is None),
        total.n_prompt_tokens + (reply.n_prompt_tokens or 0),
        total.n_completion_tokens + (reply.n_completion_tokens or 0),
    )


# -- the endpoint


@dataclass(eq=False, repr=False)
class Endpoint:
    """A chat endpoint: `base_url` up to and with /v1, and the model's name there.

    api_key_env: the environment variable that holds the key; where it is not set a placeholder is sent, as servers of
    one's own want it. The key is in no repr, fingerprint, record or error. max_retries: of a chat, after its first try.
    timeout_s: until the next byte, of each try. max_concurrency: requests in flight. prices: per million prompt and
    completion tokens, None if unknown. max_image_side: larger images are scaled down to it (pixels). limit_name: how
    the server calls the most tokens of an answer ("max_completion_tokens" for OpenAI's reasoning models). omit: fields
    that the server does not take (of temperature, top_p, seed, ...). extra: more fields, {"reasoning_effort": "low"}.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    max_retries: int = 6
    timeout_s: float = 120.0
    max_concurrency: int = 8
    prices: Prices | None = None
    max_image_side: int = 2048
    limit_name: str = "max_tokens"
    omit: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        least = {"max_retries": 0, "timeout_s": 1e-3, "max_concurrency": 1, "max_image_side": 1}
        if bad := [f"{name} {getattr(self, name)}" for name, low in least.items() if not getattr(self, name) >= low]:
            raise ValueError(f"{', '.join(bad)}: wanted at least {', '.join(f'{n} {low}' for n, low in least.items())}")
        if self.prices is not None and (len(self.prices) != 2 or not min(self.prices) >= 0):
            raise ValueError(f"prices {self.prices}: give (per million prompt tokens, per million completion tokens)")
        self._key, self._lock = _key_of(self.api_key_env), threading.Lock()
        self._client = openai.OpenAI(
            api_key=self._key or NO_KEY, base_url=self.base_url, timeout=self.timeout_s, max_retries=self.max_retries,
            # what is asked goes to this address alone, and no server can fill the memory
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_read_bounded]}),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"

    @property
    def cost(self) -> float | None:
        """What this object has spent, in the prices' currency; None if unknown."""
        return self.usage.cost(self.prices)

    @property
    def fingerprint(self) -> str:
        """A name for all that shapes a reply beside the chat and the sampling; the address and the key do not."""
        return fingerprint([FORMAT, self.model, self.max_image_side, self.limit_name, self.omit, self.extra])

    def ask(self, chat: Chat, sampling: Sampling = GREEDY) -> Reply:
        """The reply to one chat; whatever fails is in its `error`."""
        try:
            raw, n_retries, error = self.post(lambda: self._body(chat, sampling))
        except ConnectionError as away:
            raw, n_retries, error = b"", 0, str(away)
        fields = {"error": error} if error else protocol.reply_fields(raw)
        if len(self._key) >= 16:  # a word like "none" is no secret, and may well stand in a reply
            fields = {k: self._hide(v) if isinstance(v, str) else v for k, v in fields.items()}
        reply = Reply(key=chat.key, asked=chat.fingerprint, **fields)
        self.count(reply, n_retries)
        return reply

    def post(self, body: Callable[[], Mapping[str, Any]]) -> tuple[bytes, int, str]:
        """(answer, retries, error) of a chat of these fields: the raw answer, or why there is none.

        `body` is called here, so that what it raises (ValueError, OSError: an image of no use) is an error as well.
        ConnectionError if no server was there, or it went away before it answered.
        """
        n_retries = -1
        try:
            fields = body()
            for _ in range(1 + BROKEN_OFF):
                raw = self._client.chat.completions.with_raw_response.create(**fields)
                n_retries += 1 + raw.retries_taken
                if not protocol.broken_off(raw.content):
                    break
            return raw.content, n_retries, ""
        except openai.APIError as error:
            if _is_away(error):
                raise ConnectionError(self._failure(error)) from None
            return b"", 0, self._failure(error)
        except (ValueError, OSError) as error:
            return b"", 0, f"not sent: {error}"

    def answers(self) -> bool:
        """Whether a server is there now, whatever it says."""
        try:
            self._client.with_options(max_retries=0, timeout=10.0).models.list()
        except openai.APIStatusError as error:
            return error.status_code not in AWAY
        except openai.APIConnectionError:
            return False
        return True

    def count(self, reply: Reply, n_retries: int = 0) -> None:
        """Nothing; adds what a reply took to the usage."""
        with self._lock:
            self.usage = _plus(self.usage, reply, n_retries)

    def ask_many(self, chats: Iterable[Chat], sampling: Sampling = GREEDY) -> Iterator[Reply]:
        """The replies as they come, in any order, joined by their key; at most max_concurrency are in flight."""
        yield from at_once(self.max_concurrency, lambda chat: self.ask(chat, sampling), chats)

    def _body(self, chat: Chat, sampling: Sampling) -> dict[str, Any]:
        """The arguments of `create`. ValueError or OSError if the image cannot be used."""
        return self.fields(self._messages(chat), sampling, protocol.seed_of(sampling.seed, chat.key))

    def fields(
        self, messages: Sequence[Mapping[str, Any]], sampling: Sampling, seed: int, *, n: int = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The arguments of `create` for ready messages: `n` choices, `extra` fields beside the endpoint's own."""
        body = {"model": self.model, "messages": messages, "temperature": sampling.temperature}
        body |= {"top_p": sampling.top_p, "seed": seed} | ({"n": n} if n > 1 else {})
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        top_k = {"top_k": sampling.top_k} if sampling.top_k else {}  # not OpenAI's; vLLM and others know it
        more = {self.limit_name: sampling.max_new_tokens} | top_k | dict(extra or {}) | dict(self.extra)
        return {k: v for k, v in body.items() if k not in self.omit} | {"extra_body": more}

    def _messages(self, chat: Chat) -> list[dict[str, Any]]:
        # a server's template would take what spells a special token for one
        messages: list[dict[str, Any]] = [dict(m) | {"content": neutralise(m["content"], None)} for m in chat.messages]
        if chat.problem is not None:
            first = next(m for m in messages if m["role"] == "user")
            url = {"url": image_url(chat.problem, self.max_image_side)}
            first["content"] = [{"type": "image_url", "image_url": url}, {"type": "text", "text": first["content"]}]
        return messages

    def _failure(self, error: openai.APIError) -> str:
        """A line on what failed, without the key, even where the server repeats it."""
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        told = "".join(c if c.isprintable() else " " for c in self._hide(f"{error}{cause}"))[:300]
        if not isinstance(error, openai.APIStatusError):
            return f"{type(error).__name__} at {self.base_url}, timeout {self.timeout_s} s: {told}"
        unset = error.status_code in (401, 403) and not self._key
        moved = "; the server redirects: give the address where it is as base_url" * (300 <= error.status_code < 400)
        return f"{type(error).__name__}: {told}" + f"; {self.api_key_env} is not set in the environment" * unset + moved

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _is_away(error: openai.APIError) -> bool:
    """Whether the server could not be reached, or was lost; one that takes too long to answer is there."""
    cause = {kind.__name__ for kind in type(error.__cause__).__mro__}  # httpx's or httpx2's, as the release may be
    lost = "ConnectTimeout" in cause or ("TransportError" in cause and "TimeoutException" not in cause)
    return lost or getattr(error, "status_code", 0) in AWAY


def _read_bounded(response: httpx.Response) -> None:
    """Nothing; reads the answer, OSError beyond MAX_ANSWER_BYTES."""
    chunks, size = list[bytes](), 0
    for chunk in response.iter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise OSError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    response._content = b"".join(chunks)  # where httpx keeps what was read; it has no other way in


def _check_url(base_url: str) -> None:
    """Nothing; ValueError for what is no address, or for one with a secret in it, which errors would show."""
    parts = urlsplit(base_url)
    if "@" in base_url or parts.query:
        raise ValueError("base_url holds a user, a password or a query: give the key in an environment variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url {base_url!r}: give an http(s) address up to and with /v1")


def _key_of(name: str) -> str:
    """The key in the environment variable `name`, "" if there is none. Errors show neither, lest the name be a key."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        raise ValueError("api_key_env is no name of an environment variable: give the name, never the key itself")
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable {name} holds characters that no key has; set it again")
    return key


def image_url(problem: Problem, max_side: int = 2048) -> str:
    """The problem's image as a data URL of PNG, scaled down so that no side is over `max_side` pixels.

    ValueError (Rejected) if the image is missing, broken or not the recorded one, or has over MAX_IMAGE_BYTES as PNG.
    """
    image = open_image(problem)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if len(data := png(image)) > MAX_IMAGE_BYTES:
        raise ValueError(f"image of {problem.problem_id!r}: {len(data)} bytes as PNG, lower max_image_side {max_side}")
    return "data:image/png;base64," + base64.b64encode(data).decode()


# -- a file of replies that a kill cannot spoil


def replies_to(
    path: str | Path, chats: Collection[Chat], endpoint: Endpoint, sampling: Sampling = GREEDY
) -> list[Reply]:
    """A reply to every chat, in their order; those without an error are also in the file at `path`.

    A killed run goes on where it stopped, and a later call asks again only for what failed or is new. ValueError if
    the file was made by another model or sampling, or holds replies to other chats: nothing is mixed or paid for twice.
    """
    path, by_key = Path(path), {chat.key: chat for chat in chats}
    if len(by_key) < len(chats):
        raise ValueError(f"{len(chats)} chats have {len(by_key)} keys: give each its own")
    failed: dict[str, Reply] = {}
    with RecordLog(path, Reply, fingerprint([endpoint.fingerprint, sampling])) as log:
        _check_asked(path, log.records(), by_key)
        left = [chat for chat in chats if chat.key not in log.done]
        for reply in progress(endpoint.ask_many(left, sampling), total=len(left), desc=path.stem) if left else ():
            if reply.error:
                failed[reply.key] = reply
            else:
                log.append(reply)
        replies = failed | {r.key: r for r in log.records()}
    write_records(path, [replies[key] for key in by_key if key not in failed])
    return [replies[key] for key in by_key]


def _check_asked(path: Path, replies: Iterable[Reply], chats: Mapping[str, Chat]) -> None:
    for reply in replies:
        chat = chats.get(reply.key)
        if chat is None or chat.fingerprint != reply.asked:
            what = "is not asked now" if chat is None else "was asked with another text or image"
            raise ValueError(f"{path}: {reply.key!r} {what}. Move it and its .key file away, or use another run_name")
