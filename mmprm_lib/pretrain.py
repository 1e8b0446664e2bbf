"""`make base`: trains the embedded base from scratch, on general skills only, and measures what it can do.

The skills are reading, arithmetic, looking up and judging plain statements (see `curriculum`).
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

from .curriculum import KINDS, SKILLS, STAGES, Stage, Writer, pace, rows
from .models import EMBEDDED, load, new_base, new_processor

MIDDLE = 4  # the decoder layer that must already know a value, so that later layers can compare it with the claim


class Collator:
    """Pads rows on the right and turns their images into pixels."""

    def __init__(self, processor):
        self.processor, self.pad = processor, processor.tokenizer.pad_token_id

    def __call__(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["ids"]) for row in batch)

        def fill(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in batch])

        ids = fill("ids", self.pad)
        images = [row["image"] for row in batch if row["image"] is not None]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        marks = {"targets": fill("targets", -100), "kinds": fill("kinds", 0)}
        return {"input_ids": ids, "attention_mask": (ids != self.pad).long(), "pixel_values": pixels, **marks}


class BaseTrainer(Trainer):
    """Next-token loss at the marked places; the middle layer must predict readings and results too (deep supervision).

    Without it the last layer alone knows the right value, and nothing after it can compare that with what is claimed.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch; judgements weigh twice, the middle layer's loss 0.3."""
        targets, kinds = inputs.pop("targets"), inputs.pop("kinds")
        with torch.autocast(model.device.type, torch.bfloat16):  # Trainer's own covers model(...) alone
            core = model.model(**inputs, output_hidden_states=True)

        def words(hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            return model.lm_head(hidden[where]).float()

        every, early = targets != -100, (kinds > 0) & (kinds < 4)
        loss = cross_entropy(words(core.last_hidden_state, every), targets[every], reduction="none")
        loss = (loss * (1.0 + (kinds[every] == 4))).sum() / every.sum()
        middle = model.model.language_model.norm(core.hidden_states[MIDDLE])
        loss = loss + 0.3 * cross_entropy(words(middle, early), targets[early])
        return (loss, core) if return_outputs else loss


@torch.inference_mode()
def measure(model, processor, seed: int = 1, n: int = 512, split: str = "test") -> dict[str, float]:
    """Skills on scenes of a split never trained on, teacher forced, over `n` rows of each skill.

    reading, arithmetic, copying: share of values with every digit right; looking_up: of those copied from a list of
    options, the letter or the number. judging_auroc: of log-odds Yes against No,
    also for statements about the figure and about computations alone.
    """
    writer, collate, model = Writer(processor, seed, split), Collator(processor), model.eval()
    frames = []
    for skill in SKILLS * (n // 32):  # the last row shows a figure: no batch is without one
        data = collate([writer.row(skill) for _ in range(31)] + [writer.row("describe")])
        targets, kinds = data.pop("targets"), data.pop("kinds")
        at = kinds > 0
        logits = model(**data).logits[at]
        ids, places = data["input_ids"], at.nonzero().tolist()
        is_word = processor.tokenizer(" is")["input_ids"][0]
        found = {
            "kind": kinds[at].tolist(),
            "hit": (logits.argmax(-1) == targets[at]).tolist(),
            "score": (logits[:, writer.yes] - logits[:, writer.no]).tolist(),
            "right": (targets[at] == writer.yes).tolist(),
            "reading": [is_word in ids[r, c - 5 : c].tolist() for r, c in places],
            "look_up": [skill == "look_up"] * len(places),
            "starts": [bool(kinds[r, c - 1] != kinds[r, c]) for r, c in places],
        }
        frames.append(pd.DataFrame(found))
    return _skills(pd.concat(frames))


def _skills(frame: pd.DataFrame) -> dict[str, float]:
    values = frame.groupby(frame.starts.cumsum()).agg(
        kind=("kind", "first"), look_up=("look_up", "first"), hit=("hit", "all")
    )
    skills = {name: float(values[values.kind == kind].hit.mean()) for kind, name in KINDS.items()}
    skills["looking_up"] = float(values[values.look_up & (values.kind == 3)].hit.mean())
    judged = frame[frame.kind == 4]
    parts = {"": judged, "_reading": judged[judged.reading], "_arithmetic": judged[~judged.reading]}
    return skills | {f"judging_auroc{k}": float(roc_auc_score(part.right, part.score)) for k, part in parts.items()}


class Stream(torch.utils.data.IterableDataset):
    """The rows of the whole training, for Trainer."""

    def __init__(self, processor, seed: int, batch: int, stages: tuple[Stage, ...]):
        self.arguments = (processor, seed, batch, stages)

    def __iter__(self) -> Iterator[dict]:
        return rows(*self.arguments)


class Watch(TrainerCallback):
    """Prints the skills and saves the model now and then, so that an hour's training can be followed."""

    def __init__(self, processor, every: int, out: Path):
        self.processor, self.every, self.out, self.start = processor, every, out, time.time()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Nothing; looks at the model every `every` updates."""
        if state.global_step % self.every == 0:
            skills = measure(model, self.processor, n=64, split="dev")
            shown = ", ".join(f"{name} {value:.3f}" for name, value in skills.items())
            seconds = time.time() - self.start
            print(f"update {state.global_step} of {state.max_steps}, {seconds:.0f} s: {shown}", flush=True)
            model.save_pretrained(self.out)
            self.processor.save_pretrained(self.out)
            model.train()


ONE_RUN = "one, all stages of the curriculum."
RUNS = "this one went on from the checkpoint {}, the stages before it skipped; the figures above are of this run alone."
CARD = """# The embedded base of mmprm

A tiny vision-language model (`LlavaForConditionalGeneration`: SigLIP tower, Qwen2 decoder, {parameters:,} parameters,
bf16) that plays the part of a general base model in mmprm's notebooks. It was trained from random weights by
`make base` and knows nothing but the embedded world: reading its figures, arithmetic, restating numbers, looking up an
option, and judging plain statements true or false. It has seen no worked solution of a problem, no PRM format and no
Monte Carlo label. It is of no use for anything else.

- Data: {updates:,} batches of {batch} rows, drawn from the scenes of the world's train split, seed {seed}. No other.
- Cost: {seconds:,.0f} s on {threads} CPU thread(s).
- Runs: {runs}
- Skills, on scenes of the test split (n = {n} rows for each, teacher forced; reading, arithmetic and copying are shares
  of values with every digit right):

| skill | value |
|---|---|
{table}

Licence: MIT, as the project.
"""


def train(
    out: Path, batch: int, learning_rate: float, seed: int, watch: int, start: str, skip: int
) -> dict[str, float]:
    """The skills of a base saved in `out`: bf16 weights, its card (README.md), skills.json.

    Trained from scratch, or on from the checkpoint `start` after the first `skip` stages.
    """
    processor, began, stages = new_processor(), time.time(), STAGES[skip:]
    model = load(start)[0].train() if start else new_base(seed, tokenizer=processor.tokenizer)
    updates = sum(stage.updates for stage in stages)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=updates,
        per_device_train_batch_size=batch,
        seed=seed,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_steps=100,
        use_cpu=not torch.cuda.is_available(),
    )
    stream, watcher = Stream(processor, seed + skip, batch, stages), Watch(processor, watch, out)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: pace(update, stages))
    trainer = BaseTrainer(
        model,
        arguments,
        train_dataset=stream,
        data_collator=Collator(processor),
        callbacks=[watcher],
        optimizers=(optimizer, scheduler),
    )
    trainer.train()
    model = model.to(torch.bfloat16)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    facts = dict(
        runs=RUNS.format(start) if start else ONE_RUN,
        updates=updates,
        batch=batch,
        seed=seed,
        seconds=time.time() - began,
        threads=torch.get_num_threads(),
    )
    return write_card(out, model.float(), processor, facts)


def write_card(out: Path, model, processor, facts: dict) -> dict[str, float]:
    """The measured skills, written into `out` as README.md and skills.json."""
    skills, facts = measure(model, processor), facts | {"n": 512, "parameters": model.num_parameters()}
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in skills.items())
    (out / "README.md").write_text(CARD.format(table=table, **facts), encoding="utf-8")
    (out / "skills.json").write_text(json.dumps({"skills": skills, **facts}, indent=1) + "\n", encoding="utf-8")
    return skills


def main() -> None:
    """Trains the base with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.0e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", type=int, default=250, help="updates between two looks at the skills")
    parser.add_argument("--start", default="", help="a checkpoint to go on from")
    parser.add_argument("--skip", type=int, default=0, help="the stages that it has behind it")
    print(train(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
