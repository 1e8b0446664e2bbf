"""Solutions of one problem in one training row: image, question and every beginning that they share are computed once.

The pieces of a problem's solutions form a tree. Its tokens stand in one row, parent before child; a mask lets each
token see the prompt and its own ancestors only, and its position counts from the root along its own branch. So
every decision has the value it has when its solution stands alone, and so has the loss, a sum over decisions.

Texts to be learnt token by token share the prompt alone: where they part, one token has several successors.

The rows of a batch follow one another without padding, as one long row; attention alone looks at each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .encoding import Encoded, Encoder
from .objective import IGNORED

if TYPE_CHECKING:
    from transformers import TrainingArguments

NO_PARENT = -1
NO_TARGET = -100  # the label of a token that is not learnt, as transformers has it


@dataclass
class Packed:
    """One row: the tokens of all branches, the place of each, and where the decisions of each solution are read.

    `branches[i]` is (first token, end, parent branch) in order of the row; the prompt is branch 0. `positions` lists
    the decisions solution after solution; a shared step is listed once for each of its solutions.
    """

    first: Encoded  # a solution of the problem: names the prompt and its image
    ids: list[int]
    places: list[int]
    branches: list[tuple[int, int, int]]
    positions: list[int] = field(default_factory=list)


def pack(solutions: Sequence[Encoded]) -> Packed:
    """The solutions of one problem and prompt as one row. ValueError if their prompts differ.

    Pieces are cut at the decisions; two solutions share a piece if all tokens up to its end are the same.
    """
    first = solutions[0]
    n_prompt = _prompt_length(solutions)
    row = Packed(first, first.ids[:n_prompt], list(range(n_prompt)), [(0, n_prompt, NO_PARENT)])
    known: dict[tuple[int, tuple[int, ...]], int] = {}  # (parent branch, tokens) -> branch
    for solution in solutions:
        if solution.text != first.text or solution.problem.problem_id != first.problem.problem_id:
            name = solution.problem.problem_id
            raise ValueError(f"a row takes solutions of one prompt, not of {name!r} beside others")
        branch, start = 0, n_prompt
        for position in solution.positions:
            tokens = tuple(solution.ids[start : position + 1])
            if (branch, tokens) not in known:
                at = len(row.ids)
                row.branches.append((at, at + len(tokens), branch))
                row.ids += tokens
                row.places += range(start, position + 1)
                known[branch, tokens] = len(row.branches) - 1
            branch, start = known[branch, tokens], position + 1
            row.positions.append(row.branches[branch][1] - 1)
    return row


def _prompt_length(solutions: Sequence[Encoded]) -> int:
    """The tokens that all solutions begin with, at most up to one before the first decision of any of them."""
    length = min(s.positions[0] if s.positions else len(s.ids) for s in solutions)
    columns = zip(*(s.ids[:length] for s in solutions), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), length)


def visible(row: Packed, width: int) -> torch.Tensor:
    """Which token sees which, bool (width, width): its ancestors, and of its own branch what stands before it.

    Padding, to the right of the row, sees itself alone, so that no softmax is empty.
    """
    branch = torch.full((width,), -1)
    ancestors = torch.eye(len(row.branches), dtype=torch.bool)
    for index, (start, end, parent) in enumerate(row.branches):
        branch[start:end] = index
        if parent != NO_PARENT:
            ancestors[index] |= ancestors[parent]
    n = len(row.ids)
    seen = torch.eye(width, dtype=torch.bool)
    seen[:n, :n] = ancestors[branch[:n]][:, branch[:n]] & torch.ones(n, n, dtype=torch.bool).tril()
    return seen


def packed_rows(rows: Sequence[dict], size: int) -> list[dict]:
    """The rows of `prm.training_rows`, at most `size` solutions of one problem in each, their labels one after another.

    Solutions that have no company stay alone.
    """
    by_prompt: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_prompt.setdefault((row["row"].problem.problem_id, row["row"].text), []).append(row)
    groups = [part[i : i + size] for part in by_prompt.values() for i in range(0, len(part), size)]
    columns = [key for key in ("labels", "weights") if rows and key in rows[0]]
    packed = [(pack([r["row"] for r in group]), group) for group in groups]
    return [
        {"input_ids": row.ids, "row": row, **{key: [y for r in group for y in r[key]] for key in columns}}
        for row, group in packed
    ]


def packed_texts(rows: Sequence[dict], size: int) -> list[dict]:
    """The rows of `policy.text_rows`, at most `size` texts on one prompt in each, in order of their first.

    Every text stands behind a last prompt token of its own, at the same place: the one that foretells its first token.
    """
    by_prompt: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_prompt.setdefault((row["row"].problem.problem_id, row["row"].text), []).append(row)
    return [_packed_text(part[i : i + size]) for part in by_prompt.values() for i in range(0, len(part), size)]


def _packed_text(texts: Sequence[dict]) -> dict:
    first = texts[0]
    n = next(i for i, label in enumerate(first["labels"]) if label != NO_TARGET) - 1
    row = Packed(first["row"], first["input_ids"][:n], list(range(n)), [(0, n, NO_PARENT)])
    columns = {key: first[key][:n] for key in ("labels", "weights") if key in first}
    for text in texts:
        at, ids = len(row.ids), text["input_ids"][n:]
        row.branches.append((at, at + len(ids), 0))
        row.ids += ids
        row.places += range(n, n + len(ids))
        columns = {key: values + text[key][n:] for key, values in columns.items()}
    return {"input_ids": row.ids, "row": row, **columns}


def shape_passes(arguments: TrainingArguments, alone: Sequence[dict], packed: Sequence[dict]) -> None:
    """Nothing; the arguments' batch becomes one of packed rows, at least 1, with as many solutions an update as before.

    Packed, solutions have fewer tokens than `alone`. Passes that make an update are joined while one has no more tokens
    than a batch of solutions alone, which takes no more memory and less time.
    """
    size, passes = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    rows = max(1, size // max(1, round(len(alone) / len(packed))))
    before, now = (sum(len(row["input_ids"]) for row in part) / len(part) for part in (alone, packed))
    fit = (k for k in range(passes, 1, -1) if passes % k == 0 and k * rows * now <= size * before)
    together = next(fit, 1)
    arguments.per_device_train_batch_size = rows * together
    arguments.gradient_accumulation_steps = passes // together


def tensors(encoder: Encoder, rows: Sequence[Packed]) -> dict:
    """As `Encoder.collate`, all rows one after another in one: `input_ids`, `position_ids` (1, token) and `positions`
    (1, decision).

    `row_ends` lists where each ends, and the float `attention_mask` (row, 1, token, token), as wide as the longest, is
    0 where seen: a model takes them inside `architecture.by_rows`.
    """
    batch = encoder.collate([Encoded(r.ids, r.positions, r.first.problem, r.first.text) for r in rows])
    kept = batch.pop("attention_mask").bool()
    del batch["positions"]
    flat = {key: t[kept][None] if t.shape == kept.shape else t for key, t in batch.items()}
    ends = [int(n) for n in kept.sum(1).cumsum(0)]
    places = [p + end - len(row.ids) for row, end in zip(rows, ends, strict=True) for p in row.positions]
    seen = torch.stack([visible(row, kept.shape[1]) for row in rows])[:, None]
    return flat | {
        "positions": torch.tensor([places], dtype=torch.long), "row_ends": ends,
        "position_ids": torch.tensor([[place for row in rows for place in row.places]]),
        "attention_mask": torch.where(seen, 0.0, torch.finfo(torch.float32).min),
    }  # fmt: skip


def joined(rows: Sequence[dict]) -> dict[str, list]:
    """`labels` and, if there are any, `weights` of packed rows, one row's after another's."""
    return {key: [y for row in rows for y in row[key]] for key in ("labels", "weights") if key in rows[0]}


def collate_packed(encoder: Encoder, batch: Sequence[dict]) -> dict:
    """`tensors` of rows of `packed_rows`, and what `with_labels` adds."""
    return with_labels(tensors(encoder, [item["row"] for item in batch]), [joined(batch)])


def with_labels(batch: dict[str, torch.Tensor], rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """The batch, its `labels` float32 (row, decision), padded with IGNORED, and `step_weights`, if rows have some."""
    for key, name, fill in (("labels", "labels", IGNORED), ("weights", "step_weights", 0.0)):
        if key in rows[0]:
            batch[name] = torch.full(batch["positions"].shape, fill)
            for index, row in enumerate(rows):
                batch[name][index, : len(row[key])] = torch.tensor(row[key])
    return batch
