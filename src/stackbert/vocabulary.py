"""What batches and models need to know of a tokenizer: its size and its special tokens."""

from dataclasses import dataclass
from pathlib import Path

from stackbert.corpus.store import Corpus
from stackbert.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the special tokens, and the two sizes of a vocabulary."""

    size: int
    """Rows of the embedding: the tokenizer's size rounded up to a multiple of 64."""
    tokenizer_size: int
    """Ids 0 … tokenizer_size - 1 exist; random replacements are drawn from them."""
    pad: int
    cls: int
    sep: int
    mask: int
    special: tuple[int, ...]
    """Every special id, ascending: never masked, never a replacement."""


def load_vocabulary(corpus: Corpus) -> Vocabulary:
    """The vocabulary of a corpus, from the tokenizer that lies in it.

    Raises:
        UserError: the tokenizer cannot be opened or lacks a special token.
    """
    from transformers import AutoTokenizer

    folder: Path = corpus.tokenizer_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers and tokenizers raise whatever they meet
        raise UserError(f"The tokenizer in {folder} cannot be opened: {error}.") from error
    ids = {
        "pad": tokenizer.pad_token_id,
        "cls": tokenizer.cls_token_id if tokenizer.cls_token_id is not None else _bos(tokenizer),
        "sep": corpus.manifest.separator_id,
        "mask": tokenizer.mask_token_id,
    }
    missing = [name for name, value in ids.items() if value is None]
    if missing:
        raise UserError(f"The tokenizer in {folder} has no {', '.join(missing)} token.")
    special = {int(i) for i in tokenizer.all_special_ids} | {int(i) for i in ids.values()}
    return Vocabulary(
        size=corpus.manifest.vocab_size,
        tokenizer_size=corpus.manifest.tokenizer_size,
        pad=int(ids["pad"]),
        cls=int(ids["cls"]),
        sep=int(ids["sep"]),
        mask=int(ids["mask"]),
        special=tuple(sorted(special)),
    )


def _bos(tokenizer: object) -> int | None:
    return getattr(tokenizer, "bos_token_id", None)
