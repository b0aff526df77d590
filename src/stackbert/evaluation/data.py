"""What lies in a folder of evaluation data: labelled words and sentences, minimal pairs, text."""

import csv
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from stackbert.corpus.store import MANIFEST, open_corpus
from stackbert.corpus.text import open_files
from stackbert.errors import UserError
from stackbert.files import reading
from stackbert.model_files import open_tokenizer

WORDS = range(3, 46)
"""Lengths of the sentences that word probes take. Few tokens of longer ones fit into short rows."""
PASSAGE_WORDS = 64
"""Of a passage of held-out text: about 85 tokens of a vocabulary of 8,192."""
MIN_PASSAGE_WORDS = 8
_SPLIT = re.compile(r"(.+)\.(train|dev|test)$")
_ENTITY = re.compile(r"O|[BIESLU]-.+")


@dataclass(frozen=True)
class Example:
    """A sentence as its words with a label each, or as one string with one label."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A labelling that a linear classifier is to read off a layer."""

    name: str
    unit: Literal["word", "sentence"]
    """What has a label."""
    train: list[Example]
    test: list[Example]

    @property
    def is_entities(self) -> bool:
        """Whether the labels are those of named entities: O, B-PER, I-PER."""
        labels = {label for example in self.train for label in example.labels}
        return "O" in labels and all(map(_ENTITY.fullmatch, labels))


@dataclass(frozen=True)
class Pairs:
    """Minimal pairs in BLiMP's layout; columns uid (the paradigm), phenomenon, good, bad."""

    name: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Text:
    """Passages of held-out text."""

    name: str
    passages: list[str]


Test = Probe | Pairs | Text


def read_tests(
    data: Path, *, train: int, test: int, pairs: int, passages: int, seed: int
) -> tuple[list[Test], list[str]]:
    """The tests in a folder (with its subfolders), a corpus or a single file, and what was left.

    Args:
        data: where the files are; docs/evaluation.md says how they are recognised.
        train: sentences that a probe is trained on; fewer if there are fewer.
        test: sentences that it is tested on.
        pairs: minimal pairs of each paradigm.
        passages: of a text.
        seed: of the random samples.

    Raises:
        UserError: nothing there is a test, or a file is damaged.
    """
    tests: list[Test] = []
    left: list[str] = []
    corpora = [path.parent for path in sorted(data.rglob(MANIFEST))]
    for corpus in corpora:
        tests.append(Text(corpus.name, _sample(_cut(_corpus_text(corpus)), passages, seed)))
    if not data.exists():
        raise UserError(f"{data} does not exist.")
    for path in [data] if data.is_file() else sorted(data.rglob("*")):
        if not path.is_file() or any(corpus in path.parents for corpus in corpora):
            continue
        split = _SPLIT.fullmatch(path.stem)
        header = _first_line(path) if path.suffix in (".tsv", ".conll") else []
        if {"uid", "phenomenon", "good", "bad"} <= set(header):
            frame = _table(path).groupby("uid", sort=False, group_keys=False)
            chosen = frame[["uid", "phenomenon", "good", "bad"]].apply(
                lambda group: group.sample(min(pairs, len(group)), random_state=seed)
            )
            tests.append(Pairs(path.stem, chosen.reset_index(drop=True)))
        elif {"label", "sentence", "split"} <= set(header):
            tests += _sentence_probes(path, train, test, seed)
        elif header and split and split[2] == "train":
            other = path.with_name(f"{split[1]}.test{path.suffix}")
            tests.append(
                Probe(
                    split[1],
                    "word",
                    _sample(list(_tagged(path)), train, seed),
                    _sample(list(_tagged(other)), test, seed),
                )
            )
        elif ".txt" in path.suffixes:
            documents = (doc for file in open_files([path]) for doc in file.documents())
            tests.append(Text(path.stem, _sample(_cut(documents), passages, seed)))
        elif not split and not path.name.startswith("."):
            left.append(path.name)
    if not tests:
        raise UserError(
            f"{data} holds no test: no NAME.train.tsv of words and tags, no table with the columns "
            "split, label, sentence or uid, phenomenon, good, bad, no .txt file and no corpus."
        )
    return tests, left


def _first_line(path: Path) -> list[str]:
    with reading(path), path.open(encoding="utf-8-sig") as file:
        return file.readline().rstrip("\r\n").split("\t")


def _table(path: Path) -> pd.DataFrame:
    with reading(path):
        return pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            encoding="utf-8-sig",
        )


def _sample(rows: Sequence[Any], count: int, seed: int) -> list[Any]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def _sentence_probes(path: Path, train: int, test: int, seed: int) -> list[Probe]:
    """A probe for each value of the column `task`; one for all rows without that column."""
    table = _table(path)
    tasks = table["task"] if "task" in table else pd.Series("", index=table.index)
    probes = []
    for task, rows in table.groupby(tasks, sort=False):
        sides = [
            [
                Example((sentence,), (label,))
                for sentence, label in zip(side["sentence"], side["label"], strict=True)
            ]
            for side in (rows[rows["split"] == name] for name in ("train", "test"))
        ]
        if not all(sides):
            raise UserError(f"{path}: '{task}' needs rows with the split 'train' and with 'test'.")
        name = f"{path.stem}: {task}" if task else path.stem
        learned, asked = (
            _sample(side, n, seed) for side, n in zip(sides, (train, test), strict=True)
        )
        probes.append(Probe(name, "sentence", learned, asked))
    return probes


def _tagged(path: Path) -> Iterator[Example]:
    """Sentences of lines "word TAB tag": blank lines between them, further columns ignored."""
    with reading(path, "Each line is a word, a tab and its tag."):
        for block in re.split(r"\n[^\S\n]*\n", path.read_text(encoding="utf-8-sig")):
            # A comment starts with "# "; the word "#" is followed by a tab.
            lines = [line for line in block.splitlines() if line and not line.startswith("# ")]
            if short := next((line for line in lines if "\t" not in line), None):
                raise UserError(f"{path}: the line '{short}' has no tab and no tag.")
            cells = [line.split("\t") for line in lines]
            if len(cells) in WORDS:
                yield Example(tuple(row[0] for row in cells), tuple(row[1] for row in cells))


def _corpus_text(folder: Path) -> Iterator[str]:
    """The held-out documents of a corpus, as its own tokenizer puts its tokens together again."""
    corpus = open_corpus(folder)
    tokenizer = open_tokenizer(corpus.tokenizer_folder)
    ids = corpus.validation.read(0, len(corpus.validation))
    ends = [*(ids == corpus.vocabulary.sep).nonzero()[0].tolist(), len(ids)]
    for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False):
        yield str(tokenizer.decode(ids[start:end].tolist()))


def _cut(documents: Iterator[str]) -> list[str]:
    passages = []
    for document in documents:
        words = document.split()
        starts = range(0, max(1, len(words) - PASSAGE_WORDS + 1), PASSAGE_WORDS)
        found = (words[start : start + PASSAGE_WORDS] for start in starts)
        passages += [" ".join(each) for each in found if len(each) >= MIN_PASSAGE_WORDS]
    return passages
