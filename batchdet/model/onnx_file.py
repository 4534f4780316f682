"""Reading an ONNX file's header without loading it: is it ONNX, is it safe, what does it say about itself.

The file is scanned as protobuf wire format, so neither the onnx package nor a runtime sees it before it is known
to be whole, to carry its own weights, and to need no operators but those that runtimes bring.

Source: https://protobuf.dev/programming-guides/encoding/ and the field numbers of onnx.proto (ONNX 1.18).
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from batchdet.errors import ModelError

MAX_BYTES: Final = 4 * 1024**3
_KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_MAX_DEPTH: Final = 32
_MAX_FIELDS: Final = 4_000_000
"""The largest models have some 100,000 nodes of ten fields; without a limit 1 GB of tiny ones would take an hour."""
_FILE_OPERATORS: Final = frozenset({"EPContext", "Snpe"})
"""Operators of com.microsoft that name a file or carry code for a driver."""
_PLUG_IN: Final = "_TRT"
"""How the names of TensorRT's plug-ins end, whatever their domain."""


@dataclass(frozen=True)
class OnnxInfo:
    """What an ONNX file says about itself.

    Args:
        ir_version: Version of the file format.
        producer: What wrote it, with version.
        opsets: Operator set versions by domain ("" is ONNX's own).
        doc: The free text.
        metadata: The key-value texts.
        node_count: Nodes of the main graph.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]
    doc: str
    metadata: dict[str, str]
    node_count: int


class _Broken(Exception):
    """The bytes are no protobuf of the expected kind."""


@dataclass
class _Findings:
    domains: set[str] = field(default_factory=set)
    function_domains: set[str] = field(default_factory=set)
    file_operators: set[str] = field(default_factory=set)
    plug_ins: set[str] = field(default_factory=set)
    external: bool = False
    nodes: int = 0


class _Wire:
    """Protobuf fields of a part of a buffer."""

    def __init__(self, buffer: mmap.mmap | bytes) -> None:
        self.buffer = buffer
        self.fields_left = _MAX_FIELDS

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.buffer[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise _Broken

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (field number, start, end) of length-delimited fields, (number, value, -1) of integers."""
        at = start
        while at < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise _Broken
            key, at = self.varint(at, end)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise _Broken
            if kind == 0:
                value, at = self.varint(at, end)
                yield number, value, -1
            elif kind == 2:
                length, at = self.varint(at, end)
                if length > end - at:
                    raise _Broken
                yield number, at, at + length
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
                if at > end:
                    raise _Broken
            else:
                raise _Broken

    def text(self, start: int, end: int) -> str:
        if end < 0:
            raise _Broken
        try:
            return bytes(self.buffer[start:end]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Broken from error

    def texts(self, start: int, end: int) -> dict[int, str]:
        """Read a message's text and integer fields, as text."""
        return {n: self.text(a, b) if b >= 0 else str(a) for n, a, b in self.fields(start, end)}


def read_onnx(path: str) -> OnnxInfo:
    """Scan an ONNX file and refuse what is not one or is not safe to load.

    Args:
        path: A local file.

    Raises:
        ModelError: The file is not ONNX, is cut off, keeps weights in other files, or uses custom operators.
    """
    name = os.path.basename(path)
    size_bytes = os.path.getsize(path)
    if size_bytes == 0:
        raise ModelError(f"{name} is empty, not an ONNX model")
    if size_bytes > MAX_BYTES:
        raise ModelError(f"{name} has {size_bytes} bytes; models of at most {MAX_BYTES} bytes are loaded")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        wire = _Wire(buffer)
        findings = _Findings()
        try:
            info = _scan_model(wire, size_bytes, findings)
        except (_Broken, IndexError, RecursionError) as error:
            raise ModelError(f"{name} is not an ONNX model, or is cut off: {_looks_like(buffer[:512])}") from error
    if findings.external:
        raise ModelError(
            f"{name} keeps weights in other files (ONNX external data), which is refused: "
            "save the model as a single file (onnx.save(model, path, save_as_external_data=False))"
        )
    if findings.file_operators:
        raise ModelError(
            f"{name} uses operators that load other files ({', '.join(sorted(findings.file_operators))}), which is "
            "refused: export the model with ONNX's own operators"
        )
    if findings.plug_ins:
        raise ModelError(
            f"{name} uses plug-ins of TensorRT ({', '.join(sorted(findings.plug_ins))}), which no ONNX runtime has: "
            "export the model without NMS in the graph (no end2end, no nms option); batchdet does it",
            code="model.custom_operators",
        )
    strange = sorted(findings.domains - _KNOWN_DOMAINS - findings.function_domains)
    if strange:
        raise ModelError(
            f"{name} uses custom operators ({', '.join(map(repr, strange))}), which would need a library "
            "that batchdet does not load: export the model with ONNX's own operators",
            code="model.custom_operators",
        )
    return info


def _scan_model(wire: _Wire, size_bytes: int, findings: _Findings) -> OnnxInfo:
    ir_version, texts, opsets = 0, {2: "", 3: "", 6: ""}, {}
    metadata: dict[str, str] = {}
    has_graph = False
    for number, start, end in wire.fields(0, size_bytes):
        if number == 1 and end < 0:
            ir_version = start
        elif number in texts:
            texts[number] = wire.text(start, end)
        elif number == 7:
            has_graph = True
            _scan_graph(wire, start, end, findings, 0)
        elif number == 8:
            opset = wire.texts(start, end)
            opsets[opset.get(1, "")] = int(opset.get(2, "0"))
        elif number == 14:
            entry = wire.texts(start, end)
            metadata[entry.get(1, "")] = entry.get(2, "")
        elif number == 20:  # training info: its graphs (1, 2) hold initialisers too
            for part, a, b in wire.fields(start, end):
                if part in (1, 2):
                    _scan_graph(wire, a, b, findings, 1)
        elif number == 25:
            _scan_function(wire, start, end, findings)
    if not has_graph or not ir_version or not opsets:
        raise _Broken
    return OnnxInfo(ir_version, f"{texts[2]} {texts[3]}".strip(), opsets, texts[6], metadata, findings.nodes)


def _scan_graph(wire: _Wire, start: int, end: int, findings: _Findings, depth: int) -> None:
    if depth > _MAX_DEPTH or end < 0:
        raise _Broken
    for number, a, b in wire.fields(start, end):
        if number == 1:
            findings.nodes += depth == 0
            _scan_node(wire, a, b, findings, depth)
        elif number == 5:
            _scan_tensor(wire, a, b, findings)
        elif number == 15:
            _scan_sparse(wire, a, b, findings)


def _scan_node(wire: _Wire, start: int, end: int, findings: _Findings, depth: int) -> None:
    if end < 0:
        raise _Broken
    domain = kind = ""
    for number, a, b in wire.fields(start, end):
        if number == 7:
            domain = wire.text(a, b)
        elif number == 4:
            kind = wire.text(a, b)
        elif number == 5:
            _scan_attribute(wire, a, b, findings, depth)
    findings.domains.add(domain)
    if kind.endswith(_PLUG_IN):
        findings.plug_ins.add(kind)
    if domain == "com.microsoft" and kind in _FILE_OPERATORS:
        findings.file_operators.add(kind)


def _scan_attribute(wire: _Wire, start: int, end: int, findings: _Findings, depth: int) -> None:
    for part, a, b in wire.fields(start, end):  # tensors (5, 10), graphs (6, 11), sparse tensors (22, 23)
        if part in (5, 10):
            _scan_tensor(wire, a, b, findings)
        elif part in (6, 11):
            _scan_graph(wire, a, b, findings, depth + 1)
        elif part in (22, 23):
            _scan_sparse(wire, a, b, findings)


def _scan_tensor(wire: _Wire, start: int, end: int, findings: _Findings) -> None:
    if end < 0:
        raise _Broken
    for number, a, b in wire.fields(start, end):
        if number == 13 or (number == 14 and b < 0 and a != 0):
            findings.external = True


def _scan_sparse(wire: _Wire, start: int, end: int, findings: _Findings) -> None:
    for number, a, b in wire.fields(start, end):
        if number in (1, 2):  # values, indices
            _scan_tensor(wire, a, b, findings)


def _scan_function(wire: _Wire, start: int, end: int, findings: _Findings) -> None:
    if end < 0:
        raise _Broken
    for number, a, b in wire.fields(start, end):
        if number == 10:
            findings.function_domains.add(wire.text(a, b))
        elif number == 7:
            _scan_node(wire, a, b, findings, 1)
        elif number == 11:  # attributes with their defaults
            _scan_attribute(wire, a, b, findings, 1)


def _looks_like(head: bytes) -> str:
    """Say what the first bytes look like to a person."""
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "it looks like a PyTorch checkpoint; export it to ONNX"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the real file with git lfs pull"
    printable = sum(32 <= b < 127 or b in (9, 10, 13) for b in head)
    return "it looks like text" if printable > 0.95 * len(head) else f"its first bytes are {head[:8].hex(' ')}"
