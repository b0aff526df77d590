"""Every kind of file gives its documents to the last, or one sentence that says where it is bad."""

import bz2
import gzip
import json
import lzma
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stackbert.corpus import text
from stackbert.corpus.text import DataSet, Text, open_files
from stackbert.errors import UserError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXTS = ["First paragraph.\nSecond, with ünïcödé 字.", "Another document", "A third\none."]
MANY = "\n\n".join(f"document number {n} of this file {n * n}" for n in range(8_000)).encode()


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(path: Path, **options: object) -> list[str]:
    return list(Text(path, **options).documents())  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_documents_to_the_last_stream(tmp_path, suffix):
    pack = COMPRESS[suffix]
    lines = [json.dumps({"text": one, "n": 1}).encode() + b"\n" for one in TEXTS]
    assert read(write(tmp_path, f"a.txt{suffix}", pack("\n\n".join(TEXTS).encode()))) == TEXTS
    assert read(write(tmp_path, f"a.jsonl{suffix}", b"".join(map(pack, lines)))) == TEXTS
    assert read(write(tmp_path, f"b.txt{suffix}", b"")) == []


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.null()]
)
def test_parquet_gives_the_same_documents(tmp_path, kind):
    values = [None] * 5 if kind == pa.null() else [*TEXTS * 50, None]
    pq.write_table(pa.table({"text": pa.array(values).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [value or "" for value in values]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfstart", ["start"]),
        (b"one\r\nline\r\n\r\ntwo\r\n", ["one\nline", "two"]),
        (b"one\n \t\n\n\ntwo\n\n\n", ["one", "two"]),
        ("1\n\u00a0\n2\n\u3000\u200b\n3\n\u2003\r\n4".encode(), ["1", "2", "3", "4"]),
        (b"one\rline\r\rtwo\r", ["one\nline", "two"]),
        (b"one\r\r\nline\r\r\n", ["one\nline"]),
        (b"nul \x00 and \x1b control", ["nul \x00 and \x1b control"]),
        (b"\n\n", []),
    ],
)
def test_text_files_of_all_habits_are_understood(tmp_path, data, expected):
    assert read(write(tmp_path, "a.txt", data)) == expected


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "second", "plain"])
def test_damaged_compressed_data_is_named_with_its_file(tmp_path, suffix, damage):
    packed = COMPRESS[suffix](MANY)
    second = packed + packed[:20] + b"\xff" * 20 + packed[40:]
    data = {"second": second, "plain": MANY}.get(damage, packed[: len(packed) // 2])
    path = write(tmp_path, f"a.txt{suffix}", data)
    with pytest.raises(UserError, match=rf"a\.txt\{suffix} cannot be read: .*leave it out"):
        read(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"one\n\ntwo\nthree\n\nf\xfcr", r"a\.txt, .* from line 6 on, .*byte 0xfc"),
        ("a.txt", "text".encode("utf-16"), r"line 1 on, cannot be read: .*iconv -f UTF-16"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', r"a\.jsonl, line 3, cannot be read: Expecting"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1, cannot be read: .*recursion"),
        ("a.jsonl", b'{"body": "a", "id": 1}', r"line 1 .*are: body \(str\), id \(int\).*--field"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_number(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, name, data))


@pytest.mark.parametrize("line", ["ünïcödé 字 \n", "🙂"])
def test_a_document_that_is_too_long_is_cut_and_a_line_of_json_refused(tmp_path, line, monkeypatch):
    monkeypatch.setattr(text, "PART", 100)
    source = Text(write(tmp_path, "a.txt", ("one\n\n" + line * 100).encode()))
    first, *parts = source.documents()
    assert (first, max(map(len, parts)) <= 100, len(parts) > 3) == ("one", True, True)
    assert "".join(parts).replace("\n", "") == (line * 100).replace("\n", "")
    assert (source.found, source.cut) == (1 + len(parts), len(parts) - 1)
    path = write(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "' + b"x" * 250 + b'"}')
    assert [len(each) for each in read(path)] == [1, 100, 100, 50]
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 200)
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is longer than 200 bytes"):
        read(path)


def test_folders_and_patterns_are_searched_in_order_for_known_files(tmp_path):
    for name in ("b/z.txt", "b/a.jsonl.gz", "a.parquet", "c.TXT", ".hid.txt", "b/.h/x.txt", "r.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path, name, b"x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "c.TXT")
    write(tmp_path, "a[1].txt", b"x")

    def names(*given: object) -> list[str]:
        found, _ = open_files([str(tmp_path / str(one)) for one in given])
        return [str(Path(one.name).relative_to(tmp_path)) for one in found]

    assert names("b", "**/*.txt") == ["b/a.jsonl.gz", "b/z.txt", "a[1].txt", "link.txt"]
    everything = ["c.TXT", "a.parquet", "a[1].txt", "b/a.jsonl.gz", "b/z.txt"]
    assert names("c.TXT", "link.txt", ".") == everything
    assert names("a[1].txt") == ["a[1].txt"]


def test_json_lines_of_any_suffix_are_read_and_what_is_not_is_counted(tmp_path):
    for name in ("a.ndjson", "b.jl.gz", "c.json", "d.json.xz"):
        pack = COMPRESS[Path(name).suffix if name.endswith(("gz", "xz")) else ""]
        write(tmp_path, name, pack(json.dumps({"text": name}).encode()))
    write(tmp_path, "config.json", b'{"text": 1,\n "id": 2}')
    for name in ("e.csv", "f.csv.gz", "g.csv", "README", "h.tex"):
        write(tmp_path, name, b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    found, left_out = open_files(tmp_path, suffixes=["tex"])
    texts = [next(each.documents()) for each in found]
    assert texts == ["a.ndjson", "b.jl.gz", "c.json", "d.json.xz", "x"]
    kinds = {".json": 1, ".csv": 2, ".csv.gz": 1, "no suffix": 1, "linked folder": 1}
    assert left_out == kinds


@pytest.mark.parametrize("given", ["none.txt", "*.md", "empty", "fifo.txt"])
def test_a_path_that_gives_no_text_is_told(tmp_path, given):
    write(tmp_path, "r.md", b"x")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    with pytest.raises(UserError, match="There is no text at "):
        open_files(tmp_path / given)


@pytest.mark.parametrize("layout", ["saved", "splits", "files"])
def test_a_local_data_set_is_read_without_the_network(tmp_path, layout, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = tmp_path / "data"
    found = datasets.Dataset.from_dict({"body": TEXTS, "id": list(range(len(TEXTS)))})
    if layout == "saved":
        found.save_to_disk(folder)
    elif layout == "splits":
        datasets.DatasetDict({"test": found.select([0]), "train": found}).save_to_disk(folder)
    else:
        folder.mkdir()
        found.to_json(folder / "a.jsonl")
    source = DataSet(str(folder), "body")
    for _ in range(2):
        assert list(source.documents()) == TEXTS
        assert source.size == sum(len(text.encode()) for text in TEXTS)
    assert source.label == "data"
    with pytest.raises(UserError, match=r"row 1 .*body \(str\), id \(int\)"):
        list(DataSet(str(folder)).documents())
