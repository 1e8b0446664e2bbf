"""Records as tokens and tensors: what a discriminative PRM is fed, the same in training and in scoring."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from mmprm_lib.data import open_image
from mmprm_lib.prompts import stacked
from mmprm_lib.schema import Problem
from mmprm_lib.steps import MARKER, TEMPLATES, Format, adds_special_tokens, continued

CACHE_BYTES = 512 << 20  # image tensors kept; 3,400 of the embedded world's, some 30 of a tiled page


class Prompt(NamedTuple):
    """A tokenised prompt: token ids, other per-token rows that the model wants, and the image tensors."""

    ids: list[int]
    rows: dict[str, list[int]]
    images: dict[str, torch.Tensor]


class Encoded(NamedTuple):
    """One record as tokens: `positions[i]` is the token at which decision i is read; `text` is its prompt, whose tokens
    are the first `n_prompt`.
    """

    ids: list[int]
    positions: list[int]
    problem: Problem
    text: str
    n_prompt: int = 0


class Encoder:
    """Records to token ids and batches to tensors; the prompt and the image of a problem are processed once while
    cached.
    """

    def __init__(self, form: Format, processor, max_length: int):
        self.form, self.processor, self.max_length = form, processor, max_length
        self.tokenizer = processor.tokenizer
        self.marker_id = self.tokenizer.convert_tokens_to_ids(MARKER) if form.marker == MARKER else None
        if form.marker == MARKER and MARKER not in self.tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer has no {MARKER} token: this is no trained {form.kind} PRM, train one or load one"
            )
        self.prompts: OrderedDict[tuple, Prompt] = OrderedDict()
        self.n_bytes = 0

    def prompt(self, problem: Problem, text: str) -> Prompt:
        """The tokenised prompt of a problem with its image; the least recently used is forgotten."""
        key = (problem.problem_id, problem.image_sha256, text)
        if key not in self.prompts:
            begun = {"add_special_tokens": adds_special_tokens(text, self.tokenizer)}
            features = self.processor(text=[text], images=[open_image(problem)], return_tensors="pt", **begun)
            shape = features["input_ids"].shape
            rows = {k: v[0].tolist() for k, v in features.items() if v.shape == shape and k != "attention_mask"}
            images = {k: v for k, v in features.items() if v.shape != shape}
            self.prompts[key] = Prompt(rows.pop("input_ids"), rows, images)
            self.n_bytes += sum(image.nbytes for image in images.values())
            while self.n_bytes > CACHE_BYTES and len(self.prompts) > 1:
                self.n_bytes -= sum(image.nbytes for image in self.prompts.popitem(last=False)[1].images.values())
        self.prompts.move_to_end(key)
        return self.prompts[key]

    def encode(self, problem: Problem, steps: list[str], name: str, history: list[str] | None = None) -> Encoded:
        """Tokens and decision positions of one solution. ValueError naming `name` if markers and decisions disagree in
        number.
        """
        extra = {"history": history} if self.form.kind.startswith("chat") else {}
        layout = TEMPLATES[self.form.kind](problem, steps, self.processor, self.form, **extra)
        prompt = self.prompt(problem, layout.prompt)
        pieces = continued(layout.pieces, self.tokenizer)
        ids, positions = list(prompt.ids), []
        for piece in pieces:
            ids += piece
            positions.append(len(ids) - 1)
        expected = 1 if self.form.kind == "orm" and steps else len(steps)
        found = len(positions) if self.marker_id is None else ids.count(self.marker_id)
        if found != expected or len(set(positions)) != expected:
            raise ValueError(f"{name}: {found} decisions after tokenising for {expected} labels: check the steps' text")
        return Encoded(ids, positions, problem, layout.prompt, len(prompt.ids))

    def collate(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Right-padded tensors: `input_ids`, `attention_mask` (batch, token), `positions` (batch, step; padding 0), and
        the image tensors, one image per row.
        """
        prompts = [self.prompt(row.problem, row.text) for row in rows]
        batch = self._tokens([row.ids for row in rows]) | _joined(prompts, max(len(row.ids) for row in rows))
        return batch | {"positions": _padded([row.positions for row in rows])}

    def collate_shared(self, rows: Sequence[Encoded]) -> dict:
        """As `collate`, with each prompt and image once: `prompts` (left-padded tensors) and `prompt_of` (batch,),
        which says whose is whose; tokens and positions are those after the prompt.
        """
        prompts = [self.prompt(row.problem, row.text) for row in rows]
        unique = list({id(prompt): prompt for prompt in prompts}.values())
        place = {id(prompt): index for index, prompt in enumerate(unique)}
        batch = self._tokens([row.ids[len(prompt.ids) :] for row, prompt in zip(rows, prompts, strict=True)])
        batch["positions"] = _padded(
            [[p - len(q.ids) for p in r.positions] for r, q in zip(rows, prompts, strict=True)]
        )
        batch["prompt_of"] = torch.tensor([place[id(prompt)] for prompt in prompts])
        shared = self._tokens([prompt.ids for prompt in unique], left=True)
        return batch | {"prompts": shared | _joined(unique, shared["input_ids"].shape[1], left=True)}

    def collate_in_line(self, rows: Sequence[Encoded]) -> dict:
        """As `collate_shared`, of rows of one prompt: what follows it, of all rows, one after another in one row.

        `row_ends` lists where each ends, and the float `attention_mask` (1, 1, token, prompt and token) of the longest,
        0 where seen, serves all; `position_ids` (1, token) count from the prompt's end.
        """
        prompt = self.prompt(rows[0].problem, rows[0].text)
        n, shared = len(prompt.ids), self._tokens([prompt.ids])
        lengths = [len(row.ids) - n for row in rows]
        starts = [0, *accumulate(lengths)]
        seen = torch.ones(max(lengths), n + max(lengths), dtype=torch.bool).tril(n)
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row.ids[n:]]]),
            "positions": torch.tensor([[s + p - n for s, r in zip(starts, rows, strict=False) for p in r.positions]]),
            "position_ids": torch.tensor([[place for length in lengths for place in range(length)]]),
            "attention_mask": torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None],
            "row_ends": starts[1:], "prompts": shared | _joined([prompt], n),
        }  # fmt: skip

    def _tokens(self, lists: list[list[int]], left: bool = False) -> dict[str, torch.Tensor]:
        ids = _padded(lists, value=self.tokenizer.pad_token_id or 0, left=left)
        return {"input_ids": ids, "attention_mask": _padded([[1] * len(x) for x in lists], left=left)}


def _padded(lists: Sequence[Sequence[int]], width: int = 1, value: int = 0, left: bool = False) -> torch.Tensor:
    width = max(width, max(map(len, lists)))
    fills = [[value] * (width - len(values)) for values in lists]
    return torch.tensor([[*fill, *x] if left else [*x, *fill] for x, fill in zip(lists, fills, strict=True)])


def _joined(prompts: Sequence[Prompt], width: int, left: bool = False) -> dict[str, torch.Tensor]:
    """Image tensors one after the other, and the other per-token rows (e.g. mm_token_type_ids; text is type 0)."""
    images = {key: stacked([prompt.images[key] for prompt in prompts]) for key in prompts[0].images}
    return images | {key: _padded([p.rows[key] for p in prompts], width, left=left) for key in prompts[0].rows}
