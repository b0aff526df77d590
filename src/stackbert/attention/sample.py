"""The sentences that every model of a measurement reads: a random sample of a text."""

import hashlib
import heapq
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stackbert.corpus.sentences import split_sentences
from stackbert.corpus.text import open_files
from stackbert.errors import UserError

MIN_TOKENS = 12
"""Special ones included. In shorter sentences every token is near every other."""


def sample_sentences(
    text: str | Path, tokenizer: PreTrainedTokenizerBase, count: int, *, seed: int = 0
) -> list[str]:
    """A uniform sample of a text's sentences of at least `MIN_TOKENS` tokens, in random order.

    Each sentence has a key, a hash of the seed and its words, and those with the smallest keys are
    taken: a sentence that occurs twice counts once, and one pass in bounded memory is enough.

    Args:
        text: a file, folder or pattern, as `build_corpus` takes them.
        tokenizer: tells how long a sentence is.
        count: of sentences, at least 1; fewer if the text has fewer.
        seed: of the sample.

    Raises:
        UserError: a file cannot be read, or no sentence is long enough.
    """
    if count < 1:
        raise UserError(f"{count} sentences are too few to measure anything; ask for 1 or more.")
    sentences = (
        " ".join(sentence.split())
        for file in open_files(text)[0]
        for document in file.documents()
        for sentence in split_sentences(document.strip())
    )
    salt = seed.to_bytes(8, "little", signed=True)
    heap: list[tuple[int, str]] = []  # keys are negative: the one to be dropped first is on top
    for sentence in sentences:
        digest = hashlib.blake2b(sentence.encode(), digest_size=8, key=salt).digest()
        entry = (-int.from_bytes(digest, "little"), sentence)
        if (len(heap) == count and entry < heap[0]) or entry in heap:
            continue
        # Tokenising takes most of the time, so it comes last.
        if len(tokenizer(sentence, truncation=False, verbose=False)["input_ids"]) < MIN_TOKENS:
            continue
        heapq.heappush(heap, entry)
        if len(heap) > count:
            heapq.heappop(heap)
    if not heap:
        raise UserError(
            f"{text} has no sentence of at least {MIN_TOKENS} tokens. Give a longer text."
        )
    return [sentence for _, sentence in sorted(heap, reverse=True)]
