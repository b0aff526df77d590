"""Ways in which files go wrong: by themselves, by a program's mistake, or by somebody's intent.

Every function takes a file's content and a random generator and gives other content; the same
generator gives the same. `DAMAGES` has one for each format; all of them fall back on bytes.
"""

import random
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]

PIECES = (
    b"\0",
    bytes(64),
    b"\x1b[2J\x1b]0;title\x07",
    bytes(range(1, 32)),
    b"\x7f\xc2\x85\xc2\x9b",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n\n",
    b"\t\t",
    b" \x0b\x0c\x1c\x1d ",
    "\u2028\u2029\u00a0\u3000".encode(),
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xed\xa0\x80",  # half a character, as UTF-8 must not spell it
    b"\xed\xb0\x80\xed\xa0\x80",
    b"\xc0\xaf",  # "/" spelt too long
    b"\xc0\x80",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xf4\x90\x80\x80",  # above the last code point
    b"\x80",
    b"\xe2\x82",
    b"\xff\xff\xff\xff",
    "\u202e\u2066abc\u200f\u061c".encode(),
    ("e" + 500 * "\u0301").encode(),
    "\u200b\u200d\ufeff\ufffd\ufffe\uffff\U0010ffff".encode(),
    "漢字かな한글🙂👩‍👩‍👧".encode(),
    b"9" * 5000,
    b"1e400",
    b"-0",
    b"-1",
    b"NaN",
    b"-Infinity",
    b"1E-9999",
    b"0x7f",
    b"true",
    b"null",
    b'"',
    b'""',
    b"'",
    b"\\",
    b"\\ud800",
    b'"\\ud800"',
    b"\\u0000",
    b"\\ud83d\\ude00",
    b"[" * 100_000,
    b'{"a":' * 5000,
    b"{}[](),:;#&*!|>%@`",
    b"%s%n{0}",
    b"../../../../etc/passwd",
    b"/etc/passwd",
    b"</script><script>alert(1)</script>",
    b"!!python/object/apply:os.system ['touch fuzzed']",
    b"cos\nsystem\n(S'touch fuzzed'\ntR.",
    b"PK\x03\x04",
    b"\x1f\x8b\x08\0\0\0\0\0\0\3",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"PAR1",
    b"\x93NUMPY\x01\0",
    b"word" * 50_000,
)
_EXTREMES = (0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def place_in(data: bytes, draw: random.Random) -> int:
    """Anywhere; half of the time where a line begins."""
    if draw.random() < 0.5:
        return draw.randrange(len(data) + 1)
    end = data.find(b"\n", draw.randrange(len(data) + 1))
    return end + 1


def _range(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    length = draw.choice((1, 2, 4, 8, 32, 200, len(data)))
    return start, min(len(data), start + length)


def _flip(data: bytes, draw: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _cut_off(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _cut_out(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:start] + data[end:]


def _double(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:end] + data[start:end] * draw.choice((1, 1, 20)) + data[end:]


def _splice(data: bytes, draw: random.Random) -> bytes:
    """Its beginning, and then its end from another place on."""
    return data[: draw.randrange(len(data) + 1)] + data[draw.randrange(len(data) + 1) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = place_in(data, draw)
    return data[:at] + draw.choice(PIECES) + data[at:]


def _replace(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:start] + draw.choice(PIECES) + data[end:]


def _noise(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:start] + draw.randbytes(end - start) + data[end:]


def _number(data: bytes, draw: random.Random) -> bytes:
    """A length or an offset, as binary formats have them, out of bounds."""
    size = draw.choice((1, 2, 4, 8))
    value = draw.choice(_EXTREMES) % (1 << 8 * size)
    start = draw.choice((0, 4, 8, draw.randrange(len(data) + 1), max(0, len(data) - 8)))
    piece = value.to_bytes(size, draw.choice(("little", "big")))
    return data[:start] + piece + data[start + size :]


def _lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    match draw.randrange(5):
        case 0:
            del lines[a]
        case 1:
            lines.insert(b, lines[a])
        case 2:
            lines[a], lines[b] = lines[b], lines[a]
        case 3:
            lines[a] += lines[b]
        case 4:
            lines[a] = b" " + lines[a] + draw.choice((b" ", b"\r", b"\t", b","))
    return b"\n".join(lines)


def _encode(data: bytes, draw: random.Random) -> bytes:
    """The same text in another encoding, as a whole or from somewhere on."""
    start = draw.choice((0, draw.randrange(len(data) + 1)))
    encoding = draw.choice(("utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7"))
    text = data[start:].decode("utf-8", "replace")
    return data[:start] + text.encode(encoding, "replace")


def _ends(data: bytes, draw: random.Random) -> bytes:
    return data.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\r", b"\x0b", b"\xe2\x80\xa8")))


def _whole(data: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"", b"\n", draw.choice(PIECES), data + data, data[::-1]))


_OPERATIONS: tuple[Damage, ...] = (
    *(_flip, _flip, _cut_off, _cut_out, _double, _splice, _insert, _insert, _insert, _replace),
    *(_noise, _number, _lines, _lines, _encode, _ends, _whole),
)


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four of the things that can happen to any file."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_OPERATIONS)(data, draw)
    return data
