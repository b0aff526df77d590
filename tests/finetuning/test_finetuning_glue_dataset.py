"""GLUE from the library `datasets`: the same splits as from the official files."""

import datasets
import pytest
from finetuning_files import CLASSES

from stackbert.errors import UserError
from stackbert.finetuning.glue_dataset import from_dataset
from stackbert.finetuning.glue_files import read_glue
from stackbert.finetuning.tasks import GLUE

# The names of columns and splits on the hub.
COLUMNS = {
    "cola": ("sentence",),
    "sst-2": ("sentence",),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "ax": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
}
NAMES = {"cola": ("unacceptable", "acceptable"), "wnli": ("not_entailment", "entailment")}
MATCHED = {"dev": "validation_matched", "test": "test_matched"}


def columns_of(task):
    return COLUMNS.get(task, ("sentence1", "sentence2"))


def hub_like(task, splits):
    """The data set as the hub has it: classes as numbers, -1 where the label is unknown."""
    names = NAMES.get(task, CLASSES.get("mnli" if task == "ax" else task, ("no", "yes")))
    label = datasets.Value("float32") if task == "sts-b" else datasets.ClassLabel(names=names)
    features = {column: datasets.Value("string") for column in columns_of(task)}
    features |= {"label": label, "idx": datasets.Value("int32")}
    made = {}
    for name, split in splits.items():
        rows = [
            dict(zip(columns_of(task), (one.first, one.second), strict=False))
            | {"label": -1 if one.label is None else one.label, "idx": int(one.key)}
            for one in split.examples
        ]
        on_hub = (MATCHED if task == "mnli" else {"dev": "validation"}).get(
            name, name.replace("dev_", "validation_")
        )
        made[on_hub] = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    return datasets.DatasetDict(made)


@pytest.mark.parametrize("task", GLUE)
def test_a_saved_data_set_gives_what_the_official_files_give(glue_folder, tmp_path, task):
    official = read_glue(GLUE[task], glue_folder)
    hub_like(task, official).save_to_disk(tmp_path / task)
    found = from_dataset(GLUE[task], str(tmp_path / task))
    assert list(found) == list(official)
    for name, split in found.items():
        assert split.name == name
        assert split.source.startswith(str(tmp_path / task))
        assert split.examples == official[name].examples


def saved(path, splits):
    made = {
        name: datasets.Dataset.from_dict(columns, features=features)
        for name, (columns, features) in splits.items()
    }
    datasets.DatasetDict(made).save_to_disk(path)
    return str(path)


def rte(labels, label=None, first=("a", "b"), **more):
    columns = {"sentence1": list(first), "sentence2": ["c", "d"], "label": labels, **more}
    if label is None:
        return columns, None
    text = datasets.Value("string")
    return columns, datasets.Features({"sentence1": text, "sentence2": text, "label": label})


def test_classes_go_by_their_names_where_the_data_set_has_the_tasks(tmp_path):
    turned = datasets.ClassLabel(names=["not_entailment", "entailment"])
    path = saved(tmp_path / "a", {"validation": rte([0, 1], turned)})
    assert [one.label for one in from_dataset(GLUE["rte"], path)["dev"].examples] == [1, 0]
    path = saved(tmp_path / "b", {"train": rte(["not_entailment", "entailment"])})
    assert [one.label for one in from_dataset(GLUE["rte"], path)["train"].examples] == [1, 0]


def test_labels_of_a_test_split_never_leak(tmp_path):
    path = saved(tmp_path / "a", {"test": rte([0, 1])})
    assert [one.label for one in from_dataset(GLUE["rte"], path)["test"].examples] == [None, None]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rte([0, 2]), r"\(train\), row 1: unknown label 2\. The classes of RTE are: entailment"),
        (rte([-1, 0]), r"\(train\), row 0: unknown label -1"),
        (rte([None, 0]), r"\(train\), row 0: unknown label None"),
        (rte(["entailment", "other"]), r"\(train\), row 1: unknown label 'other'"),
        (rte([0, 1], first=("a", " ")), r"\(train\), row 1: the column 'sentence1' is empty"),
        (rte([0, 1], first=("a", None)), r"\(train\), row 1: the column 'sentence1' is empty"),
        (rte([0, 1], first=(1, 2)), r"\(train\), row 0: the column 'sentence1' is no text but int"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        from_dataset(GLUE["rte"], saved(tmp_path / "a", {"train": rows}))


def test_a_similarity_out_of_bounds_is_named(tmp_path):
    path = saved(tmp_path / "a", {"train": rte([5.0, 5.5])})
    with pytest.raises(UserError, match=r"row 1: the label 5\.5 is no number from 0 to 5"):
        from_dataset(GLUE["sts-b"], path)


def test_missing_columns_splits_and_folders_are_named(tmp_path):
    path = saved(tmp_path / "a", {"train": rte([0, 1])})
    with pytest.raises(UserError, match=r"\(train\): no column question, sentence, which QNLI"):
        from_dataset(GLUE["qnli"], path)
    with pytest.raises(UserError, match="no split of AX, only train"):
        from_dataset(GLUE["ax"], path)
    alone = tmp_path / "alone"
    datasets.Dataset.from_dict(rte([0, 1])[0]).save_to_disk(alone)
    with pytest.raises(UserError, match="is no data set with splits"):
        from_dataset(GLUE["rte"], str(alone))
