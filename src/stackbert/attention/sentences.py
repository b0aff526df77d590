"""Sentences of a text to look at: a random sample in one pass, in bounded memory.

Each sentence has a key, a hash of the seed and its words, and those with the smallest keys are
taken. So the sample depends neither on the order of the files nor on how they are read, a sentence
that stands there twice counts once, and only sentences that may be taken are tokenised.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stackbert.corpus.readers import open_files
from stackbert.corpus.sentences import split_sentences
from stackbert.errors import UserError

MIN_TOKENS = 12
"""Special ones included. In shorter ones everything is near everything, and headings are short."""


def sample_sentences(
    text: str | Path | Sequence[str | Path],
    tokenizer: Any,  # noqa: ANN401 (any transformers tokenizer)
    count: int,
    *,
    seed: int = 0,
    field: str = "text",
) -> list[str]:
    """A uniform sample of a text's sentences of at least `MIN_TOKENS` tokens.

    Args:
        text: files, folders or patterns, as `build_corpus` takes them.
        tokenizer: says how long a sentence is.
        count: of sentences; fewer if the text has fewer.
        seed: of the sample.
        field: of .jsonl and .parquet files.

    Returns:
        The sentences in the (random) order of their keys, white space at their ends removed.

    Raises:
        UserError: `count` is below 1, a file cannot be read, or no sentence is long enough.
    """
    if count < 1:
        raise UserError(f"{count} sentences are too few to measure anything; ask for 1 or more.")
    paths = [text] if isinstance(text, str | Path) else list(text)
    inputs = open_files(paths, field)
    sentences = (each for one in inputs for each in _sentences(one.documents()))
    chosen = smallest_keys(sentences, tokenizer, count, seed)
    if not chosen:
        names = ", ".join(map(str, paths))
        raise UserError(
            f"{names} holds no sentence of at least {MIN_TOKENS} tokens. Give a longer text."
        )
    return chosen


def smallest_keys(
    sentences: Iterable[str],
    tokenizer: Any,  # noqa: ANN401
    count: int,
    seed: int,
) -> list[str]:
    """The `count` sentences of the smallest keys among those that are long enough."""
    salt = seed.to_bytes(8, "little", signed=True)
    heap: list[tuple[int, str]] = []  # of negative keys, so the largest key is on top
    held: set[int] = set()
    for sentence in sentences:
        digest = hashlib.blake2b(sentence.encode(), digest_size=8, key=salt).digest()
        key = int.from_bytes(digest, "little")
        full = len(heap) == count
        if (full and key > -heap[0][0]) or key in held:
            continue
        if len(tokenizer(sentence, truncation=False, verbose=False)["input_ids"]) < MIN_TOKENS:
            continue
        held.add(key)
        if full:
            dropped, _ = heapq.heapreplace(heap, (-key, sentence))
            held.discard(-dropped)
        else:
            heapq.heappush(heap, (-key, sentence))
    return [sentence for _, sentence in sorted(heap, reverse=True)]


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for sentence in split_sentences(document.strip()):
            yield " ".join(sentence.split())
