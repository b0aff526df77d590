"""Models and folders in, scores, sentences and a page out; each figure equals a plain loop's."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

import stackbert as sb
from stackbert.errors import UserError
from stackbert.evaluation import masked, probes
from stackbert.evaluation.data import Pair, read_tests
from stackbert.evaluation.evaluate import MEANING, read_evaluation
from stackbert.intervals import Score, difference
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


def vectors_by_hand(subject, examples, kind):
    by_layer, labels = [], []
    for example in examples:
        encoded = subject.tokenizer(" ".join(example.words), return_offsets_mapping=True)
        with torch.no_grad():
            output = subject.model.base_model(
                input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True
            )
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        start, begins = 0, [begin for begin, _ in encoded["offset_mapping"][1:]]
        for word, label in zip(example.words, example.labels, strict=True):
            column = begins.index(start) + 1
            chosen = [x[0].mean(0) if kind == "sentences" else x[0, column] for x in layers]
            by_layer.append(torch.stack(chosen))
            labels.append(label)
            start += len(word) + 1
    return torch.stack(by_layer, 1).numpy(), labels


@pytest.mark.parametrize("name", ["tiny", "probing letter"])
def test_a_probe_is_logistic_regression_on_each_layer(subject, tests, name):
    test = tests[name]
    train, labels = vectors_by_hand(subject, test.train, test.kind)
    asked, truth = vectors_by_hand(subject, test.items, test.kind)
    answers = probes.answers(subject, test)
    assert len(answers) == len(train) == 3
    for layer, found in enumerate(answers):
        mean, spread = train[layer].mean(0), train[layer].std(0, ddof=1) + 1e-5
        plain = LogisticRegression(C=1 / probes.PENALTY, max_iter=5000, tol=1e-8)
        plain.fit((train[layer] - mean) / spread, labels)
        guessed = plain.predict((asked[layer] - mean) / spread)
        assert [label for each in found for label in each] == guessed.tolist()
        accuracy = probes.score(test, found)["accuracy"].value
        assert accuracy == pytest.approx(100 * np.mean(guessed == truth))


def test_pseudo_log_likelihoods_of_20_pairs(subject):
    nouns = ("river", "mountain", "population", "industry", "parliament", "coast", "law")
    nouns += ("island", "harbour")
    pairs = [("The same governments.", "the SAME governments .")]
    pairs += [("The economies depended on it.", "The economies depending on it.")]
    pairs += [(f"The {noun} has changed.", f"The {noun} have changed.") for noun in nouns]
    pairs += [(f"Many {noun}s exist.", f"Many {noun} exist.") for noun in nouns]
    hits, several = [], 0
    for pair in pairs:
        sums = []
        for text in pair:
            encoded = subject.tokenizer(text)
            ids, words, total = encoded["input_ids"], encoded.word_ids(), 0.0
            for place, word in enumerate(words):
                if word is None:
                    continue
                hidden = [p for p in range(place, len(ids)) if words[p] == word]
                several += len(hidden) > 1
                row = torch.tensor([ids])
                row[0, hidden] = subject.tokenizer.mask_token_id
                with torch.no_grad():
                    logits = subject.model(input_ids=row).logits[0, place]
                total += logits.log_softmax(-1)[ids[place]].item()
            sums.append(total)
        assert masked.log_likelihoods(subject, pair) == pytest.approx(sums, rel=1e-5)
        hits.append(float(sums[0] > sums[1]))
    hits[0] = 0.5  # of the same tokens
    assert (len(pairs), several > 20) == (20, True)  # words of several pieces are among them
    asked = [Pair("one" if n < 5 else "two", "islands", *pair) for n, pair in enumerate(pairs)]
    mean = 100 * (np.mean(hits[:5]) + np.mean(hits[5:])) / 2  # of paradigms
    assert masked.pair_scores(subject, asked)["all paradigms"].value == pytest.approx(mean)


def test_held_out_loss_by_token_and_by_byte(subject, tests):
    nats = tokens = whole = read = 0.0
    for index, passage in enumerate(tests["own"].items):
        encoded = subject.tokenizer(passage, truncation=True, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        count = ids.shape[1] - 2
        hidden = random.Random(index).sample(range(1, count + 1), round(0.15 * count))
        row = ids.clone()
        row[0, hidden] = subject.tokenizer.mask_token_id
        with torch.no_grad():
            logs = subject.model(input_ids=row).logits[0].log_softmax(-1)
        lost = -sum(logs[place, ids[0, place]].item() for place in hidden)
        nats, tokens = nats + lost, tokens + len(hidden)
        whole += lost / len(hidden) * count
        read += len(passage[: encoded["offset_mapping"][-2][1]].encode())
    scores = masked.text_losses(subject, tests["own"].items)
    assert scores["nats per token"].value == pytest.approx(nats / tokens, rel=1e-5)
    assert scores["nats per byte"].value == pytest.approx(whole / read, rel=1e-5)


def test_a_byte_level_tokenizer_gives_the_first_piece_of_each_word():
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(["the river crosses the harbour"], vocab_size=270)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer)
    words = ("the", "harbour", "crosses", "naïve", "the")
    encoded = tokenizer(" ".join(words), return_offsets_mapping=True)
    first = probes._first_pieces(words, encoded["offset_mapping"])
    tokens = tokenizer.convert_ids_to_tokens([encoded["input_ids"][at] for at in first.values()])
    assert list(first) == [0, 1, 2, 3, 4]
    assert [token.lstrip("Ġ")[:1] for token in tokens] == ["t", "h", "c", "n", "t"]


def test_entities_of_each_scheme():
    for tags, spans in (
        ("O I-PER I-PER O I-ORG", {(1, 3, "PER"), (4, 5, "ORG")}),
        ("B-PER I-PER B-PER I-LOC", {(0, 2, "PER"), (2, 3, "PER"), (3, 4, "LOC")}),
        ("S-PER S-PER B-LOC E-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 4, "LOC")}),
    ):
        assert probes.entities(tags.split()) == spans


def test_errors_and_paired_tests_are_those_of_a_bootstrap_over_items():
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 40, 400)
    hits = [rng.binomial(sizes, rate).astype(float) for rate in (0.8, 0.7)]
    one, other = (Score(each, sizes.astype(float)) for each in hits)
    draws = rng.integers(0, 400, (4000, 400))
    again = [each[draws].sum(1) / sizes[draws].sum(1) for each in hits]
    assert one.row()["±"] == pytest.approx(again[0].std(), rel=0.05)
    change, error, p = difference(one, other)
    assert (change, p < 1e-9) == (one.value - other.value, True)
    assert error == pytest.approx((again[0] - again[1]).std(), rel=0.05)
    assert difference(one, one) == (0, 0, 1)
