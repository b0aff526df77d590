"""The control: the same model without any pre-training, beside those that had some."""

import json
from dataclasses import replace

import pytest
import torch
from finetuning_helpers import BRIEF, FAST, Heard, build, quick_collection, save
from safetensors.torch import load_file
from test_finetuning_results import contender, study

import stackbert as sb
from stackbert.finetuning.folder import read_record, write_record
from stackbert.finetuning.heads import find_source, open_model, untrained
from stackbert.finetuning.results import FinetuneResults, Run
from stackbert.finetuning.runs import read_predictions, result_path
from stackbert.finetuning.tables import as_text, main_table
from stackbert.finetuning.verdict import statements
from stackbert.finetuning.work import Head
from tiny_encoders import KINDS

quick = pytest.fixture(scope="module", autouse=True)(quick_collection)
CLASSES = Head("classes", ("no", "yes"))


def weights(source, seed=0):
    return open_model(source, CLASSES, seed=seed, dropout=None).model.state_dict()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_control_has_the_models_shape_and_none_of_its_weights(kind, tmp_path):
    source = find_source(save(tmp_path / kind, build(kind)))
    before = torch.get_rng_state()
    theirs, ours = weights(source), weights(untrained(source, "untrained"))
    assert torch.equal(torch.get_rng_state(), before)
    assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in theirs.items()}
    stored = load_file(tmp_path / kind / "model.safetensors")
    # Not biases, norms and RoBERTa's one token type, which begin alike in every model.
    drawn = [n for n, w in ours.items() if n in stored and w.dim() == 2 and w.unique().numel() > 1]
    assert len(drawn) >= 10
    assert not any(torch.equal(ours[n], stored[n]) for n in drawn)


def test_a_controls_weights_follow_from_seed_and_draw_alone(tmp_path):
    one, two = (find_source(save(tmp_path / n, build(seed=s))) for n, s in (("a", 1), ("b", 2)))
    first = untrained(one, "untrained")
    assert first.fingerprint == untrained(two, "untrained").fingerprint
    assert first.fingerprint not in (one.fingerprint, untrained(one, "untrained", 1).fingerprint)
    drawn = weights(first)
    same = weights(untrained(two, "untrained"))
    assert all(torch.equal(drawn[n], same[n]) for n in drawn)
    name = "bert.embeddings.word_embeddings.weight"
    others = [weights(first, seed=1), weights(untrained(one, "untrained", 1))]
    assert not any(torch.equal(drawn[name], other[name]) for other in others)
    assert not torch.equal(others[0][name], others[1][name])


def test_a_control_is_run_kept_and_shown_as_a_model_is(models, glue, tmp_path):
    call = {"task": "sst-2", "data": glue, "settings": [*FAST, "max_steps=2"], "seeds": 2}
    heard = Heard()
    results = sb.finetune(models[:2], out=tmp_path / "a", control=True, reporter=heard, **call)
    assert "6 runs to make, 0 there already" in heard.said
    names = [run.member.name for run in results.runs]
    assert names == ["one", "one", "two", "two", "untrained", "untrained"]
    assert [row[2] for row in main_table(results).rows] == ["one", "two", "untrained"]
    assert sb.read_finetune(tmp_path / "a") == results
    # Of two models of one shape the control is the same, run by run.
    (tmp_path / "b").mkdir()
    other = sb.finetune(models[2], out=tmp_path / "b" / "out", control=True, **call)
    ours, theirs = (
        read_predictions(result_path(r.folder, "sst-2", r.control.members[0], 1))
        for r in (results, other)
    )
    assert ours == theirs


def test_a_control_can_be_added_and_stays(models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF, "seeds": 1}
    sb.finetune(models[0], **call)
    heard = Heard()
    added = sb.finetune(models[0], control=True, reporter=heard, **call)
    assert "1 run to make, 1 there already" in heard.said
    later = sb.finetune(models[1], **call)
    assert [c.name for c in later.contenders] == ["one", "two", "untrained"]
    assert later.control == added.control
    with pytest.raises(sb.UserError, match="another model by the name 'untrained'"):
        sb.finetune(groups={"both": models[1:]}, control=True, **call)


def test_a_control_goes_on_where_its_model_was_moved(glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "settings": BRIEF}
    here = save(tmp_path / "here" / "one", build())
    sb.finetune(here, control=True, seeds=1, **call)
    (tmp_path / "here").rename(tmp_path / "there")
    results = sb.finetune(tmp_path / "there" / "one", control=True, seeds=2, **call)
    assert [(r.member.name, r.seed) for r in results.runs][2:] == [
        ("untrained", 0),
        ("untrained", 1),
    ]


def test_a_group_has_a_control_of_as_many_draws(models, glue, tmp_path):
    call = {"task": "sst-2", "data": glue, "settings": [*FAST, "max_steps=2"], "seeds": 1}
    results = sb.finetune(groups={"both": models[:2]}, out=tmp_path, control=True, **call)
    assert [m.name for m in results.control.members] == ["untrained 0", "untrained 1"]
    paths = [result_path(tmp_path, "sst-2", m, 0) for m in results.control.members]
    first, second = (json.loads(path.read_text())["losses"] for path in paths)
    assert first != second


def test_a_control_of_checkpoints_or_beside_its_namesake_is_refused(models, glue, tmp_path):
    call = {"task": "rte", "data": glue, "out": tmp_path / "out", "control": True}
    with pytest.raises(sb.UserError, match="Give it another name"):
        sb.finetune(save(tmp_path / "untrained", build()), **call)
    with pytest.raises(sb.UserError, match="not a run directory"):
        sb.finetune(along=[models[0]], **call)


def controlled(folder, scores):
    """A made study whose contender "untrained" is the control."""
    made = study(folder, scores)
    record = made.record
    *models, control = record.contenders
    write_record(folder, replace(record, contenders=tuple(models), control=control))
    return sb.read_finetune(folder)


def test_what_is_not_above_the_control_shows_nothing_of_pretraining(tmp_path):
    scores = {
        "mrpc": {
            "a": [0.86, 0.88, 0.87],
            "b": [0.90, 0.90, 0.92],
            "untrained": [0.87, 0.86, 0.88],
        },
        "mnli": {
            "a": [0.60, 0.61, 0.62],
            "b": [0.60, 0.61, 0.62],
            "untrained": [0.60, 0.62, 0.61],
        },
    }
    results = controlled(tmp_path, scores)
    said = statements(results)
    assert results.control.name == "untrained"
    assert (
        "b beside untrained, a model of this shape with random weights: better on MRPC "
        "(+3.7; +2.2 to +5.1), no different beyond noise on MNLI (0.0; −2.5 to +2.5), "
        "no different beyond noise on MNLI mismatched (0.0; −2.5 to +2.5)."
    ) in said
    (silent,) = [line for line in said if "nothing of pre-training" in line]
    assert silent.startswith("MNLI and MNLI mismatched show nothing of pre-training: with these")
    # The control is no contender: nobody asks whether it beats the first.
    assert not any(line.startswith("untrained beside") for line in said)
    assert "untrained" in as_text(main_table(results))


def test_of_one_seed_nothing_is_said_to_be_silent(tmp_path):
    made = controlled(tmp_path, {"mrpc": {"a": [0.86] * 3, "untrained": [0.87] * 3}})
    runs = tuple(run for run in made.runs if run.seed == 0)
    one = FinetuneResults(made.folder, made.record, runs, 0)
    assert isinstance(runs[0], Run)
    said = " ".join(statements(one))
    assert "of unknown noise (one seed) on MRPC (−1.0)" in said
    assert "nothing of pre-training" not in said


def test_a_record_from_before_there_were_controls_is_read(tmp_path):
    written = study(tmp_path, {"mrpc": {"a": [0.9] * 3}}, contenders=[contender("a")]).record
    path = tmp_path / "finetune.json"
    raw = json.loads(path.read_text())
    assert raw.pop("control") is None
    path.write_text(json.dumps(raw))
    assert read_record(tmp_path) == written
