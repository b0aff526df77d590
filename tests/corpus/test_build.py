import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from stackbert.corpus import Corpus, build, build_corpus, shards, store
from stackbert.corpus import documents as documents_module
from stackbert.errors import UserError

DocumentIds = Callable[[Corpus, str], list[list[int]]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != store.MANIFEST
    }


def test_the_corpus_holds_every_document_once_with_one_separator_behind(
    corpus: Corpus, documents: list[str], document_ids: DocumentIds
) -> None:
    tokenizer: Any = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    found = document_ids(corpus, "train") + document_ids(corpus, "validation")
    expected = [[*tokenizer.encode(text, add_special_tokens=False).ids, 3] for text in documents]
    assert sorted(found) == sorted(expected)
    assert all(ids.count(3) == 1 for ids in found)
    assert corpus.manifest.train.words + corpus.manifest.validation.words == sum(
        len(text.split()) for text in documents
    )
    corpus.verify()


def test_documents_of_a_side_keep_the_order_of_the_text(
    corpus: Corpus, documents: list[str], document_ids: DocumentIds
) -> None:
    tokenizer: Any = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    place = {
        tuple(tokenizer.encode(text, add_special_tokens=False).ids): number
        for number, text in enumerate(documents)
    }
    order = [place[tuple(ids[:-1])] for ids in document_ids(corpus, "train")]
    assert order == sorted(order)


def test_documents_start_sentences_and_sentences_start_at_words(corpus: Corpus) -> None:
    stream = corpus.train
    sentences = stream.sentence_starts(0, len(stream))
    assert set(stream.document_starts) <= set(sentences)
    assert len(sentences) > 2 * len(stream.document_starts)
    tokenizer: Any = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    before = {tokenizer.id_to_token(int(stream.read(start - 1, 1)[0])) for start in sentences[1:]}
    assert before == {".", "[SEP]"}


def test_a_sentence_without_tokens_starts_none(
    corpus: Corpus, documents: list[str], build: Callable[..., Corpus]
) -> None:
    holed = [text.replace("\n", "\n\x01\n") for text in documents]
    built = build(holed, tokenizer=corpus.tokenizer_folder)
    total = 0
    for stream in (built.train, built.validation):
        starts = stream.sentence_starts(0, len(stream))
        assert (np.diff(starts) > 0).all()
        total += len(starts)
    assert total == corpus.manifest.train.sentences + corpus.manifest.validation.sentences


def test_the_unigram_entropy_is_that_of_the_tokens_without_separators(corpus: Corpus) -> None:
    tokens = corpus.train.read(0, len(corpus.train))
    counts = np.bincount(tokens[tokens != 3], minlength=256)
    assert corpus.manifest.train.unigram_entropy == pytest.approx(store.unigram_entropy(counts))


def test_the_same_text_gives_the_same_corpus(
    corpus: Corpus, text_file: Path, tmp_path: Path
) -> None:
    again = build_corpus(tmp_path / "again", text=[text_file], vocab_size=256, validation=0.1)
    assert contents(again.folder) == contents(corpus.folder)
    assert again.manifest == corpus.manifest


def test_the_size_of_batches_and_shards_changes_no_token(
    corpus: Corpus,
    text_file: Path,
    tmp_path: Path,
    document_ids: DocumentIds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "_BATCH_CHARACTERS", 700)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    cut = build_corpus(tmp_path / "cut", text=[text_file], vocab_size=256, validation=0.1)
    assert len(cut.manifest.train.shards) > 5
    for side in ("train", "validation"):
        assert document_ids(cut, side) == document_ids(corpus, side)
        whole, parts = getattr(corpus, side), getattr(cut, side)
        assert np.array_equal(
            whole.sentence_starts(0, len(whole)), parts.sentence_starts(0, len(parts))
        )


def test_a_document_s_side_depends_on_its_text_alone(
    corpus: Corpus, documents: list[str], build: Callable[..., Corpus], document_ids: DocumentIds
) -> None:
    held_out = {tuple(ids) for ids in document_ids(corpus, "validation")}
    assert 20 < len(held_out) < 90
    fewer = build(documents[::-2], tokenizer=corpus.tokenizer_folder)
    some = {tuple(ids) for ids in document_ids(fewer, "validation")}
    assert some
    assert some < held_out
    assert not {tuple(ids) for ids in document_ids(fewer, "train")} & held_out


def test_duplicates_and_empty_documents_are_dropped_and_counted(
    corpus: Corpus, documents: list[str], tmp_path: Path, document_ids: DocumentIds
) -> None:
    repeated = [*documents, f"  {documents[0]}\n", "", " \n ", *documents[:9], "\x01\x02", None]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\r\n" for text in repeated))
    again = build_corpus(
        tmp_path / "out", text=[path], tokenizer=corpus.tokenizer_folder, validation=0.1
    )
    assert again.manifest.duplicate_documents == 10
    assert again.manifest.empty_documents == 4
    assert again.manifest.sources[0].documents == len(repeated)
    assert again.manifest.sources[0].bytes == path.stat().st_size
    for side in ("train", "validation"):
        assert document_ids(again, side) == document_ids(corpus, side)
    assert again.manifest.train.words == corpus.manifest.train.words
    assert not list(again.folder.glob("seen*"))


def test_the_vocabulary_is_learned_from_training_documents_alone(
    documents: list[str], build: Callable[..., Corpus], document_ids: DocumentIds
) -> None:
    held_out = [f"{text} Qwxqwx." for text in documents]
    training = [f"{text} Zyzzyva." for text in documents]
    marked = [text for text in held_out if is_held_out(text, 0.5)]
    marked += [text for text in training if not is_held_out(text, 0.5)]
    corpus = build(marked, validation=0.5)
    model = json.loads((corpus.tokenizer_folder / "tokenizer.json").read_text())["model"]
    assert "zyzzyva" in model["vocab"]
    assert not any("qw" in token for token in model["vocab"])


def is_held_out(text: str, fraction: float) -> bool:
    """Whether the text is held out."""
    from stackbert.corpus.readers import Input

    class One(Input):
        def documents(self) -> Iterator[str]:
            yield text

    found = documents_module.Documents([One("one", 0)], fraction, lambda *_: None)
    return next(found.read("x")).held_out


def test_the_paper_s_split_holds_out_one_document_in_two_hundred() -> None:
    sides = [is_held_out(f"document {n}", build.VALIDATION_FRACTION) for n in range(4000)]
    assert 8 <= sum(sides) <= 36  # 20 expected; four standard deviations


@pytest.mark.parametrize(
    ("fraction", "side", "change"), [(1e-9, "validation", "raise"), (1 - 1e-9, "training", "lower")]
)
@pytest.mark.parametrize("bring", [True, False])
def test_a_side_without_documents_is_told_with_what_to_change(
    corpus: Corpus,
    documents: list[str],
    build: Callable[..., Corpus],
    fraction: float,
    side: str,
    change: str,
    bring: bool,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"tokenizer": corpus.tokenizer_folder} if bring else {}
    phases = set()
    options["on_progress"] = lambda phase, done, total: phases.add(phase)
    with pytest.raises(UserError, match=rf"Of 500 .* the {side} side: {change} .*--validation"):
        build(documents, validation=fraction, **options)
    assert phases == {"tokenising" if bring else "reading"}  # told as early as can be
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": []}, "Give either text .* or a data set"),
        ({"text": ["a"], "dataset": "b"}, "Give either text .* or a data set"),
        ({"text": "a"}, "must be a list of paths"),
        ({"text": ["a"], "tokenizer": "t", "vocab_size": 100}, "Leave out one of the two"),
        ({"text": ["a"], "vocab_size": -1}, "at least 64 entries"),
        ({"text": ["a"], "validation": 0}, "between 0 and 1"),
        ({"text": ["a"], "validation": 1.0}, "between 0 and 1"),
        ({"text": ["a"], "max_document_bytes": 0}, "at least 1"),
        ({"text": ["no/such/file.txt"]}, "There is no no/such/file.txt"),
    ],
)
def test_wrong_arguments_get_one_sentence_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_corpus(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bring", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no document in there"),
        (b"\n\n \n", "no document"),
        (b"\n\n".join(b"\x01" * n for n in range(30)), "without any text"),
    ],
)
def test_files_without_usable_text_are_told(
    corpus: Corpus, tmp_path: Path, content: bytes, message: str, bring: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    options = {"tokenizer": corpus.tokenizer_folder} if bring else {}
    with pytest.raises(UserError, match=message):
        build_corpus(tmp_path / "out", text=[path], validation=0.5, **options)
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_existing_folder_is_never_written_to(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        build_corpus(tmp_path, text=[text_file])
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_progress_reaches_the_size_of_the_text_in_both_passes(
    documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "_REPORT_BYTES", 1000)
    for name, part in (("a", documents[:250]), ("b", documents[250:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(part), encoding="utf-8")
    seen: list[tuple[str, int, int]] = []
    build_corpus(
        tmp_path / "out",
        text=[tmp_path],
        validation=0.1,
        on_progress=lambda *report: seen.append(report),
    )
    size = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    for phase in ("reading", "tokenising"):
        done = [report[1] for report in seen if report[0] == phase]
        assert (done[0], done[-1]) == (0, size)
        assert len(done) > 50
        assert done == sorted(done)
    assert ("learning", 0, 0) in seen


def test_large_vocabularies_are_stored_as_uint32(
    documents: list[str], build: Callable[..., Corpus], corpus: Corpus, tmp_path: Path
) -> None:
    large: Any = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    raw = json.loads(large.to_str())
    raw["model"]["vocab"] |= {f"[unused{n}]": n for n in range(256, 70_000)}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    built = build(documents, tokenizer=path)
    assert built.manifest.dtype == "uint32"
    assert built.train.read(0, 9).dtype == np.uint32
    assert built.train.read(0, 9).tolist() == corpus.train.read(0, 9).tolist()


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, stackbert.corpus; print([name for name in "
        "('torch', 'transformers', 'datasets', 'pyarrow', 'tokenizers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
