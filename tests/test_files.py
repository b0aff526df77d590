"""Files are read with one kind of error and written whole or not at all."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.files import Record, locked, new_folder, reading, write_text
from stackbert.tables import Frame, Tables
from stackbert.units import format_duration, parse_duration


class Note(Record):
    """A record for these tests."""

    what = "a note"
    words: tuple[str, ...]
    table: Frame


FRAME = pd.DataFrame({"name": ["a", "b"], "loss": [1.25, np.nan], "steps": [3, 4]})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError("bad\n  bits"), KeyError("x"), RecursionError()])
def test_whatever_a_parser_raises_becomes_one_sentence_with_the_path(error):
    said = r"^a\.json cannot be read: .*\. Build it again\.$"
    with pytest.raises(UserError, match=said), reading("a.json", "Build it again."):
        raise error


def test_a_record_survives_being_written_and_read(tmp_path):
    Note(words=("größer",), table=FRAME).write(tmp_path / "note.json")
    again = Note.read(tmp_path / "note.json")
    assert again.words == ("größer",)
    pd.testing.assert_frame_equal(again.table, FRAME)
    assert json.loads((tmp_path / "note.json").read_text())["table"]["rows"][1] == ["b", None, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a note: it has no note.json"),
        ("{", "note.json cannot be read"),
        ('{"words": [], "table": 5}', "note.json cannot be read: table: a table needs columns"),
        ('{"words": [1], "table": {"columns": [], "rows": []}}', "words.0: input should be a"),
        ('{"wrods": [], "table": {"columns": [], "rows": []}}', "(did you mean 'words'?)"),
        ('{"format": 1, "words": []}', "written by another version of StackBERT"),
    ],
)
def test_a_missing_or_damaged_record_is_refused_in_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "note.json").write_text(text)
    with pytest.raises(UserError) as error:
        Note.read(tmp_path / "note.json")
    assert message in str(error.value)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_new_folder_appears_whole_or_not_at_all_and_follows_the_umask(tmp_path):
    out, before = tmp_path / "deep" / "out", os.umask(0o077)
    try:
        with pytest.raises(ZeroDivisionError), new_folder(out) as partial:
            (partial / str(1 / 0)).mkdir()
        assert names(out.parent) == []
        with new_folder(out) as partial:
            write_text(partial / "a.txt", "x")
            assert not out.exists()
        (out / ".run.json.4711.partial").touch()  # left by a killed writer
        with locked(out, "it is read"):
            assert (out / ".lock").stat().st_mode & 0o777 == 0o600
        (out / ".lock").unlink()
    finally:
        os.umask(before)
    assert names(out.parent) == ["out"]
    assert names(out) == ["a.txt"]
    assert (out / "a.txt").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="exists already"), new_folder(out):
        pass


def test_a_users_own_folder_of_the_name_of_an_unfinished_one_is_never_removed(tmp_path):
    thesis = tmp_path / "mine.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.touch()
    said = "was not written by StackBERT"
    with pytest.raises(UserError, match=said), new_folder(tmp_path / "mine"):
        pass
    assert thesis.exists()


def test_durations_are_read_as_people_write_them():
    written = {"90s": 90, "20m": 1200, "1.5h": 5400, "1h30m": 5400, "2d": 172800}
    assert {text: parse_duration(text) for text in written} == written
    for text in ("", "5", "m", "5x", "-5m", "0s", "1e3s", "5 m", "9" * 400 + "h"):
        with pytest.raises(UserError, match=r"duration|leaves no time"):
            parse_duration(text)


@given(st.floats(1, 1e7))
@example(96495.0)  # 26.8 hours are "1 d 3 h"
def test_a_written_duration_is_off_by_at_most_half_a_unit(seconds):
    text = format_duration(seconds).replace(" min", "m").replace(" ", "")
    assert parse_duration(text) == pytest.approx(seconds, abs=0.6, rel=0.03)


def test_a_result_shows_escaped_tables_in_a_notebook_and_as_json_has_null_for_nan() -> None:
    class Result(Tables):
        def tables(self) -> dict[str, pd.DataFrame]:
            return {"<b>": pd.DataFrame({"model": ["<i>", "ä"], "loss": [0.1, float("nan")]})}

    assert json.loads(Result().to_json()) == {
        "<b>": [{"model": "<i>", "loss": 0.1}, {"model": "ä", "loss": None}]
    }
    shown = Result()._repr_html_()
    assert "<td>&lt;i&gt;</td>" in shown
    assert not re.search("<[bi]>|nan", shown, re.IGNORECASE)
