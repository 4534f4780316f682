"""Walk through a tar from front to back. Names are data; nothing is ever extracted; little is held in memory.

Python's ``tarfile`` parses the header blocks. Its own loop is not used: it allocates whatever size an extended
header declares, and follows crafted sizes backwards for ever (CVE-2025-8194).

Blocks of zeros, the end marker among them, are passed over as by ``tar --ignore-zeros``: archives written one behind
the other are read as one. Reading goes on to the last byte, so that gzip's checksum is seen, and what stands behind
the end without being an archive does not go unnoticed.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from batchdet.source.stream import Stream, StreamCorrupt, StreamTruncated

_BLOCK: Final = 512
_END: Final = bytes(_BLOCK)
_MAX_EXTENDED_BYTES: Final = 1024 * 1024
_MAX_SIZE: Final = 1 << 62
_LINKS: Final = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}
_DEVICES: Final = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a FIFO"}
_PLAIN: Final = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_GLOBAL: Final = tarfile.XGLTYPE
_USED_KEYS: Final = frozenset({"path", "size"})
_SPARSE: Final = "GNU.sparse."


@dataclass(slots=True)
class TarMember:
    r"""One member's header.

    Args:
        name: Its name as text; bytes that are no UTF-8 are escaped as ``\xff``.
        size_bytes: Bytes that follow in the archive.
        problem: Why it is not a plain file with a safe name, else "".
        is_folder: A directory entry.
    """

    name: str
    size_bytes: int
    problem: str
    is_folder: bool


class TarWalker:
    """Iterate over the members; :meth:`read` gives the current one's bytes, or they are passed over.

    Args:
        stream: The archive, unpacked.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0
        self._blocks = 0
        self._after_zeros = False
        self._at_end = False

    def __iter__(self) -> Iterator[TarMember]:
        """Yield member after member.

        Raises:
            StreamTruncated: The archive ends in the middle.
            StreamCorrupt: A header cannot be read.
        """
        globals_: dict[str, bytes] = {}
        local: dict[str, bytes] = {}
        while True:
            header = self._header()
            if header is None:
                if local:
                    raise StreamTruncated("the archive ends behind an extended header")
                if self._at_end:
                    return
                continue
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                value = self._extended(header.size).split(b"\0", 1)[0]
                local["path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"] = value
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                local.update(_pax_records(self._extended(header.size)))
            elif header.type == _GLOBAL:
                globals_.update(_pax_records(self._extended(header.size)))
            else:
                yield self._member(header, {**globals_, **local})
                local = {}
                self._skip_rest()

    def read(self) -> bytes:
        """Return the bytes of the current member.

        Raises:
            StreamTruncated: There are fewer than its header says.
        """
        data = self._stream.read(self._left)
        if len(data) < self._left:
            raise StreamTruncated(f"{len(data)} of a member's {self._left} bytes are there")
        self._left = 0
        return data

    def _header(self) -> tarfile.TarInfo | None:
        """Return the next header, or None for a block of zeros or at the end."""
        block = self._stream.read(_BLOCK)
        if len(block) < _BLOCK:
            self._end(block)
            return None
        self._blocks += 1
        after_zeros, self._after_zeros = self._after_zeros, block == _END
        if self._after_zeros:
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            what = "bytes behind the end that are no archive" if after_zeros else "a bad header"
            raise StreamCorrupt(f"{'not a tar archive' if self._blocks == 1 else what}: {error}") from error
        if not 0 <= header.size < _MAX_SIZE:
            raise StreamCorrupt(f"a member of {header.size} bytes")
        return header

    def _end(self, rest: bytes) -> None:
        """Judge the last bytes, fewer than a block."""
        if not self._stream.is_complete():
            raise StreamTruncated("fewer bytes arrived than were listed")
        if not self._blocks:
            raise StreamCorrupt("not a tar archive")
        if rest and not self._after_zeros:
            raise StreamTruncated(f"a header of {len(rest)} bytes")
        if any(rest):
            raise StreamCorrupt(f"{len(rest)} bytes behind the end that are no archive")
        self._at_end = True

    def _extended(self, size: int) -> bytes:
        if size > _MAX_EXTENDED_BYTES:
            raise StreamCorrupt(f"an extended header of {size} bytes")
        self._left, self._padding = size, -size % _BLOCK
        data = self.read()
        self._skip_rest()
        return data

    def _member(self, header: tarfile.TarInfo, extended: dict[str, bytes]) -> TarMember:
        name = header.name.encode("utf-8", "surrogateescape")
        name = extended.get(f"{_SPARSE}name", extended.get("path", name))
        sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(_SPARSE) for key in extended)
        size = _size(extended["size"]) if "size" in extended else header.size
        is_folder = header.type == tarfile.DIRTYPE or (header.type == tarfile.AREGTYPE and name.endswith(b"/"))
        if is_folder or header.type in _LINKS or header.type in _DEVICES:
            size = 0
        self._left, self._padding = size, -size % _BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            self._skip_sparse_map(header)
        problem = _LINKS.get(header.type) or _DEVICES.get(header.type) or ("a sparse file" if sparse else "")
        if not problem and not is_folder and header.type not in _PLAIN:
            problem = f"a member of type {header.type!r}"
        return TarMember(name.decode("utf-8", "backslashreplace"), size, problem or _unsafe_name(name), is_folder)

    def _skip_sparse_map(self, header: tarfile.TarInfo) -> None:
        more = bool(header._sparse_structs[1])  # type: ignore[attr-defined]
        while more:
            block = self._stream.read(_BLOCK)
            if len(block) < _BLOCK:
                raise StreamTruncated("the map of a sparse file ends too early")
            more = block[504] != 0

    def _skip_rest(self) -> None:
        left, self._left = self._left, 0
        if left and self._stream.skip(left) < left:
            raise StreamTruncated(f"a member's {left} bytes are not all there")
        # the padding of a last member may be missing; the next header then says so
        if self._padding:
            self._stream.skip(self._padding)
        self._padding = 0


def _unsafe_name(name: bytes) -> str:
    if b"\0" in name:
        return "a name with a NUL byte"
    if not name:
        return "an empty name"
    if name.startswith((b"/", b"\\")) or name[1:3] in (b":/", b":\\"):
        return "an absolute name"
    if b".." in name.replace(b"\\", b"/").split(b"/"):
        return "a name with '..'"
    try:
        name.decode()
    except UnicodeDecodeError:
        return "a name that is not UTF-8"
    return ""


def _size(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise StreamCorrupt(f"an extended header with size {value[:20]!r}")
    return int(value)


def _pax_records(data: bytes) -> dict[str, bytes]:
    r"""Parse ``LENGTH KEY=VALUE\n`` records (POSIX.1-2001 pax); those that mean nothing here fill no memory."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 20)
        length = data[at:space]
        if space < 0 or not length.isdigit() or not space - at < int(length) <= len(data) - at:
            raise StreamCorrupt("a bad pax record")
        key, equals, value = data[space + 1 : at + int(length) - 1].partition(b"=")
        if not equals:
            raise StreamCorrupt("a pax record without '='")
        name = key.decode("utf-8", "replace")
        if name in _USED_KEYS or name == f"{_SPARSE}name":
            records[name] = value
        elif name.startswith(_SPARSE):
            records[_SPARSE] = b""
        at += int(length)
    return records
