"""Read a stored object from front to back, fast and checked: local, remote with read-ahead, gzip."""

import gzip
import io
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

from batchdet import storage
from batchdet.source.range_file import open_listed
from batchdet.storage import StoredObject

BLOCK_BYTES: Final = 8 * 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_SKIP_BYTES: Final = 1024 * 1024
_BOMB_BYTES: Final = 256 * 1024 * 1024
_BOMB_RATIO: Final = 100


class StreamCorrupt(Exception):
    """The bytes from here on cannot be trusted."""


class StreamTruncated(Exception):
    """The bytes end before they should."""


class Stream(Protocol):
    """Bytes from front to back."""

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer only at the end."""

    def skip(self, count: int) -> int:
        """Pass over the next ``count`` bytes and return how many there were."""

    def is_complete(self) -> bool:
        """Tell whether everything that was listed has been read."""

    def check(self) -> None:
        """Make sure that all that was read is the listed object.

        Raises:
            StorageError: It has changed.
        """

    def close(self) -> None:
        """Release what the stream holds."""


class LocalStream:
    """A local file.

    Args:
        file: The file.
        size_bytes: Its listed size.
    """

    def __init__(self, file: storage.LocalFile, size_bytes: int) -> None:
        self._file = io.BufferedReader(file, _SKIP_BYTES)
        self._end = file.size_bytes
        self._size_bytes = size_bytes
        self.check = file.check

    def read(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            StorageError: The file system failed.
        """
        return self._file.read(min(count, max(0, self._end - self._file.tell())))

    def skip(self, count: int) -> int:
        """Seek forward, to the end at most."""
        here = self._file.tell()
        return self._file.seek(min(here + count, self._end)) - here

    def is_complete(self) -> bool:
        """Compare with the listed size."""
        return self._file.tell() >= self._size_bytes

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BlockStream:
    """A remote object in blocks; while one is used, the next one is on its way.

    Args:
        file: The object.
        block_bytes: Size of a block; two are held.
    """

    def __init__(self, file: storage.RangeFile, block_bytes: int = BLOCK_BYTES) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="batchdet-read-ahead")
        self._block = b""
        self._used = 0
        self._next_start = 0
        self._next: Future[bytes] | None = self._request()
        self._position = 0

    def _request(self) -> "Future[bytes] | None":
        start = self._next_start
        if start >= self._file.size_bytes:
            return None
        self._next_start = min(start + self._block_bytes, self._file.size_bytes)
        return self._threads.submit(self._file.fetch, start, self._next_start)

    def _advance(self) -> bool:
        if self._next is None:
            return False
        expected = min(self._block_bytes, self._file.size_bytes - (self._position))
        self._block, self._used = self._next.result(), 0
        # a short block is where the body was cut: nothing behind it is asked for
        self._next = self._request() if len(self._block) == expected else None
        return bool(self._block)

    def read(self, count: int) -> bytes:
        """Return the next bytes."""
        parts = []
        while count > 0:
            if self._used == len(self._block) and not self._advance():
                break
            part = self._block[self._used : self._used + count]
            self._used += len(part)
            self._position += len(part)
            count -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> int:
        """Pass over bytes; blocks are fetched and dropped."""
        skipped = 0
        while skipped < count:
            if self._used == len(self._block) and not self._advance():
                break
            step = min(count - skipped, len(self._block) - self._used)
            self._used += step
            self._position += step
            skipped += step
        return skipped

    def is_complete(self) -> bool:
        """Compare with the listed size."""
        return self._position >= self._file.size_bytes

    def check(self) -> None:
        """Each request has compared the ETag, where the store tells one."""

    def close(self) -> None:
        """Wait for the block under way and release the thread."""
        self._threads.shutdown(cancel_futures=True)


class _Front:
    """Gives gzip a ``read`` that begins with bytes already taken, and counts what it took."""

    def __init__(self, head: bytes, stream: Stream) -> None:
        self._head = head
        self._stream = stream
        self.taken = 0

    def read(self, count: int) -> bytes:
        data = self._head[:count] if self._head else self._stream.read(count)
        self._head = self._head[count:]
        self.taken += len(data)
        return data


class GzipStream:
    """The unpacked bytes of a gzip stream, never more of them in memory than were asked for.

    Args:
        head: Bytes already taken from ``stream``.
        stream: The packed bytes.
    """

    def __init__(self, head: bytes, stream: Stream) -> None:
        self._packed = _Front(head, stream)
        self._stream = stream
        self._file = gzip.GzipFile(fileobj=self._packed, mode="rb")  # type: ignore[call-overload]
        self._total = 0
        self.check = stream.check

    def read(self, count: int) -> bytes:
        """Return the next unpacked bytes.

        Raises:
            StreamTruncated: The packed bytes end too early.
            StreamCorrupt: They are no gzip, or expand beyond all measure.
        """
        try:
            data: bytes = self._file.read(count)
        except EOFError as error:
            raise StreamTruncated("the gzip data end too early") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise StreamCorrupt(f"gzip: {error}") from error
        self._total += len(data)
        if self._total > _BOMB_BYTES and self._total > _BOMB_RATIO * self._packed.taken:
            raise StreamCorrupt(f"gzip: expands more than {_BOMB_RATIO} times, which no images do")
        return data

    def skip(self, count: int) -> int:
        """Unpack and drop, a little at a time."""
        left = count
        while left > 0 and (step := len(self.read(min(left, _SKIP_BYTES)))):
            left -= step
        return count - left

    def is_complete(self) -> bool:
        """Tell whether the packed bytes are all there; their last checksum was compared when the end was read."""
        return self._stream.is_complete()

    def close(self) -> None:
        """Close the packed stream."""
        self._file.close()
        self._stream.close()


class _Rewound:
    """A stream with the bytes put back that were taken to look at them."""

    def __init__(self, head: bytes, stream: Stream) -> None:
        self._head = head
        self._stream = stream
        self.is_complete = stream.is_complete
        self.check = stream.check
        self.close = stream.close

    def read(self, count: int) -> bytes:
        if not self._head:
            return self._stream.read(count)
        data, self._head = self._head[:count], self._head[count:]
        return data if len(data) == count else data + self._stream.read(count - len(data))

    def skip(self, count: int) -> int:
        ahead = min(count, len(self._head))
        self._head = self._head[ahead:]
        return ahead + self._stream.skip(count - ahead) if count > ahead else ahead


def open_stream(obj: StoredObject) -> Stream:
    """Open an object from front to back, unpacked when its first bytes are gzip's.

    Raises:
        SizeMismatch: Its size is not the listed one.
        StorageError: It cannot be read.
    """
    file = open_listed(obj)
    stream: Stream
    stream = LocalStream(file, file.size_bytes) if isinstance(file, storage.LocalFile) else BlockStream(file)
    head = stream.read(2)
    return GzipStream(head, stream) if head == _GZIP_MAGIC else _Rewound(head, stream)
