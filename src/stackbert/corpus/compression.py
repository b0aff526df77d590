"""Reading through gzip, xz, bzip2 and zstd, with an error for data that is cut short."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What reading damaged data raises; an `OSError` of that kind has no error number."""
_READ = 1 << 20


def decompressed(stream: io.BufferedReader, compression: str) -> IO[bytes]:
    """The content of `stream`, decompressed as it is read.

    Args:
        stream: the file as stored.
        compression: one of `COMPRESSIONS`, or "" for none.
    """
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), _READ)
    if compression == ".xz":
        return io.BufferedReader(lzma.LZMAFile(stream), _READ)
    if compression == ".bz2":
        return io.BufferedReader(bz2.BZ2File(stream), _READ)
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(stream), _READ)
    return stream


class _Zstandard(io.RawIOBase):
    """Decompresses zstd frames; unlike zstandard's own reader it reports a truncated one."""

    def __init__(self, source: IO[bytes]) -> None:
        import zstandard

        self._new: Callable[[], Any] = zstandard.ZstdDecompressor().decompressobj
        self._error: type[Exception] = zstandard.ZstdError
        self._source = source
        self._frame: Any = None
        self._input = b""
        self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        while not self._output:
            # Small reads: zstd may make a thousandfold of them.
            data = self._input or self._source.read(1 << 14)
            self._input = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._output = self._frame.decompress(data)
            except self._error as error:
                raise EOFError(str(error)) from None
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
