"""Tiny encoders, and made data in the official layouts that they learn in a few steps."""

import json
from pathlib import Path

from tiny_encoders import save as save_to
from tiny_encoders import tiny_encoder, word_tokenizer

WORDS = ("good", "bad", "yes", "no", *(f"w{number}" for number in range(87)))
FAST = ("precision=fp32", "learning_rate=0.003", "batch=8", "max_length=32")
"""Settings in which the models learn the data below."""
BRIEF = (*FAST, "max_steps=2")
"""For tests that look at what is run, not at what is learned."""


def make_tokenizer():
    return word_tokenizer(WORDS)


def save(folder: Path, model=None, tokenizer=None) -> Path:
    return save_to(folder, model or tiny_encoder(), tokenizer or make_tokenizer())


def sentence(number: int, length: int) -> str:
    """Words of no meaning, the same for the same numbers."""
    return " ".join(WORDS[4 + (7 * number + 11 * at) % 87] for at in range(length))


def write_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def sst2(folder: Path) -> Path:
    """GLUE's SST-2: a sentence is positive where "good" stands in it."""
    for name, numbers in (("train", range(64)), ("dev", range(1000, 1024))):
        rows = [("sentence", "label")]
        for number in numbers:
            label = (number // 2 + number) % 2
            rows.append((f"{('bad', 'good')[label]} {sentence(number, 2 + number % 9)}", label))
        write_rows(folder / "SST-2" / f"{name}.tsv", rows)
    rows = [("index", "sentence"), *((n, f"good {sentence(n, 5)}") for n in range(4))]
    write_rows(folder / "SST-2" / "test.tsv", rows)
    return folder


def rte(folder: Path, train: int = 48) -> Path:
    """GLUE's RTE, of pairs; nothing in them tells the classes apart."""
    for name, count, first in (("train", train, 0), ("dev", 16, 1000)):
        rows = [("index", "sentence1", "sentence2", "label")]
        for n in range(first, first + count):
            label = "entailment" if n % 3 else "not_entailment"
            rows.append((n - first, sentence(n, 5), sentence(n + 7, 3), label))
        write_rows(folder / "RTE" / f"{name}.tsv", rows)
    return folder


def squad(folder: Path, version: str, train: int) -> Path:
    """SQuAD's JSON: the answer is the "good" or "bad" in it; in v2.0 a third have none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, first in (("train", train, 0), ("dev", 16, 500)):
        paragraphs = []
        for number in range(first, first + count):
            words, answers = sentence(number, 14 + number % 7).split(), []
            if version == "v1.1" or number % 3:
                words[number % len(words)] = answer = "good" if number % 2 else "bad"
                answers = [{"text": answer, "answer_start": " ".join(words).find(answer)}]
            question = {"id": f"q{number}", "question": "yes w1 w2", "answers": answers}
            paragraphs.append({"context": " ".join(words), "qas": [question]})
        data = {"version": version, "data": [{"title": "made", "paragraphs": paragraphs}]}
        (folder / f"{name}-{version}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder
