"""From text files to memory-mapped token shards.

readers, dataset   paths or a Hugging Face data set -> a stream of documents
documents          their digests: duplicates, and who is held out
sentences          a document -> its sentences
tokenizer          learn, load and save the tokenizer
encoder            sentences -> token ids, fast
shards             token ids -> .npy shards, as they fill
build              all of the above: `build_corpus`
manifest           what is in a corpus, and its checksums
mapped             a shard's file in memory, and whether it was changed since
store              the format on disk, and reading it: `open_corpus`
"""

from stackbert.corpus.build import build_corpus
from stackbert.corpus.manifest import Manifest
from stackbert.corpus.store import Corpus, open_corpus

__all__ = ["Corpus", "Manifest", "build_corpus", "open_corpus"]
