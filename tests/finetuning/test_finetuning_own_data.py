"""A user's own tables: what was written is read back; classes and numbers are told apart."""

import csv
import json

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.finetuning.data import own_data

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")).filter(str.strip)


def load(train, dev=None, dataset=None, **columns):
    named = {"text": "text", "label": "label", **columns}
    return own_data({"train": train, "dev": dev, "test": None}, dataset, **named)


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
    frame.to_csv(folder / "quoted.tsv", sep="\t", index=False, quoting=csv.QUOTE_ALL)
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
        (['"Hello.', 'How are you?"'], ['"Hello.', 'How are you?"'], False),
    ],
)
def test_a_tsv_is_unquoted_only_where_it_was_quoted_and_that_is_said(
    cells, texts, is_quoted, tmp_path
):
    path = tmp_path / "a.tsv"
    rows = [f"{cell}\t{number % 2}" for number, cell in enumerate(cells)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    found = load(path, dev=path)
    assert list(found.splits["train"]["text"]) == texts
    assert any("quotation marks" in note for note in found.notes) == is_quoted


def test_json_cells_may_be_numbers_or_truths_and_halves_of_characters_are_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = '{"text": "a\\ud83d", "label": 1, "id": 7}\n\n{"text": "b", "label": false, "id": 9}'
    path.write_text(lines, encoding="utf-8")
    found = load(path, dev=path, kind="classification", key="id")
    assert found.task.labels == ("1", "false")
    assert found.splits["dev"][["key", "text"]].values.tolist() == [["7", "a?"], ["9", "b"]]


def test_a_saved_data_set_of_ones_own_keeps_the_names_of_its_classes(tmp_path):
    feature = datasets.ClassLabel(names=["sad", "glad"])
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]})
    rows = rows.cast_column("label", feature)
    splits = {"train": rows, "validation": rows, "test": rows}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "moods")
    found = load(tmp_path / "moods")
    assert (found.task.name, found.task.labels) == ("moods", ("glad", "sad"))
    assert list(found.splits["dev"]["label"]) == [0, 1]
    assert "label" not in found.splits["test"]


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
        ("a.csv", "text,label\na, b,good\n", "Expected 2 fields in line 2, saw 3"),
        ("a.csv", "txt,label\na,x\nb,y\nc,y\n", "no columns 'text', only txt, label"),
        ("a.csv", "text,text,label\na,b,bad\na,b,bad\na,b,good\n", "2 columns 'text'"),
        ("a.csv", "", "cannot be read"),
        ("a.csv", "text,label\na,x\nb,x\n", "1 different labels in 2 rows"),
        ("a.csv", "text,label\na,x\nb,y\nc,z\n", "3 different labels in 3 rows"),
        ("a.csv", "text,label\na,x\na,y\n", "too few different texts"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', "cannot be read"),
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
