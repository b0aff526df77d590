"""The tokenizer of a corpus: learning a WordPiece one from a sample, or taking an existing one."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.files import reading

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEFAULT_VOCAB_SIZE = 32_768
"""The paper's (Gong et al., ICML 2019)."""
ROW_MULTIPLE = 64
"""Embeddings have a multiple of 64 rows: faster matrix products."""
SAMPLE_BYTES = 48 << 20
_SAMPLE_BYTES_A_DOCUMENT = 1 << 20
_COVERAGE = 0.9999
_COPIED = ("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt")
_ROLES = {
    "pad_token": ("[PAD]", "<pad>", "<|padding|>", "<|pad|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<cls>", "<|cls|>"),
    "sep_token": ("[SEP]", "<sep>", "<|sep|>"),
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
    "bos_token": ("<s>", "<bos>", "[BOS]"),
    "eos_token": ("</s>", "<eos>", "[EOS]", "<|endoftext|>"),
}


@dataclass(frozen=True)
class Vocabulary:
    """What batches and models know of a tokenizer: its sizes and its special ids."""

    size: int
    """Rows of the embedding: the tokenizer's size rounded up to a multiple of 64."""
    tokenizer_size: int
    """Ids 0 … tokenizer_size - 1 exist; random replacements are drawn from them."""
    pad: int
    cls: int
    sep: int
    """Stands behind every document, too."""
    mask: int
    special: tuple[int, ...]
    """Every special id, ascending: never masked, never a replacement."""

    @property
    def dtype(self) -> str:
        """What ids are stored as."""
        return "uint16" if self.size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class CorpusTokenizer:
    """A tokenizer and the files that make it one for transformers."""

    tokenizer: Any
    """A `tokenizers.Tokenizer`."""
    separator: int
    """Put behind every document: the id of sep, or of eos where there is no sep."""
    files: dict[str, bytes]
    """The content of its folder, by file name."""

    def save(self, folder: Path) -> Vocabulary:
        """Write a folder that `transformers.AutoTokenizer.from_pretrained` opens.

        Raises:
            UserError: transformers cannot open it.
        """
        from transformers import AutoTokenizer

        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        with reading(folder):
            opened = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        cls = opened.bos_token_id if opened.cls_token_id is None else opened.cls_token_id
        pad, mask, sep = opened.pad_token_id, opened.mask_token_id, self.separator
        special = sorted({*opened.all_special_ids, pad, cls, sep, mask})
        size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        rows = -(-size // ROW_MULTIPLE) * ROW_MULTIPLE
        return Vocabulary(rows, size, pad, cls, sep, mask, tuple(special))


def _plain_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


class Sample:
    """A bounded choice of documents, the same in whatever order they come.

    The documents with the lowest digests are kept: every part of the input is drawn from alike,
    without knowing its size beforehand.
    """

    def __init__(self, limit: int = SAMPLE_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._documents: dict[bytes, bytes] = {}

    def add(self, digest: bytes, text: bytes) -> None:
        """Offer a document; of a long one only the first MiB counts."""
        self._documents[digest] = text[:_SAMPLE_BYTES_A_DOCUMENT]
        self._size += len(text)
        if self._size > 2 * self._limit:
            self._documents = self._lowest()
            self._size = sum(map(len, self._documents.values()))

    def _lowest(self) -> dict[bytes, bytes]:
        """Documents in the order of their digests, up to the one that reaches the limit."""
        ranked = sorted(self._documents.items())
        sizes = accumulate(len(text) for _, text in ranked)
        return dict(ranked[: sum(1 for size in sizes if size < self._limit) + 1])

    def texts(self) -> Iterator[str]:
        """The chosen documents, in the order of their digests."""
        for text in self._lowest().values():
            yield text.decode("utf-8", "ignore")  # a cut may have gone through a character


def learn_tokenizer(
    sample: Sample, vocab_size: int | None = None, *, lowercase: bool = True
) -> CorpusTokenizer:
    """Learn a BERT WordPiece tokenizer; the same sample always gives the same one.

    Args:
        sample: the text to learn from.
        vocab_size: entries wanted, the five special ones included. None: up to 32,768, the
            paper's, or what the text gives.
        lowercase: lower-case the text and strip its accents, as the paper did.

    Returns:
        A tokenizer with `[PAD] [UNK] [CLS] [SEP] [MASK]` as ids 0-4; entries `[unused0]` … fill
        its vocabulary up to a multiple of 64, so that model and tokenizer agree on the size.

    Raises:
        UserError: `vocab_size` is more or less than what the text can give.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer

    wanted = vocab_size or DEFAULT_VOCAB_SIZE
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(sample.texts(), normalizer, most=max(128, wanted // 4))
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=wanted,
        min_frequency=2,
        show_progress=False,
        # Named here in a fixed order, as the trainer itself numbers the characters in the order of
        # a hash table, which differs from run to run and decides ties between merges.
        special_tokens=[*SPECIAL, *alphabet, *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    # Lines in short pieces, as the trainer holds hundreds of them at once.
    lines = (re.findall(".{1,65536}", text) for text in sample.texts())
    learner.train_from_iterator(lines, trainer)
    vocabulary: dict[str, int] = learner.get_vocab()
    size = len(vocabulary)
    if vocab_size is not None and size != vocab_size:
        way = "Give more text or ask for fewer" if size < vocab_size else "Ask for more"
        raise UserError(
            f"The text gives a vocabulary of {size:,} entries where {vocab_size:,} were asked for. "
            f"{way}, or leave out the size to take what the text gives."
        )
    vocabulary |= {f"[unused{n}]": size + n for n in range(-size % ROW_MULTIPLE)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    separator = vocabulary["[SEP]"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", separator)],
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": lowercase,
        **dict(zip(roles, SPECIAL, strict=True)),
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": _plain_json(config),
    }
    return CorpusTokenizer(tokenizer, separator, files)


def _alphabet(texts: Iterable[str], normalizer: Any, most: int) -> list[str]:  # noqa: ANN401
    """The frequent characters that make up 99.99 % of the text, at most `most` of them.

    The rest, a foreign name here and there, becomes [UNK]; without a limit it would take up
    thousands of entries.
    """
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, times in raw.items():
        for normal in normalizer.normalize_str(character):
            if not normal.isspace():
                counts[normal] += times
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    running = accumulate(counts[character] for character in ranked)
    enough = sum(1 for total in running if total < _COVERAGE * counts.total()) + 1
    return sorted(ranked[: min(enough, most)])


def load_tokenizer(path: str | Path) -> CorpusTokenizer:
    """Load an existing fast tokenizer: a folder with tokenizer.json, or that file alone.

    Raises:
        UserError: there is none, it cannot be read, or it lacks a mask, pad, cls (or bos) or sep
            (or eos) token.
    """
    from tokenizers import Tokenizer

    path = Path(path).expanduser()
    main = path / "tokenizer.json" if path.is_dir() else path
    with reading(main, "A fast tokenizer's save_pretrained writes a tokenizer.json."):
        files = {"tokenizer.json": main.read_bytes()}
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.encode("Is it 1 word, or two? Ça 漢字 🙂")  # parts may not fit each other
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if path.is_dir():
        files |= {name: (path / name).read_bytes() for name in _COPIED if (path / name).is_file()}
        config |= _json_object(path / "special_tokens_map.json")
        config |= _json_object(path / "tokenizer_config.json")
    config.pop("auto_map", None)  # code of others, which is never run
    ids: dict[str, int] = {}
    for role, names in _ROLES.items():
        for token in (config.pop(role, None), *names):
            found = _id_of(tokenizer, token)
            if found is not None:
                ids[role], config[role] = found, token
                break
    needed = ("mask_token", "pad_token", "cls_token or bos_token", "sep_token or eos_token")
    missing = [roles for roles in needed if not ids.keys() & set(roles.split(" or "))]
    if missing:
        raise UserError(
            f"The tokenizer {path} has no {', no '.join(missing)}, which masked-LM training needs. "
            "Add them to the tokenizer (add_special_tokens) and save it, or take another one."
        )
    files["tokenizer_config.json"] = _plain_json(config)
    separator = ids["sep_token"] if "sep_token" in ids else ids["eos_token"]
    return CorpusTokenizer(tokenizer, separator, files)


def _id_of(tokenizer: Any, token: Any) -> int | None:  # noqa: ANN401
    text = token.get("content") if isinstance(token, dict) else token  # with or without settings
    found: int | None = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return found


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with reading(path):
        value = json.loads(path.read_bytes())
    return value if isinstance(value, dict) else {}
