"""What all training shares: transformers' Trainer, its arguments, LoRA, and the order of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from mmprm_lib import models
from mmprm_lib.architecture import not_adapted
from mmprm_lib.checkpoints import ResumingTrainer, trained

if TYPE_CHECKING:
    from peft import PeftModel


def training_arguments(
    output_dir: str | Path,
    *,
    learning_rate: float = 1.0e-4,
    epochs: float = 1.0,
    batch_size: int = 32,
    gradient_accumulation: int = 1,
    warmup_share: float = 0.05,
    weight_decay: float = 0.05,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    save_steps: int = 0,
    fsdp: bool = False,
    seed: int = 0,
    use_cpu: bool = False,
) -> TrainingArguments:
    """Trainer's arguments: AdamW, linear warm-up over `warmup_share` of the updates, then cosine to 0, as both papers.

    VisualPRM warms up over 5 %, MM-PRM over 3 %; weight decay is 0.05 in both; their learning rates are 1e-5 and 4e-6.
    `batch_size` is per device and before accumulation. `bf16` is mixed precision, where the device computes it;
    `gradient_checkpointing` computes activations a second time in the backward pass, in place of keeping them.
    `save_steps`: updates from one checkpoint to the next, after a kill the most that is lost; 0 makes none. `fsdp`
    shards weights, gradients and AdamW's moments over the processes, in place of a copy in each.
    """
    if not 0 <= warmup_share < 1:  # Trainer would read 1 as one update
        raise ValueError(f"warmup_share is {warmup_share}: give the share of all updates, from 0 to below 1")
    use_cpu = use_cpu and not (fsdp and torch.cuda.is_available())  # FSDP takes a model from the CPU, shard by shard
    return TrainingArguments(
        output_dir=str(output_dir),
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation,
        warmup_steps=warmup_share,  # a share where below 1
        weight_decay=weight_decay,
        lr_scheduler_type="cosine",
        bf16=bf16 and models.has_bf16(torch.device("cpu" if use_cpu else "cuda")),
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=seed,
        use_cpu=use_cpu,
        save_strategy="steps" if save_steps else "no",  # see `checkpoints`; KeepBest keeps the best epoch
        save_steps=save_steps or 1,
        fsdp=fsdp,
        fsdp_config={"cpu_ram_efficient_loading": True} if fsdp else None,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
    )


def types_of(module: torch.nn.Module) -> dict[str, torch.dtype]:
    """The type of each of a module's weights, by its name; tied ones by all of theirs."""
    return {name: p.dtype for name, p in module.named_parameters(remove_duplicate=False)}


def gathered(module: torch.nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Nothing; what FSDP has sharded is whole again, in the first process' memory; the others hold nothing any more.

    All processes must call it. The module is then good for merging and saving, no longer for training. `types`: those
    of before the training (`types_of`), which the weights get back; FSDP keeps what learns in float32.
    """
    trained(module)  # no weights that a forward pass has put together
    sharded = any(isinstance(p, DTensor) for p in module.parameters())
    done: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for where, part in module.named_modules() if sharded else ():
        for name, p in part.named_parameters(recurse=False):
            if id(p) not in done:
                full = p.full_tensor() if isinstance(p, DTensor) else p.detach()
                full = full.to(types[f"{where}.{name}".removeprefix(".")])
                kept = full.cpu() if torch.distributed.get_rank() == 0 else full.new_empty(0)
                done[id(p)] = torch.nn.Parameter(kept, requires_grad=p.requires_grad)
            setattr(part, name, done[id(p)])


def with_lora(model, rank: int, marker_id: int | None) -> PeftModel:
    """A peft model around `model`: LoRA on every linear layer outside the vision tower, and the marker's embedding row
    trained.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=not_adapted())
    if marker_id is not None:
        name = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
        config.trainable_token_indices = {name.rpartition(".")[2]: [marker_id]}
    return get_peft_model(model, config)


class ByLengthWithinUpdates(torch.utils.data.Sampler):
    """Rows in random order, those of one update, `window` rows, by length.

    Which rows an update sees is left to chance, as if nothing were sorted; its micro-batches hold rows of like length,
    so that less is padded. An epoch has an order of its own.
    """

    def __init__(self, lengths: Sequence[int], window: int, seed: int) -> None:
        self.lengths, self.window, self.seed, self.epoch = lengths, window, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Nothing; Trainer calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=chance).tolist()
        for start in range(0, len(order), self.window):
            yield from sorted(order[start : start + self.window], key=lambda i: (self.lengths[i], i))


class UpdateTrainer(ResumingTrainer):
    """Trainer that goes on after a kill, and whose "random" order of rows is `ByLengthWithinUpdates`."""

    def create_accelerator_and_postprocess(self) -> None:
        """Nothing; as Trainer does. FSDP shards layer by layer, and on CPUs, too."""
        if self.args.fsdp:
            stacks = [m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList)]
            layers = sorted({type(layer).__name__ for stack in stacks for layer in stack})
            self.args.fsdp_plugin_args["transformer_cls_names_to_wrap"] = layers
            if PartialState().distributed_type == DistributedType.MULTI_CPU:  # accelerate would turn to DDP, silently
                PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(rows)
        window = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.row_order = ByLengthWithinUpdates([len(row["input_ids"]) for row in rows], window, self.args.seed)
        return self.row_order
