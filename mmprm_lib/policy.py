"""MM-Policy: supervised fine-tuning of a vision-language model on worked solutions, and a look at how the result errs.

Source: MM-PRM, section 3.1 (init InternVL2.5-8B, 1 epoch, batch 128, learning rate 4e-5, vision encoder frozen). The same function
tunes the embedded base and a hub checkpoint, all weights or LoRA.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from . import world
from .models import training_attention
from .prm import TRAINER_HABITS, with_lora
from .schema import Problem, Solution
from .scoring import Encoded, Encoder, context_length, vision_towers
from .steps import FORMATS, join, neutralise, policy_prompt

IGNORED = -100


def corpus(
    problems: Sequence[Problem], per_problem: int, seed: int, *, slip: float, misconception: float, background: float
) -> list[tuple[Problem, list[str]]]:
    """(problem, steps) pairs as a scraped corpus holds them: `per_problem` solutions of each, with slips and misconceptions.

    Rates in [0, 1]; see `world.corpus_solution`. The same seed gives the same corpus.
    """
    rng = random.Random(f"{seed}/corpus")
    rates = dict(slip=slip, misconception=misconception, background=background)
    return [(p, world.corpus_solution(p, rng, **rates)) for p in problems for _ in range(per_problem)]


def rows(encoder: Encoder, pairs: Sequence[tuple[Problem, list[str]]]) -> tuple[list[dict], int]:
    """Training rows (prompt and solution as tokens, loss on the solution and the end of turn), and how many were too long."""
    out, dropped = [], 0
    for problem, steps in pairs:
        text = policy_prompt(problem, encoder.processor)
        prompt = encoder.prompt(problem, text).ids
        solution = encoder.tokenizer(neutralise(join(steps), encoder.tokenizer), add_special_tokens=False)["input_ids"]
        ids = prompt + solution + [encoder.tokenizer.eos_token_id]
        if len(ids) > encoder.max_length:
            dropped += 1
            continue
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        out.append({"input_ids": ids, "labels": labels, "row": Encoded(ids, [], problem, text)})
    return out, dropped


def collate(encoder: Encoder, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Padded tensors with `labels`, padded with IGNORED."""
    data = encoder.collate([row["row"] for row in batch])
    data.pop("positions")
    width = data["input_ids"].shape[1]
    labels = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in batch]
    return data | {"labels": torch.tensor(labels)}


def fine_tune(
    model,
    processor,
    pairs: Sequence[tuple[Problem, list[str]]],
    output_dir: str | Path,
    *,
    learning_rate: float,
    epochs: float = 1.0,
    batch_size: int = 64,
    gradient_accumulation: int = 1,
    lora_rank: int = 0,
    freeze_vision: bool = True,
    warmup_share: float = 0.05,
    weight_decay: float = 0.0,
    bf16: bool = False,
    seed: int = 0,
):
    """(model, history): the policy, tuned in place on (problem, steps) pairs and saved in `output_dir`, and Trainer's log.

    `lora_rank` 0 trains all weights, else LoRA, merged at the end. Over-long records are dropped; the log's last entry counts them.
    Raises ValueError if none is left.
    """
    torch.manual_seed(seed)
    encoder = Encoder(FORMATS["judge"], processor, context_length(model))
    data, dropped = rows(encoder, pairs)
    if not data:
        raise ValueError(
            f"none of {len(pairs)} solutions fits into {encoder.max_length} tokens: shorten them or take a longer context"
        )
    if freeze_vision:
        for tower in vision_towers(model):
            tower.requires_grad_(False)
    tuned = with_lora(model, lora_rank, "policy", None) if lora_rank else model
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation,
        warmup_steps=warmup_share,
        weight_decay=weight_decay,
        lr_scheduler_type="cosine",
        bf16=bf16,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        **TRAINER_HABITS,
    )
    trainer = Trainer(tuned, arguments, train_dataset=data, data_collator=lambda batch: collate(encoder, batch))
    trainer.remove_callback(PrinterCallback)
    with training_attention(model):
        trainer.train()
    model = (tuned.merge_and_unload() if lora_rank else tuned).eval()
    if trainer.is_world_process_zero():
        model.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return model, [*trainer.state.log_history, {"n_train": len(data), "n_dropped": dropped}]


def step_frame(problems: Sequence[Problem], solutions: Sequence[Solution]) -> pd.DataFrame:
    """One row per step of sampled solutions of the embedded world: what it does, whether it is right, and why not.

    Columns: solution_id, family, form (fill_in or choice), tricky, place, kind (read, deduce, answer, ...), truth, error,
    first (no wrong step stands before it), verdict.
    """
    known, out = {p.problem_id: p for p in problems}, []
    for solution in solutions:
        problem, clean = known[solution.problem_id], True
        for place, step in enumerate(solution.steps):
            judged = world.check_step(problem, solution.steps[:place], step)
            out.append(
                dict(
                    solution_id=solution.solution_id,
                    family=problem.scene["family"],
                    form="choice" if problem.choices else "fill_in",
                    tricky=problem.scene["tricky"],
                    place=place,
                    kind=world.step_kind(step),
                    truth=judged.truth,
                    error=world.error_kind(judged),
                    first=clean,
                    verdict=solution.verdict,
                )
            )
            clean = clean and judged.truth != -1
    return pd.DataFrame(out)
