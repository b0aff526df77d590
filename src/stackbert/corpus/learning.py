"""Learning a tokenizer from a sample of the text: word pieces, or a byte-level BPE."""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.tokenizer import ROLES, ROW_MULTIPLE, SPECIAL, VOCAB_SIZE, CorpusTokenizer
from stackbert.errors import UserError

SAMPLE_BYTES = 48 << 20
_SAMPLE_BYTES_A_DOCUMENT = 1 << 20
_COVERAGE = 0.9999
_LONGEST_WORD = 100  # longer ones, which WordPiece takes for [UNK], are cut: DNA, Thai


class Sample:
    """A bounded choice of documents: those with the lowest digests, in whatever order they come.

    So every part of the input is drawn from alike, without knowing its size beforehand.
    """

    def __init__(self, limit: int = SAMPLE_BYTES) -> None:
        self._limit, self._size = limit, 0
        self._documents: dict[bytes, bytes] = {}

    def add(self, digest: bytes, text: str) -> None:
        """Offer a document; of a long one only the first MiB counts."""
        cut = text[:_SAMPLE_BYTES_A_DOCUMENT].encode()[:_SAMPLE_BYTES_A_DOCUMENT]
        self._documents[digest] = cut
        self._size += len(cut)
        if self._size > 2 * self._limit:
            self._shrink()

    def _shrink(self) -> None:
        ranked = sorted(self._documents.items())
        sizes = list(accumulate(len(text) for _, text in ranked))
        chosen = bisect_left(sizes, self._limit) + 1  # up to the one that reaches the limit
        self._documents = dict(ranked[:chosen])
        self._size = sum(map(len, self._documents.values()))

    def texts(self) -> Iterator[str]:
        """The chosen documents, in the order of their digests."""
        self._shrink()
        for text in self._documents.values():
            yield text.decode("utf-8", "ignore")  # a cut may have gone through a character


def learn_wordpiece(
    sample: Sample,
    vocab_size: int | None = None,
    *,
    lowercase: bool = True,
    strip_accents: bool = False,
) -> CorpusTokenizer:
    """Learn a BERT WordPiece tokenizer; the same sample always gives the same one.

    `[PAD] [UNK] [CLS] [SEP] [MASK]` are ids 0-4; entries `[unused0]` … fill its vocabulary up to a
    multiple of 64, so that model and tokenizer agree on the size.

    Args:
        vocab_size: entries wanted, the special ones included. None: 32,768, or what the text gives.
        strip_accents: drop combining marks, as the paper did: right for English; elsewhere they
            are letters (Hindi's vowels, Japanese voicing, German umlauts).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.trainers import WordPieceTrainer

    wanted = vocab_size or VOCAB_SIZE
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    alphabet, inner = _alphabet(sample.texts(), normalizer, most=max(256, wanted // 2))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.FixedLength(_LONGEST_WORD)]
    )
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=wanted,
        min_frequency=2,
        show_progress=False,
        # Named here in a fixed order, as the trainer itself numbers the characters in the order of
        # a hash table, which differs from run to run and decides ties between merges.
        special_tokens=[*SPECIAL, *alphabet, *(f"##{character}" for character in inner)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    # Lines in short pieces, as the trainer holds hundreds of them at once.
    lines = (re.findall(".{1,65536}", text) for text in sample.texts())
    tokenizer.train_from_iterator(lines, trainer)
    model = models.WordPiece(
        _filled(tokenizer, vocab_size), unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD
    )
    return _learned(tokenizer, model)


def learn_bytes(sample: Sample, vocab_size: int | None = None) -> CorpusTokenizer:
    """Learn a byte-level BPE tokenizer, which knows every text and gives it back to the byte.

    Arguments, the special tokens and the size are those of `learn_wordpiece`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size or VOCAB_SIZE,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIAL, *alphabet],
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator(map(list, map(split_sentences, sample.texts())), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    model = models.BPE(_filled(tokenizer, vocab_size), list(map(tuple, merges)))
    return _learned(tokenizer, model)


def _filled(tokenizer: Any, asked: int | None) -> dict[str, int]:  # noqa: ANN401
    """What was learned, filled up to a multiple of 64."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    size = len(vocabulary)
    if asked is not None and size != asked:
        way = "Give more text or ask for fewer" if size < asked else "Ask for more"
        raise UserError(
            f"The text gives a vocabulary of {size:,} entries where {asked:,} were asked for. "
            f"{way}, or leave out the size to take what the text gives."
        )
    return vocabulary | {f"[unused{n}]": size + n for n in range(-size % ROW_MULTIPLE)}


def _learned(tokenizer: Any, model: Any) -> CorpusTokenizer:  # noqa: ANN401
    from tokenizers import Tokenizer, processors

    # Made anew, as the trainer's has the alphabet among its special tokens.
    made = Tokenizer(model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        setattr(made, part, getattr(tokenizer, part))
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    roles = dict(zip(ROLES, SPECIAL, strict=False))  # the first roles are theirs
    config = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], **roles}
    file = made.to_str(pretty=True).encode()
    made.encode_special_tokens = True
    return CorpusTokenizer(made, file, config, {role: n for n, role in enumerate(roles)})


def _alphabet(
    texts: Iterable[str],
    normalizer: Any,  # noqa: ANN401
    most: int,
) -> tuple[list[str], list[str]]:
    """The frequent characters that make up 99.99 % of the text, and those that words go on with.

    At most `most` entries in all: the rest, a foreign name here and there, becomes [UNK]. An
    ideograph is a word of its own: one entry.
    """
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    alone: set[str] = set()
    for character, times in raw.items():
        normal = normalizer.normalize_str(character)
        for each in normal.split() if normal[:1] == normal[-1:] == " " else ():
            alone.add(each)
        for each in "".join(normal.split()):
            counts[each] += times
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    running = accumulate(counts[character] for character in ranked)
    enough = sum(1 for total in running if total < _COVERAGE * counts.total()) + 1
    entries = accumulate(1 if character in alone else 2 for character in ranked)
    chosen = sorted(ranked[: min(enough, sum(1 for number in entries if number <= most))])
    return chosen, [character for character in chosen if character not in alone]
