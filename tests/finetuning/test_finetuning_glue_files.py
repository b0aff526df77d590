"""GLUE's official files: read as they are, refused by line where they are wrong, labels kept in."""

import shutil

import pytest
from finetuning_files import (
    CLASSES,
    FOLDERS,
    LABELS,
    glue_file,
    header,
    label_of,
    made_row,
    text_of,
    write_glue,
    write_microsoft_mrpc,
)
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.finetuning.glue_files import available, missing, read_glue
from stackbert.finetuning.tasks import GLUE

WITH_TRAIN = [name for name in GLUE if name != "ax"]


@pytest.fixture
def glue(glue_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(glue_folder, tmp_path / "glue")


def lines_of(path):
    return path.read_bytes().split(b"\n")


def damage(path, line, change):
    """Change a line (numbered from 1) of a file, as bytes."""
    lines = lines_of(path)
    lines[line - 1] = change(lines[line - 1])
    path.write_bytes(b"\n".join(lines))


def cell(number, value):
    """A change of one cell of a line."""

    def change(line):
        cells = line.split(b"\t")
        cells[number] = value
        return b"\t".join(cells)

    return change


@pytest.mark.parametrize("task", WITH_TRAIN)
def test_every_row_of_every_split_is_read_as_it_stands_in_the_file(glue_folder, task):
    splits = read_glue(GLUE[task], glue_folder)
    both = ("dev", "dev_mismatched"), ("test", "test_mismatched")
    assert list(splits) == ["train", *(s for pair in both for s in pair[: 1 + (task == "mnli")])]
    classes = CLASSES.get(task, ("0", "1"))
    for name, split in splits.items():
        assert split.name == name
        assert split.source == str(glue_file(glue_folder, task, name))
        assert split.notes == ()
        assert len(split.examples) == 12
        for row, example in enumerate(split.examples):
            assert example.key == str(row)
            assert example.first == text_of(task, row, 0)
            assert example.second == (text_of(task, row, 1) if GLUE[task].paired else None)
            label = label_of(task, row)
            known = float(label) if task == "sts-b" else classes.index(label)
            assert example.label == (None if name.startswith("test") else known)


def test_the_diagnostic_set_is_a_test_split_alone(glue_folder):
    splits = read_glue(GLUE["ax"], glue_folder)
    assert list(splits) == ["test"]
    assert len(splits["test"].examples) == 12
    assert all(example.label is None for example in splits["test"].examples)


@pytest.mark.parametrize("task", GLUE)
def test_labels_of_a_test_file_never_leak(glue_folder, tmp_path, task):
    """A test file with its labels in, or with anything in their place, reads like one without."""
    expected = read_glue(GLUE[task], glue_folder)["test"].examples
    for number, value in enumerate([lambda row: label_of(task, row), lambda _: "no class at all"]):
        folder = write_glue(tmp_path / str(number))
        path = glue_file(folder, task, "test")
        column = LABELS.get(task, "label")
        rows = [[value(row), *made_row(task, "test", row)] for row in range(12)]
        cells = [[column, *header(task, "test")], *rows]
        path.write_text("\n".join("\t".join(row) for row in cells) + "\n", "utf-8")
        assert read_glue(GLUE[task], folder)["test"].examples == expected


@pytest.mark.parametrize("task", GLUE)
def test_a_folder_may_hold_the_tasks_or_be_one_in_any_case(glue_folder, tmp_path, task):
    expected = [split.examples for split in read_glue(GLUE[task], glue_folder).values()]
    for name in (FOLDERS[task].lower(), FOLDERS[task].upper(), "elsewhere"):
        own = tmp_path / name / name
        shutil.copytree(glue_folder / FOLDERS[task], own)
        within = own if name == "elsewhere" else own.parent
        assert [s.examples for s in read_glue(GLUE[task], within).values()] == expected
        assert [s.examples for s in read_glue(GLUE[task], own).values()] == expected


def test_columns_go_by_their_names_not_their_order(glue):
    path = glue_file(glue, "mnli", "dev")
    cells = [line.split(b"\t") for line in lines_of(path)]
    before = read_glue(GLUE["mnli"], glue)["dev"].examples
    path.write_bytes(b"\n".join(b"\t".join(reversed(row)) for row in cells))
    assert read_glue(GLUE["mnli"], glue)["dev"].examples == before


def test_carriage_returns_and_empty_lines_at_the_end_are_no_part_of_the_data(glue):
    before = read_glue(GLUE["rte"], glue)["train"].examples
    path = glue_file(glue, "rte", "train")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    assert read_glue(GLUE["rte"], glue)["train"].examples == before


@given(st.lists(st.text().filter(lambda text: text.strip() and not set(text) & set("\t\n\0"))))
def test_any_text_without_tabs_and_line_feeds_comes_back_as_it_was(tmp_path_factory, texts):
    texts.append('a lone "')
    folder = tmp_path_factory.mktemp("texts")
    rows = "".join(f"{text}\t{row % 2}\n" for row, text in enumerate(texts))
    (folder / "train.tsv").write_bytes(f"sentence\tlabel\n{rows}".encode())
    read = read_glue(GLUE["sst-2"], folder)["train"].examples
    assert [example.first for example in read] == texts
    assert [example.label for example in read] == [row % 2 for row in range(len(texts))]


MALFORMED = {
    "a cell too few": ("rte", "train", 4, lambda line: line.rpartition(b"\t")[0], "3 columns"),
    "a cell too many": ("rte", "dev", 4, lambda line: line + b"\tx", "5 columns where 4"),
    "an empty line between": ("cola", "train", 2, lambda _: b"", "1 columns where 4"),
    "an unknown class": ("rte", "train", 3, cell(3, b"maybe"), "unknown label 'maybe'"),
    "an empty class": ("cola", "dev", 3, cell(1, b""), "unknown label ''"),
    "a class of another task": ("mnli", "dev", 3, cell(-1, b"-"), "entailment', 'neutral'"),
    "a class with a space": ("sst-2", "train", 3, cell(1, b"1 "), "unknown label '1 '"),
    "no first text": ("mrpc", "train", 5, cell(3, b""), "'#1 String' is empty"),
    "a blank second text": ("qnli", "test", 5, cell(2, b" \xc2\xa0"), "'sentence' is empty"),
    "no text in a test file": ("cola", "test", 2, cell(1, b""), "'sentence' is empty"),
    "no number": ("sts-b", "train", 2, cell(9, b"high"), "'high' in the column 'score'"),
    "not a number": ("sts-b", "dev", 2, cell(9, b"nan"), "'nan' in the column 'score' is no num"),
    "Python's number": ("sts-b", "dev", 2, cell(9, b"1_0"), "'1_0' in the column 'score'"),
    "too great a number": ("sts-b", "dev", 13, cell(9, b"5.1"), "is not between 0 and 5"),
    "a byte that is no text": ("wnli", "dev", 6, cell(1, b"a\xff"), "not UTF-8 text (byte 0xff"),
    "a zero byte": ("wnli", "train", 6, cell(1, b"a\0b"), "a zero byte"),
    "an empty index": ("rte", "test", 3, cell(0, b""), "'index' is empty"),
    "a torn row in QQP's dev file": ("qqp", "dev", 3, lambda _: b"torn\t0", "2 columns where 6"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_is_named_by_file_and_line(glue, case):
    task, split, line, change, said = MALFORMED[case]
    path = glue_file(glue, task, split)
    damage(path, line, change)
    with pytest.raises(UserError) as caught:
        read_glue(GLUE[task], glue)
    assert f"{path}, line {line}:" in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_ends_early_is_refused(glue):
    path = glue_file(glue, "qqp", "test")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"test\.tsv, line 13: 2 columns where 3"):
        read_glue(GLUE["qqp"], glue)


def test_two_rows_with_one_index_are_refused_where_predictions_go_by_it(glue):
    damage(glue_file(glue, "wnli", "test"), 5, cell(0, b"2"))
    with pytest.raises(UserError, match=r"test\.tsv: two rows have the index '2'"):
        read_glue(GLUE["wnli"], glue)


def test_a_missing_column_and_an_empty_file_are_named(glue):
    damage(glue_file(glue, "rte", "dev"), 1, cell(1, b"premise"))
    with pytest.raises(UserError, match=r"dev\.tsv, line 1: the header has no column 'sentence1'"):
        read_glue(GLUE["rte"], glue)
    damage(glue_file(glue, "rte", "dev"), 1, cell(1, b"sentence2"))
    with pytest.raises(UserError, match="no column 'sentence1'"):
        read_glue(GLUE["rte"], glue)
    glue_file(glue, "rte", "dev").write_bytes(b"index\tsentence1\tsentence2\tlabel\n")
    with pytest.raises(UserError, match=r"dev\.tsv holds no examples"):
        read_glue(GLUE["rte"], glue)
    glue_file(glue, "rte", "dev").write_bytes(b"")
    with pytest.raises(UserError, match=r"dev\.tsv has no header"):
        read_glue(GLUE["rte"], glue)


def test_the_file_of_another_task_is_not_taken(glue):
    with pytest.raises(UserError, match=r"train\.tsv, line 1: unknown label 'sentence1'"):
        read_glue(GLUE["cola"], glue / "RTE")
    with pytest.raises(UserError, match="no column 'gold_label'"):
        read_glue(GLUE["mnli"], glue / "RTE")


def write_qqp(folder, rows, torn):
    """QQP's training file, some questions of which hold a line break."""
    folder.mkdir()
    lines = [header("qqp", "train"), *(made_row("qqp", "train", row) for row in range(rows))]
    for row in range(torn):
        lines[3 + 2 * row][3:] = ["a question\n", "\twith a break", "0"]
    lines[1][4] = ""
    text = "\n".join("\t".join(cells) for cells in lines) + "\n"
    (folder / "train.tsv").write_bytes(text.encode())
    return folder


def test_the_torn_rows_of_qqp_are_left_out_and_said_but_not_more_than_it_has(tmp_path):
    split = read_glue(GLUE["qqp"], write_qqp(tmp_path / "few", 6000, 2))["train"]
    assert len(split.examples) == 6000 - 3
    assert split.examples[0].key == "1"
    (note,) = split.notes
    assert "5 of 6,002 rows are damaged" in note
    assert "train.tsv, line 2: the column 'question2' is empty" in note
    with pytest.raises(UserError, match=r"train\.tsv, line 2: the column 'question2' is empty"):
        read_glue(GLUE["qqp"], write_qqp(tmp_path / "many", 2000, 2))


def test_microsofts_own_files_of_mrpc_give_what_glues_give(tmp_path):
    folder = write_microsoft_mrpc(tmp_path / "MRPC")
    splits = read_glue(GLUE["mrpc"], tmp_path)
    rows = {"train": [r for r in range(12) if r % 4], "dev": [0, 4, 8], "test": range(12)}
    assert list(splits) == list(rows)
    for name, split in splits.items():
        texts = [(text_of("mrpc", row, 0), text_of("mrpc", row, 1)) for row in rows[name]]
        assert [(example.first, example.second) for example in split.examples] == texts
        labels = [None if name == "test" else row % 2 for row in rows[name]]
        assert [example.label for example in split.examples] == labels
        assert [example.key for example in split.examples] == [str(n) for n in range(len(texts))]
    assert "mrpc" in available(tmp_path)
    (folder / "dev_ids.tsv").unlink()
    with pytest.raises(UserError, match=r"not .*dev_ids\.tsv"):
        read_glue(GLUE["mrpc"], tmp_path)


def test_available_and_missing_part_the_tasks_by_what_can_be_trained(glue):
    assert available(glue) == {name: glue / FOLDERS[name] for name in GLUE}
    assert missing(glue) == {}
    shutil.rmtree(glue / "MNLI")
    (glue / "QNLI" / "train.tsv").unlink()
    assert list(available(glue)) == [name for name in GLUE if name not in ("mnli", "qnli")]
    assert missing(glue) == {
        "mnli": "no folder MNLI",
        "qnli": f"no train.tsv in {glue / 'QNLI'}",
    }
    assert available(glue / "RTE") == {"rte": glue / "RTE"}


def test_a_folder_without_the_task_and_no_folder_at_all_are_named(tmp_path):
    with pytest.raises(UserError, match=r"neither a folder CoLA nor the files of CoLA \(train"):
        read_glue(GLUE["cola"], tmp_path)
    with pytest.raises(UserError, match="is missing while looking for GLUE's data"):
        read_glue(GLUE["cola"], tmp_path / "nowhere")
    with pytest.raises(UserError, match="is missing while looking for GLUE's data"):
        available(tmp_path / "nowhere")
