"""Vision-language models: loading any of the Auto classes, and the architecture of the embedded base."""

import gc
import hashlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.siglip import SiglipImageProcessorPil
from transformers.utils import logging

from .untrusted import check_hub, check_index, reason
from .world import vocabulary

EMBEDDED = Path(__file__).parent / "assets" / "base"
IMAGE_SIZE, PATCH = 112, 28
TEMPLATE_S, TEMPLATE_BYTES, TEMPLATE_CHARS = 10, 2**29, 100_000  # what a chat of ten words may take, CPU seconds first
FAILED = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError,
          SyntaxError)  # the last: `break` outside of a loop
BROKEN = (StrictDataclassError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded tokenizer: byte-level BPE, one token per digit and per word of the world; takes any text."""
    core = Tokenizer(models.BPE())
    pieces = Regex(r"\n\n| ?[0-9]| ?[A-Za-z]+| ?[^A-Za-z0-9\s]|\s")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    words = vocabulary()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([w for w in words for _ in range(2)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>", "start_token": "<|im_start|>"},
        padding_side="left",
    )


def new_processor() -> LlavaProcessor:
    """The embedded processor: 112 x 112 pixels, 16 image tokens; white is 0, so that blank paper is silent."""
    pixels = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[1.0] * 3, image_std=[0.35] * 3
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=new_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def new_config(tokenizer, width: int = 128, layers: int = 8, vision_layers: int = 2) -> LlavaConfig:
    """The embedded architecture: SigLIP tower, two-layer projector, Qwen2 decoder."""
    text = dict(
        model_type="qwen2",
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.06,  # at the usual 0.02 so small a model stalls for a thousand updates
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    vision = dict(model_type="siglip_vision_model", hidden_size=128, intermediate_size=384, num_attention_heads=4)
    vision |= dict(num_hidden_layers=vision_layers, image_size=IMAGE_SIZE, patch_size=PATCH, vision_use_head=False)
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
    )


def new_base(seed: int = 0, tokenizer=None, **sizes: int) -> LlavaForConditionalGeneration:
    """The embedded model with random weights, float32; `sizes` as in `new_config`."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or new_tokenizer()
    model = LlavaForConditionalGeneration(new_config(tokenizer, **sizes)).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def load(
    path: str | Path = "embedded",
    dtype: torch.dtype | str = torch.float32,
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str = "",
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """(model, processor) of a checkpoint folder or hub id; "embedded" is the base that is shipped with the package.

    Only safetensors are read; code of the checkpoint runs only if `trust_remote_code` is set. ValueError for what
    `check_index` and `check_hub` refuse, for a file that is no safetensors, and for files that transformers cannot make
    a model of. Of a hub id the commit is loaded that was checked. `device`: a GPU if there is one.
    """
    source = EMBEDDED if str(path) == "embedded" else path
    if str(path) == "embedded" and not (EMBEDDED / "config.json").exists():
        raise FileNotFoundError(f"the embedded base is missing at {EMBEDDED}: train it with `make base`")
    check_index(Path(source))
    revision = revision if Path(source).exists() else check_hub(str(source), revision)
    logging.disable_progress_bar()  # bars on stderr would be noise in every executed notebook
    options = dict(trust_remote_code=trust_remote_code, revision=revision)
    processor = load_processor(path, **options)
    with _told(path):
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Within the block, whatever transformers runs into in the files of a checkpoint is a ValueError that names it."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights of {path} are no safetensors ({error}): fetch or convert them again") from error
    except torch.OutOfMemoryError:
        raise
    except BROKEN as error:
        said = f"the files of {path} do not fit together ({reason(error)}): fetch or convert them again"
        raise ValueError(said) from error


def release_gpu() -> None:
    """Nothing; other processes can have what deleted models held of a GPU, which PyTorch would keep for later."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def weights_hash(module: torch.nn.Module) -> str:
    """The sha256 of all weights of a module, with their names, types and shapes, as 64 hex digits."""
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def load_processor(
    path: str | Path = "embedded", trust_remote_code: bool = False, revision: str | None = None
) -> ProcessorMixin:
    """The processor of a checkpoint, as of `load`; its tokenizer pads on the left."""
    source = EMBEDDED if str(path) == "embedded" else path
    with _told(path):
        try:
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
        except ValueError as error:
            why = f"transformers knows no processor for {path} ({str(error).partition('.')[0]})"
            raise ValueError(f"{why}: python -m mmprm_lib.convert makes one of InternVL's own checkpoints") from error
        processor.tokenizer.padding_side = "left"
    check_template(processor, path)
    return processor


def check_template(processor: ProcessorMixin, path: str | Path) -> None:
    """Nothing; ValueError if the chat template needs more than TEMPLATE_S, TEMPLATE_BYTES or TEMPLATE_CHARS for a chat
    of ten words.

    transformers runs templates in a sandbox, which bounds `range` and nothing else: loops in loops and 'a' * 10**10 go
    on. So a process of its own tries it once. What fails there otherwise is told where the template is used.
    """
    if sys.platform == "win32" or getattr(processor, "chat_template", None) in (None, CHAT_TEMPLATE):
        return
    fork = multiprocessing.get_context("fork")  # nothing to import again; the child runs the template alone
    ours, its = fork.Pipe(duplex=False)
    child = fork.Process(target=_try_template, args=(processor, its), daemon=True)
    with warnings.catch_warnings():  # Python 3.12's, of threads that the child has no need of
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    its.close()
    n_chars = 0
    try:
        n_chars = ours.recv() if ours.poll(60 * TEMPLATE_S) else TEMPLATE_CHARS + 1  # silent so long: it hangs
    except EOFError:  # it was ended, by one of its limits
        n_chars = TEMPLATE_CHARS + 1
    child.kill()
    child.join()
    if n_chars > TEMPLATE_CHARS:
        limits = f"{TEMPLATE_S} s, {TEMPLATE_BYTES >> 20} MiB or {TEMPLATE_CHARS} characters"
        raise ValueError(f"the chat template of {path} needs more than {limits} for ten words: give it another one")


def _try_template(processor: ProcessorMixin, out: Connection) -> None:
    """Nothing; sends how many characters the template makes of a short chat, 0 where it fails."""
    import resource

    with suppress(OSError, ValueError):  # where the system does not tell or does not allow it, time alone is bounded
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + TEMPLATE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (TEMPLATE_S, TEMPLATE_S))
    # constants are computed when a template is compiled, and jinja drops what fails there: a lack of memory here, too
    nodes.Impossible.__init__ = lambda self, *_: os._exit(1) if isinstance(sys.exception(), MemoryError) else None
    turns = [{"role": role, "content": [{"type": "text", "text": "What is 1 + 2?"}]} for role in ("user", "assistant")]
    turns[0]["content"].insert(0, {"type": "image"})
    try:
        n_chars = len(processor.apply_chat_template([*turns, turns[0]], tokenize=False, add_generation_prompt=True))
    except MemoryError:
        n_chars = TEMPLATE_CHARS + 1
    except FAILED:  # and so it does where it is used, which tells
        n_chars = 0
    out.send(n_chars)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself; a CPU that only imitates it is slower than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def frozen(towers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Within the block the modules have no gradients and stay in evaluation mode, whatever `train()` says around them.

    Trainer would switch a frozen tower's stochastic depth on (MM-PRM's trainer does).
    """
    wanted = [p for tower in towers for p in tower.parameters() if p.requires_grad]
    for tower in towers:
        tower.requires_grad_(False).eval()
        tower.train = lambda mode=True, tower=tower: tower  # shadows the method, for these objects alone
    try:
        yield
    finally:
        for tower in towers:
            del tower.train
        for parameter in wanted:
            parameter.requires_grad_(True)
