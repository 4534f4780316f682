"""What kind of model a file is: told by its first bytes and the names inside it, never by running it."""

import json
import os
import re
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from batchdet.errors import ModelError, SpecError

_PICKLE: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MAX_HEADER_BYTES: Final = 100_000_000
_MAX_TEXT_BYTES: Final = 16 * 1024 * 1024
_TEXTS: Final = ("/extra/metadata.json", "/extra/config.txt")
"""Where TorchScript and torch.export files keep texts of their maker; the second is Ultralytics' name."""
_OTHERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"%PDF-", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"PAR1", "a Parquet table"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
)
"""How files begin that users name by mistake. Two bytes decide only where protobuf cannot begin so."""
_MARKUP: Final = (b"<!doctype", b"<html", b"<?xml")
_TEXT: Final = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]{8,}")
"""No file of a model begins so: each has a control character among its first bytes."""
_POINTER: Final = b"version https://git-lfs"
OWN_KEY: Final = "batchdet"
"""The key of a safetensors header that makes a file a net of batchdet's own."""


class Format(StrEnum):
    """Kinds of model files; the value is the ending in the cache."""

    ONNX = "onnx"
    HUGGINGFACE = "huggingface"
    NET = "safetensors"
    TORCHSCRIPT = "torchscript"
    EXPORTED = "pt2"
    PICKLE = "pt"

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        return {
            Format.ONNX: "an ONNX file",
            Format.HUGGINGFACE: "a Hugging Face folder",
            Format.NET: "a net of batchdet's own (safetensors)",
            Format.TORCHSCRIPT: "a TorchScript file",
            Format.EXPORTED: "a torch.export file",
            Format.PICKLE: "a PyTorch checkpoint (pickle)",
        }[self]

    @property
    def runs_code(self) -> bool:
        """Whether loading it can run what its maker put into it."""
        return self in (Format.TORCHSCRIPT, Format.EXPORTED, Format.PICKLE)


def format_of(path: str) -> Format:
    """Tell the format of a local file or folder. What looks like nothing known is taken for ONNX, whose reader says no.

    Raises:
        SpecError: It is a picture, a document or an archive.
        ModelError: It is a safetensors file of no known kind, or a zip archive that is damaged.
    """
    if os.path.isdir(path):
        return Format.HUGGINGFACE
    with open(path, "rb") as file:
        head = file.read(512)
    if other := _other(head):
        raise _no_model(path, other)
    start = head[:9]
    if start.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if start.startswith(_PICKLE):
        return Format.PICKLE
    if start[8:] == b"{":
        if OWN_KEY not in safetensors_texts(path):
            raise ModelError(
                f"{os.path.basename(path)} has weights only (safetensors); name the folder with its config.json"
            )
        return Format.NET
    return Format.ONNX


def _zip_format(path: str) -> Format:
    names = _names(path)
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        return Format.TORCHSCRIPT
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return Format.EXPORTED
    if any(name.endswith("data.pkl") for name in names):
        return Format.PICKLE
    raise _no_model(path, "a zip archive that PyTorch has not written")


def _other(head: bytes) -> str | None:
    """Say what a file is that begins like no model; None if it may be one."""
    if head.lstrip().lower().startswith(_MARKUP):
        return "a web page or XML document"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:3] == b"\0\0\0" and head[4:8] == b"ftyp":
        return "a video, or an AVIF or HEIC picture"
    found = next((words for start, words in _OTHERS if head.startswith(start)), None)
    return found or ("a text file" if _TEXT.fullmatch(head) and not head.startswith(_POINTER) else None)


def _no_model(path: str, what: str) -> SpecError:
    return SpecError(
        f"{os.path.basename(path)} is {what}, not a model; model.uri names an ONNX file, a Hugging Face folder, or a "
        "TorchScript or torch.export file",
        code="model.not_a_model",
        key="model.uri",
    )


def _names(path: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelError(f"{os.path.basename(path)} is cut off or damaged: {error}") from error


def archive_texts(path: str) -> dict[str, str]:
    """Return the texts that the maker of a TorchScript or torch.export file put beside it.

    They are the values of the JSON object ``metadata.json`` (or ``config.txt``) among the file's extra files; what is
    no text is written as JSON.

    Raises:
        ModelError: The archive is damaged, or the texts are no JSON object.
    """
    name = os.path.basename(path)
    inside = next((n for ending in _TEXTS for n in _names(path) if n.endswith(ending)), None)
    if inside is None:
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(inside).file_size > _MAX_TEXT_BYTES:
                raise ModelError(f"{name}: {inside} has more than {_MAX_TEXT_BYTES} bytes")
            return as_texts(json.loads(archive.read(inside) or b"{}"))
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {inside} is no JSON object: {error}") from error


def pickled_modules(path: str) -> set[str]:
    """Return the packages that a PyTorch checkpoint takes its classes from, as far as its bytes show; nothing is run.

    Raises:
        ModelError: The archive is damaged.
    """
    pickle = Path(path).read_bytes()
    if pickle.startswith(b"PK"):
        inside = next(name for name in _names(path) if name.endswith("data.pkl"))
        try:
            with zipfile.ZipFile(path) as archive:
                pickle = archive.read(inside)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ModelError(f"{os.path.basename(path)} is cut off or damaged: {error}") from error
    return {name.decode() for name in re.findall(rb"c([a-z_]\w*)[\w.]*\n", pickle)}


def as_texts(value: Any) -> dict[str, str]:
    """Return the values of a JSON object as texts.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__}")
    return {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in value.items()}


def safetensors_texts(path: str) -> dict[str, str]:
    """Return the texts of a safetensors file's header, whose lengths are checked against the file's.

    Source: https://github.com/huggingface/safetensors, "Format".

    Raises:
        ModelError: The header is longer than the file or 100 MB, is no JSON, or places a tensor outside the file.
    """
    name, size_bytes = os.path.basename(path), os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 10 or length > min(size_bytes - 8, _MAX_HEADER_BYTES):
            raise ModelError(f"{name} is cut off or no safetensors file: its header says {length} bytes")
        try:
            header = json.loads(file.read(length))
            tensors = {key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"}
            texts = header.get("__metadata__") or {}
            room = size_bytes - 8 - length
            wrong = next((key for key, (a, b) in tensors.items() if not 0 <= a <= b <= room), None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{name} is no safetensors file: {error}") from error
    if wrong is not None:
        raise ModelError(f"{name} is cut off: the tensor {wrong!r} would lie outside the file")
    return as_texts(texts)
