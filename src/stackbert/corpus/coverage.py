"""How much of a text its token ids stand for.

A vocabulary that does not fit a text loses it without an error: WordPiece turns whole words into
its unknown token, a BPE without one deletes what it does not know.
"""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from stackbert.corpus.store import Offsets, TokenIds

_KEPT, _DELETED, _SPACE, _NEW = range(4)
_ACCENTS = range(0x300, 0x370)
"""Combining marks of the Latin, Greek and Cyrillic scripts: a tokenizer may strip them."""


class Coverage:
    """Counts what no id stands for, over the pieces that it is shown.

    Args:
        tokenizer: a `plain_tokenizer`.

    Attributes:
        characters: of the text; white space and control characters do not count.
        lost: those that no id but the unknown one stands for.
        unknown: unknown ids.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self.characters = self.lost = self.unknown = 0
        self._tokenizer = tokenizer
        model = json.loads(tokenizer.to_str())["model"]
        known = model.get("unk_token")
        self._unknown = tokenizer.token_to_id(known) if known else model.get("unk_id")
        # Of each code point.
        self._kinds = np.full(0x110000, _NEW, np.uint8)

    def count(self, pieces: Sequence[str], ids: TokenIds, lengths: Offsets) -> None:
        """Pieces of text, all their ids, and how many of these each piece gave."""
        if self._unknown is not None:
            places = np.flatnonzero(ids == self._unknown)
            self.unknown += len(places)
            holders = np.unique(np.searchsorted(np.cumsum(lengths), places, side="right"))
            self._count_unknown([pieces[place] for place in holders])
        self._count_deleted("".join(pieces))

    def _count_unknown(self, pieces: Sequence[str]) -> None:
        """Count the characters behind unknown ids; others cannot be told from the ids alone."""
        for piece, encoding in zip(
            pieces, self._tokenizer.encode_batch(pieces, add_special_tokens=False), strict=True
        ):
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if number == self._unknown:
                    self.lost += len("".join(piece[start:end].split()))

    def _count_deleted(self, text: str) -> None:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        for point in np.unique(points[self._kinds[points] == _NEW]).tolist():
            is_space = unicodedata.category(chr(point))[0] in "ZC"
            self._kinds[point] = _SPACE if is_space else self._is_deleted(chr(point))
        found = np.bincount(self._kinds[points], minlength=_NEW)
        self.characters += int(found[[_KEPT, _DELETED]].sum())
        self.lost += int(found[_DELETED])

    def _is_deleted(self, character: str) -> bool:
        """Whether the tokenizer gives fewer pieces of a character than it is made of."""
        if ord(character) in _ACCENTS:
            return False
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        normal = normalizer.normalize_str(character) if normalizer else character
        parts = [part for part, _ in splitter.pre_tokenize_str(normal)] if splitter else [normal]
        encoding = self._tokenizer.encode(character, add_special_tokens=False)
        made = "".join(encoding.tokens)
        return self._unknown not in encoding.ids and (not made or len(made) < len("".join(parts)))
