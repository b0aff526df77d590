"""Reading through gzip, xz, bzip2 and zstd, with an error for data that is cut short or foreign.

The standard library's files of xz and bzip2 end without a word where a second stream behind the
first is damaged, and its text would be missing; so their streams are gone through here.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO, Any

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What reading damaged data raises; an `OSError` of that kind has no error number."""
_READ = 1 << 20
_BITE = 1 << 12
"""Bytes that are decompressed at once: zstd makes up to 32,768 times as many of them."""
_MOST_MEMORY = 1 << 29
"""Of an xz stream, whose header says what it needs: xz itself makes none of more than 65 MiB."""


def decompressed(stream: io.BufferedReader, compression: str) -> IO[bytes]:
    """The content of `stream`, decompressed as it is read.

    Args:
        stream: the file as stored.
        compression: one of `COMPRESSIONS`, or "" for none.
    """
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), _READ)
    if compression == ".xz":
        new = partial(lzma.LZMADecompressor, memlimit=_MOST_MEMORY)
        return io.BufferedReader(_Frames(stream, new, lzma.LZMAError, padding=b"\0"), _READ)
    if compression == ".bz2":
        return io.BufferedReader(_Frames(stream, bz2.BZ2Decompressor, OSError), _READ)
    if compression == ".zst":
        import zstandard

        frame = zstandard.ZstdDecompressor().decompressobj
        return io.BufferedReader(_Frames(stream, frame, zstandard.ZstdError), _READ)
    return stream


class _Frames(io.RawIOBase):
    """Decompresses streams (frames), one behind the other, to the last.

    Args:
        source: the file as stored.
        new: makes what decompresses one of them.
        error: what that raises.
        padding: bytes that may fill up the space behind a stream.
    """

    def __init__(
        self,
        source: IO[bytes],
        new: Callable[[], Any],
        error: type[Exception],
        padding: bytes = b"",
    ) -> None:
        self._new = new
        self._error = error
        self._source = source
        self._padding = padding
        self._frame: Any = None
        self._ended = False
        self._input = b""
        self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        while not self._output:
            # zstd takes all that it is given; the others keep what does not fit into the output.
            if getattr(self._frame, "needs_input", True):
                data = self._input or self._source.read(_BITE)
                self._input = b""
                if not data:
                    if self._frame is not None:
                        raise EOFError("the last stream in it has no end")
                    return 0
                if self._frame is None and self._ended:
                    data = data.lstrip(self._padding) if self._padding else data
                    if not data:
                        continue
            else:
                data = b""
            self._output = self._decompress(data)
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        self._frame = self._frame or self._new()
        bounded = hasattr(self._frame, "needs_input")
        try:
            output: bytes = self._frame.decompress(data, *((_READ,) if bounded else ()))
        except self._error as error:
            raise EOFError(str(error)) from None
        if self._frame.eof:
            self._input, self._frame, self._ended = self._frame.unused_data, None, True
        return output
