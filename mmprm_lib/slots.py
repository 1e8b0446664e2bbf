"""Many sequences decoded side by side, each with its own random numbers: the engine of TransformersGenerator.

`generate` of transformers encodes and prefills every prompt once per sample, copies the whole key-value cache at every
token and keeps finished sequences until the last one ends. Here a prompt is prefilled once, and its samples stand side
by side in one row of the cache, as its lanes: they read the prompt's keys and values together, and a mask hides from
each what the others write. To read them is most of the work of a step, and samples of one prompt end at nearly the same
time. Each row writes at its own columns of one preallocated cache, and a row that ends is filled by the next request,
or (of one lane) goes on with a text that begins as its own does and is computed from there alone.
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
MOST_LANES = 4  # more would read little less and multiply more
LANE_COLUMNS = 2048  # what the lanes of a row may write at most: each of them multiplies with all of it
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
    """A sequence that has ended, its lane, its tokens (the end token included) and how it ended."""

    sequence: Sequence
    lane: int
    tokens: list[int]
    finish_reason: str  # "stop" or "length"
    choice_probs: tuple[Probs, ...] = ()


def lanes_for(n: int, max_new_tokens: int) -> int:
    """How many of a prompt's n samples share a row."""
    most = max(1, min(MOST_LANES, LANE_COLUMNS // max_new_tokens))
    return -(-n // -(-n // most))


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, (row, head, column, dim); a step writes a column per lane, each row at its own."""

    def __init__(self, slots: Slots, keys: torch.Tensor) -> None:
        super().__init__()
        shape = (slots.n_slots, keys.shape[1], slots.n_columns, keys.shape[3])
        # zeros, because what is masked is still multiplied by 0, and an uninitialised NaN would spread
        self.keys, self.values = keys.new_zeros(shape), keys.new_zeros(shape)
        self.slots, self.is_initialized = slots, True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the rows in use, the new ones (row, head, lane, dim) written at their columns before."""
        slots = self.slots
        rows, columns = slots.row_ids[: slots.n_rows, None], slots.written()
        self.keys[rows, :, columns] = keys.transpose(1, 2)
        self.values[rows, :, columns] = values.transpose(1, 2)
        return self.keys[: slots.n_rows, :, : slots.width], self.values[: slots.n_rows, :, : slots.width]


class Slots:
    """The rows of one running batch: 0 .. n_rows - 1 are in use; those whose lanes have all ended wait to be filled.

    Row r has the lanes r * n_lanes .. (r + 1) * n_lanes - 1, one sequence each. `ends` (optional) says of a lane's
    tokens so far whether they end in a stop string, `rule` where choices are made.
    """

    def __init__(
        self, model: Any, n_slots: int, n_lanes: int, sampling: Sampling, eos: list[int],
        ends: StopTest | None = None, rule: ChoiceRule | None = None,
    ) -> None:  # fmt: skip
        self.model, self.sampling, self.eos, self.ends = model, sampling, eos, ends
        self.n_slots, self.n_lanes, self.n_all = n_slots, n_lanes, n_slots * n_lanes
        device, length = model.device, sampling.max_new_tokens
        self.n_rows, self.n_columns, self.width = 0, 0, 0
        self.sequences: list[Sequence | None] = [None] * self.n_all
        self.row_ids, self.lane_ids = torch.arange(n_slots, device=device), torch.arange(self.n_all, device=device)
        # of each lane the next token to feed and its position in the text; of each row the next column of the cache
        self.token, self.position = torch.zeros((2, self.n_all), dtype=torch.long, device=device).unbind()
        self.column = torch.zeros(n_slots, dtype=torch.long, device=device)
        self.uniform = torch.zeros((self.n_all, length), dtype=torch.float64, device=device)
        # kept in numpy, so that the loop never waits for the device to know them
        self.columns = np.zeros(n_slots, dtype=np.int64)
        self.n_drawn, self.budget = np.zeros((2, self.n_all), dtype=np.int64)
        self.drawn = np.zeros((self.n_all, length), dtype=np.int64)
        self.rule, self.at_cue = rule, np.zeros(self.n_all, dtype=bool)
        self.choice_probs: list[list[Probs]] = [[] for _ in range(self.n_all)]
        # tokens that a lane is still to be fed before its next one is drawn, the last one first
        self.given: list[list[int]] = [[] for _ in range(self.n_all)]
        self.mask = torch.zeros((n_slots, 1, n_lanes, 0), dtype=model.dtype, device=device)  # added to attention scores
        self.cache: Cache | None = None

    @property
    def n_live(self) -> int:
        """How many sequences are running."""
        return sum(s is not None for s in self.sequences[: self.n_rows * self.n_lanes])

    @property
    def free_rows(self) -> np.ndarray:
        """The rows that nothing runs in."""
        return np.flatnonzero(~np.array([s is not None for s in self.sequences]).reshape(self.n_slots, -1).any(1))

    def written(self) -> torch.Tensor:
        """The columns that this step writes, (row, lane): those of one step stand side by side."""
        return self.column[: self.n_rows, None] + self.lane_ids[: self.n_lanes]

    def admit(
        self, groups: list[list[Sequence]], lengths: list[int], cache: Cache, logits: torch.Tensor
    ) -> list[Ended]:
        """The sequences that end with their first token; the others run on from the next step.

        `groups[i]` are the samples of prompt i, which has `lengths[i]` tokens; `cache` and `logits` (prompt,
        vocabulary) come from one prefill of the prompts, padded on the left. ValueError if there are too few free rows.
        """
        size = self.n_lanes
        parts = [(i, group[j : j + size]) for i, group in enumerate(groups) for j in range(0, len(group), size)]
        free = self.free_rows[: len(parts)]
        if len(free) < len(parts):
            raise ValueError(f"{len(parts)} rows are wanted: {len(free)} of {self.n_slots} are free")
        padded, device = cache.get_seq_length(), self.token.device
        self._reserve(padded, cache)
        rows, source = torch.as_tensor(free, device=device), torch.tensor([i for i, _ in parts], device=device)
        for mine, theirs in zip(self.cache.layers, cache.layers, strict=True):
            mine.keys[rows, :, :padded] = theirs.keys[source]
            mine.values[rows, :, :padded] = theirs.values[source]
        length = torch.tensor(lengths, device=device)[source]
        column = torch.arange(self.n_columns, device=device)
        hidden = ((column < (padded - length)[:, None]) | (column >= padded))[:, None]
        self.mask[rows, 0] = torch.zeros_like(hidden, dtype=self.mask.dtype).masked_fill(hidden, self._floor)
        self.column[rows], self.columns[free] = padded, padded
        ids = (free[:, None] * size + np.arange(size)).ravel()
        lanes = torch.as_tensor(ids, device=device)
        self.position[lanes] = length.repeat_interleave(size) - 1
        uniform = np.zeros((len(ids), self.uniform.shape[1]))
        for place, (_, part) in enumerate(parts):
            for j, sequence in enumerate(part):
                uniform[place * size + j] = sequence.uniform
                self._begin(free[place] * size + j, sequence)
        self.uniform[lanes] = torch.as_tensor(uniform, device=device)
        self.n_rows = max(self.n_rows, int(free.max()) + 1)
        return self._accept(ids, lanes, logits[source.repeat_interleave(size)])

    def resume(self, row: int, sequence: Sequence, back: int, tokens: list[int]) -> None:
        """Nothing; a row of one lane whose sequence has just ended goes on with another one, before the next step.

        Of the row's text all but the last token is computed. `back` of that is taken back, then the row is fed `tokens`
        (one at least), and after them its tokens are drawn.
        """
        at = self.columns[row] = self.columns[row] - back
        self.mask[row, 0, 0, at : at + back] = self._floor
        self.token[row], self.position[row], self.column[row] = tokens[0], self.position[row] - back, int(at)
        self.given[row] = tokens[:0:-1]
        self._begin(row, sequence)
        self.uniform[row] = torch.as_tensor(sequence.uniform, device=self.uniform.device)

    def _begin(self, lane: int, sequence: Sequence) -> None:
        self.sequences[lane], self.choice_probs[lane] = sequence, []
        self.n_drawn[lane], self.budget[lane] = 0, sequence.budget
        if self.rule:
            self.at_cue[lane] = self.rule.ends(sequence.before)
            self.budget[lane] = min(sequence.budget, self.rule.patience)

    def step(self, drained: bool) -> list[Ended]:
        """The sequences that end with this token, one more for every lane. `drained`: free rows will stay free."""
        if drained:
            self._close_gaps()
        n, size = self.n_rows, self.n_lanes
        self.width = int(self.columns[:n].max()) + size
        self._reserve(self.width)
        self.mask[self.row_ids[:n, None], 0, self.lane_ids[:size], self.written()] = 0.0
        logits = self.model(
            input_ids=self.token[: n * size].view(n, size),
            position_ids=self.position[: n * size].view(n, size),
            attention_mask=self.mask[:n, :, :, : self.width],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=size,
        ).logits
        self.column[:n] += size
        self.columns[:n] += size
        return self._accept(np.arange(n * size), self.lane_ids[: n * size], logits.flatten(0, 1))

    def _accept(self, ids: np.ndarray, lanes: torch.Tensor, logits: torch.Tensor) -> list[Ended]:
        """The sequences that end with the token drawn now for each of the lanes (given to numpy and to torch)."""
        count = np.minimum(self.n_drawn[ids], self.drawn.shape[1] - 1)  # a lane that has ended may stand at the end
        drawn = np.array([not self.given[lane] for lane in ids])
        if self.rule:
            logits = self._choose(ids, logits, drawn)
        tokens = draw(logits, self.uniform[lanes, torch.as_tensor(count, device=lanes.device)], self.sampling)
        if not drawn.all():
            at, given = np.flatnonzero(~drawn), [self.given[lane].pop() for lane in ids[~drawn]]
            tokens[torch.as_tensor(at, device=tokens.device)] = tokens.new_tensor(given)
        self.token[lanes] = tokens
        self.position[lanes] += 1
        seen = tokens.cpu().numpy()
        self.drawn[ids, count] = seen
        self.n_drawn[ids] += drawn
        if self.rule:
            for i in self.rule.candidates(seen):
                if drawn[i]:
                    self.at_cue[ids[i]] = self._ends_with_cue(ids[i])
        stops = np.isin(seen, self.eos)
        over = self.n_drawn[ids] >= self.budget[ids]
        maybe = drawn if self.ends else (stops | over) & drawn
        return [e for lane, stop in zip(ids[maybe], stops[maybe], strict=True) if (e := self._end(lane, bool(stop)))]

    def _choose(self, ids: np.ndarray, logits: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        """The logits with those of the lanes that stand at a cue restricted, whose probabilities are kept."""
        at = np.flatnonzero(self.at_cue[ids] & drawn)
        logits, probs = self.rule.restrict(logits, at)
        for lane, p in zip(ids[at], probs, strict=True):
            self.choice_probs[lane].append(p)
            self.budget[lane] = min(self.sequences[lane].budget, self.n_drawn[lane] + 1 + self.rule.patience)
            self.at_cue[lane] = False
        return logits

    def _ends_with_cue(self, lane: int) -> bool:
        sequence, tail = self.sequences[lane], self.rule.tail
        if sequence is None:
            return False
        drawn = self.drawn[lane, max(0, self.n_drawn[lane] - tail) : self.n_drawn[lane]].tolist()
        return self.rule.ends(sequence.before + drawn if len(drawn) < tail else drawn)

    def _end(self, lane: int, stops: bool) -> Ended | None:
        """The sequence of a lane if it has ended."""
        sequence, tokens = self.sequences[lane], self.drawn[lane, : self.n_drawn[lane]]
        if sequence is None:
            return None
        stops = stops or (self.ends is not None and self.ends(tokens))
        if not stops and len(tokens) < self.budget[lane]:
            return None
        self.sequences[lane], self.at_cue[lane] = None, False
        return Ended(sequence, lane, tokens.tolist(), "stop" if stops else "length", tuple(self.choice_probs[lane]))

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
        ended = self.free_rows[self.free_rows < self.n_rows]
        n_live, size = self.n_rows - len(ended), self.n_lanes
        if len(ended) * 8 < self.n_rows:
            return
        to = ended[ended < n_live]
        source = np.setdiff1d(np.arange(n_live, self.n_rows), ended)
        self.n_rows = n_live
        self.columns[to] = self.columns[source]
        lanes_to, lanes_source = ((rows[:, None] * size + np.arange(size)).ravel() for rows in (to, source))
        for state in (self.n_drawn, self.budget, self.drawn, self.at_cue):
            state[lanes_to] = state[lanes_source]
        for lane, other in zip(lanes_to, lanes_source, strict=True):
            self.sequences[lane], self.sequences[other] = self.sequences[other], None
            self.choice_probs[lane], self.given[lane] = self.choice_probs[other], self.given[other]
            self.given[other] = []
        to, source, lanes_to, lanes_source = (
            torch.as_tensor(x, device=self.token.device) for x in (to, source, lanes_to, lanes_source)
        )
        for state in (self.token, self.position, self.uniform):
            state[lanes_to] = state[lanes_source]
        for state in (self.column, self.mask):
            state[to] = state[source]
        for layer in self.cache.layers:
            layer.keys[to], layer.values[to] = layer.keys[source], layer.values[source]
