"""What a model of the Auto classes is made of and can do, read from its configuration and code, never from its name.

A fast path (one cache for several solutions, several solutions in a row, lanes of one cache) is exact only for models
with plain attention over one position per token, or with positions that follow from those; others take the plain path.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# What transformers calls the encoder of images in the models of the Auto classes; and the projector, where it lies
# inside the encoder. Names, because no attribute of a model says which of its modules is which.
VISION_TOWERS = ("vision_tower", "visual", "vision_model")
INNER_PROJECTORS = ("merger", "deepstack_merger_list")
BY_ROWS = "mmprm_rows"  # what configurations call `attention_by_rows`


def vision_towers(vlm) -> list[nn.Module]:
    """The vision encoder(s) of a model of the Auto classes, without the projector.

    Where the projector lies inside the encoder, what stands beside it there is given. ValueError if there is none.
    """
    names = [(name, module) for name, module in vlm.named_modules() if name.rpartition(".")[2] in VISION_TOWERS]
    outer = [m for name, m in names if not any(name.startswith(other + ".") for other, _ in names)]
    if not outer:
        raise ValueError(
            f"no vision tower in {type(vlm).__name__}: none of its modules is called {', '.join(VISION_TOWERS)}"
        )
    return [part for tower in outer for part in _without_projector(tower)]


def _without_projector(tower: nn.Module) -> list[nn.Module]:
    parts = dict(tower.named_children())
    if not set(parts) & set(INNER_PROJECTORS):
        return [tower]
    return [part for name, part in parts.items() if name not in INNER_PROJECTORS]


def not_adapted() -> str:
    """A regular expression for peft: the names of the modules inside a vision encoder, the projector excepted."""
    towers, projectors = "|".join(VISION_TOWERS), "|".join(INNER_PROJECTORS)
    return rf"(?!.*\.({projectors})\.)(.*\.)?({towers})\..*"


def context_length(model) -> int:
    """The longest input of the model in tokens, as its configuration states it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 20


def full_attention(vlm) -> bool:
    """Whether every layer lets a token see all tokens before it: no sliding window, no chunks, no recurrence."""
    text = vlm.config.get_text_config()
    layers = getattr(text, "layer_types", None)
    return set(layers) == {"full_attention"} if layers else getattr(text, "sliding_window", None) is None


def many_positions(vlm) -> bool:
    """Whether a token has several positions, as of time, height and width (mrope)."""
    return "mrope_section" in (getattr(vlm.config.get_text_config(), "rope_parameters", None) or {})


def sees_ahead(vlm) -> bool:
    """Whether tokens of an image see those after them, told by a row of token types: a mask of ours would undo that."""
    return "token_type_ids" in inspect.signature(vlm.forward).parameters


def shares_prompts(vlm) -> bool:
    """Whether a prompt's cache may serve several solutions: full attention, and positions that can be gone on from."""
    return full_attention(vlm) and (not many_positions(vlm) or hasattr(vlm.base_model, "rope_deltas"))


def check_packing(vlm, pack_size: int) -> None:
    """ValueError where rows are to hold several solutions and the model has masks or positions of its own."""
    if pack_size > 1 and (not full_attention(vlm) or many_positions(vlm) or sees_ahead(vlm)):
        raise ValueError(f"{type(vlm).__name__} has its own masks or positions: set pack_size to 1, not {pack_size}")


def fits_slots(vlm, processor) -> bool:
    """Whether samples of a prompt may stand side by side in one cache: pixels alone, encoded apart; plain attention."""
    return (
        full_attention(vlm) and not many_positions(vlm) and not sees_ahead(vlm)
        and "mm_encoder_outputs" in inspect.signature(vlm.forward).parameters
        and list(processor.image_processor.model_input_names) == ["pixel_values"]
        and vlm.config.get_text_config()._attn_implementation in ("sdpa", "eager")
    )  # fmt: skip


def went_on(body, prompts: dict[str, torch.Tensor]) -> tuple[object, torch.Tensor]:
    """(cache, next): the keys and values of left-padded prompts, and the position of the first token after each."""
    known = prompts["attention_mask"]
    if not hasattr(body, "rope_deltas"):
        where = (known.cumsum(-1) - 1).clamp(min=0)
        return body(**prompts, position_ids=where, use_cache=True).past_key_values, known.sum(-1)
    cache = body(**prompts, use_cache=True).past_key_values  # finds the positions of an image's tokens by itself
    return cache, known.sum(-1) + body.rope_deltas.to(known.device)[:, 0]


def attention_by_rows(
    module, query, key, value, attention_mask=None, *, row_ends: Sequence[int] | None = None, **options
) -> tuple[torch.Tensor, None]:
    """Transformers' attention by PyTorch's fused kernel. With `row_ends`, where each row of a batch ends whose rows
    follow one another as one, each row sees itself alone, and the cache before it.

    Query, key and value are (1, head, token, width), key and value with what was cached; the mask (row or 1, 1, token,
    token) is that of the longest row, or longer. Gives (1, token, head, width).
    """
    if row_ends is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    cached = key.shape[2] - query.shape[2]
    lengths = [end - start for start, end in zip([0, *row_ends[:-1]], row_ends, strict=True)]
    before, own = zip(*(t.split([cached, query.shape[2]], 2) for t in (key, value)), strict=True)
    # split, whose gradients are joined at once: that of a slice is as long as all rows
    parts = zip(query.split(lengths, 2), *(t.split(lengths, 2) for t in own), strict=True)
    found = []
    for index, (asked, *seen) in enumerate(parts):
        seen = [torch.cat(pair, 2) for pair in zip(before, seen, strict=True)] if cached else seen
        mask = attention_mask[index % len(attention_mask), None, :, : asked.shape[2], : seen[0].shape[2]]
        found.append(sdpa_attention_forward(module, asked, *seen, mask.to(query.dtype), **options)[0])
    return torch.cat(found, 1), None


AttentionInterface.register(BY_ROWS, attention_by_rows)
AttentionMaskInterface.register(BY_ROWS, sdpa_mask)


@contextmanager
def by_rows(vlm) -> Iterator[None]:
    """Inside, the decoder takes rows that follow one another, told by `row_ends`; all other input as before."""
    text = vlm.config.get_text_config()
    name = next(name for name in vlm.config.sub_configs if getattr(vlm.config, name) is text)
    before = text._attn_implementation
    vlm.set_attn_implementation({name: BY_ROWS})
    try:
        yield
    finally:
        vlm.set_attn_implementation({name: before})
