"""Images as every stage sees them: RGB, upright, of a bounded size, and surely the file that the record names."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .schema import Problem, sha256_of

MAX_PIXELS = 40_000_000  # an A4 page at 600 dots per inch has 35 million
MAX_BYTES = 64 * 2**20
MAX_ASPECT = 200  # long side to short side; the processors of Qwen's models take no more
CACHE_BYTES = 256 * 2**20
# No EPS or PDF (they start other programs) and no rare format, whose decoders are the least tested.
OPENED = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
# MPO is what Pillow calls a JPEG file with a second picture in it, as many cameras write.
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
# What Pillow's decoders raise on hostile input; every one of them means that this image cannot be used.
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error, zlib.error
)  # fmt: skip


class Rejected(ValueError):
    """Why a row cannot become a problem: `reason` is one of data.REASONS, `detail` names the value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def inside(root: Path, name: str) -> Path:
    """The path of `name` below `root`; Rejected if it leaves the folder or passes a symbolic link."""
    if not name.strip():
        raise Rejected("no_image", "the image path is empty")
    if "://" in name:
        raise Rejected("no_image", f"{name[:200]!r} is an address, which is not fetched; download the image first")
    if name.startswith("data:"):
        raise Rejected("no_image", f"{name[:60]!r} is the image itself as a data URI; write it to a file of the folder")
    if "\0" in name:
        raise Rejected("path_escapes", f"{name[:200]!r} holds a NUL character")
    root = root.resolve()
    plain = Path(os.path.normpath(root / name))  # does not follow links; resolve does: they agree iff there is none
    try:
        real = plain.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: half a surrogate pair
        raise Rejected("path_escapes", f"{name[:200]!r} cannot be followed: {error}"[:500]) from error
    if not plain.is_relative_to(root) or not real.is_relative_to(root):
        raise Rejected("path_escapes", f"{name[:200]!r} leads out of the folder of the records")
    if plain != real:
        raise Rejected("path_escapes", f"{name[:200]!r} passes a symbolic link; put the file itself there")
    return plain


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES; Rejected if it is missing, a link, a device, or too large."""
    try:
        # O_NONBLOCK: opening a named pipe would wait for ever
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Rejected("no_image", f"{path.name[:200]!r} cannot be opened: {error.strerror}") from error
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise Rejected("no_image", f"{path.name[:200]!r} is no regular file")
    with os.fdopen(handle, "rb") as file:
        raw = file.read(MAX_BYTES + 1) if info.st_size <= MAX_BYTES else b""  # it may grow meanwhile
        if len(raw) > MAX_BYTES or info.st_size > MAX_BYTES:
            size = max(len(raw), info.st_size)
            raise Rejected("image_bomb", f"{path.name[:200]!r} has {size} bytes or more, the limit is {MAX_BYTES}")
        return raw


def decode(raw: bytes) -> tuple[Image.Image, str]:
    """The image as upright RGB, and the suffix of its format; Rejected if it is broken, too large or too narrow.

    The size is checked from the header, before any pixel is decoded. Transparency lies on white; 16 bits become 8;
    of an animation the first frame is taken; the orientation in the EXIF data is applied.
    """
    if len(raw) > MAX_BYTES:
        raise Rejected("image_bomb", f"the image has {len(raw)} bytes, the limit is {MAX_BYTES}")
    try:
        with Image.open(io.BytesIO(raw), formats=OPENED) as image:
            width, height, suffix = *image.size, FORMATS[image.format or "PNG"]
            if width * height > MAX_PIXELS:
                raise Rejected("image_bomb", f"the header says {width} x {height} pixels, the limit is {MAX_PIXELS}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                detail = f"{width} x {height} pixels, one side more than {MAX_ASPECT} times the other; cut or pad it"
                raise Rejected("extreme_aspect", detail)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image)), suffix
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise Rejected("image_bomb", str(error)[:300]) from error
    except Rejected:
        raise
    except UnidentifiedImageError as error:  # its own words hold an address in memory, another one in every run
        raise Rejected("broken_image", f"the bytes are no image of {', '.join(OPENED)}, or end too early") from error
    except BROKEN as error:
        raise Rejected("broken_image", f"{type(error).__name__}: {str(error)[:300]}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB on white, detached from its file."""
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255, which turns a grey figure white
        values = np.nan_to_num(np.array(image, dtype=np.float64), copy=False)  # in place: 320 MB at MAX_PIXELS
        values *= 255.0 / 65535.0 if image.mode.startswith("I") else (255.0 if values.max() <= 1.0 else 1.0)
        image = Image.fromarray(np.rint(np.clip(values, 0, 255, out=values), out=values).astype(np.uint8))
    if "transparency" in image.info or "A" in image.getbands() or image.mode in ("La", "RGBa", "PA"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")
    rgb.info.clear()
    return rgb


_cache: OrderedDict[tuple[str, str], Image.Image] = OrderedDict()
_cached_bytes = 0
_lock = threading.Lock()


def open_image(problem: Problem) -> Image.Image:
    """The problem's image as upright RGB, a copy that the caller may draw on.

    ValueError (Rejected) if the file is missing, leaves the folder of the records, is too large or broken, or is not
    the one that the record names by its sha256. The most recent CACHE_BYTES of pixels are kept.
    """
    if problem._root is None:
        raise ValueError(f"problem {problem.problem_id!r} has no folder yet: read it with read_records, or set _root")
    return _open(problem._root, problem.image, problem.image_sha256).copy()


def _open(root: Path, name: str, sha256: str) -> Image.Image:
    key = (str(root / name), sha256)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    raw = read_bytes(inside(root, name))
    if (found := sha256_of(raw)) != sha256:
        detail = f"{name!r} has sha256 {found[:12]}..., the record names {sha256[:12]}...: the file was changed"
        raise Rejected("broken_image", detail + "; run notebooks/01_data.ipynb again")
    try:
        image, _ = decode(raw)
    except Rejected as why:
        raise Rejected(why.reason, f"{name!r}: {why.detail}") from why
    _keep(key, image)
    return image


def _keep(key: tuple[str, str], image: Image.Image) -> None:
    global _cached_bytes
    with _lock:
        if key not in _cache:
            _cache[key] = image
            _cached_bytes += 3 * image.width * image.height
        while _cached_bytes > CACHE_BYTES:
            _, gone = _cache.popitem(last=False)
            _cached_bytes -= 3 * gone.width * gone.height


def store(raw: bytes, suffix: str, out_dir: Path) -> tuple[str, str]:
    """The image's path below `out_dir`, named by its content, and its sha256; the bytes are written as they are."""
    digest = sha256_of(raw)
    name = f"images/{digest[:32]}{suffix}"
    (out_dir / "images").mkdir(parents=True, exist_ok=True)
    (out_dir / name).write_bytes(raw)
    return name, digest


def prune(out_dir: Path, keep: set[str]) -> None:
    """Nothing; removes the images that `store` once put below `out_dir` and that are not in `keep`."""
    for path in (out_dir / "images").glob("*"):
        if f"images/{path.name}" not in keep and re.fullmatch(r"[0-9a-f]{32}\.[a-z]{3}|[0-9a-f]{32}\.webp", path.name):
            path.unlink()


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes, lightly compressed: ten times faster than Pillow's default and a little larger."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@lru_cache(maxsize=200_000)
def _dhash(root: Path, name: str, sha256: str) -> int:
    grey = np.asarray(_open(root, name, sha256).convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()  # (64,)
    return int(np.packbits(bits).view(">u8")[0])


def dhash(problem: Problem) -> int:
    """The difference hash of the image, 64 bits: in a 9 x 8 grey copy, is a pixel brighter than its left neighbour."""
    if problem._root is None:
        raise ValueError(f"problem {problem.problem_id!r} has no folder yet: read it with read_records, or set _root")
    return _dhash(problem._root, problem.image, problem.image_sha256)
