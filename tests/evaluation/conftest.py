"""Tiny models with a tokenizer that cuts words into pieces, and a folder of tests for them."""

from pathlib import Path

import pytest

from stackbert.evaluation.data import Test, read_tests
from stackbert.evaluation.models import Subject, open_subject
from stackbert.model_files import save_model
from tiny_encoders import shaken, tiny_encoder

NOUNS = ("river", "harbour", "mountain", "library", "railway", "government", "agriculture")
VERBS = ("crosses", "supports", "leaves", "discovers")
SENTENCES = [f"the {NOUNS[n % 7]} {VERBS[n % 4]} every {NOUNS[n // 7 % 7]}" for n in range(60)]


def tagged(sentences: list[str]) -> str:
    tags = ("DET", "NOUN", "VERB", "DET", "NOUN")
    lines = [map("{}\t{}\tmore".format, text.split(), tags) for text in sentences]
    return "\n\n".join("# id\ttext\n" + "\n".join(each) for each in lines)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "pos").mkdir()
    (folder / "pos" / "tiny.train.tsv").write_text(tagged(SENTENCES[:40]))
    (folder / "pos" / "tiny.test.tsv").write_text(tagged(SENTENCES[40:]))
    (folder / "pos" / "tiny.dev.tsv").write_text("not read")
    rows = ["task\tsplit\tlabel\tsentence"]
    for n, text in enumerate(SENTENCES):
        rows.append(f"letter\t{'train' if n < 40 else 'test'}\t{text[4]}\t{text}")
    (folder / "probing.tsv").write_text("\n".join(rows))
    pairs = ["uid\tphenomenon\tfield\tgood\tbad"]
    for n, noun in enumerate(NOUNS):
        pairs.append(f"sv_{n % 2}\tsubject_verb_agreement\tx\tThe {noun} is.\tThe {noun} are.")
        pairs.append(f"isle_{n % 2}\tislands\tx\tThe {noun} has it.\tIt the {noun} has.")
    (folder / "blimp.tsv").write_text("\n".join(pairs))
    passages = (" ".join(SENTENCES[n : n + 20]) for n in range(30))
    (folder / "own.txt").write_text("\n\n".join(passages))
    (folder / "glue.tsv").write_text("text\tlabel\na\tb\n")
    return folder


@pytest.fixture(scope="session")
def tests(data) -> dict[str, Test]:
    return {each.name: each for each in read_tests(data, train=30, test=15, pairs=2)[0]}


@pytest.fixture(scope="session")
def make_model(factbook_corpus, tmp_path_factory):
    """Writes a model whose layers differ, with the tokenizer of the factbook corpus."""

    def make(name: str, kind: str = "bert", head: bool = True, **fields) -> Path:
        model = shaken(tiny_encoder(kind, vocab_size=1024, **fields), len(name), by=0.2)
        folder: Path = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        files = factbook_corpus.tokenizer_folder.iterdir()
        tokenizer = {path.name: path.read_bytes() for path in files}
        saved = model if head else model.base_model
        save_model(saved, folder, tokenizer=tokenizer, sequence_length=64)
        return folder

    return make


@pytest.fixture(scope="session", params=["bert", "roberta-prelayernorm", "modernbert"])
def subject(make_model, request) -> Subject:
    return open_subject(make_model(f"one-{request.param}", request.param))
