"""Data sets of the library `datasets` give the corpus that files do."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stackbert.corpus import Corpus, build_corpus
from stackbert.errors import UserError

DocumentIds = Callable[[Corpus, str], list[list[int]]]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("layout", ["saved", "splits", "files"])
def test_a_local_data_set_gives_the_same_corpus_without_the_network(
    corpus: Corpus, documents: list[str], tmp_path: Path, layout: str, document_ids: DocumentIds
) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "data"
    found = datasets.Dataset.from_dict({"body": documents, "id": list(range(len(documents)))})
    if layout == "saved":
        found.save_to_disk(folder)
    elif layout == "splits":
        other = found.select(range(3))
        datasets.DatasetDict({"test": other, "train": found}).save_to_disk(folder)
    else:
        folder.mkdir()
        found.to_json(folder / "a.jsonl")
    again = build_corpus(
        tmp_path / "out", dataset=str(folder), field="body", vocab_size=256, validation=0.1
    )
    assert document_ids(again, "train") == document_ids(corpus, "train")
    source = again.manifest.sources[0]
    assert (source.name, source.documents) == (str(folder), len(documents))
    assert source.bytes == sum(len(text.encode()) for text in documents)
    with pytest.raises(UserError, match=r"no field 'text'\. The fields are: body, id\."):
        build_corpus(tmp_path / "b", dataset=str(folder))
    with pytest.raises(UserError, match=r"row 1: the field 'id' is not a string but int"):
        build_corpus(tmp_path / "b", dataset=str(folder), field="id")
    with pytest.raises(UserError, match=r"row \d+: the document is longer than 50 bytes"):
        build_corpus(tmp_path / "b", dataset=str(folder), field="body", max_document_bytes=50)


@pytest.mark.usefixtures("no_network")
def test_a_data_set_that_cannot_be_opened_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"a": one, "b": one}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"no split 'train', only a, b\."):
        build_corpus(tmp_path / "out", dataset=str(tmp_path / "two"))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"The data set .*none cannot be opened: .*NAME:CONF"):
        build_corpus(tmp_path / "out", dataset=str(tmp_path / "none"))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"is a file, not a data set.*--text"):
        build_corpus(tmp_path / "out", dataset=str(tmp_path / "a.txt"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'stackbert\[datasets\]'"):
        build_corpus(tmp_path / "out", dataset=str(tmp_path / "two"))
