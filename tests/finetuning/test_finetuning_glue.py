"""GLUE's official files and data sets: read as they are, refused by row where they are wrong."""

import datasets
import pytest
from finetuning_helpers import write_rows

from stackbert.errors import UserError
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.tasks import GLUE, TASKS

ROWS = 12
# Columns of the official files; CoLA's have no header, and test files have no label.
HEADERS = {
    "cola": "source label mark sentence",
    "sst-2": "sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "sts-b": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "mnli": "index promptID genre sentence1_parse sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
}
STEMS = {split: split for split in ("train", "dev", "test")}
HALVES = {"train": "train", "dev": "dev_matched", "dev_mismatched": "dev_mismatched"}
HALVES |= {"test": "test_matched", "test_mismatched": "test_mismatched"}
# What readers of lines and of quoted cells stumble over.
TRICKY = (' "', '"" ', "\u2028", "\x85", " 'n ' roll", "  ", "NA", "\\t", " é 漢 🙂", "null", "\rx")


def text_of(row, column):
    return f"{TRICKY[row % len(TRICKY)]} thing {row} of {column} {TRICKY[row % 7]}."


def label_of(task, row):
    labels = TASKS[task].labels
    return labels[row % len(labels)] if labels else f"{row % 11 / 2:.3f}"


def lines_of(task, split, rows=ROWS):
    """The header of an official file and its rows, as lists of cells."""
    about, columns = TASKS[task], HEADERS[task].split("|" if "|" in HEADERS[task] else " ")
    if split.startswith("test"):
        columns = [name for name in columns if name not in (*about.label, "source", "mark")]
        columns = columns if columns[0] in ("index", "id") else ["index", *columns]
    lines = [columns] if task != "cola" or split == "test" else []
    for row in range(rows):
        cells = {name: text_of(row, name) for name in (*about.text, *about.pair)}
        cells |= dict.fromkeys(about.label, label_of(task, row))
        lines.append([cells.get(name, row) for name in columns])
    return lines


def write_glue(folder, tasks):
    for task in tasks:
        for split, stem in (HALVES if task == "mnli" else STEMS).items():
            write_rows(folder / TASKS[task].title / f"{stem}.tsv", lines_of(task, split))
    return folder


@pytest.mark.parametrize("task", GLUE)
def test_every_row_of_every_split_is_read_as_it_stands_in_the_file(task, tmp_path):
    (data,) = official_tasks(task, write_glue(tmp_path, [task]), None)
    assert list(data.splits) == list(HALVES if task == "mnli" else STEMS)
    texts = [name for name in (*data.task.text, *data.task.pair) if name in HEADERS[task]]
    for split, frame in data.splits.items():
        assert list(frame["key"]) == [str(row) for row in range(ROWS)]
        for ours, theirs in zip(("text", "text_pair"), texts, strict=False):
            assert list(frame[ours]) == [text_of(row, theirs) for row in range(ROWS)]
        assert ("label" in frame) == (not split.startswith("test"))
        known = data.task.labels
        for row, label in enumerate(frame.get("label", ())):
            assert label == (row % len(known) if known else row % 11 / 2)


def test_glue_is_every_task_whose_data_is_there(tmp_path):
    write_glue(tmp_path, ["cola", "rte"])
    (tmp_path / "CoLA").rename(tmp_path / "cola")
    cola, rte = official_tasks("glue", tmp_path, None)
    assert (cola.task.name, rte.task.name) == ("cola", "rte")
    assert official_tasks("rte", tmp_path / "RTE", None)[0].fingerprints == rte.fingerprints
    with pytest.raises(UserError, match=r"no train split of MNLI \(MNLI/train\.tsv\)"):
        official_tasks("mnli,rte", tmp_path, None)
    with pytest.raises(UserError, match=r"no task .mrcp. .did you mean .mrpc."):
        official_tasks("mrcp", tmp_path, None)


def test_labels_of_a_test_file_and_line_ends_and_empty_lines_are_not_looked_at(tmp_path):
    write_glue(tmp_path, ["rte"])
    path = tmp_path / "RTE" / "train.tsv"
    path.write_bytes(path.read_bytes().replace(b"\rx", b"x"))
    before = official_tasks("rte", tmp_path, None)[0].fingerprints
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n\n")
    header, *rows = lines_of("rte", "test")
    table = [[*header, "label"], *([*row, "no class at all"] for row in rows)]
    write_rows(tmp_path / "RTE" / "test.tsv", table)
    assert official_tasks("rte", tmp_path, None)[0].fingerprints == before


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("rte", [3, "a", "b", "maybe"], "row 4 .*not entailment or not_entailment.*maybe"),
        ("rte", [3, "a", "b"], "row 4 "),
        ("rte", [3, "a", "b", "entailment", "x"], "Expected 4 fields in line 5, saw 5"),
        ("rte", [3, " ", "b", "entailment"], "row 4 has an empty text"),
        ("rte", [3, "a\udcff", "b", "entailment"], "cannot be read"),
        ("sts-b", [3, *"abcdef", "a", "b", "nan"], "row 4 .*a number"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_number(task, row, said, tmp_path):
    write_glue(tmp_path, [task])
    rows = lines_of(task, "dev")
    rows[4] = row
    path = tmp_path / TASKS[task].title / "dev.tsv"
    write_rows(path, rows)
    with pytest.raises(UserError, match=said) as caught:
        official_tasks(task, tmp_path, None)
    assert str(path) in str(caught.value)


def test_the_torn_rows_of_qqp_are_left_out_and_said_but_not_more_than_it_has(tmp_path):
    write_glue(tmp_path, ["qqp"])
    rows = lines_of("qqp", "train", rows=4000)
    rows[1:5] = [[row, "q", "q", "a question"] for row in range(4)]
    path = tmp_path / "QQP" / "train.tsv"
    write_rows(path, rows)
    (data,) = official_tasks("qqp", tmp_path, None)
    assert list(data.splits["train"]["key"][:2]) == ["4", "5"]
    assert "row 1 has an empty text" in data.notes[0]
    assert "3 like it" in data.notes[0]
    write_rows(path, rows[:3000])
    with pytest.raises(UserError, match=r"train\.tsv, row 1 "):
        official_tasks("qqp", tmp_path, None)


def test_a_saved_data_set_gives_what_the_official_files_give(tmp_path):
    (official,) = official_tasks("rte", write_glue(tmp_path, ["rte"]), None)
    names = ["not_entailment", "entailment"]  # in another order than ours
    made = {}
    for split, frame in official.splits.items():
        columns = {"sentence1": list(frame["text"]), "sentence2": list(frame["text_pair"])}
        columns["idx"] = [int(key) for key in frame["key"]]
        columns["label"] = [1 - label for label in frame.get("label", [2] * ROWS)]
        rows = datasets.Dataset.from_dict(columns)
        rows = rows.cast_column("label", datasets.ClassLabel(names=names))
        made[{"dev": "validation"}.get(split, split)] = rows
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    (found,) = official_tasks("rte", None, str(tmp_path / "saved"))
    assert found.fingerprints == official.fingerprints
    made["train"].save_to_disk(tmp_path / "alone")
    with pytest.raises(UserError, match="alone has no splits"):
        official_tasks("cola", None, str(tmp_path / "alone"))
