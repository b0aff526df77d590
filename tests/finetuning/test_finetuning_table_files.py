"""A user's own tables: what was written is read back, what is malformed is named by line."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.finetuning.table_files import own_task, read_table
from stackbert.finetuning.tasks import Task

TASK = Task("mood", "mood", "classification", ("bad", "good"), False, ("accuracy",))
NUMBER = Task("age", "age", "regression", (), False, ("pearson",))
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(str.strip)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_csv(rows, columns=("text", "other", "label")):
    out = io.StringIO()
    csv.writer(out).writerows([columns, *rows])
    return out.getvalue()


def as_jsonl(rows, columns=("text", "other", "label"), **how):
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    return "".join(json.dumps(record, **how) + "\n" for record in records)


rows_of_any_text = st.lists(st.tuples(ANY, ANY, st.sampled_from(["good", "bad"])), min_size=1)


@given(rows_of_any_text)
def test_any_texts_written_as_csv_or_jsonl_come_back_as_they_were(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("tables")
    files = {
        "a.csv": as_csv(rows),
        "a.jsonl": as_jsonl(rows),
        "b.jsonl": as_jsonl(rows, ensure_ascii=False),
    }
    for name, text in files.items():
        path = write(folder / name, text)
        split = read_table(path, first="text", second="other", label="label", name="dev", task=TASK)
        assert [(one.first, one.second) for one in split.examples] == [row[:2] for row in rows]
        assert [TASK.labels[one.label] for one in split.examples] == [row[2] for row in rows]
        assert [one.key for one in split.examples] == [str(number) for number in range(len(rows))]


def test_tsv_is_read_without_quotes_and_csv_with(tmp_path):
    tsv = write(tmp_path / "a.tsv", 'text\tlabel\n"Bad", he said\tbad\nso "" so\tgood\n')
    split = read_table(tsv, first="text", label="label", name="train", task=TASK)
    assert [one.first for one in split.examples] == ['"Bad", he said', 'so "" so']
    text = '\ufefftext,label\r\n"Bad, ""he""\r\nsaid",bad\r\n\r\nplain,good\r\n'
    split = read_table(
        write(tmp_path / "a.csv", text), first="text", label="label", name="train", task=TASK
    )
    assert [one.first for one in split.examples] == ['Bad, "he"\r\nsaid', "plain"]


def test_a_csv_text_may_be_longer_than_the_librarys_limit_which_stays(tmp_path):
    limit = csv.field_size_limit()
    long = "word " * 60000
    split = read_table(write(tmp_path / "a.csv", as_csv([(long, "x", "bad")])), first="text")
    assert split.examples[0].first == long
    assert csv.field_size_limit() == limit


def test_jsonl_labels_may_be_numbers_and_halves_of_characters_are_replaced(tmp_path):
    lines = '{"text": "a\\ud83d", "label": 1, "id": 7}\n\n{"text": "b", "label": false, "id": 9}\n'
    path = write(tmp_path / "a.jsonl", lines)
    task = Task("t", "t", "classification", ("1", "false"), False, ("accuracy",))
    split = read_table(path, first="text", label="label", key="id", name="dev", task=task)
    assert [(one.key, one.first, one.label) for one in split.examples] == [
        ("7", "a\ufffd", 0),
        ("9", "b", 1),
    ]


def test_labels_of_a_test_table_never_leak(tmp_path):
    path = write(tmp_path / "a.csv", as_csv([("one", "x", "good"), ("two", "y", "nonsense")]))
    split = read_table(path, first="text", label="label", name="test", task=TASK)
    assert [one.label for one in split.examples] == [None, None]
    train = write(tmp_path / "train.csv", as_csv([("a", "", "good"), ("b", "", "bad")]))
    _, splits = own_task(train, train, path, first="text", label="label")
    assert splits["test"].examples == split.examples


MALFORMED = {
    "a cell too few": ("csv", "text,label\na,good\nb\n", 3, "1 columns where the header has 2"),
    "a comma unquoted": ("csv", "text,label\na, b,good\n", 2, "3 columns"),
    "after a line break in a text": ("csv", 'text,label\n"a\n\nb",good\nc,x\n', 5, "label 'x'"),
    "an open quotation": ("csv", 'text,label\na,good\n"b,bad\nc,bad\n', 3, "not valid CSV"),
    "letters after a quotation": ("csv", 'text,label\n"a"b,good\n', 2, "not valid CSV"),
    "a tab too many": ("tsv", "text\tlabel\na\tb\tgood\n", 2, "3 columns where 2"),
    "no JSON": ("jsonl", '{"text": "a", "label": "good"}\n{"text": \n', 2, "not valid JSON"),
    "no object": ("jsonl", '["a", "good"]\n', 1, "a JSON object is needed, this is a list"),
    "a field missing": ("jsonl", '{"text": "a"}\n', 1, "no field 'label'. The fields are: text"),
    "a list for a text": ("jsonl", '{"text": ["a"], "label": "bad"}\n', 1, "'text' is no text"),
    "null for a text": ("jsonl", '{"text": null, "label": "bad"}\n', 1, "'text' is empty"),
    "an unknown label": ("csv", "text,label\na,good\nb,goood\n", 3, "unknown label 'goood'"),
    "no label": ("csv", "text,label\na,\n", 2, "'label' is empty"),
    "no text": ("tsv", "text\tlabel\n \tbad\n", 2, "'text' is empty"),
    "no such column": ("csv", "txt,label\na,bad\n", 1, "no column 'text'"),
    "a column twice": ("csv", "text,text,label\na,b,bad\n", 1, "two columns 'text'"),
    "no UTF-8": ("csv", b"text,label\na,bad\n\xfcber,bad\n", 3, "byte 0xfc at byte 1"),
    "UTF-16": ("tsv", "text\tlabel\na\tbad\n".encode("utf-16-le"), 1, "a zero byte"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, case):
    suffix, text, line, said = MALFORMED[case]
    path = write(tmp_path / f"dev.{suffix}", text)
    with pytest.raises(UserError) as caught:
        read_table(path, first="text", label="label", name="dev", task=TASK)
    assert f"{path}, line {line}:" in str(caught.value)
    assert said in str(caught.value)


def test_numbers_to_predict_must_be_numbers(tmp_path):
    good = write(tmp_path / "a.csv", "text,age\na, -1.5e1 \nb,.5\n")
    split = read_table(good, first="text", label="age", name="dev", task=NUMBER)
    assert [one.label for one in split.examples] == [-15.0, 0.5]
    for wrong in ("inf", "1,5", "1e999", "١"):
        path = write(tmp_path / "b.csv", f'text,age\na,1\nb,"{wrong}"\n')
        with pytest.raises(UserError, match=rf"b\.csv, line 3: '{wrong}' in the column 'age'"):
            read_table(path, first="text", label="age", name="dev", task=NUMBER)


def test_an_unknown_suffix_a_missing_file_and_an_empty_one_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.xlsx is of an unknown kind"):
        read_table(tmp_path / "a.xlsx", first="text")
    with pytest.raises(UserError, match=r"missing while reading .*a\.csv"):
        read_table(tmp_path / "a.csv", first="text")
    for suffix, text in (("csv", "text\n"), ("tsv", "text\n"), ("jsonl", "")):
        with pytest.raises(UserError, match=r"holds no examples"):
            read_table(write(tmp_path / f"a.{suffix}", text), first="text")
    with pytest.raises(UserError, match=r"two rows have the index 'x'"):
        read_table(write(tmp_path / "k.csv", "text,k\na,x\nb,x\n"), first="text", key="k")


def test_classes_are_the_training_files_labels_sorted(tmp_path):
    train = write(
        tmp_path / "reviews.csv", as_csv([(f"t{n}", "x", f" {n % 11}") for n in range(99)])
    )
    task, splits = own_task(train, train, first="text", second="other", label="label")
    assert task == Task(
        "reviews",
        "reviews",
        "classification",
        tuple(str(number) for number in range(11)),
        True,
        ("accuracy", "f1_macro"),
    )
    assert [one.label for one in splits["train"].examples] == [n % 11 for n in range(99)]
    (note,) = splits["train"].notes
    assert "'label' is taken for 11 classes" in note
    folder = tmp_path / "mood"
    folder.mkdir()
    named = write(folder / "train.csv", "text,label\na,good\nb,bad\nc,good\n")
    task, _ = own_task(named, named, first="text", label="label", kind="classification")
    assert (task.name, task.labels) == ("mood", ("bad", "good"))


def test_auto_takes_fractions_and_many_numbers_for_a_regression(tmp_path):
    def kind(labels, **given):
        path = write(
            tmp_path / "a.csv", as_csv([(f"t{n}", "x", one) for n, one in enumerate(labels)])
        )
        task, splits = own_task(path, first="text", label="label", **given)
        return task.kind, {type(one.label) for split in splits.values() for one in split.examples}

    assert kind([1, 2, 3, 4, 5] * 3) == ("classification", {int})
    assert kind(["1.0", "0.0"] * 3) == ("classification", {int})
    assert kind([0.5, 1, 1, 2]) == ("regression", {float})
    assert kind(range(21)) == ("regression", {float})
    assert kind([*range(21), "old"] * 2) == ("classification", {int})
    assert kind([1, 2, 3, 4, 5] * 3, kind="regression") == ("regression", {float})
    assert kind([*range(21)] * 2, kind="classification") == ("classification", {int})
    with pytest.raises(UserError, match=r"line 3: 'old' in the column 'label' is no number"):
        kind([1.5, "old"], kind="regression")


def test_equal_texts_alone_cannot_be_cut_into_two_sides(tmp_path):
    path = write(tmp_path / "a.csv", as_csv([("a", "x", "good"), ("a", "x", "bad")]))
    with pytest.raises(UserError, match=r"a\.csv has too few different texts"):
        own_task(path, first="text", label="label")


def test_labels_that_are_no_classes_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", as_csv([("a", "x", "good"), ("b", "x", "good")]))
    with pytest.raises(UserError, match="every row has the label 'good'"):
        own_task(path, first="text", label="label")
    path = write(tmp_path / "b.csv", as_csv([(f"t{n}", "x", "good") for n in range(9)]))
    with pytest.raises(UserError, match="a different label in each row"):
        own_task(path, first="other", label="text")


def test_a_dev_label_that_training_does_not_have_is_named_by_line(tmp_path):
    train = write(tmp_path / "a.csv", "text,label\na,good\nb,bad\nc,bad\n")
    dev = write(tmp_path / "b.csv", "text,label\nd,bad\ne,fair\n")
    with pytest.raises(UserError, match=r"b\.csv, line 3: unknown label 'fair'.*'bad', 'good'"):
        own_task(train, dev, first="text", label="label")


# Two texts that are there in any case: a tenth is then never everything.
texts = st.lists(st.sampled_from([f"text {n}" for n in range(40)]), max_size=60).map(
    lambda drawn: [*drawn, "one more"] + ["and another"] * (1 + len(drawn) // 4)
)


@given(texts, st.randoms())
def test_the_dev_split_is_a_tenth_by_text_whatever_the_order(tmp_path_factory, drawn, random):
    folder = tmp_path_factory.mktemp("cut")
    labels = ["good", "bad"]

    def cut(texts):
        rows = [(text, "x", labels[place % 2]) for place, text in enumerate(texts)]
        path = write(folder / "a.csv", as_csv(rows))
        return own_task(path, first="text", label="label")[1]

    splits = cut(drawn)
    shuffled = list(drawn)
    random.shuffle(shuffled)
    again = cut(shuffled)
    train, dev = splits["train"].examples, splits["dev"].examples
    assert sorted(int(one.key) for one in (*train, *dev)) == list(range(len(drawn)))
    assert not {one.first for one in train} & {one.first for one in dev}
    assert len(dev) >= len(drawn) / 10
    most = max(drawn.count(text) for text in drawn)
    assert len(dev) < len(drawn) / 10 + most
    assert {one.first for one in again["dev"].examples} == {one.first for one in dev}
    (note,) = splits["dev"].notes
    assert f"{len(dev):,} of the {len(drawn):,} rows" in note
