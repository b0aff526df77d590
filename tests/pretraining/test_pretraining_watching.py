"""What evaluations see of the layers, and the mean of the last weights."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM

from stackbert.batches.batches import validation_batch
from stackbert.model import FAMILIES
from stackbert.pretraining.layers import ROWS, layer_table, layer_warning, measure_layers
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.schedule import averaged_before
from stackbert.pretraining.trainer import Trainer, recipe_model
from tiny_runs import PAIRS, TOTAL, break_off, checkpoints, outcome, tiny_recipe

CPU = torch.device("cpu")
# Checkpoints within the tail, whose mean begins at the growth.
TAIL = tiny_recipe(tail_average=0.9, checkpoint={"every_steps": 1, "every_minutes": None})


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_layers_are_measured_as_transformers_hidden_states_are(kind, tiny_corpus, finished) -> None:
    pairs = PAIRS if len(FAMILIES[kind]) == 2 else {}
    recipe = tiny_recipe(model__type=kind, **pairs)
    run = finished(recipe)
    table = layer_table(run)
    assert table.step.unique().tolist() == [0, 2, 4, 6, 8]
    assert table.layer.tolist() == [0, 1] * 3 + [0, 1, 2] * 2
    last = table[table.step == TOTAL]

    batch = validation_batch(recipe, tiny_corpus).rows(0, ROWS)
    ids = batch.input_ids_BS.scatter(1, batch.columns_BK, batch.labels_BK)
    model = AutoModel.from_pretrained(run / "model")
    types = {"token_type_ids": batch.token_types_BS} if pairs else {}
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True, **types).hidden_states
    for layer, state in enumerate(states[:-1]):  # what transformers gives last may be normed
        tokens, embedded = state[:, 1:], states[0][:, 1:]
        row = last[last.layer == layer].iloc[0]
        assert row["norm"] == pytest.approx(float(tokens.norm(dim=-1).mean()), abs=1e-4)
        likeness = F.cosine_similarity(tokens, embedded, dim=-1).mean()
        assert row["cosine"] == pytest.approx(float(likeness), abs=1e-4)
        pairs_of = F.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1)
        apart = ~torch.eye(tokens.size(1), dtype=torch.bool)
        assert row["token_cosine"] == pytest.approx(float(pairs_of[:, apart].mean()), abs=1e-4)
    assert last.rms.between(0.01, 0.2).all()


def test_a_layer_that_overwrites_its_input_and_tokens_that_collapse_are_said(tiny_corpus) -> None:
    recipe = tiny_recipe()
    batch = validation_batch(recipe, tiny_corpus)
    model = recipe_model(recipe, tiny_corpus.vocabulary, 2).eval()
    assert layer_warning(measure_layers(model, batch)) is None
    before = torch.get_rng_state()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias.fill_(100.0)
    said = layer_warning(measure_layers(model, batch))
    assert said.startswith("Layer 2 overwrites its input: a token's vector has cosine ")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias.zero_()
        model.bert.embeddings.position_embeddings.weight.fill_(1.0)
    assert layer_warning(measure_layers(model, batch)).startswith("Tokens collapse: after layer 0")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_of_the_last_weights_survives_a_crash(tiny_corpus, finished, tmp_path) -> None:
    """Against the mean taken over the checkpoints after each step of the tail."""
    joined = [step for step in range(TOTAL + 1) if averaged_before(TAIL, step) is not None]
    assert joined == [5, 6, 7, 8], "not before the growth"
    plain = finished(tiny_recipe(checkpoint={"every_steps": 1, "every_minutes": None, "keep": 9}))
    weights = [load_file(checkpoints(plain)[step] / "model.safetensors") for step in joined]
    run = finished(TAIL)
    model = load_file(run / "model" / "model.safetensors")
    assert model.keys() == weights[0].keys()
    for name, tensor in model.items():
        mean = torch.stack([each[name] for each in weights]).mean(0)
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)
    for name, tensor in load_file(checkpoints(run)[TOTAL] / "model.safetensors").items():
        assert torch.equal(tensor, weights[-1][name]), "training does not see the mean"

    ledger = read_ledger(run)
    last = ledger[ledger.kind == "evaluation"].iloc[-1]
    unaveraged = read_ledger(plain)
    assert last.plain_loss == unaveraged.loss[unaveraged.kind == "evaluation"].iloc[-1]
    assert ledger.plain_loss.notna().sum() == 1
    trainer = Trainer(AutoModelForMaskedLM.from_pretrained(run / "model"), TAIL, device=CPU)
    masked_lm, _ = trainer.evaluate(validation_batch(TAIL, tiny_corpus))
    assert last.loss == pytest.approx(masked_lm, abs=1e-6)

    for step in (6, TOTAL):
        break_off(TAIL, corpus=tiny_corpus, out=tmp_path, at=step)
    assert pretrain(TAIL, corpus=tiny_corpus, out=tmp_path).loss == last.loss
    assert outcome(tmp_path) == outcome(run)
