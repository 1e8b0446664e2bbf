"""The generative PRM's training: supervised fine-tuning on critiques, by the same path as the policy's.

Source: GM-PRM (arXiv:2508.04088): Qwen2.5-VL-7B-Instruct, the vision encoder frozen, next-token cross-entropy on the
critique. Learning rate, epochs and batch are not published.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import policy
from .choices import ChoiceRule
from .critique import FORMATS, VERDICT_CUE, VERDICTS, Format, TeacherCritique, instruction, render
from .generation import TransformersGenerator
from .schema import Problem, fingerprint, write_bytes
from .steps import policy_prompt

FORM_FILE = "critic.json"  # beside the weights: what this critic writes
FORMAT = 1  # of the training texts: a change of what they hold changes the key of every critic


def training_texts(
    processor: Any, records: Sequence[TeacherCritique], problems: Iterable[Problem], form: Format
) -> list[policy.Text]:
    """(problem, prompt, critique) of every record, as text. KeyError if a problem is not among `problems`."""
    by_id = {p.problem_id: p for p in problems}
    return [
        (by_id[r.problem_id], policy_prompt(by_id[r.problem_id], processor, instruction(r.steps)),
         render(r.critique, form))
        for r in records
    ]  # fmt: skip


def train(
    model: Any, processor: Any, records: Sequence[TeacherCritique], problems: Iterable[Problem],
    output_dir: str | Path, form: Format | str = "critique", *, verdict_weight: float = 1.0,
    trust_remote_code: bool = False, **options: Any,
) -> tuple[Any, list[dict]]:  # fmt: skip
    """(model, history): the critic, tuned in place on critiques and saved in `output_dir`, and its loss curve.

    The loss is the cross-entropy of the critique's tokens; that of a verdict's first token counts `verdict_weight`
    times (1 in the paper; a verdict is one token in about forty). `options` are those of `policy.tune`: learning_rate,
    epochs, lora_rank (0: all weights), freeze_vision, ... The last epoch is kept. A critic that `output_dir` holds is
    taken instead if it is the same one: base weights, texts, images and options. ValueError if nothing fits.
    """
    form = FORMATS[form] if isinstance(form, str) else form
    texts = training_texts(processor, records, problems, form)
    base = TransformersGenerator(model, processor).fingerprint
    learnt = [[p.problem_id, p.image_sha256, prompt, target] for p, prompt, target in texts]
    key = fingerprint(["critic", FORMAT, base, fingerprint(learnt), verdict_weight, options])
    if (again := policy.taken(output_dir, key, model, trust_remote_code)) is not None:
        return again
    weigh = None if verdict_weight == 1 else verdict_weights(processor.tokenizer, verdict_weight)
    tuned = policy.tune(model, processor, texts, output_dir, weigh=weigh, **options)
    write_bytes(Path(output_dir) / FORM_FILE, [json.dumps({"format": FORMAT, "fields": form.fields}).encode(), b"\n"])
    return policy.kept(output_dir, key, tuned)


def form_of(folder: str | Path) -> Format:
    """What the critic in a folder was trained to write before a verdict. FileNotFoundError if it holds no critic."""
    path = Path(folder) / FORM_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} holds no critic; run notebooks/07_generative_prm.ipynb")
    return Format(tuple(json.loads(path.read_text(encoding="utf-8"))["fields"]))


def verdict_weights(tokenizer: Any, weight: float) -> policy.Weigh:
    """A function: the tokens of a critique -> `weight` at the first token of every verdict, 1 elsewhere."""
    rule = ChoiceRule(tokenizer, VERDICT_CUE, VERDICTS)

    def weigh(ids: list[int]) -> list[float]:
        return [weight if rule.ends(ids[max(0, k - rule.tail) : k]) else 1.0 for k in range(len(ids))]

    return weigh
