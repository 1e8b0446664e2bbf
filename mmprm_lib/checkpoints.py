"""Trainings that go on after a kill: transformers' checkpoints and resuming, kept as safetensors and JSON alone.

A checkpoint is a folder `checkpoint-STEP` of the output folder: `trainer_state.json`, Trainer's own, and one
`rank-N.safetensors` of each process, with what is no tensor as JSON in its header. It is written beside, made lasting,
and renamed when it is whole, and only then the one before it is removed: a kill at any instant leaves one to go on
from. Its key covers all that shapes the training, so that a changed call begins anew.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from .fingerprints import fingerprint, fingerprint_of_many
from .models import weights_hash

FORMAT = 1  # of the files: a change of what they hold makes older ones useless
STATE = "trainer_state.json"
UNSHAPING = ("output_dir", "logging_dir", "save_steps", "save_strategy")  # arguments that leave the weights alone

Tensors = dict[str, torch.Tensor]


def first() -> bool:
    """Whether this is the only or the first of the processes that train together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def agreed(text: str) -> str:
    """The first process' text, in all processes that train together."""
    texts = [text]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(texts)
    return texts[0]


def shaping(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that shape the weights, and how many processes share the work, if several do."""
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    processes = {"n_processes": torch.distributed.get_world_size()} if several else {}
    return {name: value for name, value in options.items() if name not in UNSHAPING} | processes


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that FSDP has sharded; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained of a module, by name; with FSDP the shards, never copies that a forward pass has put together."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _like(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A part of a state, sharded as the parameter `whole` is; one that has another shape is nobody's shard."""
    if not isinstance(whole, DTensor) or part.shape != whole.to_local().shape:
        return part
    part = part.to(whole.to_local().device)
    options = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(part, whole.device_mesh, whole.placements, **options)


def chance() -> tuple[Tensors, Any]:
    """The state of every random generator of this process: torch's as tensors, the others' as plain values."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, keys, *rest = np.random.get_state()
    return tensors, [random.getstate(), [kind, keys.tolist(), *rest]]


def set_chance(tensors: Tensors, plain: Any) -> None:
    """Nothing; the generators go on from a state of `chance`, which JSON may have carried."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    (version, words, gauss), (kind, keys, *rest) = plain
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def _under(name: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {f"{name}/{key}": tensor for key, tensor in tensors.items()}


def _from(name: str, tensors: Tensors) -> Tensors:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def _lasting(path: Path) -> None:
    """Nothing; a file or a folder's list of names stands on the disk, not only in a cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _removed(path: Path) -> None:
    """Nothing; a checkpoint is gone. It has lost its name before its first file goes."""
    gone = path.with_suffix(".gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def whole(folder: str | os.PathLike[str]) -> list[Path]:
    """The whole checkpoints in a folder, the last first."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: -int(p.name.removeprefix("checkpoint-")))


def clear(folder: str | os.PathLike[str]) -> None:
    """Nothing; no checkpoint, whole or half, is left in a folder: the training is finished."""
    for path in whole(folder):
        _removed(path)
    for path in [*Path(folder).glob("checkpoint-*.part"), *Path(folder).glob("checkpoint-*.gone")]:
        shutil.rmtree(path)


def _header(path: Path, rank: int) -> dict[str, Any]:
    try:
        with safe_open(path / f"rank-{rank}.safetensors", "pt") as file:
            return json.loads(file.metadata()["state"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{path} cannot be read ({why}): delete it, and training begins anew") from error


def last(folder: str | os.PathLike[str], key: str) -> Path | None:
    """The last whole checkpoint in a folder of the training of this `key`; None without, with a warning for others."""
    for path in whole(folder):
        if _header(path, 0)["key"] == key:
            return path
        warnings.warn(
            f"{path} is of another training: data, parameters, start weights or the number of processes differ. "
            "Training begins anew, and its first checkpoint replaces that one",
            stacklevel=2,
        )
    return None


class _Pace(TrainerCallback):
    """What a checkpoint needs done at certain moments of the training."""

    def __init__(self, trainer: ResumingTrainer) -> None:
        self.trainer, self.due = trainer, False

    def on_train_begin(self, args, state, control, **kwargs):
        state.save_steps = int(args.save_steps)
        if self.trainer.resumed:
            self.trainer.restore_log()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.begin_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        # an epoch's last update is saved after its validation; the training's last one is not: only saving is left
        self.due = control.should_save and state.epoch == int(state.epoch) and state.global_step < state.max_steps
        control.should_save &= not self.due and state.global_step < state.max_steps

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save, self.due = self.due, False


class ResumingTrainer(Trainer):
    """Trainer that goes on from the last checkpoint of the same training, if `args.save_steps` made one.

    `keeper`, where there is one, has `state()` -> (tensors, plain values) and `set_state` of these: the best epoch.
    """

    keeper: Any = None
    resumed: Path | None = None
    row_order: Any = None  # a sampler that wants to be told the epoch

    def training_key(self, *shaped_by: Any) -> str:
        """16 hex digits of all that shapes the training: rows, images, weights, arguments, and `shaped_by`."""
        if not first():  # with FSDP, the others may hold no weights yet
            return agreed("")
        arguments = {key: value for key, value in self.args.to_dict().items() if key not in UNSHAPING}
        parts = [FORMAT, type(self).__name__, arguments, self.args.world_size, weights_hash(self.model)]
        parts += [list(trained(self.model))]
        return agreed(fingerprint([*parts, fingerprint_of_many(self.train_dataset), *shaped_by]))

    def train_from(self, key: str) -> None:
        """Nothing; trains, from the last checkpoint of this `key`, or from the beginning. "": no checkpoints at all."""
        self.key = key
        if key:
            self.add_callback(_Pace(self))
            found = last(self.args.output_dir, key) if first() else None
            self.resumed = Path(path) if (path := agreed(str(found or ""))) else None
        self.train(resume_from_checkpoint=str(self.resumed) if self.resumed else None)

    def _read(self) -> tuple[Tensors, dict[str, Any]]:
        """(tensors, plain values) of this process' file; what all processes have in common stands in the first's."""
        rank = self.args.process_index
        tensors = load_file(self.resumed / f"rank-{rank}.safetensors")
        plain = _header(self.resumed, rank)
        if not plain["owner"]:
            tensors |= load_file(self.resumed / "rank-0.safetensors")
        return tensors, plain

    # -- Trainer's own hooks, in place of those that pickle

    def _save_checkpoint(self, model, trial=None) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        part = folder.with_suffix(".part")
        if first():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        tensors, plain = self._taken()
        file = part / f"rank-{self.args.process_index}.safetensors"
        save_file(tensors, file, {"state": json.dumps(plain)})
        _lasting(file)
        self.accelerator.wait_for_everyone()
        if not first():
            return
        self.state.save_to_json(str(part / STATE))
        _lasting(part / STATE)
        _lasting(part)
        older = whole(folder.parent)
        if folder in older:  # of another training
            _removed(folder)
        part.rename(folder)
        _lasting(folder.parent)
        for path in older:
            if path != folder:
                _removed(path)

    def _taken(self) -> tuple[Tensors, dict[str, Any]]:
        """(tensors, plain values): all that the training needs to go on in this process from here."""
        parameters, now, begun = trained(self.model), chance(), self.begun
        tensors = _under("now", now[0]) | _under("begun", begun[0])
        owner = first() or any(isinstance(p, DTensor) for p in parameters.values())
        kept = self.keeper.state() if self.keeper else ({}, None)
        if owner:
            tensors |= _under("parameter", {name: local(p.detach()) for name, p in parameters.items()})
            for index, state in self._optimizer().state_dict()["state"].items():
                tensors |= _under(f"optimizer/{index}", {name: local(value) for name, value in state.items()})
            tensors |= _under("kept", kept[0])
        plain = {"key": self.key, "owner": owner, "now": now[1], "begun": begun[1], "kept": kept[1]}
        plain["rates"] = [group["lr"] for group in self._optimizer().param_groups]
        plain["scheduler"] = self.lr_scheduler.state_dict()
        plain["log"] = [self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged]
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, plain

    def _optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper, or none

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        tensors, plain = self._read()
        found = _from("parameter", tensors)
        with torch.no_grad():
            for name, p in trained(model or self.model).items():
                local(p).copy_(found[name])
        if self.keeper:
            self.keeper.set_state(_from("kept", tensors), plain["kept"])

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if not self.resumed:
            return
        tensors, plain = self._read()
        now = self._optimizer().state_dict()  # all but the rates comes from the arguments, which the key covers
        parameters = [p for group in self._optimizer().param_groups for p in group["params"]]
        for name, tensor in _from("optimizer", tensors).items():
            index, _, what = name.partition("/")
            now["state"].setdefault(int(index), {})[what] = _like(parameters[int(index)], tensor)
        for group, rate in zip(now["param_groups"], plain["rates"], strict=True):
            group["lr"] = rate
        self._optimizer().load_state_dict(now)
        self.lr_scheduler.load_state_dict(plain["scheduler"])

    def _load_scaler(self, checkpoint) -> None:
        """Nothing: there is none in float32 and bfloat16, and Trainer would unpickle a scaler.pt that it finds."""

    def _load_rng_state(self, checkpoint) -> None:
        if self.resumed:
            tensors, plain = self._read()
            set_chance(_from("now", tensors), plain["now"])

    def restore_log(self) -> None:
        """Nothing; the sums of what was not logged yet go on."""
        _, plain = self._read()
        self._tr_loss += plain["log"][0]
        self._total_loss_scalar, self._globalstep_last_logged = plain["log"][1:]

    def begin_epoch(self, epoch: int) -> None:
        """Nothing; the rows of an epoch come in the order that they had when it first began."""
        if self.row_order is not None:
            self.row_order.set_epoch(epoch)
        if self.resumed and self.state.global_step == self._initial_global_step:
            tensors, plain = self._read()
            moment = "now" if self.state.epoch == epoch else "begun"
            set_chance(_from(moment, tensors), plain[moment])
        self.begun = chance()
