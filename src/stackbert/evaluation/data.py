"""What lies in a folder of evaluation data: labelled words and sentences, minimal pairs, text."""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from stackbert.corpus.store import MANIFEST, open_corpus
from stackbert.corpus.text import open_files
from stackbert.errors import UserError
from stackbert.files import reading
from stackbert.model_files import open_tokenizer
from stackbert.tables import read_table

WORDS = range(3, 46)  # of a sentence that word probes take: longer ones do not fit into short rows
PASSAGES = 1000
PASSAGE_WORDS = range(8, 65)  # longer texts are cut into passages of 64, some 85 tokens
PROBES = ("words", "sentences")


class Example(NamedTuple):
    """A sentence as words with a label each, or as a single string with one label."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


class Pair(NamedTuple):
    """A minimal pair in BLiMP's layout; the uid names its paradigm."""

    uid: str
    phenomenon: str
    good: str
    bad: str


class Test(NamedTuple):
    """What models are asked; a probe (`PROBES`) has training examples."""

    name: str
    kind: Literal["words", "sentences", "pairs", "text"]
    items: list[Any]  # `Example`s to label, `Pair`s, or passages as strings
    train: Sequence[Example] = ()


def read_tests(data: Path, *, train: int, test: int, pairs: int) -> tuple[list[Test], list[str]]:
    """The tests in a folder and below, in a corpus or in a file, and what was left out.

    Args:
        data: docs/evaluation.md says which files are recognised.
        train: sentences that a probe learns from; fewer if there are fewer, as of the others.
        test: sentences that it labels.
        pairs: of each paradigm.
    """
    if not data.exists():
        raise UserError(f"{data} does not exist.")
    tests, notes = [], []
    corpora = [path.parent for path in sorted(data.rglob(MANIFEST))]
    for folder in corpora:
        tests.append(Test(folder.resolve().name, "text", _passages(_held_out(folder))))
    for path in [data] if data.is_file() else sorted(data.rglob("*")):
        if not path.is_file() or any(folder in path.parents for folder in corpora):
            continue
        name, _, split = path.stem.rpartition(".")
        if name and path.suffix in (".tsv", ".conll") and split in ("train", "dev", "test"):
            learn, ask = (path.with_name(f"{name}.{s}{path.suffix}") for s in ("train", "test"))
            if path == learn or (path == ask and not learn.exists()):
                learned = _sample(list(_tagged(learn)), train)
                tests.append(Test(name, "words", _sample(list(_tagged(ask)), test), learned))
            continue
        if ".txt" in path.suffixes:
            documents = (text for file in open_files(path)[0] for text in file.documents())
            tests.append(Test(path.stem, "text", _passages(documents)))
            continue
        table = read_table(path) if path.suffix == ".tsv" else pd.DataFrame()
        if set(Pair._fields) <= set(table):
            by_uid = table[list(Pair._fields)].groupby("uid", sort=False)
            chosen = [_sample(list(rows.itertuples(index=False)), pairs) for _, rows in by_uid]
            items = [Pair(*row) for rows in chosen for row in rows]
            tests.append(Test(path.stem, "pairs", items))
        elif {"split", "label", "sentence"} <= set(table):
            for task, rows in table.groupby(table.get("task", table["split"].str[:0]), sort=False):
                both = []
                for part, count in (("test", test), ("train", train)):
                    of = rows[rows["split"] == part]
                    examples = zip(zip(of["sentence"]), zip(of["label"]), strict=True)
                    both.append(_sample([Example(*each) for each in examples], count))
                tests.append(Test(f"{path.stem} {task}".strip(), "sentences", *both))
        else:
            notes.append(f"{path.name} is no test that StackBERT knows.")
    for each in tests:
        if len(each.items) < 2 or (each.kind in PROBES and not each.train):
            raise UserError(f"{data}: the test '{each.name}' has too few rows to train or test on.")
    if not tests:
        raise UserError(
            f"{data} holds no test: no NAME.train.tsv of words and tags, no table with the columns "
            "split, label, sentence or uid, phenomenon, good, bad, no .txt file and no corpus."
        )
    return tests, notes


def _sample(rows: Sequence[Any], count: int) -> list[Any]:
    return random.Random(0).sample(rows, min(count, len(rows)))


def _tagged(path: Path) -> Iterator[Example]:
    """Sentences of lines "word TAB tag" between blank lines; further columns are ignored."""
    with reading(path, "Each line is a word, a tab and its tag."):
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig")):
            # A comment starts with "# "; the word "#" is followed by a tab.
            lines = [line for line in block.split("\n") if line and not line.startswith("# ")]
            if len(lines) in WORDS:
                words, tags, *_ = zip(*(line.split("\t") for line in lines), strict=False)
                yield Example(words, tags)


def _held_out(folder: Path) -> Iterator[str]:
    corpus = open_corpus(folder)
    tokenizer = open_tokenizer(corpus.tokenizer_folder)
    ids = corpus.validation.read(0, len(corpus.validation))
    start = 0
    for end in (ids == corpus.vocabulary.sep).nonzero()[0].tolist():
        yield str(tokenizer.decode(ids[start:end].tolist()))
        start = end + 1


def _passages(documents: Iterator[str]) -> list[str]:
    longest = PASSAGE_WORDS[-1]
    texts = [text.split() for text in documents]
    cut = [words[at : at + longest] for words in texts for at in range(0, len(words), longest)]
    return _sample([" ".join(words) for words in cut if len(words) in PASSAGE_WORDS], PASSAGES)
