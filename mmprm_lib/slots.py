"""Many sequences decoded side by side, each with its own random numbers: the engine of TransformersGenerator.

`generate` of transformers encodes and prefills every prompt once per sample, copies the whole key-value cache at every
token and keeps finished sequences until the last one ends. Here a prompt is prefilled once, its keys and values are
copied to the rows of its samples, each row writes at its own column of one preallocated cache, and a row that ends is
filled by the next request, or goes on with a text that begins as its own does and is computed from there alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from .choices import ChoiceRule, Probs
from .decoding import Sampling, draw

StopTest = Callable[[np.ndarray], bool]
COLUMN_BLOCK = 64  # the cache grows by so many columns, so that growing is rare and little is wasted


@dataclass
class Sequence:
    """One sample on its way: whose it is, how long it may become, its random numbers (one per token)."""

    owner: Any
    sample: int
    budget: int
    uniform: np.ndarray
    before: list[int] = field(default_factory=list)  # the last tokens of the text that it goes on from


@dataclass(frozen=True)
class Ended:
    """A sequence that has ended, its row, its tokens (the end token included) and how it ended."""

    sequence: Sequence
    row: int
    tokens: list[int]
    finish_reason: str  # "stop" or "length"
    choice_probs: tuple[Probs, ...] = ()


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, (row, head, column, dim); a step writes one column per row, each row its own."""

    def __init__(self, slots: Slots, keys: torch.Tensor) -> None:
        super().__init__()
        shape = (slots.n_slots, keys.shape[1], slots.n_columns, keys.shape[3])
        # zeros, because what is masked is still multiplied by 0, and an uninitialised NaN would spread
        self.keys, self.values = keys.new_zeros(shape), keys.new_zeros(shape)
        self.slots, self.is_initialized = slots, True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the rows in use, the new ones (row, head, 1, dim) written at each row's column before."""
        slots = self.slots
        rows, columns = slots.row_ids[: slots.n_rows], slots.column[: slots.n_rows]
        self.keys[rows, :, columns] = keys[:, :, 0]
        self.values[rows, :, columns] = values[:, :, 0]
        return self.keys[: slots.n_rows, :, : slots.width], self.values[: slots.n_rows, :, : slots.width]


class Slots:
    """The rows of one running batch: 0 .. n_rows - 1 are in use; those that have ended wait to be filled again.

    `ends` (optional) says of a row's tokens so far whether they end in a stop string, `rule` where choices are made.
    """

    def __init__(
        self, model: Any, n_slots: int, sampling: Sampling, eos: list[int], ends: StopTest | None = None,
        rule: ChoiceRule | None = None,
    ) -> None:  # fmt: skip
        self.model, self.n_slots, self.sampling, self.eos, self.ends = model, n_slots, sampling, eos, ends
        device, length = model.device, sampling.max_new_tokens
        self.n_rows, self.n_columns, self.width = 0, 0, 0
        self.sequences: list[Sequence | None] = [None] * n_slots
        self.row_ids = torch.arange(n_slots, device=device)
        # the next token to feed, its position in the text and its column in the cache
        self.token, self.position, self.column = torch.zeros((3, n_slots), dtype=torch.long, device=device).unbind()
        self.uniform = torch.zeros((n_slots, length), dtype=torch.float64, device=device)
        # kept in numpy, so that the loop never waits for the device to know them
        self.columns, self.n_drawn, self.budget = np.zeros((3, n_slots), dtype=np.int64)
        self.drawn = np.zeros((n_slots, length), dtype=np.int64)
        self.rule, self.at_cue = rule, np.zeros(n_slots, dtype=bool)
        self.choice_probs: list[list[Probs]] = [[] for _ in range(n_slots)]
        # tokens that a row is still to be fed before its next one is drawn, the last one first
        self.given: list[list[int]] = [[] for _ in range(n_slots)]
        self.mask = torch.zeros((n_slots, 1, 1, 0), dtype=model.dtype, device=device)  # added to the attention scores
        self.cache: Cache | None = None

    @property
    def n_live(self) -> int:
        """How many sequences are running."""
        return sum(s is not None for s in self.sequences[: self.n_rows])

    def admit(
        self, groups: list[list[Sequence]], lengths: list[int], cache: Cache, logits: torch.Tensor
    ) -> list[Ended]:
        """The sequences that end with their first token; the others run on from the next step.

        `groups[i]` are the samples of prompt i, which has `lengths[i]` tokens; `cache` and `logits` (prompt,
        vocabulary) come from one prefill of the prompts, padded on the left. ValueError if there are too few free rows.
        """
        flat = [s for group in groups for s in group]
        free = np.flatnonzero([s is None for s in self.sequences])[: len(flat)]
        if len(free) < len(flat):
            raise ValueError(f"{len(flat)} sequences for {len(free)} free rows of {self.n_slots}")
        padded = cache.get_seq_length()
        self._reserve(padded, cache)
        rows = torch.as_tensor(free, device=self.token.device)
        source = torch.tensor([i for i, group in enumerate(groups) for _ in group], device=rows.device)
        for mine, theirs in zip(self.cache.layers, cache.layers, strict=True):
            mine.keys[rows, :, :padded] = theirs.keys[source]
            mine.values[rows, :, :padded] = theirs.values[source]
        length = torch.tensor(lengths, device=rows.device)[source]
        column = torch.arange(self.n_columns, device=rows.device)
        hidden = (column < (padded - length)[:, None]) | (column >= padded)
        self.mask[rows, 0, 0] = torch.zeros_like(hidden, dtype=self.mask.dtype).masked_fill(hidden, self._floor)
        self.position[rows], self.column[rows] = length - 1, padded - 1
        self.uniform[rows] = torch.as_tensor(np.stack([s.uniform for s in flat]), device=rows.device)
        self.columns[free] = padded - 1
        for row, sequence in zip(free, flat, strict=True):
            self._begin(row, sequence)
        self.n_rows = max(self.n_rows, int(free.max()) + 1)
        return self._accept(free, rows, logits[source])

    def resume(self, row: int, sequence: Sequence, back: int, tokens: list[int]) -> None:
        """Nothing; a row whose sequence has just ended goes on with another one, before the next step.

        Of the row's text all but the last token is computed. `back` of that is taken back, then the row is fed `tokens`
        (one at least), and after them its tokens are drawn.
        """
        at = self.columns[row] = self.columns[row] - back
        self.mask[row, 0, 0, at : at + back] = self._floor
        self.token[row], self.position[row], self.column[row] = tokens[0], self.position[row] - back, int(at)
        self.given[row] = tokens[:0:-1]
        self._begin(row, sequence)
        self.uniform[row] = torch.as_tensor(sequence.uniform, device=self.uniform.device)

    def _begin(self, row: int, sequence: Sequence) -> None:
        self.sequences[row], self.choice_probs[row] = sequence, []
        self.n_drawn[row], self.budget[row] = 0, sequence.budget
        if self.rule:
            self.at_cue[row] = self.rule.ends(sequence.before)
            self.budget[row] = min(sequence.budget, self.rule.patience)

    def step(self, drained: bool) -> list[Ended]:
        """The sequences that end with this token, one more for every row. `drained`: free rows will stay free."""
        if drained:
            self._close_gaps()
        n = self.n_rows
        self.width = int(self.columns[:n].max()) + 1
        self._reserve(self.width)
        self.mask[self.row_ids[:n], 0, 0, self.column[:n]] = 0.0
        logits = self.model(
            input_ids=self.token[:n, None],
            position_ids=self.position[:n, None],
            attention_mask=self.mask[:n, :, :, : self.width],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return self._accept(np.arange(n), self.row_ids[:n], logits)

    def _accept(self, ids: np.ndarray, rows: torch.Tensor, logits: torch.Tensor) -> list[Ended]:
        """The sequences that end with the token drawn now for each of the rows (given to numpy and to torch)."""
        count = np.minimum(self.n_drawn[ids], self.drawn.shape[1] - 1)  # a row that has ended may stand at the end
        drawn = np.array([not self.given[row] for row in ids])
        if self.rule:
            logits = self._choose(ids, logits, drawn)
        tokens = draw(logits, self.uniform[rows, torch.as_tensor(count, device=rows.device)], self.sampling)
        if not drawn.all():
            at, given = np.flatnonzero(~drawn), [self.given[row].pop() for row in ids[~drawn]]
            tokens[torch.as_tensor(at, device=tokens.device)] = tokens.new_tensor(given)
        self.token[rows] = tokens
        self.position[rows] += 1
        self.column[rows] += 1
        seen = tokens.cpu().numpy()
        self.drawn[ids, count] = seen
        self.n_drawn[ids] += drawn
        self.columns[ids] += 1
        if self.rule:
            for i in self.rule.candidates(seen):
                if drawn[i]:
                    self.at_cue[ids[i]] = self._ends_with_cue(ids[i])
        stops = np.isin(seen, self.eos)
        over = self.n_drawn[ids] >= self.budget[ids]
        maybe = drawn if self.ends else (stops | over) & drawn
        return [e for row, stop in zip(ids[maybe], stops[maybe], strict=True) if (e := self._end(row, bool(stop)))]

    def _choose(self, ids: np.ndarray, logits: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        """The logits with those of the rows that stand at a cue restricted, whose probabilities are kept."""
        at = np.flatnonzero(self.at_cue[ids] & drawn)
        logits, probs = self.rule.restrict(logits, at)
        for row, p in zip(ids[at], probs, strict=True):
            self.choice_probs[row].append(p)
            self.budget[row] = min(self.sequences[row].budget, self.n_drawn[row] + 1 + self.rule.patience)
            self.at_cue[row] = False
        return logits

    def _ends_with_cue(self, row: int) -> bool:
        sequence, tail = self.sequences[row], self.rule.tail
        if sequence is None:
            return False
        drawn = self.drawn[row, max(0, self.n_drawn[row] - tail) : self.n_drawn[row]].tolist()
        return self.rule.ends(sequence.before + drawn if len(drawn) < tail else drawn)

    def _end(self, row: int, stops: bool) -> Ended | None:
        """The sequence of a row if it has ended; its row is free then."""
        sequence, tokens = self.sequences[row], self.drawn[row, : self.n_drawn[row]]
        if sequence is None:
            return None
        stops = stops or (self.ends is not None and self.ends(tokens))
        if not stops and len(tokens) < self.budget[row]:
            return None
        self.sequences[row], self.at_cue[row] = None, False
        return Ended(sequence, row, tokens.tolist(), "stop" if stops else "length", tuple(self.choice_probs[row]))

    @property
    def _floor(self) -> float:
        return torch.finfo(self.mask.dtype).min

    def _reserve(self, n_columns: int, like: Cache | None = None) -> None:
        """Nothing; the cache has room for so many columns."""
        more = -(-(n_columns - self.n_columns) // COLUMN_BLOCK) * COLUMN_BLOCK
        if more <= 0:
            return
        self.n_columns += more
        self.mask = torch.nn.functional.pad(self.mask, (0, more), value=self._floor)
        if self.cache is None:
            self.cache = Cache(layers=[SlotLayer(self, layer.keys) for layer in like.layers])
            return
        for layer in self.cache.layers:
            layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, 0, more))
            layer.values = torch.nn.functional.pad(layer.values, (0, 0, 0, more))

    def _close_gaps(self) -> None:
        """Nothing; once an eighth of the rows has ended, the last running rows move into their places."""
        n_live = self.n_live
        if (self.n_rows - n_live) * 8 < self.n_rows:
            return
        to = [r for r in range(n_live) if self.sequences[r] is None]
        source = [r for r in range(n_live, self.n_rows) if self.sequences[r] is not None]
        self.n_rows = n_live
        for state in (self.columns, self.n_drawn, self.budget, self.drawn, self.at_cue):
            state[to] = state[source]
        for row, other in zip(to, source, strict=True):
            self.sequences[row], self.sequences[other] = self.sequences[other], None
            self.choice_probs[row], self.given[row] = self.choice_probs[other], self.given[other]
            self.given[other] = []
        to, source = (torch.tensor(x, dtype=torch.long, device=self.token.device) for x in (to, source))
        for state in (self.token, self.position, self.column, self.uniform, self.mask):
            state[to] = state[source]
        for layer in self.cache.layers:
            layer.keys[to], layer.values[to] = layer.keys[source], layer.values[source]
