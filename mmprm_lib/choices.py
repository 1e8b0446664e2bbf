"""A verdict inside a text: where it is due, which tokens may stand there, and what the model thought of each.

Only the verdict is constrained, never the text around it. The probabilities are those of the unconstrained model, so
that their sum, the coverage, says how much it wanted to write something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Probs = tuple[float, ...]  # of each choice, among all tokens, at temperature 1
UNKNOWN, NO, MAYBE = range(3)  # whether a cue can end with this token


class ChoiceRule:
    """The token after the text `cue` is the first token of one of the `choices`: two or more texts.

    `ids[i]` is that token of choice i; `take` (-1: off) writes always the same one. ValueError if this tokenizer does
    not cut the text between cue and choice, or begins two choices with one token: then there is nothing to compare.
    """

    def __init__(
        self, tokenizer: Any, cue: str, choices: Sequence[str], take: int = -1, patience: int = 0, context: str = "\n"
    ) -> None:
        self.tokenizer, self.cue, self.take, self.patience = tokenizer, cue, take, patience or 2**31
        self.tail = len(cue.encode()) + 1  # a token has at least a byte
        self.kind = np.zeros(len(tokenizer), dtype=np.int8)
        self.ids = [self._first(context, choice) for choice in choices]
        if len(set(self.ids)) < len(choices):
            raise ValueError(f"choices {list(choices)} begin with tokens {self.ids}: choose words that differ there")

    def _first(self, context: str, choice: str) -> int:
        """The first token of a choice in its place: after the cue, before a line break."""
        before, whole = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (context + self.cue, context + self.cue + choice + "\n")
        )
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError(
                f"this tokenizer does not end a token between {self.cue!r} and {choice!r}: move the space between them "
                "from one to the other, or choose another cue"
            )
        return whole[len(before)]

    def candidates(self, tokens: np.ndarray) -> np.ndarray:
        """The indices of the tokens with which a cue can end; cheap, so that it can be asked at every step."""
        if len(tokens) and int(tokens.max()) >= len(self.kind):  # rows of the model that the tokenizer does not name
            self.kind = np.pad(self.kind, (0, int(tokens.max()) + 1 - len(self.kind)))
        for token in tokens[self.kind[tokens] == UNKNOWN]:
            piece = self.tokenizer.decode([int(token)])
            # a token of some bytes of a character shows as a replacement
            self.kind[token] = MAYBE if piece and piece[-1] in (self.cue[-1], "\ufffd") else NO
        return np.flatnonzero(self.kind[tokens] == MAYBE)

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the text of the tokens ends with the cue."""
        if not tokens or not len(self.candidates(np.array(tokens[-1:]))):
            return False
        options = dict(skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.tokenizer.decode(list(tokens[-self.tail :]), **options).endswith(self.cue)

    def restrict(self, logits: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, list[Probs]]:
        """(logits, probs): (row, vocabulary), all but the choices at -inf in `rows`; the choices' probabilities there.

        probs has one tuple per row of `rows`: of the softmax at temperature 1 over all tokens.
        """
        if not len(rows):
            return logits, []
        at = torch.as_tensor(rows, device=logits.device)
        ids = torch.tensor(self.ids, device=logits.device)
        chosen = logits[at]
        probs = torch.softmax(chosen.float(), -1)[:, ids]
        allowed = ids if self.take < 0 else ids[self.take : self.take + 1]
        only = torch.full_like(chosen, -torch.inf)
        only[:, allowed] = chosen[:, allowed]
        logits = logits.clone()
        logits[at] = only
        return logits, [tuple(p) for p in probs.tolist()]
