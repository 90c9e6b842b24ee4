"""What a checkpoint holds, told from file headers alone: names, dtypes, shapes and places; no weight is read."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError
from pipelines.checkpoints.untrusted import AGAIN, check_file, parse_json

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "C64": "complex64", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""safetensors' dtype codes and torch's names for them."""

CODES = {name: code for code, name in DTYPES.items()}
BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Dtypes whose tensors are merged; others are copied where all models agree."""


@dataclass(frozen=True)
class TensorInfo:
    """Dtype (torch's name) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * itemsize(self.dtype)

    @property
    def merged(self) -> bool:
        """Whether the tensor takes part in arithmetic (floating point of 16 bits or more)."""
        return self.dtype in FLOATS

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Mismatch:
    """In which tensor, of which model or method, what keeps models from being merged, and what to do."""

    tensor: str
    """Empty where it is not about one tensor."""
    who: str
    what: str
    do: str

    @property
    def subject(self) -> str:
        """What the sentence is about."""
        return f"{self.who} {self.tensor}".strip()

    def __str__(self) -> str:
        return f"{self.subject} {self.what}; {self.do}"


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: file and byte range [start, stop) from the file's beginning."""

    file: Path
    start: int
    stop: int


def itemsize(dtype: str) -> int:
    """Bytes per element."""
    return BYTES.get(CODES[dtype], 1)


HEADER = 32 << 20
"""Bytes of a header at most (90,000 tensors take about 11 MB)."""
NAME = 500
"""Characters of a tensor's name at most."""


def read_safetensors_header(file: Path) -> dict[str, tuple[TensorInfo, Place]]:
    """Names, dtypes, shapes and places of the tensors in one safetensors file.

    Raises ``UserError`` where the file is cut short, is not a safetensors file or holds a dtype unknown here.
    """
    try:
        size = file.stat().st_size
        check_file(file, most=1 << 62)
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, HEADER):
                raise ValueError(f"its header would take {length} bytes")
            header = parse_json(stream.read(length), strict=True)
        header.pop("__metadata__", None)
        tensors = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
        _check_places(tensors, 8 + length, size)
    except (OSError, struct.error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        what = f"{file.name} is cut short or no safetensors file: {reason}"
        raise UserError(what, where=str(file.parent), do=AGAIN) from error
    return tensors


def _entry(file: Path, name: str, entry: Any, data: int) -> tuple[TensorInfo, Place]:
    """What one header entry says; ValueError for anything but a dtype, a shape and two offsets that fit them."""
    if not name.isprintable() or not 0 < len(name) <= NAME:
        raise ValueError(f"{name[:40]!r} is no name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has no dtype, shape and offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        what = f"{name} has dtype {str(code)[:40]}, which cannot be merged"
        raise UserError(what, where=str(file), do="use a 16 or 32-bit copy")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has a shape or offsets that are no whole numbers")
    info = TensorInfo(DTYPES[code], tuple(shape))
    start, stop = offsets
    if stop - start != info.size:
        raise ValueError(f"{name} takes {info.size} bytes and is given {stop - start}")
    return info, Place(file, data + start, data + stop)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 8 and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def _check_places(tensors: dict[str, tuple[TensorInfo, Place]], start: int, size: int) -> None:
    """ValueError unless the tensors lie one behind the other and fill the file, as safetensors' own reader asks."""
    for place in sorted((p for _, p in tensors.values()), key=lambda p: (p.start, p.stop)):
        if place.start != start:
            raise ValueError(f"a tensor begins at byte {place.start}, the one before ends at {start}")
        start = place.stop
    if start != size:
        raise ValueError(f"the tensors end at byte {start}, the file at {size}")


HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$|^head\.weight$")
"""Output head."""
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|tokens_embed|embeddings)\.weight$"
)
"""Input embedding."""
VOCABULARY = re.compile(rf"{EMBEDDING.pattern}|{HEAD.pattern}|(^|\.)(lm_head|embed_out|output_projection)\.bias$")
"""Tensors with one row per token."""
BUFFERS = re.compile(r"rotary_emb\.inv_freq$|attn\.(bias|masked_bias)$|attention\.(bias|masked_bias)$|position_ids$")
"""Constants that some versions of transformers saved and others recompute: never merged into, never missed."""


KEPT = {"clip": re.compile(r"^(text_model\.|text_projection\.|logit_scale$)")}
"""By model type, tensors that stay the base's in every merge: the text tower of an image classifier makes its head."""
PARTS = {"clip_vision_model": ("clip", re.compile(r"^vision_model\."))}
"""By model type of a checkpoint that holds a part of another type's model: that type, and what it must hold of it."""


def first(pattern: re.Pattern[str], names: Iterable[str]) -> str | None:
    """The shortest name that matches, if any does."""
    return min((name for name in names if pattern.search(name)), key=len, default=None)
