"""Cutting a document into sentences by one regular expression.

It says where the second half of a next-sentence pair may begin. The tokens stay the same.
"""

import re
from collections.abc import Iterator

LONGEST = 1 << 16  # characters in a piece at most: it bounds the memory that encoding one takes

_NO_END = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Gen", "Jr", "Sr", "vs", "No", "Vol", "cf", "ca")
_PATTERN = re.compile(
    # A new paragraph: the boundary lies before the line end.
    r"""[.!?…。！？\n](?:(?<=\n)\s*+"""
    # A Western full stop with its closing quotes, then a space and no lower-case letter …
    r"""|["'”’»)\]」』）]*+(?:(?=[^\S\n]++[^\sa-z])"""
    # … which is not that of an initial ("J. Smith") or of a common abbreviation.
    r"""(?<!\b[A-Z]\.)"""
    + "".join(rf"(?<!\b{word}\.)" for word in _NO_END)
    +
    # An ideographic full stop, after which no space is written.
    r"""|(?<=[。！？」』）])(?=\S)))"""
)


def split_sentences(text: str) -> Iterator[str]:
    """Cut a document into sentences that, joined, are the document again.

    A sentence starts at each new line that is not blank and after a full stop (with its closing
    quotes) that is not an abbreviation's. White space goes to the front of the sentence that
    follows, as byte-level tokenizers expect. One of more than 65,536 characters is cut, at a space
    if it has one. A blank text gives none.
    """
    last = blank = ""
    for piece in _pieces(text):
        if not piece.strip():  # only at the ends of a text, and where a long piece is cut
            blank += piece
            continue
        if last:
            yield last
        last, blank = blank + piece, ""
    if last:
        yield last + blank


def _pieces(text: str) -> Iterator[str]:
    start = 0
    for match in _PATTERN.finditer(text):
        boundary = match.start()
        if text[boundary] != "\n":
            boundary = match.end()
        if boundary > start:
            yield from _cut(text[start:boundary])
            start = boundary
    if start < len(text):
        yield from _cut(text[start:])


def _cut(piece: str) -> Iterator[str]:
    start = 0
    while len(piece) - start > LONGEST:
        # A space at the very start of the part is not a place to cut: the part would be empty.
        space = piece.rfind(" ", start + 1, start + LONGEST)
        end = space if space > 0 and piece[start:space].strip() else start + LONGEST
        yield piece[start:end]
        start = end
    yield piece[start:]
