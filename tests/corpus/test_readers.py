import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stackbert.corpus.readers import FileInput, open_files
from stackbert.errors import UserError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXTS = ["First paragraph.\nSecond, with ünïcödé 字.", "Another document", "A third\none."]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(path: Path, **options: object) -> list[str]:
    return list(FileInput(path, **options).documents())  # type: ignore[arg-type]


def json_lines(values: list[object]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_and_json_lines_give_the_same_documents_under_every_compression(
    tmp_path: Path, compression: str
) -> None:
    pack = COMPRESS[compression]
    text = write(tmp_path, f"a.txt{compression}", pack("\n\n".join(TEXTS).encode()))
    lines = json_lines([{"text": one, "n": 1} for one in TEXTS])
    assert read(text) == TEXTS
    assert read(write(tmp_path, f"a.jsonl{compression}", pack(lines))) == TEXTS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_gives_the_same_documents(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([*TEXTS * 50, None], pa.string()).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=40)
    assert read(tmp_path / "a.parquet") == [*TEXTS * 50, ""]


def test_frames_and_members_one_behind_the_other_are_read_to_the_end(tmp_path: Path) -> None:
    for suffix, pack in COMPRESS.items():
        data = b"".join(pack(f"{one}\n\n".encode()) for one in TEXTS)
        assert read(write(tmp_path, f"many.txt{suffix}", data)) == TEXTS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfstart", ["start"]),
        (b"one\r\nline\r\n\r\ntwo\r\n", ["one\nline", "two"]),
        (b"one\n \t\n\n\ntwo\n\n\n", ["one", "two"]),
        (b"nul \x00 and \x1b control", ["nul \x00 and \x1b control"]),
        (b"\n\n", []),
        (b"", []),
    ],
)
def test_text_files_of_all_habits_are_understood(
    tmp_path: Path, data: bytes, expected: list[str]
) -> None:
    assert read(write(tmp_path, "a.txt", data)) == expected


def test_a_line_of_ten_megabytes_is_one_document(tmp_path: Path) -> None:
    line = "word " * 2_000_000 + "end"
    assert read(write(tmp_path, "a.txt", line.encode())) == [line]


def test_half_an_emoji_in_json_becomes_the_replacement_character(tmp_path: Path) -> None:
    data = b'{"text": "a\\ud800b \\ud83d\\ude00"}\n{"text": null}\n'
    assert read(write(tmp_path, "a.jsonl", data)) == ["a\ufffdb \U0001f600", ""]


def test_a_file_can_be_read_again_and_tells_how_far_it_was_read(tmp_path: Path) -> None:
    packed = gzip.compress("\n\n".join(TEXTS).encode())
    source = FileInput(write(tmp_path, "a.txt.gz", packed))
    for _ in range(2):
        assert list(source.documents()) == TEXTS
        assert source.position == source.size > 0
    source = FileInput(write(tmp_path, "b.txt", b"words\n\n" * 500_000))
    for _ in range(2):
        found = source.documents()
        next(found)
        assert 0 < source.position < source.size
        assert sum(1 for _ in found) == 499_999
        assert source.position == source.size


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.xz", "a.txt.zst", "a.parquet"])
def test_a_file_of_no_bytes_has_no_documents(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path, name, b"")) == []


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


MANY = "\n\n".join(f"document number {n} of this file {n * n}" for n in range(8_000)).encode()


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "plain"])
def test_damaged_compressed_data_is_named_with_its_file(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    packed = COMPRESS[suffix](MANY)
    middle = len(packed) // 2
    data = {
        "cut": packed[:middle],
        "garbage": packed[:middle] + b"\0\xff" * 500 + packed[middle + 1000 :],
        "plain": MANY,
    }[damage]
    path = write(tmp_path, f"a.txt{suffix}", data)
    with pytest.raises(
        UserError, match=rf"a\.txt\{suffix} is damaged .* after line \d+ .*leave it"
    ):
        read(path)


def test_damaged_parquet_is_named_with_its_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": MANY.decode().split("\n\n")}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    middle = len(data) // 2
    for broken in (cut(data), b"no parquet", data[:middle] + bytes(9000) + data[middle + 9000 :]):
        path = write(tmp_path, "b.parquet", broken)
        with pytest.raises(UserError, match=r"b\.parquet is damaged .* after row \d+ "):
            read(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"good\nbad \xff here", r"a\.txt, line 2: not UTF-8 text \(byte 0xff at byte 5 "),
        ("a.txt", b"one\n\ntwo\nthree\n\nf\xfcr", r"a\.txt, line 6: not UTF-8"),
        ("a.txt", "text".encode("utf-16"), r"line 1: .*looks like UTF-16: convert"),
        ("a.txt", gzip.compress(b"text"), r"line 1: .*looks gzip-compressed: name it \.gz"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}', r"a\.jsonl, line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: not valid JSON"),
        ("a.jsonl", b'["text"]', r"line 1: a JSON object is needed, this is a list"),
        ("a.jsonl", b'{"body": "a", "id": 1}', r"line 1: .*no field 'text'.*are: body, id\."),
        ("a.jsonl", b'{"text": 5}', r"line 1: the field 'text' is not a string but int"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_number(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, name, data))


def test_a_wrong_parquet_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: .*no field 'text'.*are: body, id\."):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"the field 'id' is not a string but int64"):
        read(tmp_path / "a.parquet", field="id")
    assert read(tmp_path / "a.parquet", field="body") == ["a"]


@pytest.mark.parametrize(
    ("name", "data", "where"),
    [
        ("a.txt", b"fine\n\nstarts here\ngoes on " + b"x" * 81, "line 3"),
        ("a.txt", b"fine\n\nstarts here\n" + b"x" * 300 + b"\n\nnext", "line 3"),
        ("a.txt", b"fine\n\n" + b" " * 300, "line 3"),
        ("a.txt", b"fine\n\nstarts here\n" + b"x y z w\n" * 20, "line 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "' + b"x" * 100 + b'"}', "line 2"),
    ],
)
def test_a_document_that_is_too_long_is_named_where_it_starts(
    tmp_path: Path, name: str, data: bytes, where: str
) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(UserError, match=rf"{re.escape(name)}, {where}: .*longer than 100 bytes"):
        read(path, max_document_bytes=100)
    assert read(path, max_document_bytes=1000)


def test_a_parquet_document_is_measured_in_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 100, "ä" * 51]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: .*longer than 100 bytes"):
        read(tmp_path / "a.parquet", max_document_bytes=100)


def test_a_document_of_exactly_the_longest_length_is_taken(tmp_path: Path) -> None:
    for data in (b"x" * 100, b"x" * 100 + b"\r\n", b"x" * 49 + b"\n" + b"y" * 50 + b"\n"):
        assert len(read(write(tmp_path, "a.txt", data), max_document_bytes=100)) == 1


def names(found: list[FileInput], folder: Path) -> list[str]:
    return [str(Path(one.name).relative_to(folder)) for one in found]


def test_folders_are_searched_in_order_for_known_files(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.jsonl.gz", "a.parquet", "c.TXT", ".hid.txt", "b/.h/x.txt", "r.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path, name, b"x")
    assert names(open_files([tmp_path]), tmp_path) == [
        "a.parquet",
        "b/a.jsonl.gz",
        "b/z.txt",
        "c.TXT",
    ]
    assert names(open_files([f"{tmp_path}/**/*.txt"]), tmp_path) == ["b/z.txt"]
    assert (
        names(open_files([f"{tmp_path}/?.*", tmp_path / "a.parquet"]), tmp_path)
        == [
            "a.parquet",
            "c.TXT",
            "r.md",
        ][:2]
    )


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"x")
    (tmp_path / "link.txt").symlink_to(path)
    assert len(open_files([path, tmp_path, f"{tmp_path}/*.txt", tmp_path / "link.txt"])) == 1


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a[1].txt", b"x")
    assert names(open_files([path]), tmp_path) == ["a[1].txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.txt", r"There is no .*none\.txt"),
        ("none/*.txt", r"The pattern .* matches no file"),
        ("*.md", r"The pattern .* matches no text"),
        ("r.md", r"r\.md is of an unknown kind.*\.txt, \.jsonl"),
        ("a.parquet.gz", r"unknown kind"),
        ("empty", r"The folder .*empty holds no text"),
        ("fifo.txt", r"no regular file"),
    ],
)
def test_a_path_that_gives_no_text_is_told(tmp_path: Path, given: str, message: str) -> None:
    import os

    write(tmp_path, "r.md", b"x")
    write(tmp_path, "a.parquet.gz", b"x")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    with pytest.raises(UserError, match=message):
        open_files([tmp_path / given])
