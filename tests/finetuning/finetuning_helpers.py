"""Tiny encoders, and made data in the official layouts that they learn in a few steps."""

import json
from pathlib import Path

from stackbert.progress import Progress
from tiny_encoders import tiny_encoder, word_tokenizer

WORDS = ("good", "bad", "yes", "no", *(f"w{number}" for number in range(87)))
FAST = ("precision=fp32", "learning_rate=0.003", "batch=8", "max_length=32")
"""Settings in which the models learn the data below."""
BRIEF = (*FAST, "max_steps=2")
"""For tests that look at what is run, not at what is learned."""


class Heard(Progress):
    """Keeps what is said, and does something after so many steps."""

    def __init__(self, after=None, act=None):
        self.said, self.steps = [], []
        self._after, self._act = after, act

    def say(self, text):
        self.said.append(text)

    def step(self, done, total, text):
        self.steps.append((done, total, text))
        if len(self.steps) == self._after:
            self._act()


def make_tokenizer():
    return word_tokenizer(WORDS)


def save(folder: Path, model=None, tokenizer=None) -> Path:
    (model or tiny_encoder()).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def sentence(number: int, length: int) -> str:
    """Words of no meaning, the same for the same numbers."""
    return " ".join(WORDS[4 + (7 * number + 11 * at) % 87] for at in range(length))


def write_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n", encoding="utf-8")


def sst2(folder: Path, train: int = 64, dev: int = 24) -> Path:
    """GLUE's SST-2: a sentence is positive where "good" stands in it."""
    for name, count, first in (("train", train, 0), ("dev", dev, 1000)):
        rows = [("sentence", "label")]
        for number in range(first, first + count):
            label = (number // 2 + number) % 2
            word = "good" if label else "bad"
            rows.append((f"{word} {sentence(number, 2 + number % 9)}", label))
        write_rows(folder / "SST-2" / f"{name}.tsv", rows)
    rows = [("index", "sentence"), *((n, f"good {sentence(n, 5)}") for n in range(4))]
    write_rows(folder / "SST-2" / "test.tsv", rows)
    return folder


def rte(folder: Path, train: int = 48, dev: int = 16) -> Path:
    """GLUE's RTE, of pairs; nothing in them tells the classes apart."""
    for name, count, first in (("train", train, 0), ("dev", dev, 1000)):
        rows = [("index", "sentence1", "sentence2", "label")]
        for n in range(first, first + count):
            label = "entailment" if n % 3 else "not_entailment"
            rows.append((n - first, sentence(n, 5), sentence(n + 7, 3), label))
        write_rows(folder / "RTE" / f"{name}.tsv", rows)
    return folder


def squad(folder: Path, *, version: str = "v1.1", train: int = 40, dev: int = 16) -> Path:
    """SQuAD's JSON: the answer is the "good" or "bad" in it; in v2.0 a third have none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, first in (("train", train, 0), ("dev", dev, 500)):
        paragraphs = []
        for number in range(first, first + count):
            words = sentence(number, 14 + number % 7).split()
            impossible = version == "v2.0" and number % 3 == 0
            answer = "good" if number % 2 else "bad"
            if not impossible:
                words[number % len(words)] = answer
            context = " ".join(words)
            answers = [] if impossible else [{"text": answer, "answer_start": context.find(answer)}]
            question = {"id": f"q{number}", "question": "yes w1 w2", "answers": answers}
            paragraphs.append({"context": context, "qas": [question]})
        data = {"version": version, "data": [{"title": "made", "paragraphs": paragraphs}]}
        (folder / f"{name}-{version}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder
