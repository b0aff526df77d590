"""The door: models and folders in; scores that survive their file, sentences and a page out."""

import pandas as pd
import pytest

import stackbert as sb
from stackbert.errors import UserError
from stackbert.evaluation.data import read_tests
from stackbert.evaluation.evaluate import MEANING, read_evaluation
from tiny_runs import tiny_recipe

FEW = {"train": 30, "test": 15, "pairs": 2}


@pytest.fixture(scope="module")
def result(make_model, data):
    models = [make_model("first"), make_model("other", num_hidden_layers=1)]
    return sb.evaluate([*models, make_model("body", head=False)], data=data, **FEW)


def test_every_kind_of_file_is_recognised(data, tests, factbook_corpus):
    kinds = {each.name: (each.kind, len(each.train), len(each.items)) for each in tests.values()}
    assert kinds == {
        "blimp": ("pairs", 0, 8),
        "own": ("text", 0, 60),
        "probing letter": ("sentences", 30, 15),
        "tiny": ("words", 30, 15),
    }
    assert read_tests(data, **FEW)[1] == ["glue.tsv is no test that StackBERT knows."]
    (held_out,), _ = read_tests(factbook_corpus.folder, **FEW)
    assert (held_out.kind, held_out.name) == ("text", "corpus")
    assert all(8 <= len(passage.split()) <= 64 for passage in held_out.items)


def test_a_probe_stands_beside_embeddings_random_weights_and_majority(result):
    row = result.scores.query("test == 'tiny' and model == 'first'").iloc[0]
    layers = result.layers.query("test == 'tiny' and model == 'first'").set_index("weights")
    trained, random = (layers.loc[name, "score"].tolist() for name in ("trained", "random"))
    assert (row["embeddings"], row["score"], row["random"]) == (trained[0], trained[2], random[2])
    assert row["above embeddings"] == pytest.approx(trained[2] - trained[0])
    assert (row["majority"], row["majority of word"]) == (pytest.approx(40), 100)
    meaning, said, *_ = result.sentences()
    assert meaning == MEANING
    assert f"of first has {row['above embeddings']:+.1f} (±" in said


def test_models_stand_side_by_side(result):
    assert result.models["depth"].tolist() == [2, 1, 2]
    for (test, _), rows in result.scores.groupby(["test", "metric"]):
        first, other, *rest = rows.to_dict("records")
        assert (first["model"], other["model"]) == ("first", "other")
        assert pd.isna(first["p"])
        assert 0 <= other["p"] <= 1
        assert other["vs. first"] == pytest.approx(other["score"] - first["score"])
        assert bool(rest) == (test not in ("blimp", "own"))
    assert "body has no masked-LM head" in result.notes[-1]


def test_a_run_is_its_checkpoints_and_has_a_page(finished, data, stackbert, tmp_path):
    stages = [{"depth": 1, "steps": 2}, {"depth": 2, "steps": 2}]
    run = finished(tiny_recipe(stages=stages))
    options = ("--only", "tiny,own", "--train", 30, "--test", 15)
    done = stackbert("evaluate", run, "--data", data, "--out", tmp_path, *options)
    assert done.code == 0, done.err
    assert MEANING in done.out
    found = read_evaluation(tmp_path)
    names = [f"{run.name} step-0000000{step}" for step in (2, 3, 4)] + [run.name]
    assert found.models["model"].tolist() == names
    assert found.models["step"].tolist()[:3] == [2, 3, 4]
    assert found.models["depth"].tolist() == [1, 2, 2, 2]
    _, _, last, final, *_ = found.scores[found.scores["test"] == "own"]["score"]
    assert last == final
    page = (tmp_path / "report.html").read_text()
    assert "tiny, by layer" in page
    assert "Other scores" in page


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.tsv", "uid\tgood\n1\tx\n", "holds no test"),
        ("a.train.tsv", "a\tX\nb\tX\nc\tX\n", "a.test.tsv does not exist"),
        ("a.test.tsv", "a\tX\nb\tX\nc\tX\n", "a.train.tsv does not exist"),
        ("a.train.tsv", "a\nb\nc\n", "Each line is a word, a tab and its tag"),
        ("a.tsv", "split\tlabel\tsentence\ntrain\t1\tx\n", "too few rows"),
    ],
)
def test_what_is_wrong_with_data_is_said(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        read_tests(tmp_path, **FEW)


def test_what_is_wrong_with_the_request_is_said(make_model, data):
    model = make_model("first")
    for models, says in (([model], "did you mean 'tiny'"), ([model, model], "Two models are")):
        with pytest.raises(UserError, match=says):
            sb.evaluate(models, data=data, only=["tinny"])
