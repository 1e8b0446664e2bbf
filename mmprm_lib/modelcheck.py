"""What a model's name leads to, found out without its weights: where it lies, its sizes, and whether its chat template
and its words serve the policy, the PRMs and the critics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForImageTextToText

from .architecture import vision_towers
from .critique import verdict_ids
from .estimates import BASES, KNOWN, Shape
from .models import EMBEDDED, load_processor
from .provenance import project_root
from .released import read_format
from .schema import Problem
from .scoring import label_ids
from .steps import FORMATS, MARKER, TEMPLATES, Format, policy_prompt

CRITIQUE = "critique"  # besides `steps.FORMATS`: what a critic writes
CONVERT = "python -m mmprm_lib.convert"
OWN_CODE = {"OpenGVLab/InternVL2_5-8B"}  # models that are published for classes of their own alone
TIMEOUT_S = 10.0  # for one question to the hub
SAMPLE = Problem(
    problem_id="sample", question="What is 1 + 2?", image="sample.png", image_sha256="0" * 64, answer="3",
    answer_type="number", source="dry run", split="test",
)  # fmt: skip


class Found(NamedTuple):
    """A model by its name: where it lies, its sizes if they are known, and what is missing or wrong, if anything."""

    name: str
    where: str
    shape: Shape | None
    faults: tuple[str, ...]


def find(
    name: str, revision: str = "", trust_remote_code: bool = False, kinds: Sequence[str] = (),
    formats: Mapping[str, Mapping[str, Any]] | None = None,
) -> Found:  # fmt: skip
    """A model of the Auto classes: "embedded", a folder (relative to the project or absolute), or a hub id.

    Configuration and processor are loaded, weights never: sizes are counted on the meta device. Where neither the cache
    has the model nor the hub can be reached, the sizes are those of `KNOWN`. kinds: of `steps.FORMATS`, or
    `CRITIQUE`, whose templates and words are tried besides the policy's. formats: scorer -> what is chosen for a PRM of
    others (see `released`), which is tried as it is: no marker is added for it.
    """
    folder = EMBEDDED if name == "embedded" else project_root() / name
    source, where, faults = name, "", []
    if folder.is_dir():
        source, where = str(folder), "embedded" if name == "embedded" else "a folder"
        if not list(folder.glob("*.safetensors")):
            faults.append(f"{name} holds no .safetensors file: weights in other formats are not read")
        if has_own_code(folder):
            faults.append(f"{name} has code of its own: name the folder that {CONVERT} {name} TARGET makes of it")
            return Found(name, where, KNOWN.get(name), tuple(faults))
    elif name.startswith("models/"):
        make = "put it there"
        if BASES.get(name) in OWN_CODE:
            make = f"fetch the published one, then {CONVERT} SOURCE {name}"
        return Found(name, "", KNOWN.get(name), (f"{name}: there is no such checkpoint: {make}",))
    else:
        where, fault = on_hub(name, revision)
        faults += [fault] if fault else []
        if not where:
            return Found(name, "", KNOWN.get(name), tuple(faults))
    options = {"trust_remote_code": trust_remote_code, "revision": revision or None}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        processor = load_processor(source, **options)
        shape = shape_of(config, processor, trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, TemplateError) as error:
        # what comes with a checkpoint may be of any kind: the message says what the loader missed
        return Found(name, where, KNOWN.get(name), (*faults, f"{name} cannot be loaded: {_short(error)}"))
    forms = {}
    for scorer, choices in (formats or {}).items():
        try:
            forms[scorer] = read_format(scorer, choices, config, project_root())[0]
        except (OSError, ValueError) as error:
            faults.append(f"{name}, {scorer}: {_short(error)}")
    return Found(name, where, shape, (*faults, *template_faults(name, processor, kinds, forms)))


def has_own_code(folder: Path) -> bool:
    """Whether a folder holds an InternVL checkpoint as it is published, which `convert` reads."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "internvl_chat"
    except (OSError, ValueError, RecursionError, AttributeError):
        return False  # whoever loads it says what is wrong with it


def on_hub(name: str, revision: str = "", repo_type: str = "model") -> tuple[str, str]:
    """(where it lies, what is missing): "the cache", else "the hub", else "" with the reason."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return "", f"{name}: there is no such folder, and it is no hub id (owner/name)"
    options = {"repo_type": repo_type, "revision": revision or None}
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **options))
        if repo_type == "dataset" or list(folder.glob("*.safetensors")):
            return "the cache", ""
    except (OSError, ValueError):
        pass  # not in the cache, or only a part of it: it must come from the hub
    try:
        HfApi().repo_info(name, timeout=TIMEOUT_S, **options)
    except HfHubHTTPError as error:
        return "", f"{name}: the hub says: {_short(error)}"
    except Exception as error:  # noqa: BLE001 - of whatever HTTP client the hub's library uses
        return "", f"{name} is not in the cache, and the hub cannot be reached ({_short(error)}): fetch it beforehand"
    return "the hub", ""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def shape_of(config: Any, processor: Any, trust_remote_code: bool = False) -> Shape:
    """The sizes of an architecture, counted on the meta device, and the tokens of a picture of 640 x 480 pixels."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    text = getattr(config, "text_config", config)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    prompt = policy_prompt(SAMPLE, processor)
    picture = Image.new("RGB", (640, 480), "white")
    ids = processor(text=[prompt], images=[picture], return_tensors="pt", add_special_tokens=False)["input_ids"]
    bare = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return Shape(
        n_weights=sum(p.numel() for p in model.parameters()),
        n_vision=sum(p.numel() for tower in vision_towers(model) for p in tower.parameters()),
        layers=text.num_hidden_layers, width=text.hidden_size, vocab=text.vocab_size, kv_width=heads * head,
        image_tokens=max(1, ids.shape[1] - len(bare) + 1),
    )  # fmt: skip


def template_faults(
    name: str, processor: Any, kinds: Sequence[str], forms: Mapping[str, Format] | None = None
) -> list[str]:
    """What is wrong with a processor for the policy, for PRMs of others in their `forms`, and for those of `kinds`,
    before which the step marker is added, as in training; [] if nothing is.

    The chat template must place the image once and leave the assistant turn open; every form must be rendered, its
    label words must be single tokens, and the step marker must become one token of its own.
    """
    tokenizer, faults = processor.tokenizer, []
    try:
        prompt = policy_prompt(SAMPLE, processor)
        if prompt.count(processor.image_token) != 1:
            faults.append(f"{name}: its chat template names the image {prompt.count(processor.image_token)} times")
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{name}: its chat template cannot be rendered: {_short(error)}"]
    faults += [f"{name}, {scorer}: {why}" for scorer, form in (forms or {}).items() if (why := _fault(form, processor))]
    if kinds and MARKER not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(MARKER, special=True, normalized=False)], special_tokens=True)
    for kind in kinds:
        if why := _fault(FORMATS.get(kind), processor):
            faults.append(f"{name}, {kind}: {why}")
    return faults


def _fault(form: Format | None, processor: Any) -> str:
    """Why a processor cannot serve a form (None: a critic's), "" if it can."""
    tokenizer = processor.tokenizer
    try:
        if form is None:
            verdict_ids(tokenizer)
            return ""
        label_ids(form, tokenizer)
        layout = TEMPLATES[form.kind](SAMPLE, ["1 + 2 = 3", "Answer: 3"], processor, form)
    except (TemplateError, ValueError) as error:
        return _short(error)
    if form.marker != MARKER:
        return ""
    if MARKER not in tokenizer.get_vocab():
        return f"its tokenizer has no {MARKER} token, which a PRM in this format was trained with"
    ids = tokenizer(layout.pieces, add_special_tokens=False)["input_ids"]
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    one = all(piece.count(marker) == 1 and piece[-1] == marker for piece in ids)
    return "" if one else f"{MARKER} is not one token at the end of a step"
