"""A corpus holds every document once, the same every time, and is whole or not there."""

import functools
import json
import locale
import shutil
import subprocess
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tokenizers import Tokenizer

from stackbert.corpus import build as building
from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import open_corpus
from stackbert.errors import RunError, UserError
from stackbert.progress import Progress
from tiny_runs import Child


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_corpus_holds_each_document_once_in_order_and_separated(corpus, documents, document_ids):
    tokenizer: Any = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    expected = [[*tokenizer.encode(text, add_special_tokens=False).ids, 3] for text in documents]
    train, held_out = document_ids(corpus, "train"), document_ids(corpus, "validation")
    assert sorted(train + held_out) == sorted(expected)
    for side in (train, held_out):
        assert [ids for ids in expected if ids in side] == side
        assert all(ids.count(3) == 1 for ids in side)
    words = corpus.manifest.train.words + corpus.manifest.validation.words
    assert words == sum(len(text.split()) for text in documents)
    tokens = corpus.train.read(0, len(corpus.train))
    counts = np.bincount(tokens[tokens != 3], minlength=256)
    assert corpus.manifest.train.unigram_entropy == pytest.approx(stats.entropy(counts), rel=1e-12)


def test_the_same_text_gives_the_same_corpus_and_batches_of_any_size_the_same_files(
    corpus, text_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(building, "_BATCH_CHARACTERS", 700)  # some documents take several
    again = build_corpus(tmp_path / "again", text=[text_file], vocab_size=256, validation=0.1)
    assert contents(again.folder) == contents(corpus.folder)
    assert again.manifest.sources[0].name == "all.txt"
    again.verify()


def test_a_turkish_locale_gives_the_same_corpus(corpus, text_file, tmp_path, monkeypatch):
    """Where I is no capital of i, and Python 3.11's sqlite3 takes an INSERT for something else."""
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    make = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(tmp_path / "tr_TR.UTF-8")]
    if shutil.which("localedef") is None or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("the locale's source is not installed (Debian: locales)")
    locale.setlocale(locale.LC_CTYPE, "tr_TR.UTF-8")
    try:
        again = build_corpus(tmp_path / "out", text=[text_file], vocab_size=256, validation=0.1)
    finally:
        locale.setlocale(locale.LC_CTYPE, "")
    assert contents(again.folder) == contents(corpus.folder)


def test_a_document_s_side_depends_on_its_text_alone(corpus, documents, build, document_ids):
    held_out = {tuple(ids) for ids in document_ids(corpus, "validation")}
    assert 20 < len(held_out) < 90
    fewer = build(documents[::-2], tokenizer=corpus.tokenizer_folder)
    some = {tuple(ids) for ids in document_ids(fewer, "validation")}
    assert some
    assert some < held_out
    assert not {tuple(ids) for ids in document_ids(fewer, "train")} & held_out


def test_near_duplicates_and_empty_documents_are_dropped(corpus, documents, tmp_path, document_ids):
    changed = [documents[0].upper(), documents[1].replace(" ", "\u3000"), f"“{documents[2]}”…"]
    repeated = [*documents, f"  {documents[0]}\n", "", " \n ", *changed, "\x01\x02", None]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\r\n" for text in repeated))
    options = {"tokenizer": corpus.tokenizer_folder, "validation": 0.1}
    again = build_corpus(tmp_path / "out", text=[path], **options)
    assert (again.manifest.duplicate_documents, again.manifest.empty_documents) == (4, 4)
    assert again.manifest.sources[0].documents == len(repeated)
    for side in ("train", "validation"):
        assert document_ids(again, side) == document_ids(corpus, side)
        starts = getattr(again, side).sentence_starts
        assert np.array_equal(starts, getattr(corpus, side).sentence_starts)


def test_the_vocabulary_is_learned_from_training_documents_alone(build):
    def is_held_out(text: str) -> bool:  # the rule; changing it would mix sides of old corpora
        digest = blake2b(text.encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8]) < 2**63

    marked = [f"{n} qwxqwx" for n in range(400) if is_held_out(f"{n} qwxqwx")]
    marked += [f"{n} zyzzyva" for n in range(400) if not is_held_out(f"{n} zyzzyva")]
    built = build(marked, validation=0.5, allow_unknown=True)
    model = json.loads((built.tokenizer_folder / "tokenizer.json").read_text())["model"]
    assert "zyzzyva" in model["vocab"]
    assert not any("q" in token for token in model["vocab"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["a"], "dataset": "b"}, "Give either text .* or a data set"),
        ({"text": ["a"], "vocab_size": -1}, "at least 64 entries"),
        ({"text": ["a"], "validation": 1.0}, "between 0 and 1"),
        ({"text": "no/such/file.txt"}, "no text at no/such/file.txt"),
    ],
)
def test_wrong_arguments_get_one_sentence_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_corpus(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_files_without_usable_text_are_told(corpus, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\n".join([b"\x01"] * 30))
    with pytest.raises(UserError, match=r"0 documents 0 fall to the training side.*Give more text"):
        build_corpus(tmp_path / "out", text=[path], tokenizer=corpus.tokenizer_folder)
    assert sorted(tmp_path.iterdir()) == [path]


class Waiting(Progress):
    """Says when it tokenises, and waits there."""

    def say(self, text: str) -> None:
        print(text, flush=True)
        time.sleep(60 * ("tokenising" in text))


def test_a_killed_build_is_not_taken_for_a_corpus_and_can_be_repeated(text_file, tmp_path):
    out, said = tmp_path / "out", tmp_path.with_suffix(".txt")
    build = functools.partial(build_corpus, out, text=[text_file], validation=0.1)
    child = Child(said, functools.partial(build, progress=Waiting()))
    while not said.exists() or "tokenising" not in child.output:
        time.sleep(0.01)
    with pytest.raises(UserError, match="being written by another process"):
        build()
    child.kill()
    with pytest.raises(UserError, match="is not a corpus"):
        open_corpus(out)
    build().verify()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_corpus_without_its_tokens_is_refused(corpus, tmp_path):
    shutil.copy(corpus.folder / "manifest.json", tmp_path)
    with pytest.raises(UserError, match=r"tokens\.bin does not exist.*build it again"):
        open_corpus(tmp_path)


def test_a_full_disk_is_told_and_nothing_is_left(text_file, tmp_path, monkeypatch):
    opened = Path.open

    def to_full_disk(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        full = path.name == "tokens.bin" and mode not in ("r", "rb")
        return opened(Path("/dev/full") if full else path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", to_full_disk)
    with pytest.raises(RunError, match="disk is full while building the corpus"):
        build_corpus(tmp_path / "out", text=[text_file], validation=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train/tokens.bin", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("validation/sentences.bin", lambda data: data[:-8]),
        ("tokenizer/tokenizer.json", lambda data: data + b" "),
        ("manifest.json", lambda data: data.replace(b'r_size": 256', b'r_size": 192')),
    ],
)
def test_a_file_changed_after_the_build_is_found(corpus, text_file, tmp_path, name, change):
    again = build_corpus(tmp_path / "again", text=[text_file], vocab_size=256, validation=0.1)
    path = again.folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="was changed after it was built"):
        open_corpus(again.folder).verify()
