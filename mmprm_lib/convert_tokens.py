"""The tokenizer of an InternVL checkpoint, for transformers' processor: its own ids, and no code of the checkpoint.

Qwen2's is read by transformers' class. InternLM2's comes as a sentencepiece model, tokenizer.model, with code of its
own; what that does is what sentencepiece does, around the tokens that were added. A tokenizer.json comes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from .untrusted import read_object

CONTEXT, END_OF_TURN = "<IMG_CONTEXT>", "<|im_end|>"
# InternVL has no token for videos, whose frames are images to it
ROLES = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": CONTEXT,
         "video_token": CONTEXT}  # fmt: skip
NEEDED = ("<|im_start|>", END_OF_TURN, *ROLES.values())
NORMAL, DEFINED = 1, 4  # types of pieces; others are bytes and control tokens, which text never becomes
MADE = (NORMAL, DEFINED)
MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")


def read_tokenizer(source: Path, text_type: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer in `source`, of a "qwen2" or "llama" language model with `vocab_size` embeddings.

    Every token that the checkpoint has added, such as `<prm>`, keeps its id. ValueError or FileNotFoundError naming
    what is missing, and a token whose id would change or that has no embedding.
    """
    config, stated = (
        read_object(path) if (path := source / name).is_file() else {}
        for name in ("tokenizer_config.json", "added_tokens.json")
    )
    added = _added(source, config, stated)
    options = {"extra_special_tokens": ROLES, "padding_side": "left"}
    if text_type == "qwen2":
        if not (source / "tokenizer.json").is_file() and not (source / "vocab.json").is_file():
            raise FileNotFoundError(f"{source} holds neither tokenizer.json nor vocab.json and merges.txt: fetch them")
        tokenizer = Qwen2Tokenizer.from_pretrained(source, **options)
    elif (source / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **options)
    elif (source / "tokenizer.model").is_file():
        tokenizer = _from_sentencepiece(source / "tokenizer.model", config, added)
    else:
        raise FileNotFoundError(f"{source} holds neither tokenizer.model nor tokenizer.json: fetch it")
    tokenizer.init_kwargs.pop("auto_map", None)  # whoever loads what is made must not be sent to that code
    vocabulary = tokenizer.get_vocab()
    if missing := [word for word in dict.fromkeys(NEEDED) if word not in vocabulary]:
        raise ValueError(f"{source}: the tokenizer has no {', '.join(missing)}; it is none of InternVL")
    for word, index in added.items():
        if vocabulary.get(word) != index:
            raise ValueError(f"{source}: {word!r} was token {index} and would become {vocabulary.get(word)}")
    last, index = max(vocabulary.items(), key=lambda item: item[1])
    if index >= vocab_size:
        raise ValueError(f"{source}: {last!r} is token {index}, but there are {vocab_size} embeddings")
    return tokenizer


def _word(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _added(source: Path, config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, int]:
    """{word: id} of the tokens that the checkpoint has added to its vocabulary, by id."""
    try:
        found = {word: int(index) for word, index in stated.items()}
        found |= {token["content"]: int(index) for index, token in config.get("added_tokens_decoder", {}).items()}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise ValueError(f"{source}: the added tokens are no words with their ids ({why}): fetch them again") from error
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _from_sentencepiece(path: Path, config: Mapping[str, Any], added: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """A sentencepiece BPE with the checkpoint's added tokens in the places that its pieces leave to them.

    InternLM2 gives `<|im_start|>` and others the ids of pieces called [UNUSED_TOKEN_...]. Difference from its own code:
    text that spells such a piece does not become that token.
    """
    if not (is_sentencepiece_available() and is_protobuf_available()):
        wanted = f"reading {path} needs two packages: pip install sentencepiece protobuf"
        raise ValueError(f"{wanted}; or put a tokenizer.json of the same tokenizer beside it")
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import SentencePieceExtractor, generate_merges

    try:
        model = SentencePieceExtractor(str(path)).proto
    except DecodeError as error:
        raise ValueError(f"{path} is no sentencepiece model ({error}): fetch it again") from error
    spec, trained = model.normalizer_spec, model.trainer_spec
    if trained.model_type != 2 or spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise ValueError(f"{path} is no plain BPE: put a tokenizer.json of the same tokenizer beside it")
    kinds = {piece.piece: piece.type for piece in model.pieces}
    pieces = list(kinds)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    for word, index in added.items():
        if index < len(pieces):
            vocabulary.pop(pieces[index], None)
        vocabulary[word] = index
    plain = {word: index for word, index in vocabulary.items() if word not in added and kinds[word] in MADE}
    merges = generate_merges(plain, None)
    core = Tokenizer(BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    dummy, mark = bool(spec.add_dummy_prefix), "\u2581"  # sentencepiece's sign for a space
    core.normalizer = normalizers.Sequence([normalizers.Prepend(mark)] * dummy + [normalizers.Replace(" ", mark)])
    undone = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence(undone + [decoders.Strip(" ", 1, 0)] * dummy)
    special = {token["content"] for token in config.get("added_tokens_decoder", {}).values() if token.get("special")}
    defined = [word for word, kind in kinds.items() if kind == DEFINED and word in vocabulary and mark not in word]
    for word in dict.fromkeys([*defined, *added]):
        core.add_tokens([AddedToken(word, special=word in special, normalized=False)])
    begin = _word(config.get("bos_token")) if config.get("add_bos_token", True) else None
    if begin:
        core.post_processor = processors.TemplateProcessing(
            f"{begin} $A", f"{begin} $A {begin} $B", [(begin, core.token_to_id(begin))])  # fmt: skip
    marks = {name: _word(config[name]) for name in MARKS if config.get(name)}
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", extra_special_tokens=ROLES, **marks)
