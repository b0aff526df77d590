"""Sentences to token ids, and how much of a text the ids stand for."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from stackbert.corpus.store import Offsets, TokenIds

Encode = Callable[[Sequence[str]], tuple[TokenIds, Offsets]]
"""From pieces of text to all their ids in one array, and how many of them each piece gave."""

_CODE_POINTS = 0x110000
_ACCENTS = range(0x300, 0x370)  # marks of Latin, Greek and Cyrillic, which a tokenizer may strip
_TABLE_WORDS, _TABLE_CHARACTERS = 1 << 18, 1 << 24
_END, _END_ID = " \0 ", 2**32 - 1
_MARKS = {
    # Each of these is a token of its own, or a space, to a BERT tokenizer. Set apart, "word," and
    # "word" are one entry of the table. A comma or full stop inside a number stays: splitting
    # there would make more words to look up than it saves in entries.
    "\n": " ", ", ": " , ", ". ": " . ", "; ": " ; ", ": ": " : ",
    "(": "( ", ")": " )", '"': ' " ', "-": " - ", "'": " ' ",
}  # fmt: skip


def plain_tokenizer(tokenizer: Any, special: Sequence[int]) -> Any:  # noqa: ANN401 (imported lazily)
    """The same tokenizer, to which all text is ordinary text; it does not truncate or pad.

    A vocabulary that holds "</s>" gives its id where the text says "</s>" (HTML does), as if a
    document ended there. Here special tokens have names that no text holds; other ids are the same.
    """
    from tokenizers import Tokenizer

    names = {tokenizer.id_to_token(number) for number in special}

    def renamed(token: str) -> str:
        return f"\uffff{token}\uffff" if token in names else token

    parts = json.loads(tokenizer.to_str())
    parts |= {"truncation": None, "padding": None, "post_processor": None}
    for added in parts["added_tokens"]:
        added["content"] = renamed(added["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed(token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed(token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & names]
    found = Tokenizer.from_str(json.dumps(parts))
    found.encode_special_tokens = True
    return found


def encoder_for(tokenizer: Any) -> Encode:  # noqa: ANN401
    """The fastest way to the ids of a `plain_tokenizer`."""
    parts = json.loads(tokenizer.to_str())
    kinds = [(parts[part] or {}).get("type") for part in ("model", "normalizer")]
    splitter = parts["pre_tokenizer"] or {}
    splitters = [each["type"] for each in splitter.get("pretokenizers", [splitter]) if each]
    looks_at_words_only = (
        kinds == ["WordPiece", "BertNormalizer"]
        and splitters in (["BertPreTokenizer"], ["BertPreTokenizer", "FixedLength"])
        and parts["normalizer"]["clean_text"]
        and all(token["special"] for token in parts["added_tokens"])
    )
    return encode_words(tokenizer) if looks_at_words_only else encode_pieces(tokenizer)


def encode_pieces(tokenizer: Any) -> Encode:  # noqa: ANN401
    """For any tokenizer: its own ids of each piece."""

    def encode(pieces: Sequence[str]) -> tuple[TokenIds, Offsets]:
        encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths

    return encode


def encode_words(tokenizer: Any) -> Encode:  # noqa: ANN401
    """For a BERT tokenizer, which never looks across a space: each distinct word once.

    The same ids in half the time on two cores and a third of it on one (30 MB of Wikipedia).
    """
    table: dict[str, tuple[int, ...]] = {}
    characters = 0

    def encode(pieces: Sequence[str]) -> tuple[TokenIds, Offsets]:
        nonlocal characters
        joined = _END.join([*pieces, ""])
        if joined.count("\0") > len(pieces):
            # The tokenizer drops this character anyway, and here it marks the ends of the pieces.
            joined = _END.join([*(piece.replace("\0", "") for piece in pieces), ""])
        for mark, apart in _MARKS.items():
            joined = joined.replace(mark, apart)
        words = joined.split(" ")
        if len(table) > _TABLE_WORDS or characters > _TABLE_CHARACTERS:
            table.clear()
            characters = 0
        new = list(set(words).difference(table))
        encodings = tokenizer.encode_batch_fast(new, add_special_tokens=False)
        table.update(zip(new, (tuple(each.ids) for each in encodings), strict=True))
        table["\0"] = (_END_ID,)
        characters += sum(map(len, new))
        ids = np.fromiter(chain.from_iterable(map(table.__getitem__, words)), np.uint32)
        is_end = ids == _END_ID
        return ids[~is_end], np.diff(np.flatnonzero(is_end), prepend=-1) - 1

    return encode


class Coverage:
    """Counts what no id of a `plain_tokenizer` stands for, over the pieces that it is shown.

    A vocabulary that does not fit a text loses it without an error: WordPiece turns whole words
    into its unknown token, a BPE without one deletes what it does not know.
    """

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
