"""Steps of a solution as text: split, join, prefixes, and the templates that training and scoring share.

A template returns a `Layout`: the prompt (with the image placeholder) and one piece of text per decision. A piece ends
exactly where its decision is read, so the decision position is the last token of the piece, whatever the tokenizer.
Training and scoring call the same function; nothing else in the library writes PRM text.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from os.path import commonprefix
from typing import NamedTuple

from mmprm_lib.schema import Problem

STEP_SEPARATOR = "\n\n"
MARKER = "<prm>"
JUDGE_MARKER = " True?"  # the statement-judging form that the embedded base is pre-trained on
JUDGE_INSTRUCTION = "\nJudge each statement."
CHAT_SYSTEM = "Is the solution right so far? Answer + or -."  # short: the embedded model's context is small
ADVANTAGE_SYSTEM = "Did the last step help? Answer +, = or -."
TAG = re.compile("<(step|answer)>")
BLANK_LINES = re.compile(r"\n\s*\n")
SENTINEL = (
    "\u2402{}\u2402"  # stands for a step while the chat template is rendered once; visible, so no template strips it
)
# What spells a special token of some model, for where the tokenizer of a model is not at hand.
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<s>", "</s>", "<bos>", "<eos>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<start_of_image>", "<IMG_CONTEXT>"),
    *("<image>", "<img>", "</img>", "<pad>", "<unk>", "<prm>"),
)


def split(text: str, max_steps: int | None = None, keep_empty: bool = False) -> list[str]:
    """The steps of a solution text.

    Text with `<step>...</step>` or `<answer>...</answer>` is cut at the tags (MM-PRM: bodies stripped, an unclosed last
    tag dropped, text between tags ignored; a blank line inside a body becomes a newline, so that `split(join(steps)) ==
    steps`). Any other text is cut at "\\n\\n" and nothing is stripped (VisualPRM's released code).
    With `max_steps`, neighbours are merged in groups of ceil(n / max_steps), so 12 -> 12, 13 -> 7, 14 -> 7, 20 -> 10,
    25 -> 9 at 12. Difference from VisualPRM: blank segments are dropped unless `keep_empty`, because an empty step can
    be neither judged nor corrected; and empty text has no step, where "".split gives one.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}: give at least 1, or None for no limit")
    if not text:
        return []
    bodies = [BLANK_LINES.sub("\n", body.strip()) for body in _bodies(text)]
    steps = bodies or text.split(STEP_SEPARATOR)
    if not keep_empty:
        steps = [step for step in steps if step.strip()]
    if max_steps is None:
        return steps
    size = max(1, math.ceil(len(steps) / max_steps))
    return [join(steps[start : start + size]) for start in range(0, len(steps), size)]


def _bodies(text: str) -> Iterator[str]:
    """What stands between a tag and its first end, from left to right; in one pass, also where no tag has an end."""
    at, without_end = 0, set[str]()
    while tag := TAG.search(text, at):
        at, closing = tag.end(), f"</{tag[1]}>"
        end = -1 if closing in without_end else text.find(closing, at)
        if end < 0:
            without_end.add(closing)
        else:
            yield text[at:end]
            at = end + len(closing)


def join(steps: list[str]) -> str:
    """The solution text of `steps`: joined by "\\n\\n", nothing before or after."""
    return STEP_SEPARATOR.join(steps)


def prefix_text(steps: list[str]) -> str:
    """The text a rollout continues inside the assistant turn: "" or the steps with a separator after the last one.

    Difference from VisualPRM, whose prefix ends without "\\n\\n": a policy may then go on writing the step that was to
    be labelled. Not neutralised; pass steps of a model or a user through `neutralise` first.
    """
    return join(steps) + STEP_SEPARATOR if steps else ""


def special_strings(tokenizer) -> tuple[str, ...]:
    """The texts that `tokenizer` (or a processor around one) turns into special tokens, longest first.

    None: those of common models. A processor's own placeholders (`image_token`, `boi_token`, ...), which it replaces in
    the text itself, are among them whether or not its tokenizer calls them special.
    """
    if tokenizer is None:
        return tuple(sorted(SPECIAL, key=lambda w: (-len(w), w)))
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    words = set(inner.all_special_tokens) | {str(t) for t in inner.added_tokens_decoder.values() if t.special}
    words |= {value for name, value in vars(tokenizer).items() if name.endswith("_token")}
    words |= {getattr(tokenizer, name, None) for name in ("image_token", "video_token")}
    return tuple(sorted((w for w in words if isinstance(w, str) and len(w) > 1), key=lambda w: (-len(w), w)))


@lru_cache(maxsize=32)
def _special_pattern(words: tuple[str, ...]) -> re.Pattern:
    # a look-ahead finds overlapping spellings too: every first character gets its space
    return re.compile("(?=" + "|".join(map(re.escape, words)) + ")(.)", re.DOTALL)


def neutralise(text: str, tokenizer) -> str:
    """`text` with a space after the first character of whatever would become a special token: `<image>` -> `< image>`.

    Text without such a spelling comes back unchanged, so a second pass changes nothing. `tokenizer` may be a processor,
    or None for the special tokens of common models.
    """
    words = special_strings(tokenizer)
    return _special_pattern(words).sub(r"\1 ", text) if words else text


def adds_special_tokens(text: str, tokenizer) -> bool:
    """Whether `tokenizer` is to put its special tokens around a chat text: not if the template wrote the first one."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


@lru_cache(maxsize=32)
def prefixes_space(tokenizer) -> bool:
    """Whether the tokenizer begins every text with a space of its own and drops it again, as Llama's does."""
    ids = tokenizer("a a", add_special_tokens=False)["input_ids"]
    return "".join(tokenizer.decode([i]) for i in ids) != tokenizer.decode(ids)


def continued(texts: list[str], tokenizer) -> list[list[int]]:
    """The token ids of texts that follow one another; only the first one begins a text.

    Each text has tokens of its own: none reaches over a border.
    """
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    if len(ids) < 2 or not prefixes_space(tokenizer):
        return ids
    (anchor,) = tokenizer(["a"], add_special_tokens=False)["input_ids"]
    later = tokenizer(["a" + text for text in texts[1:]], add_special_tokens=False)["input_ids"]
    n = len(anchor)
    return ids[:1] + [new[n:] if new[:n] == anchor else old for new, old in zip(later, ids[1:], strict=True)]


def end_of_turn(processor) -> int:
    """The token that ends an assistant turn: the special one that the chat template writes after it, else the EOS."""
    said = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in (("user", "?"), ("assistant", SENTINEL))]
    after = processor.apply_chat_template(said, tokenize=False).rpartition(SENTINEL)[2].lstrip()
    tokenizer = processor.tokenizer
    written = next((word for word in special_strings(tokenizer) if after.startswith(word)), None)
    return tokenizer.eos_token_id if written is None else tokenizer.convert_tokens_to_ids(written)


def question_text(problem: Problem) -> str:
    """The question, with a line "(A) x (B) y ..." under it if the problem has choices."""
    if not problem.choices:
        return problem.question
    options = " ".join(f"({chr(ord('A') + index)}) {choice}" for index, choice in enumerate(problem.choices))
    return f"{problem.question}\n{options}"


def policy_prompt(problem: Problem, processor, instruction: str = "") -> str:
    """The chat text up to the open assistant turn: one user turn with the image, `question_text` and the instruction,
    neutralised.
    """
    text = neutralise(question_text(problem) + instruction, processor)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([user], tokenize=False, add_generation_prompt=True)


class Layout(NamedTuple):
    """A PRM input as text: `prompt` with the image placeholder, then `pieces`, each ending at one decision."""

    prompt: str
    pieces: list[str]


@dataclass(frozen=True)
class Format:
    """How a PRM sees a solution: the template's kind, its texts, and the words whose logits are compared."""

    kind: str  # marker, orm, judge, process, chat or chat_advantage
    marker: str = ""  # text after each step (marker kinds); MARKER is added to the tokenizer as one special token
    instruction: str = ""  # text after the question in the user turn
    system: str = ""  # system turn (chat kinds); "" for none
    # right first, wrong second, neutral third; MM-PRM's words have no space, the embedded base answers with one
    labels: tuple[str, ...] = (" Yes", " No")
    separator: str = STEP_SEPARATOR  # between a marker and the next step
    turn: str = "closed"  # process: where it stands, after a user turn that is "closed" or left "open", or in "user"
    image_first: bool = False  # chat kinds: the image before "### Question:", not after it


FORMATS = {
    "marker": Format("marker", marker=MARKER),
    "orm": Format("orm", marker=MARKER),
    "judge": Format("judge", marker=JUDGE_MARKER, instruction=JUDGE_INSTRUCTION),
    "process": Format("process", marker=MARKER, labels=("Yes", "No")),
    "chat": Format("chat", system=CHAT_SYSTEM, labels=("+", "-")),
    "chat_advantage": Format("chat_advantage", system=ADVANTAGE_SYSTEM, labels=("+", "-", "=")),
}


def marker_template(problem: Problem, steps: list[str], processor, form: Format = FORMATS["marker"]) -> Layout:
    """The policy's own prompt, then `s1<prm>\\n\\ns2<prm>...` in the assistant turn; a decision at every marker.

    MM-PRM puts image, question and steps all into the assistant turn after an empty user turn, and closes the turn.
    Here the user turn is what the policy saw, because the PRM starts from the policy's weights, and the text ends at
    the last marker, after which nothing can change a score.
    """
    texts = [neutralise(step, processor) + form.marker for step in steps]
    pieces = [(form.separator if index else "") + text for index, text in enumerate(texts)]
    return Layout(policy_prompt(problem, processor, form.instruction), pieces)


def orm_template(problem: Problem, steps: list[str], processor, form: Format = FORMATS["orm"]) -> Layout:
    """As `marker_template`, with one marker after the whole solution (none for an empty solution)."""
    return marker_template(problem, [join(steps)] if steps else [], processor, form)


def judge_template(problem: Problem, steps: list[str], processor, form: Format = FORMATS["judge"]) -> Layout:
    """As `marker_template`, asked of an untrained base: ordinary words take the marker's place."""
    return marker_template(problem, steps, processor, form)


def chat_template(
    problem: Problem, steps: list[str], processor, form: Format = FORMATS["chat"], history: list[str] | None = None
) -> Layout:
    """The multi-turn layout of VisualPRM: one user turn per step, answered by a label; a decision at each answer.

    `history[i]` is the answer shown after step i (default: "+" everywhere, as VisualPRM scores); the last one is never
    seen. The system turn of FORMATS is this project's own wording. The image stands where the chat template of the
    model puts it, normally after "### Question:".
    """
    history = [form.labels[0]] * len(steps) if history is None else history
    if len(history) != len(steps):
        raise ValueError(f"{problem.problem_id}: {len(history)} labels in the history of {len(steps)} steps")
    question = neutralise(question_text(problem) + form.instruction, processor)
    prompt, reply, gap, turn = _chat_parts(processor, form.system, question, form.image_first)
    pieces = [neutralise(step, processor) + reply for step in steps]
    for index in range(1, len(pieces)):
        pieces[index] = gap + history[index - 1] + turn + pieces[index]
    return Layout(prompt, pieces)


def process_template(problem: Problem, steps: list[str], processor, form: Format = FORMATS["process"]) -> Layout:
    """MM-PRM's own layout: `Question: q\\nProcess: s1<prm>\\n\\ns2<prm>...` in one turn after the image.

    `turn` "closed" is what it is trained on, all in the assistant turn after an empty user turn; "open" is what its
    evaluation sends: that user turn is not closed (and `separator` is ""). "user" puts all into the user turn.
    ValueError for another.
    """
    head, image, end, opened = _user_turn(processor, form.system)
    begun = {"closed": head + end + opened, "open": head + opened, "user": head}
    if form.turn not in begun:
        raise ValueError(f"turn is {form.turn!r}: choose one of {', '.join(begun)}")
    question = neutralise(question_text(problem) + form.instruction, processor)
    pieces = marker_template(problem, steps, processor, form).pieces
    return Layout(f"{begun[form.turn]}{_line(image)}Question: {question}\nProcess: ", pieces)


@lru_cache(maxsize=32)
def _user_turn(processor, system: str) -> tuple[str, str, str, str]:
    """The text up to a user's words, that of an image there, what ends the turn, and what opens the assistant's."""
    user, shown = ({"role": "user", "content": parts} for parts in (
        [{"type": "text", "text": SENTINEL}], [{"type": "image"}, {"type": "text", "text": SENTINEL}]))  # fmt: skip
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}] * bool(system)
    render = partial(processor.apply_chat_template, tokenize=False)
    plain, opened = (render([*turns, user], add_generation_prompt=g) for g in (False, True))
    head, _, end = plain.partition(SENTINEL)
    image = render([*turns, shown]).partition(SENTINEL)[0]
    head = commonprefix([head, image])  # "User:" in a template that writes "User: " before words alone
    return head, image[len(head) :], end, opened[len(plain) :]


def _line(image: str) -> str:
    """The text of an image with a line break behind it, which some templates write themselves."""
    return image if image.endswith("\n") else image + "\n"


def _chat_parts(processor, system: str, question: str, image_first: bool = False) -> tuple[str, str, str, str]:
    """Prompt up to the first step; from a step to its decision; from there to its answer; from an answer to a step.

    Rendered from the model's own chat template with stand-ins, instead of once per prefix, which would be quadratic.
    """
    first, answer, second = (SENTINEL.format(index) for index in range(3))
    question = question.replace(SENTINEL[0], " ")  # else a question could pass for a stand-in
    image = _user_turn(processor, system)[1]
    line = _line(image).removeprefix(image)
    asked = f"{question}\n\n### Solution Process:\n{first}"
    opening = [{"type": "text", "text": "### Question:\n"}, {"type": "image"}, {"type": "text", "text": line + asked}]
    if image_first:
        opening = [{"type": "image"}, {"type": "text", "text": f"{line}### Question:\n{asked}"}]
    turns = [("system", system)] * bool(system) + [("user", opening), ("assistant", answer), ("user", second)]
    messages = [{"role": r, "content": [{"type": "text", "text": c}] if isinstance(c, str) else c} for r, c in turns]
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    cuts = [rendered.find(mark) for mark in (first, answer, second)]
    reply, end = rendered[cuts[0] + len(first) : cuts[1]], rendered[cuts[2] + len(second) :]
    gap = reply.removeprefix(end)  # e.g. the space in "Assistant: +", where a turn is opened by "Assistant:"
    if min(cuts) < 0 or cuts != sorted(cuts) or gap.strip():
        raise ValueError(
            "the chat template of this processor does not repeat its turns: use the marker PRM with this model"
        )
    return rendered[: cuts[0]], end, gap, rendered[cuts[1] + len(answer) : cuts[2]]


TEMPLATES = {
    "marker": marker_template,
    "orm": orm_template,
    "judge": judge_template,
    "process": process_template,
    "chat": chat_template,
    "chat_advantage": chat_template,
}
