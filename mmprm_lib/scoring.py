"""How a discriminative PRM reads a solution: records to tensors, one forward pass for all steps, step scores.

All candidates of a problem share one computation of image and prompt, and the vocabulary head is read at the decisions'
positions and at the label words' rows only. (MM-PRM computes the whole vocabulary at every position, and image and
prompt once per candidate.)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from mmprm_lib.architecture import by_rows, context_length, shares_prompts, went_on
from mmprm_lib.encoding import Encoded, Encoder
from mmprm_lib.models import weights_hash
from mmprm_lib.schema import Problem, Scores, fingerprint
from mmprm_lib.steps import FORMATS, Format

TEMPLATE_VERSION = 1  # raise it when a template's text changes: it is part of every fingerprint


def label_ids(form: Format, tokenizer) -> list[int]:
    """The token id of each label word of `form`, in its order.

    A tokenizer may know "Yes" as one token or only " Yes": the words are tried as written, then with the leading space
    added or removed. Raises ValueError if neither makes every word one token.
    """
    toggled = tuple(word[1:] if word.startswith(" ") else " " + word for word in form.labels)
    for words in (form.labels, toggled):
        ids = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        if all(len(i) == 1 and i[0] != tokenizer.unk_token_id for i in ids) and len({i[0] for i in ids}) == len(ids):
            return [i[0] for i in ids]
    raise ValueError(
        f"no single tokens for the labels {form.labels} of the {form.kind} PRM: set Format.labels to words that are"
    )


class StepHead(nn.Module):
    """A VLM whose forward pass returns the label words' logits at the decisions: float32 (batch, step, label).

    A module of its own, so that Trainer (and DDP around it) calls it as it would call any model. `frozen` modules stay
    in evaluation mode while the rest trains: stochastic depth must not act in a tower that cannot learn from it.
    """

    accepts_loss_kwargs = True  # makes Trainer count the labelled steps of the whole accumulated batch

    def __init__(self, vlm, labels: list[int], frozen: Sequence[nn.Module] = ()):
        super().__init__()
        self.vlm, self.frozen = vlm, tuple(frozen)
        self.register_buffer("labels", torch.tensor(labels), persistent=False)
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in vlm.modules():
            for name, p in module.named_parameters(recurse=False):
                places.setdefault(id(p), []).append((module, name))
        self.shared = [found for found in places.values() if len(found) > 1]

    def train(self, mode: bool = True):
        """Self, in training or evaluation mode; frozen parts are always in the latter."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def tie_weights(self) -> None:
        """Nothing; weights that were shared are shared again. FSDP asks for it after it has handed them out anew."""
        for (module, name), *others in self.shared:
            for other, its_name in others:
                other._parameters[its_name] = module._parameters[name]

    def gradient_checkpointing_enable(self, **options) -> None:
        """Nothing; Trainer calls it where activations are to be computed again in the backward pass."""
        self.vlm.gradient_checkpointing_enable(**options)

    def forward(self, positions, prompts=None, prompt_of=None, **inputs) -> torch.Tensor:
        """Logits for a batch of `Encoder.collate` or `packing.tensors` or, with `prompts`, of `Encoder.collate_shared`
        or `collate_in_line`.
        """
        # a peft model hooks its layers into the model it wraps
        vlm = self.vlm.get_base_model() if hasattr(self.vlm, "get_base_model") else self.vlm
        body = vlm.base_model
        if prompts is None:
            hidden = body(**inputs, use_cache=False).last_hidden_state  # (batch, token, width)
        elif "row_ends" in inputs:
            with by_rows(vlm):
                hidden = _after_prompt(body, prompts, **inputs)
        else:
            hidden = _after_prompts(body, prompts, prompt_of, **inputs)
        at = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))  # (batch, step, width)
        head = vlm.get_output_embeddings()
        head = getattr(head, "base_layer", head)
        bias = None if getattr(head, "bias", None) is None else head.bias[self.labels]
        return nn.functional.linear(at, head.weight[self.labels].to(at.dtype), bias).float()


def _after_prompts(body, prompts: dict, prompt_of: torch.Tensor, input_ids, attention_mask) -> torch.Tensor:
    """Hidden states (batch, token, width) of the tokens after the prompts; each prompt is computed once."""
    cache, start = went_on(body, prompts)
    cache.batch_select_indices(prompt_of)
    return body(
        input_ids=input_ids,
        attention_mask=torch.cat([prompts["attention_mask"][prompt_of], attention_mask], -1),
        position_ids=start[prompt_of, None] + torch.arange(input_ids.shape[1], device=input_ids.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def _after_prompt(body, prompts: dict, position_ids: torch.Tensor, **inputs) -> torch.Tensor:
    """Hidden states (1, token, width) of rows after one prompt, which follow one another; nothing of it is copied but
    for a row at a time, and nothing is padded.
    """
    cache, start = went_on(body, prompts)
    where = start[:, None] + position_ids
    return body(**inputs, position_ids=where, past_key_values=cache, use_cache=True).last_hidden_state


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Step scores in [0, 1] from label logits (..., 2 or 3): P(right) among the label words.

    With two words this is sigmoid(z_right - z_wrong). With three (advantage) VisualPRM scores P(+) - P(-) in [-1, 1];
    here it is moved to [0, 1], which is P(+) + P(=) / 2 and keeps every order.
    """
    p = logits.float().softmax(-1)
    return p[..., 0] + (p[..., 2] / 2 if p.shape[-1] == 3 else 0.0)


def _moved(batch: dict, device: torch.device) -> dict:
    kinds = {dict: _moved, list: lambda values, _: values}
    return {k: kinds.get(type(v), torch.Tensor.to)(v, device) for k, v in batch.items()}


class Scorer:
    """Step scores of solutions by one PRM: `kind` is a name of FORMATS, or a Format.

    `batch_size` is the most solutions, `batch_tokens` the most tokens (padding included) of one forward pass. `history`
    serves the chat PRMs: "plus" shows "+" after every step (VisualPRM, one pass); "predicted" shows the PRM's own
    earlier verdicts, right from `threshold` on as everywhere, at the price of one pass per step. A context manager, or
    call `close`.
    """

    def __init__(
        self,
        kind: str | Format,
        model,
        processor,
        batch_size: int = 256,
        *,
        batch_tokens: int = 8192,
        history: str = "plus",
        threshold: float = 0.5,
        max_length: int | None = None,
        bf16: bool = False,
        name: str | None = None,
    ):
        if history not in ("plus", "predicted"):
            raise ValueError(f"history is {history!r}: choose plus or predicted")
        self.form = FORMATS[kind] if isinstance(kind, str) else kind
        self.head = StepHead(model, label_ids(self.form, processor.tokenizer))
        self.head.to(model.device)
        self.batch_size, self.batch_tokens, self.bf16 = batch_size, batch_tokens, bf16
        self.history, self.threshold = history, float(threshold)
        self.encoder = Encoder(self.form, processor, max_length or context_length(model))
        self.name = name or self.form.kind
        self.share_prompts = shares_prompts(model)

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing; forgets the model, so that its memory is free where nobody else holds it."""
        self.head = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over weights, format, tokenizer, image processing and history: what a score depends on.

        The threshold is among them only where a history is predicted: without one it changes no score.
        """
        weights = weights_hash(self.head.vlm)
        processor = self.encoder.processor
        texts = [
            self.encoder.tokenizer.backend_tokenizer.to_str(),
            str(processor.chat_template),
            processor.image_processor.to_json_string(),
        ]
        parts = [TEMPLATE_VERSION, asdict(self.form), weights, texts, self.history, self.bf16]
        return fingerprint([*parts, self.threshold] if self._predicts else parts)

    def score(self, problems: Problem | Iterable[Problem], solutions: Sequence) -> list[np.ndarray]:
        """One float32 array per solution (records with `solution_id`, `problem_id` and `steps`), one score in [0, 1]
        per step.

        An ORM gives one score per solution. A solution without steps gets an empty array. ValueError naming the record
        if it is longer than the model's context, or its problem is not among `problems`.
        """
        if self.head is None:
            raise ValueError(f"scorer {self.name!r} is closed: make a new one")
        problems = {p.problem_id: p for p in ([problems] if isinstance(problems, Problem) else problems)}
        for solution in solutions:
            if solution.problem_id not in problems:
                raise ValueError(
                    f"{solution.solution_id}: problem {solution.problem_id!r} is not among the {len(problems)} given"
                )
        rounds = max((len(s.steps) for s in solutions), default=0) if self._predicts else 1
        scores: list[np.ndarray] = []
        for index in range(rounds):  # round t settles the verdict shown after step t
            histories = [self._shown(s.steps, scores[i][:index] if scores else []) for i, s in enumerate(solutions)]
            scores = self._pass(problems, solutions, histories)
        return scores or [np.zeros(0, np.float32) for _ in solutions]

    @property
    def _predicts(self) -> bool:
        return self.history == "predicted" and self.form.kind.startswith("chat")

    def _shown(self, steps: list[str], settled: Sequence[float]) -> list[str]:
        right, wrong = self.form.labels[:2]
        lows = [float(score) < self.threshold for score in settled]  # at the threshold it is right, as in a benchmark
        return [wrong if i < len(lows) and lows[i] else right for i in range(len(steps))]

    def score_records(self, problems: Iterable[Problem], solutions: Sequence, chunk: int = 4096) -> Iterator[Scores]:
        """`Scores` records in the order of `solutions`, made `chunk` solutions at a time."""
        problems = list(problems)
        for start in range(0, len(solutions), chunk):
            part = solutions[start : start + chunk]
            for solution, scores in zip(part, self.score(problems, part), strict=True):
                yield Scores(solution_id=solution.solution_id, prm=self.name, step_scores=[float(s) for s in scores])

    def _pass(self, problems: dict[str, Problem], solutions: Sequence, histories: list[list[str]]) -> list[np.ndarray]:
        order = sorted(range(len(solutions)), key=lambda i: (solutions[i].problem_id, i))
        self.head.eval()
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(solutions)
        encoded = {}
        for i in order:
            encoded[i] = self.encoder.encode(
                problems[solutions[i].problem_id], solutions[i].steps, solutions[i].solution_id, histories[i]
            )
            if len(encoded[i].ids) > self.encoder.max_length:
                raise ValueError(
                    f"{solutions[i].solution_id}: {len(encoded[i].ids)} tokens, but the model takes "
                    f"{self.encoder.max_length}: leave it out or shorten it"
                )
        for group in self._batches([i for i in order if encoded[i].positions], encoded, solutions):
            rows = [encoded[i] for i in group]
            alone = self.share_prompts and len({(row.problem.problem_id, row.text) for row in rows}) == 1
            shared = self.encoder.collate_in_line if alone else self.encoder.collate_shared
            batch = shared(rows) if self.share_prompts else self.encoder.collate(rows)
            with torch.inference_mode(), torch.autocast(self.head.labels.device.type, torch.bfloat16, self.bf16):
                p = probabilities(self.head(**_moved(batch, self.head.labels.device))).cpu().numpy()
            lines = np.split(p[0], np.cumsum([len(row.positions) for row in rows])[:-1]) if alone else p
            for i, row, line in zip(group, rows, lines, strict=True):
                scores[i] = line[: len(row.positions)].astype(np.float32)
        return scores

    def _batches(self, order: list[int], encoded: dict[int, Encoded], solutions: Sequence) -> Iterator[list[int]]:
        """Groups of about equal length within the token budget; the candidates of a problem stay side by side.

        A prompt that candidates share counts once; one that is longer than they are stands alone where they fill a
        quarter of the budget, so that it need not be copied for each.
        """
        longest: dict[str, int] = {}
        for i in order:
            longest[solutions[i].problem_id] = max(longest.get(solutions[i].problem_id, 0), len(encoded[i].ids))
        order = sorted(
            order, key=lambda i: (longest[solutions[i].problem_id], solutions[i].problem_id, len(encoded[i].ids), i)
        )
        group, width, prompts, n_tokens = [], 0, {}, 0
        for i in order:
            row, known = encoded[i], encoded[i].n_prompt if self.share_prompts else 0
            mine = {(row.problem.problem_id, row.text): known}
            shared, new, before = prompts | mine, max(width, len(row.ids) - known), n_tokens
            n_tokens = new * (len(group) + 1) + max(shared.values(), default=0) * len(shared)
            large = before > self.batch_tokens // 4 and len(shared) > len(prompts) and known > new
            if group and (large or len(group) == self.batch_size or n_tokens > self.batch_tokens):
                yield group
                group, shared, new, n_tokens = [], mine, len(row.ids) - known, len(row.ids)
            group, width, prompts = [*group, i], new, shared
        if group:
            yield group
