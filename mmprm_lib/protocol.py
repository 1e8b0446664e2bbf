"""What a server that speaks OpenAI's chat protocol sends, checked: the `openai` package takes an answer as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from .asking import Completion
from .schema import Count

NUMBERED = "token_id:"  # how vLLM spells a token by its number, where it is asked to
# how servers say that the model ended its turn or met a stop string: OpenAI's own words, then Together, TGI, Anthropic;
# and that the text was cut: OpenAI, Anthropic, Mistral, vLLM (where a text only repeats itself)
STOPPED = {"stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn"}
CUT = {"length", "max_tokens", "model_length", "repetition"}


def how_it_ended(finish_reason: str | None) -> Literal["stop", "length", "error"]:
    """"stop", "length", or "error" for a text that was broken off ("abort", as a server sends that is shut down).

    A server that says nothing is taken to have stopped.
    """
    reason = (finish_reason or "stop").lower()
    return "stop" if reason in STOPPED else "length" if reason in CUT else "error"


def seed_of(seed: int, key: str) -> int:
    """The 31-bit seed that another engine is sent for what is called `key`."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{key}".encode()).digest()[:4], "big") >> 1


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Token(BaseModel):
    token: str
    logprob: float


class _Place(BaseModel):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Choice(BaseModel):
    index: int = 0
    message: _Message
    finish_reason: str | None = None
    token_ids: list[int] | None = None  # vLLM sends them where they are asked for
    stop_reason: int | str | None = None  # vLLM: the stop string; None or a token if the model ended its turn
    matched_stop: int | str | None = None  # the same of SGLang
    logprobs: _Logprobs | None = None


class _Counts(BaseModel):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Answer(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: Any = None
    model: str | None = None

    @property
    def counts(self) -> _Counts:
        """The tokens that it took; a server without counts, or with odd ones, still gives a text."""
        try:
            return _Counts.model_validate(self.usage)
        except ValidationError:
            return _Counts()


def _checked(raw: bytes) -> _Answer:
    """The answer. ValueError saying where it is malformed."""
    try:
        return _Answer.model_validate_json(raw)
    except ValidationError as error:
        where = error.errors()[0]
        raise ValueError(f"malformed answer: {'.'.join(map(str, where['loc'])) or 'body'}: {where['msg']}") from None


def _withheld(choice: _Choice) -> str:
    """Why a choice holds no answer; "" if it does."""
    if choice.message.refusal:
        return f"refused: {choice.message.refusal[:300]}"
    if choice.finish_reason == "content_filter":
        return "cut by the server's content filter"
    broken = how_it_ended(choice.finish_reason) == "error"
    return f"broken off by the server (finish_reason {choice.finish_reason[:80]})" if broken else ""


def broken_off(raw: bytes) -> bool:
    """Whether the server ended a text of the answer before its end, so that asking again may give all of it."""
    try:
        choices = _checked(raw).choices
    except ValueError:
        return False
    return any(how_it_ended(c.finish_reason) == "error" and c.finish_reason != "content_filter" for c in choices)


def reply_fields(raw: bytes) -> dict[str, Any]:
    """The fields of an `endpoint.Reply` that an answer's bytes give; the error says why an answer is of no use."""
    try:
        answer = _checked(raw)
    except ValueError as error:
        return {"error": str(error)}
    choice, counts = answer.choices[0], answer.counts
    text, reason = choice.message.content or "", choice.finish_reason or "stop"
    error = _withheld(choice) or ("" if text.strip() else f"empty answer (finish_reason {reason})")
    fields = {"text": text, "finish_reason": reason, "model": answer.model or "", "error": error}
    return fields | {"n_prompt_tokens": counts.prompt_tokens, "n_completion_tokens": counts.completion_tokens}


def completions(raw: bytes, n: int) -> list[Completion]:
    """The n completions of an answer, in order of their index. ValueError if it is malformed, or holds another number.

    An empty text is a completion: the model ended its turn at once. Where the server does not say which tokens belong
    to which choice, the counted ones are shared out evenly, so that their sum is right.
    """
    answer = _checked(raw)
    if len(answer.choices) != n:
        raise ValueError(f"{len(answer.choices)} choices came where {n} were asked for: the server does not take `n`")
    total = answer.counts.completion_tokens or 0
    found = []
    for place, choice in enumerate(sorted(answer.choices, key=lambda c: c.index)):
        shared = total // n + (place < total % n)
        n_tokens = shared if choice.token_ids is None else len(choice.token_ids)
        if error := _withheld(choice):
            found.append(Completion("", n_tokens, "error", error))
        else:
            found.append(Completion(choice.message.content or "", n_tokens, how_it_ended(choice.finish_reason)))
    return found


def n_completion_tokens(raw: bytes) -> int | None:
    """The tokens that an answer took, all its choices together; None where the server does not say."""
    return _checked(raw).counts.completion_tokens


def piece(raw: bytes) -> tuple[Completion, str | None, list[int] | None]:
    """The one completion of an answer, the string that stopped it (None if it ended by itself or was cut), its tokens.

    The tokens, which may reach beyond the string, are None where the server does not tell them. ValueError if the
    answer is malformed, or does not say which of these it was.
    """
    [completion], choice = completions(raw, 1), _checked(raw).choices[0]
    if completion.finish_reason == "stop" and not {"stop_reason", "matched_stop"} & choice.model_fields_set:
        raise ValueError("the server does not say what stopped a text (stop_reason), as choices at a cue need it")
    met = [s for s in (choice.stop_reason, choice.matched_stop) if isinstance(s, str)]
    return completion, met[0] if met and completion.finish_reason == "stop" else None, choice.token_ids


def likely(raw: bytes, choices: Sequence[str], ids: Sequence[int]) -> list[tuple[str, float]]:
    """Of each choice its first token, as the answer spells it, and the log-probability of that.

    `ids`: the choices' first tokens, for an answer that names tokens by their numbers. In one that spells them, that
    token is taken with which this choice alone begins, the longest if there are several. ValueError naming a choice of
    which the answer tells nothing: its probability is unknown, which is not 0.
    """
    given = _checked(raw).choices[0].logprobs
    tokens = given.content[0].top_logprobs if given and given.content else []
    named = bool(ids) and any(t.token.startswith(NUMBERED) for t in tokens)

    def is_first(token: str, i: int) -> bool:
        if named:
            return token == f"{NUMBERED}{ids[i]}"
        return bool(token) and [c for c in choices if c.startswith(token)] == [choices[i]]

    found = []
    for i, choice in enumerate(choices):
        mine = [t for t in tokens if is_first(t.token, i)]
        if not mine:
            told = f"among the {len(tokens)} likeliest tokens that the server tells"
            raise ValueError(f"choice {choice!r} is not {told}: its probability is unknown")
        best = max(mine, key=lambda t: len(t.token))
        found.append((best.token, best.logprob))
    return found
