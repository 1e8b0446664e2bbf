"""Problems as the model sees them, and tokens as text: what stands before and after decoding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from .data import open_image
from .schema import Problem
from .steps import adds_special_tokens, neutralise, policy_prompt, prefix_text, prefixes_space

PROMPTS_KEPT = 64  # prompts whose token ids and image features wait for another request on the same problem


@dataclass
class Prompt:
    """A problem's token ids, image placeholders expanded, and the processor's other tensors (pixels).

    `features` are the encoded images once they are known; the pixels are dropped then.
    """

    ids: list[int]
    inputs: dict[str, torch.Tensor]
    features: list[torch.Tensor] | None = None


class Prompts:
    """The prompts of a model and its processor; requests on one problem share one prompt, and so one image encoding."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        ends = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        self.pad_id = ends or 0
        self._kept: OrderedDict[tuple[str, ...], Prompt] = OrderedDict()
        self._in_one_tensor = False  # the features of all tiles, as the model gives them

    def prompt(self, problem: Problem, instruction: str = "") -> Prompt:
        """The problem up to the open assistant turn. ValueError or OSError if its image cannot be used."""
        key = (problem.problem_id, problem.image_sha256, instruction, problem.question, *problem.choices)
        if key not in self._kept:
            text = policy_prompt(problem, self.processor, instruction)
            begun = {"add_special_tokens": adds_special_tokens(text, self.tokenizer)}
            inputs = dict(self.processor(text=[text], images=[open_image(problem)], return_tensors="pt", **begun))
            ids = inputs.pop("input_ids")[0].tolist()
            inputs.pop("attention_mask", None)
            self._kept[key] = Prompt(ids, inputs)
            if len(self._kept) > PROMPTS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def prefix_ids(self, prefix: Sequence[str], opening: str = "") -> list[int]:
        """The token ids of the text that the assistant turn begins with; what spells a special token is plain text."""
        if not prefix and not opening:
            return []
        text = neutralise(prefix_text(list(prefix)) + opening, self.tokenizer)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def image_features(self, prompts: Sequence[Prompt]) -> list[torch.Tensor] | torch.Tensor:
        """The image features of all prompts as the model gives them, one per tile; each image is encoded once.

        All new ones are encoded in one forward pass.
        """
        new = list({id(p): p for p in prompts if p.features is None}.values())
        if new:
            pixels = [p.inputs.pop("pixel_values") for p in new]  # (tile, channel, height, width) each
            tiles = torch.cat(pixels).to(self.model.device, self.model.dtype)
            found = self.model.get_image_features(pixel_values=tiles, return_dict=True).pooler_output
            self._in_one_tensor, features = isinstance(found, torch.Tensor), iter(found)
            for prompt, own in zip(new, pixels, strict=True):
                prompt.features = list(islice(features, len(own)))
        every = [feature for prompt in prompts for feature in prompt.features]
        return torch.stack(every) if self._in_one_tensor else every

    def pad(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and their mask, (row, token), padded on the left."""
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad_id] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        return ids.to(self.model.device), mask.to(self.model.device)

    def collate(self, prompts: Sequence[Prompt], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """The processor's other tensors for a batch of rows, each `lengths[i]` tokens long with its prefix.

        One value per token is padded on the left, and with zeros for the prefix; all else is put end to end.
        """
        batch = {}
        for name in prompts[0].inputs:
            parts = [p.inputs[name] for p in prompts]
            if all(part.shape == (1, len(p.ids)) for part, p in zip(parts, prompts, strict=True)):
                pads = [(max(lengths) - n, n - len(p.ids)) for p, n in zip(prompts, lengths, strict=True)]
                parts = [torch.nn.functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)]
            whole = stacked(parts).to(self.model.device)
            batch[name] = whole.to(self.model.dtype) if whole.is_floating_point() else whole
        return batch


def text_of(tokenizer: Any, tokens: Sequence[int], after: Sequence[int] = ()) -> str:
    """The text of tokens, special tokens left out, spaces as they are.

    `after`: the tokens before them in the same turn. Some tokenizers drop the space that a text begins with, and these
    tokens do not begin one.
    """
    options = dict(skip_special_tokens=True, clean_up_tokenization_spaces=False)
    tokens = list(map(int, tokens))
    if not after or not prefixes_space(tokenizer):
        return tokenizer.decode(tokens, **options)
    return tokenizer.decode([*after, *tokens], **options)[len(tokenizer.decode(list(after), **options)) :]


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors one after the other along the first axis; along the others, zeros are added up to the largest.

    As image processors pad a batch: images that are cut into unequal numbers of tiles have tiles of zeros.
    """
    largest = [max(sizes) for sizes in zip(*(part.shape[:0:-1] for part in parts), strict=True)]  # the last axis first
    pads = [[n for most, size in zip(largest, p.shape[:0:-1], strict=True) for n in (0, most - size)] for p in parts]
    return torch.cat([torch.nn.functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]


def stop_test(tokenizer: Any, stop: Sequence[str]) -> Callable[[np.ndarray], bool] | None:
    """A function that says, after every token, whether the tokens end with a stop string; None without stop strings."""
    if not stop:
        return None
    last: set[str] = {s[-1] for s in stop}
    pieces: dict[int, str] = {}
    tail = 4 * max(map(len, stop)) + 4  # a character has at most four tokens

    def ends(tokens: np.ndarray) -> bool:
        # most tokens hold no last character of a stop string, so the text is rarely needed
        token = int(tokens[-1])
        if token not in pieces:
            pieces[token] = tokenizer.decode([token])
        piece = pieces[token]
        if piece and "\ufffd" not in piece and not last & set(piece):
            return False
        text = text_of(tokenizer, tokens[-tail:])
        return any(s in text for s in stop)

    return ends
