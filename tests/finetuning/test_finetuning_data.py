"""GLUE's files and a user's own tables: read as they are, refused by row where they are wrong."""

import json

import pandas as pd
import pytest
from finetuning_helpers import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.finetuning.data import official_tasks, own_data
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
        columns = [name for name in columns if name not in (about.label, "source", "mark")]
        columns = columns if columns[0] in ("index", "id") else ["index", *columns]
    lines = [columns] if task != "cola" or split == "test" else []
    for row in range(rows):
        cells = {name: text_of(row, name) for name in (about.text, about.pair)}
        cells[about.label] = label_of(task, row)
        lines.append([cells.get(name, row) for name in columns])
    return lines


def write_glue(folder, tasks):
    for task in tasks:
        for split, stem in (HALVES if task == "mnli" else STEMS).items():
            write_rows(folder / TASKS[task].title / f"{stem}.tsv", lines_of(task, split))
    return folder


@pytest.mark.parametrize("task", GLUE)
def test_every_row_of_every_split_is_read_as_it_stands_in_the_file(task, tmp_path):
    (data,) = official_tasks(task, write_glue(tmp_path, [task]))
    assert list(data.splits) == list(HALVES if task == "mnli" else STEMS)
    texts = [name for name in (data.task.text, data.task.pair) if name]
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
    cola, rte = official_tasks("glue", tmp_path)
    assert (cola.task.name, rte.task.name) == ("cola", "rte")
    assert official_tasks("rte", tmp_path / "RTE")[0].fingerprints == rte.fingerprints
    with pytest.raises(UserError, match=r"no train split of MNLI \(MNLI/train\.tsv\)"):
        official_tasks("mnli,rte", tmp_path)
    with pytest.raises(UserError, match=r"no task .mrcp. .did you mean .mrpc."):
        official_tasks("mrcp", tmp_path)


def test_labels_of_a_test_file_and_line_ends_and_empty_lines_are_not_looked_at(tmp_path):
    write_glue(tmp_path, ["rte"])
    path = tmp_path / "RTE" / "train.tsv"
    path.write_bytes(path.read_bytes().replace(b"\rx", b"x"))
    before = official_tasks("rte", tmp_path)[0].fingerprints
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n\n")
    header, *rows = lines_of("rte", "test")
    table = [[*header, "label"], *([*row, "no class at all"] for row in rows)]
    write_rows(tmp_path / "RTE" / "test.tsv", table)
    assert official_tasks("rte", tmp_path)[0].fingerprints == before


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("rte", [3, "a", "b", "maybe"], "row 4 .*not entailment or not_entailment.*maybe"),
        ("rte", [3, "a", "b", "entailment", "x"], "Expected 4 fields in line 5, saw 5"),
        ("rte", [3, " ", "b", "entailment"], "row 4 has an empty text"),
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
        official_tasks(task, tmp_path)
    assert str(path) in str(caught.value)


def test_the_torn_rows_of_qqp_are_left_out_and_said_but_not_more_than_it_has(tmp_path):
    write_glue(tmp_path, ["qqp"])
    rows = lines_of("qqp", "train", rows=4000)
    rows[1:5] = [[row, "q", "q", "a question"] for row in range(4)]
    path = tmp_path / "QQP" / "train.tsv"
    write_rows(path, rows)
    (data,) = official_tasks("qqp", tmp_path)
    assert list(data.splits["train"]["key"][:2]) == ["4", "5"]
    assert "row 1 has an empty text" in data.notes[0]
    assert "3 like it" in data.notes[0]
    write_rows(path, rows[:3000])
    with pytest.raises(UserError, match=r"train\.tsv, row 1 "):
        official_tasks("qqp", tmp_path)


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")).filter(str.strip)


def load(train, dev=None, **columns):
    named = {"text": "text", "label": "label", **columns}
    return own_data({"train": train, "dev": dev, "test": None}, **named)


def table(path, labels, texts=None):
    texts = texts or [f"text {number}" for number in range(len(labels))]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    return path


@settings(max_examples=8)
@given(st.lists(st.tuples(ANY, st.sampled_from(["good", "bad"])), min_size=1))
def test_any_texts_come_back_as_they_were_from_every_kind_of_table(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("tables")
    rows += [("one more", "good"), ("another", "bad")]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "a.parquet")
    records = frame.to_dict("records")
    (folder / "a.json").write_text(json.dumps(records), encoding="utf-8")
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for path in folder.iterdir():
        found = load(path, dev=path).splits["train"]
        assert list(found["text"]) == list(frame["text"]), path.name
        assert list(found["label"]) == [int(label == "good") for label in frame["label"]]
        assert list(found["key"]) == [str(number) for number in range(len(rows))]


@pytest.mark.parametrize(
    ("cells", "texts", "is_quoted"),
    [
        # As pandas writes it: only where it must, and the marks doubled.
        (['"he said ""go"" now"', "plain"], ['he said "go" now', "plain"], True),
        (['"two\nlines"', "plain"], ["two\nlines", "plain"], True),
        # Marks that belong to the text, as in GLUE's files and in a novel cut into sentences.
        (['"Bad", he said', 'so "" so'], ['"Bad", he said', 'so "" so'], False),
    ],
)
def test_a_tsv_is_unquoted_only_where_quoted_and_that_is_said(cells, texts, is_quoted, tmp_path):
    path = tmp_path / "a.tsv"
    rows = [f"{cell}\t{number % 2}" for number, cell in enumerate(cells)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    found = own_data({"train": path, "dev": path}, text="text", label="label")
    assert list(found.splits["train"]["text"]) == texts
    assert any("quotation marks" in note for note in found.notes) == is_quoted


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 2, 3, 4, 5] * 3, ("1", "2", "3", "4", "5")),
        (["10", "9", "2"] * 3, ("2", "9", "10")),
        ([*range(21), "old"] * 2, tuple(sorted([*map(str, range(21)), "old"]))),
        ([0.5, 1, 1, 2], ()),
    ],
)
def test_few_whole_numbers_and_words_are_classes_and_fractions_numbers(labels, expected, tmp_path):
    task = load(table(tmp_path / "a.csv", labels), dev=tmp_path / "a.csv").task
    assert (task.labels, task.kind) == (expected, "classes" if expected else "number")
    assert task.metrics[0] == ("accuracy" if expected else "pearson")


def test_of_many_whole_numbers_nobody_guesses_whether_they_are_classes(tmp_path):
    path = table(tmp_path / "a.csv", [n % 77 for n in range(770)])
    with pytest.raises(UserError, match=r"classes or quantities.*--kind classification"):
        load(path)
    assert load(path, dev=path, kind="regression").task.kind == "number"
    assert len(load(path, dev=path, kind="classification").task.labels) == 77


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "text,label\na,good\nb\nc,bad\nd,bad\n", "row 2 has an empty text or a label"),
        ("a.csv", "txt,label\na,x\nb,y\nc,y\n", "no columns 'text', only txt, label"),
        ("a.csv", "text,text,label\na,b,bad\na,b,bad\na,b,good\n", "2 columns 'text'"),
        ("a.csv", "", "cannot be read"),
        ("a.csv", "text,label\na,x\nb,y\nc,z\n", "3 different labels in 3 rows"),
        ("a.csv", "text,label\na,x\na,y\n", "too few different texts"),
        ("a.xlsx", "", "is not a .csv, .tsv"),
    ],
)
def test_a_wrong_table_is_a_sentence_that_names_it(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path / name}.*{said}"):
        load(tmp_path / name)


def test_a_label_that_training_does_not_have_and_a_key_twice_are_named(tmp_path):
    train = table(tmp_path / "train.csv", ["good", "bad", "bad"])
    dev = table(tmp_path / "dev.csv", ["bad", "1"])
    with pytest.raises(UserError, match=r"dev\.csv, row 2 .*not bad or good: .*'1'"):
        load(train, dev=dev)
    with pytest.raises(UserError, match="two with one key"):
        load(train, dev=table(tmp_path / "dev.csv", ["bad", "bad"], ["x", "x"]), key="text")


def test_the_dev_split_is_a_tenth_by_text_whatever_the_order(tmp_path):
    texts = [f"text {n * n % 40}" for n in range(60)]
    labels = ["good", "bad"] * 60  # each text has both

    def cut(texts):
        return load(table(tmp_path / "a.csv", labels, [text for text in texts for _ in "ab"]))

    data = cut(texts)
    train, dev = (list(data.splits[split]["text"]) for split in ("train", "dev"))
    assert sorted(train + dev) == sorted(texts * 2)
    assert not set(train) & set(dev)
    assert 12 <= len(dev) < 12 + 2 * max(texts.count(text) for text in texts)
    assert set(cut(texts[::-1]).splits["dev"]["text"]) == set(dev)
    assert f"{len(dev)} of the 120 rows" in data.notes[-1]
