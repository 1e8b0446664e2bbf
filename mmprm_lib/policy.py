"""MM-Policy: supervised fine-tuning of a vision-language model on worked solutions, and a look at how the result errs.

Source: MM-PRM, section 3.1 (init InternVL2.5-8B, 1 epoch, batch 128, learning rate 4e-5, vision encoder frozen). The
same function tunes the embedded base and a hub checkpoint, all weights or LoRA.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from . import models, world
from .architecture import by_rows, check_packing, context_length, vision_towers
from .checkpoints import agreed, clear, first, shaping
from .encoding import Encoded, Encoder
from .generation import TransformersGenerator
from .packing import NO_TARGET as IGNORED
from .packing import Packed, joined, packed_texts, shape_passes
from .packing import tensors as packed_tensors
from .rows import lines_of
from .schema import Problem, fingerprint, write_bytes
from .steps import FORMATS, end_of_turn, join, neutralise, policy_prompt, split
from .training import UpdateTrainer, gathered, training_arguments, types_of, with_lora

Pair = tuple[Problem, list[str]]  # a problem and the steps of a worked solution
Text = tuple[Problem, str, str]  # a problem, a prompt with its image, and the text to be learnt
Weigh = Callable[[list[int]], list[float]]  # the tokens of a target -> the weight of each in the loss
FORMAT = 1  # of the training rows: a change of what they hold changes the key of every policy
N_LOGGED = 60  # points of the loss curve

# -- what it learns from


def corpus(
    problems: Sequence[Problem], per_problem: int, seed: int, *, slip: float, misconception: float, background: float
) -> list[Pair]:
    """(problem, steps) pairs as a scraped corpus holds them: `per_problem` solutions each, some with errors.

    Rates in [0, 1], ValueError otherwise; see `world.corpus_solution`. The same seed gives the same corpus.
    """
    rng = random.Random(f"{seed}/corpus")
    rates = dict(slip=slip, misconception=misconception, background=background)
    if wrong := {name: rate for name, rate in rates.items() if not 0 <= rate <= 1}:
        raise ValueError(f"rates of errors {wrong}: each is a chance, from 0 to 1")
    return [(p, world.corpus_solution(p, rng, **rates)) for p in problems for _ in range(per_problem)]


def worked(path: str | Path, problems: Sequence[Problem]) -> list[Pair]:
    """(problem, steps) pairs from a JSONL file of worked solutions, in its order; rows on other problems are left out.

    A row is {"problem_id", "steps": [text, ...]} or {"problem_id", "solution": text}; a text is cut by `steps.split`,
    which knows MM-PRM's <step> tags. ValueError with file:line on any other row, or if no row is about `problems`.
    """
    known, pairs = {p.problem_id: p for p in problems}, []
    for number, line in lines_of(path):
        name, steps = _worked_row(line, f"{path}:{number}")
        pairs += [(known[name], steps)] if name in known else []
    if not pairs:
        raise ValueError(f"{path} has no solution of any of the {len(known)} problems: compare its `problem_id`s")
    return pairs


def _worked_row(line: bytes | None, where: str) -> tuple[str, list[str]]:
    try:
        row = json.loads(line or b"")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON: {error}") from None
    row = row if isinstance(row, dict) else {}
    name, steps, text = row.get("problem_id"), row.get("steps"), row.get("solution")
    steps = split(text) if steps is None and isinstance(text, str) else steps
    if not isinstance(name, str) or not isinstance(steps, list) or {type(step) for step in steps} != {str}:
        raise ValueError(f"{where}: wanted problem_id (text) and steps (a list of texts) or solution (a text)")
    return name, steps


# -- training


def texts(processor: Any, pairs: Sequence[Pair]) -> list[Text]:
    """(problem, prompt, solution) of every pair: what is learnt, as text."""
    return [(problem, policy_prompt(problem, processor), join(steps)) for problem, steps in pairs]


def text_rows(encoder: Encoder, texts: Sequence[Text], weigh: Weigh | None = None) -> tuple[list[dict], int]:
    """Training rows (prompt, target and end of turn as tokens, no loss on the prompt), and how many were too long.

    An over-long row is left out whole, so that neither an image nor a target is ever cut. `weigh` gives the weight in
    the loss of each token of a target, the end of turn included.
    """
    out, dropped, end = [], 0, end_of_turn(encoder.processor)
    for problem, text, target in texts:
        prompt = encoder.prompt(problem, text).ids
        ids = encoder.tokenizer(neutralise(target, encoder.tokenizer), add_special_tokens=False)["input_ids"]
        ids = prompt + ids + [end]
        if len(ids) > encoder.max_length:
            dropped += 1
            continue
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        row = {"input_ids": ids, "labels": labels, "row": Encoded(ids, [], problem, text)}
        out.append(row | ({"weights": [0.0] * len(prompt) + weigh(ids[len(prompt) :])} if weigh else {}))
    return out, dropped


def rows(encoder: Encoder, pairs: Sequence[Pair]) -> tuple[list[dict], int]:
    """As `text_rows`, of worked solutions."""
    return text_rows(encoder, texts(encoder.processor, pairs))


def trained_on(processor: Any, pair: Pair) -> tuple[str, bool]:
    """(text, ends): what of a worked solution's training row the loss is on, as text, and whether it ends the turn."""
    (row,), _ = rows(Encoder(FORMATS["judge"], processor, 1 << 30), [pair])
    kept = [token for token in row["labels"] if token != IGNORED]
    text = processor.tokenizer.decode(kept, skip_special_tokens=True)
    return text, kept[-1] == end_of_turn(processor)


def collate(encoder: Encoder, batch: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Right-padded tensors of rows with `labels` (batch, token), padded with IGNORED, and the image tensors.

    Where the rows have weights, `weights` (batch, token), too, padded with 0. Packed rows become one: see `packing`.
    """
    packed = isinstance(batch[0]["row"], Packed)
    tensors = (packed_tensors if packed else Encoder.collate)(encoder, [row["row"] for row in batch])
    tensors.pop("positions")
    batch = [joined(batch)] if packed else batch
    width = tensors["input_ids"].shape[1]
    labels = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in batch]
    tensors |= {"labels": torch.tensor(labels)}
    if "weights" in batch[0]:
        tensors["weights"] = torch.tensor([row["weights"] + [0.0] * (width - len(row["weights"])) for row in batch])
    return tensors


class TokenTrainer(UpdateTrainer):
    """Trainer with a loss of our own: the sum over tokens, weighted or not, over their number, not that of weights.

    For weights, and for models whose own loss is a mean over each micro-batch however few targets it holds.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the targets of the whole accumulated batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a micro-batch, divided by the target tokens of the accumulated batch."""
        labels, weights = inputs.pop("labels")[:, 1:], inputs.pop("weights", None)
        out = model(**inputs)
        logits = out.logits[:, :-1].float().transpose(1, 2)  # (batch, vocabulary, token)
        losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        n = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses if weights is None else losses * weights[:, 1:]).sum() / n
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, out) if return_outputs else loss


def tune(
    model: Any, processor: Any, texts: Sequence[Text], output_dir: str | Path, *, learning_rate: float,
    epochs: float = 1.0, batch_size: int = 64, weight_decay: float = 0.0, lora_rank: int = 0,
    freeze_vision: bool = True, max_length: int = 0, seed: int = 0, weigh: Weigh | None = None, pack_size: int = 1,
    **training: Any,
) -> tuple[Any, list[dict]]:  # fmt: skip
    """(model, history): the model, tuned in place on texts and saved in `output_dir`, and its loss curve.

    `lora_rank` 0 trains all weights, else LoRA, merged at the end. `freeze_vision` keeps the vision tower (the paper).
    `max_length` 0 is the model's context. The history holds step, epoch, loss (nats per token), learning_rate and
    grad_norm, and last n_train and n_dropped, the over-long solutions. ValueError if none is left. `weigh`: see
    `text_rows`. `pack_size`: texts on one prompt that share a row (see `packing`); `batch_size` counts every one, and
    passes are joined where that leaves room.
    `training`: more of `training_arguments`. With `save_steps`, a training that was killed goes on from its last
    checkpoint; `kept` removes it.
    """
    check_packing(model, pack_size)
    torch.manual_seed(seed)  # peft draws its matrices
    encoder = Encoder(FORMATS["judge"], processor, max_length or context_length(model))
    data, n_dropped = text_rows(encoder, texts, weigh)
    if not data:
        raise ValueError(f"none of {len(texts)} solutions fits into {encoder.max_length} tokens: raise max_length")
    arguments = training_arguments(
        output_dir, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, weight_decay=weight_decay,
        seed=seed, use_cpu=model.device.type == "cpu", **training,
    )  # fmt: skip
    n_texts = len(data)
    if pack_size > 1:
        alone, data = data, packed_texts(data, pack_size)
        shape_passes(arguments, alone, data)
    n_rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    n_updates = epochs * math.ceil(len(data) / n_rows)
    arguments.logging_steps = max(1, int(n_updates) // N_LOGGED)
    # grouped by length, a small corpus would be seen family by family: the loss jumps where a group begins
    arguments.train_sampling_strategy = "random"
    towers = vision_towers(model) if freeze_vision else []
    with models.frozen(towers), by_rows(model) if pack_size > 1 else nullcontext():
        tuned = with_lora(model, lora_rank, None) if lora_rank else model
        kind = TokenTrainer if weigh or not getattr(model, "accepts_loss_kwargs", True) else UpdateTrainer
        trainer = kind(tuned, arguments, train_dataset=data, data_collator=lambda batch: collate(encoder, batch))
        trainer.remove_callback(PrinterCallback)  # the history is returned; a notebook shows it as a figure
        resumes, types = arguments.save_strategy != "no", types_of(tuned)
        trainer.train_from(trainer.training_key(processor.image_processor.to_json_string()) if resumes else "")
    trainer.accelerator.unwrap_model(tuned, keep_fp32_wrapper=False)  # else its forward pass stays in mixed precision
    gathered(tuned, types)
    if first():
        model = (tuned.merge_and_unload() if lora_rank else tuned).eval()
        model.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return model, [*_curve(trainer.state.log_history), {"n_train": n_texts, "n_dropped": n_dropped}]


def _curve(log: Sequence[dict]) -> list[dict]:
    """The log without what differs from run to run: seconds and speeds."""
    kept = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    return [{key: row[key] for key in kept if key in row} for row in log if "loss" in row]


def fine_tune(
    model: Any, processor: Any, pairs: Sequence[Pair], output_dir: str | Path, **options: Any
) -> tuple[Any, list[dict]]:
    """(model, history) of `tune` with these `options`: the policy, tuned in place on worked solutions, and its loss."""
    return tune(model, processor, texts(processor, pairs), output_dir, **options)


def fine_tuned(
    model: Any, processor: Any, pairs: Sequence[Pair], output_dir: str | Path, *, trust_remote_code: bool = False,
    **options: Any,
) -> tuple[Any, list[dict]]:  # fmt: skip
    """As `fine_tune` with these `options`; the policy that `output_dir` holds is taken instead if it is the same one.

    It is the same if base weights, prompts, solutions, images and options are.
    """
    base = TransformersGenerator(model, processor).fingerprint if first() else ""
    learnt = [[p.problem_id, policy_prompt(p, processor), p.image_sha256, steps] for p, steps in pairs]
    key = agreed(fingerprint([FORMAT, base, fingerprint(learnt), shaping(options)]))
    again = taken(output_dir, key, model, trust_remote_code)
    return again or kept(output_dir, key, fine_tune(model, processor, pairs, output_dir, **options))


def taken(
    output_dir: str | Path, key: str, model: Any, trust_remote_code: bool = False
) -> tuple[Any, list[dict]] | None:
    """(model, history) of an earlier training of this `key`, in the dtype and on the device of `model`; None without.

    Key and history stand in `training.json`, written last (`kept`), so that a run that was killed trains again. A file
    of another key is removed: from here on the folder vouches for nothing.
    """
    file = Path(output_dir) / "training.json"
    found = json.loads(file.read_text()) if file.exists() and first() else {}
    if agreed(found.get("key", "")) != key:
        if first():
            file.unlink(missing_ok=True)
        return None
    found = json.loads(file.read_text())
    if first():
        clear(output_dir)  # one that was killed just after it had written its file has left checkpoints
    again, _ = models.load(output_dir, dtype=model.dtype, trust_remote_code=trust_remote_code)
    return again.to(model.device), found["history"]


def kept(output_dir: str | Path, key: str, tuned: tuple[Any, list[dict]]) -> tuple[Any, list[dict]]:
    """`tuned`, (model, history), after `training.json` says what the folder holds and its checkpoints are gone."""
    if first():
        text = json.dumps({"key": key, "history": tuned[1]}, indent=1)
        write_bytes(Path(output_dir) / "training.json", [text.encode(), b"\n"])
        clear(output_dir)
    return tuned
