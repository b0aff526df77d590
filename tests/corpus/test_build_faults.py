"""A build that is stopped, killed or out of room leaves nothing that looks like a corpus."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackbert.corpus import Corpus, build_corpus, open_corpus
from stackbert.corpus.documents import Seen
from stackbert.errors import RunError, UserError


@pytest.mark.parametrize("phase", ["reading", "learning", "tokenising"])
def test_an_interrupted_build_leaves_nothing(text_file: Path, tmp_path: Path, phase: str) -> None:
    def interrupt(now: str, done: int, total: int) -> None:
        if now == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path / "out", text=[text_file], validation=0.1, on_progress=interrupt)
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time
from stackbert.corpus import build_corpus
def wait(phase, done, total):
    if phase == "tokenising" and done == total:
        print("there", flush=True)
        time.sleep(60)
build_corpus(sys.argv[1], text=[sys.argv[2]], validation=0.1, on_progress=wait)
"""


def test_a_killed_build_is_not_taken_for_a_corpus_and_can_be_repeated(
    text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(out), str(text_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        with pytest.raises(UserError, match="being written by another process"):
            build_corpus(out, text=[text_file], validation=0.1)
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob("out.partial/*"))
    with pytest.raises(UserError, match="is not a corpus"):
        open_corpus(out)
    build_corpus(out, text=[text_file], validation=0.1).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_shard_is_found(corpus: Corpus, text_file: Path, tmp_path: Path) -> None:
    again = build_corpus(tmp_path / "again", text=[text_file], vocab_size=256, validation=0.1)
    path = again.folder / "train" / "tokens-00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"tokens-00000\.npy is missing or damaged"):
        again.verify()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_nothing_is_left(text_file: Path, small_disk: Path) -> None:
    with pytest.raises(RunError, match="disk is full while building the corpus"):
        build_corpus(small_disk / "out", text=[text_file], validation=0.1)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("suffix", ["tokenizer.json", "tokens-00000.npy", "sentences-00000.npy"])
def test_a_disk_that_fills_up_at_any_file_is_told(
    text_file: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def to_full_disk(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        full = path.name == suffix and "w" in mode
        return opened(Path("/dev/full") if full else path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", to_full_disk)
    monkeypatch.setattr(
        Path, "write_text", lambda path, text, encoding: to_full_disk(path, "w").write(text * 99)
    )
    with pytest.raises(RunError, match="disk is full while building the corpus"):
        build_corpus(tmp_path / "out", text=[text_file], validation=0.1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_the_table_of_duplicates_is_told(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen")
    seen._table.execute("PRAGMA max_page_count=4")
    with pytest.raises(OSError, match="full") as caught:
        any(not seen.add(n.to_bytes(16)) for n in range(10_000))
    assert caught.value.errno == 28
    seen.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["/proc/stackbert/out", "/dev/null/out"])
def test_a_folder_that_cannot_be_made_is_told(text_file: Path, out: str) -> None:
    with pytest.raises(UserError, match="while building the corpus"):
        build_corpus(out, text=[text_file], validation=0.1)


def test_a_missing_permission_is_told(text_file: Path, tmp_path: Path) -> None:
    if not os.geteuid():
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="No permission while building the corpus"):
        build_corpus(tmp_path / "out", text=[text_file], validation=0.1)
