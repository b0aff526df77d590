"""Tiny models with a tokenizer that cuts words into pieces, and a folder of tests for them."""

from pathlib import Path

import pytest
import torch

from stackbert.evaluation.data import Test, read_tests
from stackbert.evaluation.models import Subject, open_subject
from stackbert.model_files import save_model
from tiny_encoders import tiny_encoder

NOUNS = ("river", "harbour", "mountain", "library", "railway", "government", "agriculture")
VERBS = ("crosses", "supports", "leaves", "discovers")
SENTENCES = [
    [
        *(("the", "DET"), (NOUNS[n % 7], "NOUN"), (VERBS[n % 4], "VERB")),
        *(("every", "DET"), (NOUNS[(n + n // 7) % 7], "NOUN"), ("slowly", "ADV"))[: 2 + n % 2],
    ]
    for n in range(60)
]


def conll(sentences) -> str:
    blocks = ("\n".join(f"{word}\t{tag}\tmore" for word, tag in each) for each in sentences)
    return "\n\n".join(f"# id\tthe text\n{block}" for block in blocks) + "\n"


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "pos").mkdir()
    (folder / "pos" / "tiny.train.tsv").write_text(conll(SENTENCES[:40]))
    (folder / "pos" / "tiny.test.tsv").write_text(conll(SENTENCES[40:]))
    (folder / "pos" / "tiny.dev.tsv").write_text("not read")
    texts = [" ".join(word for word, _ in each) for each in SENTENCES]
    sides = ["train"] * 40 + ["test"] * 20
    rows = [
        f"{task}\t{side}\t{len(text.split()) if task == 'length' else text[4]}\t{text}"
        for task in ("length", "letter")
        for side, text in zip(sides, texts, strict=True)
    ]
    (folder / "probing.tsv").write_text("task\tsplit\tlabel\tsentence\n" + "\n".join(rows))
    pairs = [
        f"{uid}_{n % 2}\t{uid}\tsyntax\tThe {noun} {verb}.\tThe {noun} {verb[:-1]}."
        for uid, verb in (("subject_verb_agreement", "supports"), ("islands", "discovers"))
        for n, noun in enumerate(NOUNS[:5])
    ]
    header = "uid\tphenomenon\tfield\tgood\tbad\n"
    (folder / "blimp.tsv").write_text(header + "\n".join(pairs))
    (folder / "own.txt").write_text("\n\n".join(" ".join(texts[n : n + 20]) for n in range(30)))
    (folder / "glue.tsv").write_text("text\tlabel\na\tb\n")
    return folder


@pytest.fixture(scope="session")
def tests(data) -> dict[str, Test]:
    return {each.name: each for each in read_tests(data, train=30, test=15, pairs=2)[0]}


@pytest.fixture(scope="session")
def make_model(factbook_corpus, tmp_path_factory):
    """Writes a model, whose layers differ, with the tokenizer of the factbook corpus."""

    def make(name: str, kind: str = "bert", head: bool = True, **fields) -> Path:
        model = tiny_encoder(kind, vocab_size=1024, **fields)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(len(name))
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        folder: Path = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        saved = model if head else model.base_model
        tokenizer = factbook_corpus.tokenizer_folder
        save_model(saved, folder, tokenizer=tokenizer, sequence_length=64)
        return folder

    return make


@pytest.fixture(scope="session", params=["bert", "roberta-prelayernorm", "modernbert"])
def subject(make_model, request) -> Subject:
    return open_subject(make_model(f"one-{request.param}", request.param))
