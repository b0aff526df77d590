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

_CODE_POINTS = 0x110000
_ACCENTS = range(0x300, 0x370)
"""Combining marks of the Latin, Greek and Cyrillic scripts: a tokenizer may strip them."""


class Coverage:
    """Counts what no id of a `plain_tokenizer` stands for, over the pieces that it is shown."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        model = json.loads(tokenizer.to_str())["model"]
        known = model.get("unk_token")
        self._unknown = tokenizer.token_to_id(known) if known else model.get("unk_id")
        self._unknown_ids = self._unknown_characters = 0
        self._counts = np.zeros(_CODE_POINTS, np.int64)

    def count(self, pieces: Sequence[str], ids: TokenIds, lengths: Offsets) -> None:
        """Pieces of text, all their ids, and how many of these each piece gave."""
        points = np.frombuffer("".join(pieces).encode("utf-32-le"), np.uint32)
        self._counts += np.bincount(points, minlength=_CODE_POINTS)
        if self._unknown is None:
            return
        places = np.flatnonzero(ids == self._unknown)
        self._unknown_ids += len(places)
        holders = np.unique(np.searchsorted(np.cumsum(lengths), places, side="right"))
        # Which characters an id is of cannot be told from the ids alone.
        again = [pieces[place] for place in holders]
        encodings = self._tokenizer.encode_batch(again, add_special_tokens=False)
        for piece, encoding in zip(again, encodings, strict=True):
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if number == self._unknown:
                    self._unknown_characters += len("".join(piece[start:end].split()))

    def lost(self, tokens: int) -> tuple[float, float]:
        """Share of the characters that are lost (white space and control characters do not
        count), and of all `tokens` that are unknown."""
        lost, characters = self._unknown_characters, 0
        for point in np.flatnonzero(self._counts).tolist():
            if unicodedata.category(chr(point))[0] not in "ZC":
                times = int(self._counts[point])
                characters += times
                lost += times * self._is_deleted(chr(point))
        return lost / max(1, characters), self._unknown_ids / max(1, tokens)

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
