"""The generative PRM's training: supervised fine-tuning on critiques, by the same path as the policy's.

Source: GM-PRM (arXiv:2508.04088): Qwen2.5-VL-7B-Instruct, the vision encoder frozen, next-token cross-entropy on the
critique. Learning rate, epochs and batch are not published.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import policy
from .checkpoints import agreed, first, shaping
from .choices import ChoiceRule
from .critique import (
    BLOCK_SEPARATOR,
    CORRECTION_CUE,
    CUES,
    FORMATS,
    INSTRUCTION,
    STEP_CUE,
    VERDICT_CUE,
    VERDICTS,
    Format,
    TeacherCritique,
    render,
)
from .generation import TransformersGenerator
from .schema import Problem, fingerprint, write_bytes
from .steps import policy_prompt

# For the embedded base, which has met most words at the beginning of a line alone, where they are other tokens, and the
# words of the format nowhere: what each starts as.
START_WORDS = {
    **{f" {word}": word for word in (
        "Bar", "Angle", "Point", "Side", "Price", "Count", "Sum", "Difference", "Cost", "Area", "Half", "Distance",
        "Gate", "Perimeter", "Answer", "Compute",
    )},
    " compute": "Compute", " Now": "Compute", " Look": "Describe", " Read": "Describe", " Step": "Answer",
    **dict.fromkeys(("Step", "Intent", "Image", "Logic", "Judgement", "Correct"), "Answer"),
    " Correct": " Yes", " Incorrect": " No",
}  # fmt: skip
MAX_LINE = 64  # characters that are looked back at: longer than any cue
FORM_FILE = "critic.json"  # beside the weights: what this critic writes
FORMAT = 3  # of the training texts: a change of what they hold changes the key of every critic


def training_texts(
    processor: Any, records: Sequence[TeacherCritique], problems: Iterable[Problem], form: Format
) -> list[policy.Text]:
    """(problem, prompt, critique) of every record, as text. KeyError if a problem is not among `problems`."""
    by_id = {p.problem_id: p for p in problems}
    return [
        (by_id[r.problem_id], policy_prompt(by_id[r.problem_id], processor, INSTRUCTION),
         render(r.critique, form, r.steps))
        for r in records
    ]  # fmt: skip


def train(
    model: Any, processor: Any, records: Sequence[TeacherCritique], problems: Iterable[Problem],
    output_dir: str | Path, form: Format | str = "critique", *, verdict_weight: float = 1.0,
    error_weight: float = 1.0, word_init: bool = False, trust_remote_code: bool = False, **options: Any,
) -> tuple[Any, list[dict]]:  # fmt: skip
    """(model, history): the critic, tuned in place on critiques and saved in `output_dir`, and its loss curve.

    The loss is the cross-entropy of what the critic has to write; that of a verdict's first token counts
    `verdict_weight` times (1 in the paper; a verdict is one token in about forty), that of all else that is said of a
    wrong step `error_weight` times (1 in the paper; most judged steps are right, so that a critic which puts its own
    reading for the step's is seldom told). `word_init`: with START_WORDS, see `start_words`. `options` are those of
    `policy.tune`: learning_rate, epochs, lora_rank (0: all weights), freeze_vision, ... The last epoch is kept. A
    critic that `output_dir` holds is taken instead if it is the same one: base weights, texts, images and options.
    Without any critique the critic stays as it is, with a loss of nan. ValueError if none of them fits.
    """
    form = FORMATS[form] if isinstance(form, str) else form
    if not records:
        return _untrained(model, processor, output_dir, form)
    texts = training_texts(processor, records, problems, form)
    base = TransformersGenerator(model, processor).fingerprint if first() else ""
    learnt = [[p.problem_id, p.image_sha256, prompt, target] for p, prompt, target in texts]
    words = START_WORDS if word_init else {}
    shape = [verdict_weight, error_weight, words, shaping(options)]
    key = agreed(fingerprint(["critic", FORMAT, base, fingerprint(learnt), *shape]))
    if (again := policy.taken(output_dir, key, model, trust_remote_code)) is not None:
        return again
    start_words(model, processor.tokenizer, words)
    weigh = loss_weights(processor.tokenizer, form, verdict_weight, error_weight)
    tuned = policy.tune(model, processor, texts, output_dir, weigh=weigh, **options)
    if first():
        _write_form(output_dir, form)
    return policy.kept(output_dir, key, tuned)


def _untrained(model: Any, processor: Any, output_dir: str | Path, form: Format) -> tuple[Any, list[dict]]:
    for part in (model, processor):
        part.save_pretrained(output_dir)
    _write_form(output_dir, form)
    return model, [{"step": 0, "epoch": 0.0, "loss": float("nan")}, {"n_train": 0, "n_dropped": 0}]


def _write_form(output_dir: str | Path, form: Format) -> None:
    write_bytes(Path(output_dir) / FORM_FILE, [json.dumps({"format": FORMAT, "fields": form.fields}).encode(), b"\n"])


def form_of(folder: str | Path) -> Format:
    """What the critic in a folder was trained to write before a verdict. FileNotFoundError if it holds no critic."""
    path = Path(folder) / FORM_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} holds no critic; run notebooks/07_generative_prm.ipynb")
    return Format(tuple(json.loads(path.read_text(encoding="utf-8"))["fields"]))


def start_words(model: Any, tokenizer: Any, like: Mapping[str, str]) -> None:
    """Nothing; the first token of each word starts as that of another text: {" Correct": " Yes"}.

    For a small model that has never met the words of the format: its rows for them are as they were drawn, and far too
    many updates go into them. ValueError for a word whose row the other text shares already.
    """
    table = model.get_input_embeddings().weight.data
    first = {text: tokenizer(text, add_special_tokens=False)["input_ids"][0] for pair in like.items() for text in pair}
    rows = {first[word]: table[first[text]].clone() for word, text in like.items()}
    if same := [word for word, text in like.items() if first[word] == first[text]]:
        raise ValueError(f"words {same} begin with the token that they are to start as: leave them out")
    for place, row in rows.items():
        table[place] = row


def loss_weights(tokenizer: Any, form: Format, weight: float = 1.0, error_weight: float = 1.0) -> policy.Weigh:
    """A function: the tokens of a critique -> the weight of each in the loss.

    0 for what decoding puts there: the step, up to the first cue of its block, the step once more, up to the verdict,
    and the cue of the correction. `weight` at the first token of every verdict. `error_weight` in what else is written
    of a wrong step, its correction included (not at the verdict: a heavier "Incorrect" would be written in any place).
    Else 1.
    """
    rule = ChoiceRule(tokenizer, VERDICT_CUE, VERDICTS)
    cues = (CORRECTION_CUE, CUES[form.fields[0]] if form.fields else VERDICT_CUE)

    def weigh(ids: list[int]) -> list[float]:
        weights, line, given, again, begun, wrong, verdicts = [], "", True, False, 0, len(ids), set()
        for k, piece in enumerate(tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)):
            verdict = rule.ends(ids[max(0, k - rule.tail) : k])
            weights.append(weight if verdict else 0.0 if given else 1.0)
            if verdict:
                verdicts.add(k)
                wrong = begun if ids[k] == rule.ids[1] else wrong
            line += piece
            last = line.rpartition("\n")[2]
            if line.endswith(BLOCK_SEPARATOR):
                given, again = True, False
            elif not given and last == STEP_CUE:
                given, again = True, True
            elif given and again and last == VERDICT_CUE:
                given, again = False, False
            elif given and not again and last in cues:
                given, begun = False, k + 1
            line = line[-MAX_LINE:]
        # nothing but its correction comes after a wrong step
        return [w * error_weight if k >= wrong and k not in verdicts else w for k, w in enumerate(weights)]

    return weigh
