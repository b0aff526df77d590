"""The door: models and folders in; scores that survive their file, sentences and a page out."""

import pandas as pd
import pytest

import stackbert as sb
from recipe_fields import recipe_of
from stackbert.errors import UserError
from stackbert.evaluation.data import read_tests
from stackbert.evaluation.evaluate import EVALUATION, MEANING, read_evaluation
from stackbert.evaluation.models import find_places

FEW = {"train": 30, "test": 15, "pairs": 2}


@pytest.fixture(scope="module")
def result(make_model, data, tmp_path_factory):
    models = [make_model("first"), make_model("other", num_hidden_layers=1)]
    return sb.evaluate(models, data=data, out=tmp_path_factory.mktemp("out") / "new", **FEW)


def test_every_kind_of_file_is_recognised(data, factbook_corpus):
    tests, notes = read_tests(data, **FEW)
    kinds = {each.name: (each.kind, len(each.train), len(each.items)) for each in tests}
    assert kinds == {
        "blimp": ("pairs", 0, 8),
        "own": ("text", 0, 60),
        "probing length": ("sentences", 30, 15),
        "probing letter": ("sentences", 30, 15),
        "tiny": ("words", 30, 15),
    }
    assert notes == ["glue.tsv is no test that StackBERT knows."]
    (held_out,), _ = read_tests(factbook_corpus.folder, **FEW)
    assert (held_out.kind, held_out.name) == ("text", "corpus")
    assert all(8 <= len(passage.split()) <= 64 for passage in held_out.items)


def test_a_probe_stands_beside_embeddings_random_weights_and_majority(result):
    row = result.scores.query("test == 'tiny' and model == 'first'").iloc[0]
    layers = result.layers.query("test == 'tiny' and model == 'first' and metric == 'accuracy'")
    trained, random = (
        layers[layers["weights"] == name]["score"].tolist() for name in ("trained", "random")
    )
    assert (len(trained), len(random)) == (3, 3)
    assert (row["embeddings"], row["score"], row["random"]) == (trained[0], trained[2], random[2])
    assert row["above embeddings"] == pytest.approx(trained[2] - trained[0])
    assert row["majority"] == pytest.approx(100 * 2 / 5, abs=8)  # DET or NOUN
    assert row["majority of word"] == 100
    assert result.sentences()[0] == MEANING
    said = next(line for line in result.sentences() if line.startswith("tiny, accuracy"))
    assert f"has {row['above embeddings']:+.1f} (±" in said


def test_models_stand_side_by_side(result):
    assert result.models["model"].tolist() == ["first", "other"]
    assert result.models["depth"].tolist() == [2, 1]
    for _, rows in result.scores.groupby(["test", "metric"]):
        assert rows["model"].tolist() == ["first", "other"]
        first, other = rows.to_dict("records")
        assert pd.isna(first["p"])
        assert 0 <= other["p"] <= 1
        assert other["vs. first"] == pytest.approx(other["score"] - first["score"])


def test_a_result_survives_its_file_and_has_a_page(result, data, stackbert, make_model, tmp_path):
    found = stackbert(
        "evaluate", make_model("first"), "--data", data, "--out", tmp_path, "--pairs", 2
    )
    assert found.code == 0, found.err
    assert MEANING in found.out
    again = read_evaluation(tmp_path)
    again.write(tmp_path / EVALUATION)
    pd.testing.assert_frame_equal(read_evaluation(tmp_path).scores, again.scores)
    page = (tmp_path / "report.html").read_text()
    assert "tiny, by layer" in page
    assert "Other scores" in page


def test_a_model_without_a_head_takes_the_probes_alone(make_model, data):
    found = sb.evaluate(make_model("body", head=False), data=data, **FEW)
    assert set(found.scores["test"]) == {"tiny", "probing length", "probing letter"}
    assert "no masked-LM head" in found.notes[-1]


def test_a_run_is_its_checkpoints_and_its_model(finished, data):
    run = finished(
        recipe_of(
            {
                "name": "tiny",
                "model": {
                    "type": "bert",
                    "hidden_size": 16,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                },
                "stages": [{"depth": 1, "steps": 2}, {"depth": 2, "steps": 2}],
                "batch": {"sequences": 4, "sequence_length": 32, "micro_batch": 4},
                "precision": "fp32",
                "compile": False,
            }
        )
    )
    found = sb.evaluate(run, data=data, only=["tiny", "own"], **FEW)
    names = [f"{run.name} step-0000000{step}" for step in (2, 4)] + [run.name]
    assert found.models["model"].tolist() == names
    assert found.models["step"].tolist()[:2] == [2, 4]
    assert found.models["depth"].tolist() == [1, 2, 2]
    last, final = found.scores[found.scores["test"] == "own"]["score"].tolist()[1:3]
    assert last == final


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.tsv", "uid\tgood\n", "holds no test"),
        ("a.train.tsv", "a\tX\nb\tX\nc\tX\n", "a.test.tsv does not exist"),
        ("a.train.tsv", "a\nb\nc\n", "Each line is a word, a tab and its tag"),
        ("a.tsv", "split\tlabel\tsentence\ntrain\t1\tx\n", "too few rows"),
    ],
)
def test_what_is_wrong_with_data_is_said(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        read_tests(tmp_path, **FEW)


def test_users_mistakes_are_sentences(make_model, data, tmp_path):
    model = make_model("first")
    with pytest.raises(UserError, match=r"no test 'tinny' \(did you mean 'tiny'"):
        sb.evaluate(model, data=data, only=["tinny"], **FEW)
    with pytest.raises(UserError, match="Two models are called"):
        find_places([model, model])
    with pytest.raises(UserError, match="does not exist"):
        sb.evaluate(model, data=tmp_path / "nowhere")
