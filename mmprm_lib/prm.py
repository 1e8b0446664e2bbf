"""Discriminative PRMs: the objective, training by transformers' Trainer, validation, save and load. Scoring itself is
in `scoring`.

Three PRMs and a baseline, by `kind`: `marker` (MM-PRM), `chat` (VisualPRM, value-based), `chat_advantage` (VisualPRM,
advantage-based), `orm` (one label for the whole solution); `judge` is the base, asked without training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import PrinterCallback, TrainerCallback

from mmprm_lib import checkpoints, models
from mmprm_lib.architecture import by_rows, check_packing, context_length, vision_towers
from mmprm_lib.checkpoints import local, trained
from mmprm_lib.encoding import Encoder
from mmprm_lib.objective import IGNORED, Example, class_weights, examples, step_loss, validation_metrics
from mmprm_lib.packing import collate_packed, packed_rows, shape_passes, with_labels
from mmprm_lib.schema import Problem, Solution, StepLabels, write_bytes
from mmprm_lib.scoring import Scorer, StepHead, label_ids
from mmprm_lib.steps import FORMATS, MARKER, Format
from mmprm_lib.training import UpdateTrainer, gathered, training_arguments, types_of, with_lora


def add_marker(model, processor, marker_init: str = "mean") -> None:
    """Nothing: `<prm>` becomes one special token of the tokenizer and, with its rows set, of the model. Once only.

    Input and output row are the mean of the existing rows, or those of the last token of the text `marker_init`. MM-PRM
    leaves the input row random.
    """
    tokenizer = processor.tokenizer
    if MARKER in tokenizer.get_vocab():
        return
    source = None if marker_init == "mean" else tokenizer.encode(marker_init, add_special_tokens=False)[-1]
    n_old = len(tokenizer)
    tokenizer.add_tokens([AddedToken(MARKER, special=True, normalized=False)], special_tokens=True)
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    if marker >= model.get_input_embeddings().weight.shape[0]:  # spare rows stay: many vocabularies are padded
        model.resize_token_embeddings(marker + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            table.weight[marker] = table.weight[:n_old].float().mean(0) if source is None else table.weight[source]


@dataclass
class TrainedPRM:
    """A PRM with its past: `history` is Trainer's log plus one entry per validated epoch."""

    form: Format
    model: object
    processor: object
    history: list[dict] = field(default_factory=list)
    best_epoch: float | None = None
    metrics: dict = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    n_train: int = 0
    key: str = ""  # of the training, where a kill may not undo it

    def scorer(self, batch_size: int = 256, **options) -> Scorer:
        """A `Scorer` of this PRM."""
        return Scorer(self.form, self.model, self.processor, batch_size, **options)

    def save(self, path: str | Path) -> Path:
        """The folder `path` with an ordinary checkpoint, the processor and prm.json; nothing in it is pickled."""
        path = Path(path)
        self.model.save_pretrained(path)
        self.processor.save_pretrained(path)
        kept = ("form", "history", "best_epoch", "metrics", "dropped", "n_train", *(["key"] if self.key else []))
        text = json.dumps({key: value for key, value in asdict_of(self).items() if key in kept}, indent=1)
        write_bytes(path / "prm.json", [text.encode(), b"\n"])  # last: it vouches for the rest
        return path


def asdict_of(prm: TrainedPRM) -> dict:
    """The fields of a PRM as plain values; the model and the processor as they are (a deep copy would double the
    memory).
    """
    return {**vars(prm), "form": asdict(prm.form)}


def load_prm(path: str | Path, **options) -> TrainedPRM:
    """The PRM saved at `path`; `options` go to `models.load`. FileNotFoundError if it holds no prm.json."""
    file = Path(path) / "prm.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: {path} is no PRM saved by prm.train")
    kept = json.loads(file.read_text())
    form = _form(kept.pop("form"))
    model, processor = models.load(path, **options)
    return TrainedPRM(form, model, processor, **kept)


class StepTrainer(UpdateTrainer):
    """UpdateTrainer with the step loss; everything else is transformers'."""

    loss_is_scaled_for_ga = True
    weights: torch.Tensor | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The step loss of a micro-batch, divided by the labelled steps of the accumulated batch."""
        labels, step_weights = inputs.pop("labels"), inputs.pop("step_weights", None)
        logits = model(**inputs)
        loss = step_loss(logits, labels, num_items_in_batch, self.weights, step_weights)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, logits) if return_outputs else loss


class KeepBest(TrainerCallback):
    """Validates after each epoch and keeps a copy of the trained parameters of the best: the lowest Brier score, which
    rewards order and size of a score alike and jumps less between epochs than the AUROC of a small dev part.
    """

    def __init__(self, head: StepHead, scorer: Scorer | None, validation: list[Example]):
        self.head, self.scorer, self.validation = head, scorer, validation
        self.best, self.rank, self.parameters = None, None, {}

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.scorer is None:
            return
        metrics = evaluate(self.scorer, self.validation) | {"epoch": round(state.epoch, 4), "step": state.global_step}
        state.log_history.append(metrics)
        rank = (-(1.0 if metrics["brier"] is None else metrics["brier"]), metrics["auroc"] or 0.0)
        if self.rank is None or rank > self.rank:
            self.best, self.rank = metrics, rank
            self.parameters = {n: local(p.detach()).to("cpu", copy=True) for n, p in trained(self.head).items()}

    def restore(self) -> None:
        """Nothing; the head has the best epoch's parameters again."""
        with torch.no_grad():
            for name, p in trained(self.head).items():
                if name in self.parameters:
                    local(p).copy_(self.parameters[name])

    def state(self) -> tuple[dict[str, torch.Tensor], list]:
        """(tensors, plain values) of the best epoch so far, for a checkpoint."""
        return self.parameters, [self.best, self.rank]

    def set_state(self, tensors: dict[str, torch.Tensor], plain: list) -> None:
        """Nothing; goes on from what `state` gave and JSON carried."""
        self.parameters, (self.best, rank) = tensors, plain
        self.rank = rank and tuple(rank)


def evaluate(scorer: Scorer, validation: list[Example]) -> dict:
    """`validation_metrics` of a scorer on examples, over the decisions that have something to compare with."""
    scores = scorer.score([example.problem for example in validation], validation)
    pairs = [
        (p, y)
        for line, example in zip(scores, validation, strict=True)
        for p, y in zip(line, example.right, strict=True)
        if y is not None
    ]
    return validation_metrics((p for p, _ in pairs), (y for _, y in pairs))


def training_rows(
    encoder: Encoder, data: Iterable[Example], train_history: str = "true"
) -> tuple[list[dict], dict[str, int]]:
    """Rows for Trainer, and how many records were dropped as `too_long` or `unlabelled`: never cut, so no image or
    label is split.

    `train_history` serves the chat PRMs: "true" shows the labels themselves after each step (VisualPRM), "plus" shows
    "+" everywhere, which is what scoring will show.
    """
    if train_history not in ("true", "plus"):
        raise ValueError(f"train_history is {train_history!r}: choose true or plus")
    rows, dropped = [], Counter(too_long=0, unlabelled=0)
    for example in data:
        if all(y is None for y in example.labels):
            dropped["unlabelled"] += 1
            continue
        history = example.history if train_history == "true" else None
        row = encoder.encode(example.problem, example.steps, example.name, history)
        if len(row.positions) != len(example.labels):
            raise ValueError(f"{example.name}: {len(row.positions)} decisions for {len(example.labels)} labels")
        if len(row.ids) > encoder.max_length:
            dropped["too_long"] += 1
            continue
        rows.append({"input_ids": row.ids, "row": row, "labels": [IGNORED if y is None else y for y in example.labels]})
        if example.weights is not None:
            rows[-1]["weights"] = example.weights
    if not rows:
        raise ValueError(f"none of {dropped.total()} records can be trained on: {dict(dropped)}")
    return _evened(rows), dict(dropped)


def _evened(rows: list[dict]) -> list[dict]:
    """The rows with weights, if they have any, scaled to a mean of 1 over the labelled decisions."""
    if "weights" not in rows[0]:
        return rows
    pairs = [(w, y) for row in rows for w, y in zip(row["weights"], row["labels"], strict=True)]
    mean = sum(w for w, y in pairs if y != IGNORED) / sum(y != IGNORED for _, y in pairs)
    return [row | {"weights": [w / mean for w in row["weights"]]} for row in rows]


def collate_labelled(encoder: Encoder, rows: list[dict]) -> dict[str, torch.Tensor]:
    """`Encoder.collate` plus what `with_labels` adds."""
    return with_labels(encoder.collate([row["row"] for row in rows]), rows)


def train(
    kind: str | Format,
    records: Sequence[StepLabels | Solution],
    problems: Sequence[Problem],
    model,
    processor,
    output_dir: str | Path,
    *,
    labels: str | None = None,
    threshold: float = 0.0,
    balance: float | None = None,
    lora_rank: int = 0,
    freeze_vision: bool = True,
    marker_init: str = "mean",
    train_history: str = "true",
    pack_size: int = 1,
    max_length: int | None = None,
    seed: int = 0,
    eval_records: Sequence[StepLabels | Solution] | None = None,
    eval_problems: Sequence[Problem] | None = None,
    **training,
) -> TrainedPRM:
    """A PRM trained from the weights of `model` (changed in place), saved in `output_dir` at its best epoch.

    `labels`: "soft", "hard" (mc_score > `threshold`), "counts" or "advantage" (see `objective`); by default soft for
    the marker PRM and the ORM, hard for the chat PRMs, as published. `lora_rank` 0 trains all weights, else LoRA,
    merged at the end. `freeze_vision` keeps the vision tower as it is (both papers). Without `eval_records` the last
    epoch is kept. `eval_problems` defaults to `problems`. `balance`: see `class_weights`; `train_history`: see
    `training_rows`; the rest: `training_arguments`. With `save_steps`, a training that was killed and is called again
    goes on from its last checkpoint, and one that has ended there is taken as it is.
    `pack_size`: solutions of one problem that share a row (see `packing`), of which `batch_size` counts every one; the
    passes of an update are joined where that leaves room (`packing.shape_passes`).
    """
    form = FORMATS[kind] if isinstance(kind, str) else kind
    labels = labels or ("hard" if form.kind.startswith("chat") else "soft")
    arguments = training_arguments(output_dir, seed=seed, use_cpu=model.device.type == "cpu", **training)
    check_packing(model, pack_size)
    torch.manual_seed(seed)  # peft draws its matrices
    if form.marker == MARKER:
        add_marker(model, processor, marker_init)
    validation = examples(form, eval_records or (), eval_problems or problems, labels, threshold)
    encoder = Encoder(form, processor, max_length or context_length(model))
    rows, dropped = training_rows(encoder, examples(form, records, problems, labels, threshold), train_history)
    head = _head(form, model, processor, lora_rank, freeze_vision, encoder.marker_id)
    keeper = KeepBest(head, _validator(form, head, processor, max_length) if validation else None, validation)
    n_rows, collate = len(rows), partial(collate_labelled, encoder)
    if pack_size > 1:
        alone, rows, collate = rows, packed_rows(rows, pack_size), partial(collate_packed, encoder)
        shape_passes(arguments, alone, rows)
        arguments.train_sampling_strategy = "random"  # few problems in a batch: not all of one family, too
    trainer = StepTrainer(head, arguments, train_dataset=rows, data_collator=collate, callbacks=[keeper])
    trainer.weights = class_weights((y for r in rows for y in r["labels"] if y != IGNORED), len(form.labels), balance)
    trainer.remove_callback(PrinterCallback)  # the history is returned; a notebook shows it as a figure
    trainer.keeper = keeper
    shaped = (asdict(form), trainer.weights, validation, processor.image_processor.to_json_string(), max_length)
    key = trainer.training_key(*shaped) if arguments.save_strategy != "no" else ""
    if key and (again := _finished(output_dir, key, model, processor)):
        return again
    types = types_of(head)
    with by_rows(model) if pack_size > 1 else nullcontext():
        trainer.train_from(key)
    keeper.restore()
    gathered(head, types)
    best = keeper.best or {}
    prm = TrainedPRM(
        form, model, processor, trainer.state.log_history, best.get("epoch"), best, dropped, n_rows, key
    )
    if checkpoints.first():
        prm.model = (head.vlm.merge_and_unload() if lora_rank else model).eval()
        prm.save(output_dir)
        checkpoints.clear(output_dir)
    return prm


def _finished(output_dir: str | Path, key: str, model, processor) -> TrainedPRM | None:
    """The PRM in `output_dir` if a training of this `key` has ended there, in the dtype and on the device of `model`.

    Otherwise None, and the folder vouches for no PRM any more.
    """
    file = Path(output_dir) / "prm.json"
    kept = json.loads(file.read_text()) if file.exists() and checkpoints.first() else {}
    if checkpoints.agreed(kept.get("key", "")) != key:
        if checkpoints.first():
            file.unlink(missing_ok=True)
        return None
    kept = json.loads(file.read_text())
    models.check_index(Path(output_dir))
    if checkpoints.first():
        checkpoints.clear(output_dir)  # one that was killed after it had saved its PRM has left them
    again = type(model).from_pretrained(output_dir, dtype=model.dtype, use_safetensors=True).to(model.device).eval()
    return TrainedPRM(_form(kept.pop("form")), again, processor, **kept)


def _form(kept: dict) -> Format:
    return Format(**{**kept, "labels": tuple(kept["labels"])})


def _head(form: Format, model, processor, lora_rank: int, freeze_vision: bool, marker_id: int | None) -> StepHead:
    """The module to train, with what is frozen frozen."""
    towers = vision_towers(model) if freeze_vision else []
    model.requires_grad_(True)  # an earlier training may have frozen something
    for tower in towers:
        tower.requires_grad_(False)
    words = label_ids(form, processor.tokenizer)
    return StepHead(with_lora(model, lora_rank, marker_id) if lora_rank else model, words, towers).to(model.device)


def _validator(form: Format, head: StepHead, processor, max_length: int | None) -> Scorer:
    """A scorer of the module in training: the same template, the same forward pass."""
    vlm = head.vlm.get_base_model() if hasattr(head.vlm, "get_base_model") else head.vlm
    scorer = Scorer(form, vlm, processor, max_length=max_length)
    scorer.head = head
    return scorer
