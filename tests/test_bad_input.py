"""Whatever is wrong with a file: a sentence that names it, or what it says. Nothing else."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stackbert as sb
from stackbert.corpus.readers import open_files
from stackbert.corpus.tokenizer import load_tokenizer
from stackbert.errors import LONGEST, shown
from stackbert.stored import stored

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CASES = {
    "text": 150,
    "jsonl": 150,
    "compressed": 150,
    "parquet": 150,
    "corpus": 40,
    "tokenizer": 100,
    "shards": 100,
    "recipe": 40,
    "set": 40,
    "run": 12,
    "ledger": 40,
    "state": 100,
    "weights": 60,
    "optimizer": 100,
    "foreign": 60,
    "comparison": 60,
    "attention": 40,
    "finetune": 75,
    "glue": 150,
    "squad": 150,
    "table": 150,
}
"""Some seconds in all; benchmarks/fuzz.py runs as many as one likes."""


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield __import__("fuzz")


def test_every_reader_is_tried(fuzz: ModuleType) -> None:
    assert list(fuzz.READERS) == list(CASES)


@pytest.mark.parametrize("reader", CASES)
def test_a_damaged_file_gives_a_sentence_or_what_it_says(
    reader: str, fuzz: ModuleType, tmp_path: Path
) -> None:
    fuzzer = fuzz.Fuzzer(fuzz.READERS[reader](), tmp_path / "files", seed=0)
    outcomes = [fuzzer.run(number) for number in range(CASES[reader])]
    failed = [outcome for outcome in outcomes if outcome.kind == "failed"]
    assert not failed, f"{len(failed)} of {len(outcomes)}, the first: {failed[0]}"
    # A reader that takes everything, or nothing, would not have been tried.
    assert {outcome.kind for outcome in outcomes} == {"refused", "read"}


@pytest.fixture
def outcome_of(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """What the fuzzer says of a reader that does something when its file was damaged."""
    cases = __import__("fuzz_cases")
    monkeypatch.setattr(cases, "SECONDS", 0.3)

    def run(act: Callable[[Path], None]):
        class Probe(cases.Reader):
            name = reads = "probe"
            damages = {"a.txt": lambda data, draw: b"damaged"}  # noqa: RUF012
            begun = False

            def prepare(self, folder: Path) -> None:
                (folder / "a.txt").write_bytes(b"valid")

            def read(self, folder: Path, damaged: str) -> None:
                if (folder / damaged).read_bytes() != b"valid":
                    act(folder / damaged)

        return cases.Fuzzer(Probe(), tmp_path / "probe", 0).run(0)

    return run


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda path: _raise(KeyError("x")), "KeyError"),
        (lambda path: _raise(RecursionError("deep")), "RecursionError"),
        (lambda path: _raise(MemoryError()), "MemoryError"),
        (lambda path: _raise(SystemExit(2)), "SystemExit"),
        (lambda path: time.sleep(5), "hang"),
        (lambda path: os.system("true"), "os.system"),
        (lambda path: _raise(sb.UserError("Something is wrong.")), "names no file"),
        (lambda path: _raise(sb.UserError(f"{path} is wrong")), "no sentence"),
    ],
)
def test_the_fuzzer_sees_what_it_is_for(act: Callable, what: str, outcome_of: Callable) -> None:
    outcome = outcome_of(act)
    assert outcome.kind == "failed"
    assert what in outcome.what


def test_the_fuzzer_takes_sentences_and_results(outcome_of: Callable, tmp_path: Path) -> None:
    assert outcome_of(lambda path: None).kind == "read"
    (tmp_path / "probe").rename(tmp_path / "before")
    assert outcome_of(lambda path: _raise(sb.UserError(f"{path} is wrong."))).kind == "refused"


def test_a_case_is_a_function_of_seed_reader_and_number(fuzz: ModuleType, tmp_path: Path) -> None:
    one, same, other = (
        fuzz.Fuzzer(fuzz.READERS["jsonl"](), tmp_path / name, seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    content = [one.damaged(number) for number in range(20)]
    for number in (19, 3, 7):
        one.run(number)
        assert same.damaged(number) == content[number]
    assert [other.damaged(number) for number in range(20)] != content


ODD = {
    "control characters": "Bell\x07 and escape\x1b[2J, vertical\x0btab, \x85 and \x9b.",
    "NULs": "a\0b \0\0 c\0",
    "right-to-left marks": "\u202eevil\u202c \u200f\u2067שלום\u2069 \u061cمرحبا",
    "joiners and marks": "👩‍👩‍👧 e" + "\u0301" * 300 + " \u200b\u2060\ufeff x",
    "no character": "\ufffe \uffff \U0010ffff \ue000 \U000e0041",
    "separators": "one\u2028two\u2029three\x1cfour\x1dfive\x85six",
    "one word": "word",
    "one character": "x",
    "one word of 100,000 characters": "a" * 100_000,
    "quotes and backslashes": "\\ud800 \\0 \"' ${HOME} `id` %s {0}",
    "markup": "</script><img src=x onerror=alert(1)>",
}
PLAIN = [f"Plain document number {n} of the lot." for n in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    text = "\n\n".join([*PLAIN, *ODD.values()])
    (folder / "all.txt").write_text(text, encoding="utf-8", newline="")
    return sb.build_corpus(
        folder / "corpus", text=[folder / "all.txt"], validation=0.3
    ).tokenizer_folder


def documents_of(corpus: sb.Corpus) -> list[list[int]]:
    """The ids of every document without its separator, sorted."""
    found = []
    for side in (corpus.train, corpus.validation):
        bounds = [*side.document_starts.tolist(), len(side)]
        found += [side.read(a, b - a - 1).tolist() for a, b in itertools.pairwise(bounds)]
    return sorted(found)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_odd_text_becomes_the_tokens_that_the_tokenizer_gives_it(
    name: str, kind: str, tokenizer: Path, tmp_path: Path
) -> None:
    texts = [*PLAIN, ODD[name]]
    path = tmp_path / f"all.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(texts), encoding="utf-8", newline="")
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    built = sb.build_corpus(tmp_path / "out", text=[path], tokenizer=tokenizer, validation=0.3)
    built.verify()
    plain = load_tokenizer(tokenizer).tokenizer
    plain.encode_special_tokens = True
    ids = [plain.encode(text, add_special_tokens=False).ids for text in texts]
    if name != "one word of 100,000 characters":  # which is cut in two
        assert documents_of(built) == sorted(each for each in ids if each)
    counts = built.manifest
    assert counts.train.documents + counts.validation.documents + counts.empty_documents == 41


def test_a_special_token_that_is_half_a_character_is_no_token(
    tokenizer: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text('{"sep_token": "\\ud800"}')
    assert load_tokenizer(folder).config["sep_token"] == "[SEP]"


@pytest.mark.parametrize("character", ["x", "\0", "\ud800", "\U000e0041"])
def test_a_message_is_at_most_a_screenful(character: str) -> None:
    assert len(shown(character * 100_000)) <= LONGEST


@pytest.mark.parametrize("kind", ["step", "evaluation"])
def test_a_ledger_line_without_what_its_readers_need_is_named(kind: str, tmp_path: Path) -> None:
    row = dict.fromkeys(("step", "depth", "tokens", "flops", "seconds", "loss", "masked_lm"), 1)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": kind, **row}) + "\n")
    assert sb.read_ledger(tmp_path) == [{"kind": kind, **row}]
    del row["depth"]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": kind, **row}) + "\n")
    with pytest.raises(sb.UserError, match=r"metrics\.jsonl, line 1 is damaged: it has no depth"):
        sb.read_ledger(tmp_path)


def test_what_is_no_number_is_refused_wherever_it_stands() -> None:
    assert stored(dict[str, Any], {"a": [{"b": 1.5}]}) == {"a": [{"b": 1.5}]}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no number"):
            stored(dict[str, Any], {"a": [{"b": value}]})


def test_a_line_of_ten_megabytes_is_counted_word_by_word(tokenizer: Path, tmp_path: Path) -> None:
    line = "plain document of the lot " * 400_000
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join([*PLAIN, line]), encoding="utf-8")
    built = sb.build_corpus(tmp_path / "out", text=[path], tokenizer=tokenizer, validation=0.3)
    ids = load_tokenizer(tokenizer).tokenizer.encode(line[:26], add_special_tokens=False).ids
    longest = max(documents_of(built), key=len)
    assert len(longest) == 400_000 * len(ids)
    assert np.array_equal(np.unique(longest), np.unique(ids))


def test_documents_of_one_word_give_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join(f"word{n}" for n in range(200)))
    built = sb.build_corpus(tmp_path / "out", text=[path], validation=0.2)
    assert built.manifest.train.documents + built.manifest.validation.documents == 200
    assert built.manifest.train.words == built.manifest.train.documents


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32", "cp1251", "shift-jis"])
def test_text_in_mixed_encodings_is_refused_at_its_line(encoding: str, tmp_path: Path) -> None:
    other = {"cp1251": "Привет", "shift-jis": "東京"}.get(encoding, "Ça va, naïve café")
    path = tmp_path / "mixed.txt"
    path.write_bytes("Ça va, 東京.\n\n".encode() + other.encode(encoding) + b"\n")
    with pytest.raises(sb.UserError, match=r"mixed\.txt, line 3: not UTF-8 text"):
        list(open_files([path])[0].documents())


@pytest.mark.parametrize(
    "half", [b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"]
)
def test_bytes_that_no_utf8_has_are_refused(half: bytes, tmp_path: Path) -> None:
    path = tmp_path / "half.txt"
    path.write_bytes(b"fine\n\nnot " + half + b" fine\n")
    with pytest.raises(sb.UserError, match=r"half\.txt, line 3: .* at byte 5 of the line"):
        list(open_files([path])[0].documents())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=12))
def test_any_texts_written_as_json_lines_are_read_as_they_were(
    texts: list[str], tmp_path: Path
) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    squeezed = {"": content, ".gz": gzip.compress(content), ".bz2": bz2.compress(content)}
    squeezed[".xz"] = lzma.compress(content)
    for suffix, data in squeezed.items():
        path = tmp_path / f"all.jsonl{suffix}"
        path.write_bytes(data)
        assert list(open_files([path])[0].documents()) == texts


def test_a_file_name_in_another_encoding_is_no_obstacle(tokenizer: Path, tmp_path: Path) -> None:
    """From the text's name in the manifest to the report of a run in such a folder."""
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    try:
        path.write_text("\n\n".join(PLAIN))
    except OSError:
        pytest.skip("this file system takes no such name")
    out = tmp_path / os.fsdecode(b"\xff-corpus")
    built = sb.build_corpus(out, text=[path], tokenizer=tokenizer, validation=0.3)
    (source,) = built.manifest.sources
    assert source.name.endswith("caf\\udce9.txt")
    assert sb.open_corpus(out).manifest == built.manifest


def test_a_run_in_a_folder_of_another_encoding_is_reported(
    fuzz: ModuleType, tokenizer: Path, tmp_path: Path
) -> None:
    runs = __import__("fuzz_runs")
    corpus = sb.open_corpus(tokenizer.parent)
    run = runs.write_run(tmp_path / os.fsdecode(b"\xff-run"), corpus)
    page = sb.report(run, tmp_path / "report.html")
    assert "\ufffd-run" in page.read_text("utf-8")
