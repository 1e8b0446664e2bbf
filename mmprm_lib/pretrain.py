"""`make base`: trains the embedded base from scratch, on general skills only: reading, arithmetic, looking up, judging statements.

No solution of a problem, no PRM format and no Monte Carlo label is seen. Every row is a list of short statements about one
figure or about numbers. Only scenes of the train split are drawn, so that all skills are measured on scenes never seen.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Iterator

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

from .models import EMBEDDED, IMAGE_SIZE, PATCH, new_base, new_processor, training_attention
from .world import FAMILIES, parts, render, split_of, walk
from .world.truth import OPERATIONS, operand

MIDDLE = 4  # the decoder layer that must already know the next token, so that later layers can compare it with what is claimed
JUDGE_TEXT, MARK = "Judge each statement.", " True?"
KINDS = {1: "reading", 2: "arithmetic", 3: "copying"}  # of a target; 4 is a judgement, 0 is not trained on
SKILLS = ("describe", "compute", "look_up", "judge")


def scene(rng: random.Random, split: str) -> tuple[dict, str]:
    """A scene of the split and one wording of its question."""
    while True:
        family = rng.choice(list(FAMILIES))
        draft = FAMILIES[family](rng, rng.random())
        found = {"family": family, "values": draft.values, "extra": draft.extra, "plan": draft.plan, "trap": draft.trap, "look": rng.randrange(2**31)}
        if split_of(found) == split:
            return found, rng.choice([draft.plain, draft.tricky])


def facts(found: dict, rng: random.Random) -> list[tuple[str, int]]:
    """The computations of a scene's plan or trap as (text up to "=", result); half of them after a misreading."""
    unit = 5 if found["family"] == "triangle" else 1
    values = {k: v if rng.random() < 0.75 else max(0, v + unit * rng.choice([-2, -1, 1, 2])) for k, v in found["values"].items()}
    results, out = [], []
    for item in found[rng.choice(["plan", "trap"])]:
        if "head" in item:
            x, y = operand(item["left"], {"values": values}, results), operand(item["right"], {"values": values}, results)
            x, y = (y, x) if item["op"] == "-" and x < y else (x, y)
            results.append(OPERATIONS[item["op"]](x, y))
            out.append((f"{item['head']}: {x} {item['op']} {y} =", results[-1]))
    return out


def statement(found: dict, rng: random.Random) -> tuple[str, int, bool]:
    """(text without the value, the value it claims, whether that is true): a reading or a computation."""
    right = rng.random() < 0.5
    if rng.random() < 0.65:
        phrase, key = rng.choice(list(parts(found["family"], found["values"]).items()))
        value, unit = found["values"][key], 5 if found["family"] == "triangle" else 1
        others = [v for v in found["values"].values() if v != value] * 2
        wrong = rng.choice(others + [v for v in (value + d * unit for d in (-3, -2, -1, 1, 2, 3)) if v >= 0])
        return f"{phrase} is", value if right else wrong, right
    text, value = rng.choice(facts(found, rng))
    return text, value if right else rng.choice([v for v in (value + d for d in (-10, -5, -2, -1, 1, 2, 5, 10)) if v >= 0]), right


class Writer:
    """Turns scenes into token rows: (ids, next-token targets, kind of each target, image or None)."""

    def __init__(self, processor, seed: int, split: str = "train"):
        self.tokenizer, self.rng, self.split = processor.tokenizer, random.Random(f"{seed}/{split}/base"), split
        self.yes, self.no = (self.tokenizer(w)["input_ids"][0] for w in (" Yes", " No"))
        self.image = "<image>" * (IMAGE_SIZE // PATCH) ** 2
        self.cache: dict[str, list[int]] = {}
        self.options = ""

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text)["input_ids"]
        return self.cache[text]

    def row(self, skill: str) -> dict:
        found, question = scene(self.rng, self.split)
        pieces = getattr(self, skill)(found)  # (text, kind of its targets: 0 none, 1 reading, 2 arithmetic, 3 copy, 4 judgement)
        user = {"describe": "Describe the figure.", "compute": "Compute.", "look_up": self.options, "judge": f"{question}\n{JUDGE_TEXT}"}[skill]
        seeing = skill in ("describe", "judge")
        head = self.encode("<|im_start|>user\n" + (self.image if seeing else "")) + self.encode(user)
        ids = head + self.encode("<|im_end|>\n<|im_start|>assistant\n")
        targets, kinds = [-100] * len(ids), [0] * len(ids)
        for text, kind in pieces:
            if kind == 4:  # the judgement is read at the mark and never written
                targets[-1], kinds[-1] = (self.yes if text == "yes" else self.no), 4
                continue
            new = self.encode(text)
            ids += new
            if kind:
                targets[-1], kinds[-1] = new[0], kind
            targets += (new[1:] if kind else [-100] * (len(new) - 1)) + [-100]
            kinds += [kind] * (len(new) - 1) + [0]
        return {"ids": ids, "targets": targets, "kinds": kinds, "image": render(found) if seeing else None}

    def describe(self, found: dict) -> list[tuple[str, int]]:
        items = list(parts(found["family"], found["values"]).items())
        self.rng.shuffle(items)
        return [x for phrase, key in items for x in ((f"{phrase} is", 0), (f" {found['values'][key]}", 1), ("\n\n", 0))]

    def compute(self, found: dict) -> list[tuple[str, int]]:
        known = [f for _ in range(4) for f in facts(scene(self.rng, self.split)[0], self.rng)][:6]
        return [x for text, value in known for x in ((text, 0), (f" {value}", 2), ("\n\n", 0))]

    def look_up(self, found: dict) -> list[tuple[str, int]]:
        text, value = self.rng.choice(facts(found, self.rng))
        near = [value + d for d in (-10, -2, -1, 1, 2, 5, 10) if value + d >= 0]
        options = self.rng.sample(near, 3) + [value]
        self.rng.shuffle(options)
        listed, self.options = self.rng.random() < 0.8, "Compute."
        if listed:
            self.options += "\n" + " ".join(f"({k}) {v}" for k, v in zip("ABCD", options))
        return [(text, 0), (f" {value}", 2), ("\n\n", 0), ("Answer:", 0), (" " + ("ABCD"[options.index(value)] if listed else str(value)), 3), ("<|im_end|>", 3)]

    def judge(self, found: dict) -> list[tuple[str, int]]:
        out = []
        for _ in range(8):
            text, value, right = statement(found, self.rng)
            kind = (1 if " is" in text else 2) if right else 0
            out += [(text, 0), (f" {value}", kind), (MARK, 0), ("yes" if right else "no", 4), ("\n\n", 0)]
        return out


READING_FIRST = 0.3  # share of the updates before any statement is judged: a model that cannot see learns to judge by looks only
SHARES = {False: dict(describe=0.72, compute=0.16, look_up=0.12), True: dict(describe=0.2, compute=0.08, look_up=0.14, judge=0.58)}


def rows(processor, seed: int, updates: int, batch: int) -> Iterator[dict]:
    """Rows of the whole training, update by update: first reading and computing, then mostly judging."""
    writer = Writer(processor, seed)
    for update in range(updates):
        shares = SHARES[update >= READING_FIRST * updates]
        for skill in writer.rng.choices(list(shares), list(shares.values()), k=batch - 1):
            yield writer.row(skill)
        yield writer.row("describe")  # no batch is without a figure


class Collator:
    """Pads rows on the right and turns their images into pixels."""

    def __init__(self, processor):
        self.processor, self.pad = processor, processor.tokenizer.pad_token_id

    def __call__(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["ids"]) for row in batch)
        fill = lambda name, value: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in batch])
        ids = fill("ids", self.pad)
        images = [row["image"] for row in batch if row["image"] is not None]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return {"input_ids": ids, "attention_mask": (ids != self.pad).long(), "targets": fill("targets", -100), "kinds": fill("kinds", 0), "pixel_values": pixels}


class BaseTrainer(Trainer):
    """Next-token loss at the marked places; the middle layer must predict readings and results as well (deep supervision)."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets, kinds = inputs.pop("targets"), inputs.pop("kinds")
        core = model.model(**inputs, output_hidden_states=True)
        head = lambda hidden, where: model.lm_head(hidden[where]).float()
        every, early = targets != -100, (kinds > 0) & (kinds < 4)
        loss = cross_entropy(head(core.last_hidden_state, every), targets[every], reduction="none")
        loss = (loss * (1.0 + (kinds[every] == 4))).sum() / every.sum()
        norm = model.model.language_model.norm
        early_loss = cross_entropy(head(norm(core.hidden_states[MIDDLE]), early), targets[early])
        loss = loss + 0.3 * early_loss
        return (loss, core) if return_outputs else loss


@torch.inference_mode()
def measure(model, processor, seed: int = 1, n: int = 512, split: str = "test") -> dict[str, float]:
    """Skills on scenes of a split never trained on, teacher forced.

    reading, arithmetic, copying: share of values with every digit right. judging_auroc: of log-odds Yes against No, also for
    statements about the figure and about computations alone.
    """
    writer, collate, model = Writer(processor, seed, split), Collator(processor), model.eval()
    found: dict[str, list] = {name: [] for name in ("row", "kind", "hit", "score", "right", "reading")}
    is_word = processor.tokenizer(" is")["input_ids"][0]
    for skill in SKILLS * (n // 32):
        batch = [writer.row(skill) for _ in range(31)] + [writer.row("describe")]  # the last: no batch is without a figure
        data = collate(batch)
        targets, kinds = data.pop("targets"), data.pop("kinds")
        logits = model(**data).logits
        at = kinds > 0
        picked = logits[at]
        found["hit"] += (picked.argmax(-1) == targets[at]).tolist()
        found["score"] += (picked[:, writer.yes] - picked[:, writer.no]).tolist()
        found["right"] += (targets[at] == writer.yes).tolist()
        found["kind"] += kinds[at].tolist()
        for r, c in at.nonzero().tolist():
            found["row"].append(found["row"][-1] + int(kinds[r, c - 1] != kinds[r, c]) if found["row"] else 0)
            found["reading"].append(is_word in data["input_ids"][r, c - 5 : c].tolist())
    frame = pd.DataFrame(found)
    values = frame.groupby("row").agg(kind=("kind", "first"), hit=("hit", "all"))
    skills = {name: float(values[values.kind == kind].hit.mean()) for kind, name in KINDS.items()}
    judged = frame[frame.kind == 4]
    auroc = lambda part: float(roc_auc_score(part.right, part.score))
    return skills | {
        "judging_auroc": auroc(judged), "judging_auroc_reading": auroc(judged[judged.reading]), "judging_auroc_arithmetic": auroc(judged[~judged.reading])
    }


class Stream(torch.utils.data.IterableDataset):
    """The rows of the whole training, for Trainer."""

    def __init__(self, processor, seed: int, updates: int, batch: int):
        self.arguments = (processor, seed, updates, batch)

    def __iter__(self) -> Iterator[dict]:
        return rows(*self.arguments)


class Watch(TrainerCallback):
    """Prints the skills and saves the model now and then, so that an hour's training can be followed."""

    def __init__(self, processor, every: int, out: Path):
        self.processor, self.every, self.out, self.start = processor, every, out, time.time()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            skills = {name: round(value, 3) for name, value in measure(model, self.processor, n=128, split="dev").items()}
            print(f"update {state.global_step} of {state.max_steps}, {time.time() - self.start:.0f} s: {skills}", flush=True)
            model.save_pretrained(self.out)
            self.processor.save_pretrained(self.out)
            model.train()


CARD = """# The embedded base of mmprm

A tiny vision-language model (`LlavaForConditionalGeneration`: SigLIP tower, {parameters:,} parameters, bf16) that plays the part of a
general base model in mmprm's notebooks. It was trained from random weights by `make base` and knows nothing but figures of the embedded world:
reading them, arithmetic, looking up an option, and judging plain statements true or false. It has seen no worked solution, no PRM
format and no Monte Carlo label. It is of no use for anything else.

- Data: {updates:,} batches of {batch} rows, drawn from the scenes of the world's train split, seed {seed}. No other data.
- Cost: {seconds:,.0f} s on {threads} CPU thread(s).
- Skills, on scenes of the test split (n = {n} rows each, teacher forced):

| skill | value |
|---|---|
{table}

Licence: MIT, as the project.
"""


def train(out: Path, updates: int, batch: int, learning_rate: float, seed: int, watch: int) -> dict:
    """The skills of a base trained from scratch and saved in `out` in bf16 with its card (README.md) and skills.json."""
    processor, start = new_processor(), time.time()
    model = new_base(seed, tokenizer=processor.tokenizer)
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=updates, per_device_train_batch_size=batch, learning_rate=learning_rate, weight_decay=0.01,
        adam_beta2=0.98, warmup_steps=100, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": int(0.45 * updates)},
        bf16=True, seed=seed, save_strategy="no", report_to=[], remove_unused_columns=False, disable_tqdm=True, logging_steps=100,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = BaseTrainer(model, arguments, train_dataset=Stream(processor, seed, updates, batch), data_collator=Collator(processor), callbacks=[Watch(processor, watch, out)])
    with training_attention(model):
        trainer.train()
    model = model.to(torch.bfloat16)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    skills = measure(model.float(), processor)
    facts = dict(updates=updates, batch=batch, seed=seed, seconds=time.time() - start, threads=torch.get_num_threads(), n=512)
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in skills.items())
    (out / "README.md").write_text(CARD.format(parameters=model.num_parameters(), table=table, **facts))
    (out / "skills.json").write_text(json.dumps({"skills": skills, **facts}, indent=1) + "\n")
    return skills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.0e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", type=int, default=250, help="updates between two looks at the skills")
    options = parser.parse_args()
    print(train(options.out, options.updates, options.batch, options.learning_rate, options.seed, options.watch))


if __name__ == "__main__":
    main()
