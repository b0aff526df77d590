"""The ledger says what was done, in what time, and what layers did; every checkpoint opens."""

import contextlib
import itertools
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from stackbert.batches.batches import validation_batch
from stackbert.errors import UserError
from stackbert.model import FAMILIES
from stackbert.pretraining.layers import ROWS, layer_table, layer_warning, measure_layers
from stackbert.pretraining.ledger import LEDGER, WORK, read_ledger, stage_table
from stackbert.pretraining.optimizers import step_flops
from stackbert.pretraining.record import read_run
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.schedule import averaged_before, learning_rate_factor
from stackbert.pretraining.trainer import Trainer, recipe_model
from tiny_runs import GROWTH, PAIRS, TOTAL, At, Crash, break_off, checkpoints, outcome, tiny_recipe

RECIPE = tiny_recipe(
    model__hidden_dropout_prob=0.2,
    checkpoint={"every_steps": 1, "every_minutes": None, "keep": 99},
    evaluation__every_steps=1,
)


@pytest.fixture
def run(finished) -> Path:
    return finished(RECIPE)


def lines(run: Path, kind: str) -> pd.DataFrame:
    ledger = read_ledger(run)
    return ledger[ledger.kind == kind].dropna(axis="columns", how="all").reset_index(drop=True)


def test_a_line_of_each_step_has_the_steps_numbers(run, tiny_corpus) -> None:
    steps, rate = lines(run, "step"), read_run(run).matrix_rate
    assert steps.step.tolist() == list(range(1, TOTAL + 1))
    assert steps.depth.tolist() == [1] * 4 + [2] * 4
    assert steps.stage.tolist() == [0] * 4 + [1] * 4
    assert steps.tokens.tolist() == [64 * step for step in steps.step]
    rates = [RECIPE.optimizer.lr * learning_rate_factor(RECIPE, step) for step in range(TOTAL)]
    assert steps.lr.tolist() == pytest.approx(rates)
    assert (steps.loss == steps.masked_lm).all()
    assert (steps.gradient_norm > 0).all()
    # Two of a row's 14 tokens are masked; test_model.py holds the formula to torch's own counter.
    models = [recipe_model(RECIPE, tiny_corpus.vocabulary, depth) for depth in (1, 2)]
    shape = {"rows": 4, "sequence_length": 16, "masked": 8}
    flops = [step_flops(each, RECIPE.optimizer, **shape) for each in models]
    assert steps.flops.diff()[1:].tolist() == [flops[0]] * 3 + [flops[1]] * 4
    assert steps.flops[0] == flops[0]
    past = steps[["tokens", "flops", "seconds"]].diff()[1:]
    speed = (past.tokens / past.seconds).tolist()
    assert steps.tokens_per_second[1:].tolist() == pytest.approx(speed)
    assert steps.mfu[1:].tolist() == pytest.approx((past.flops / past.seconds / rate).tolist())


def test_a_line_of_several_steps_has_their_mean_loss(run, finished) -> None:
    each = lines(run, "step").loss
    seldom = lines(finished(RECIPE.model_copy(update={"log_every": 3})), "step")
    assert seldom.step.tolist() == [3, 4, 6, 8]
    means = [each[:3].mean(), each[3], each[4:6].mean(), each[6:].mean()]
    assert seldom.loss.tolist() == pytest.approx(means, abs=1e-9)


def test_a_growth_has_the_loss_just_before_and_just_after(run, finished) -> None:
    ((_, grown),) = lines(run, "growth").iterrows()
    at = lines(run, "evaluation").set_index("step").loss
    expected = {"step": GROWTH, "stage": 1, "source_depth": 1, "target_depth": 2}
    expected |= {"operator": "stack", "optimizer_state": "reset", "loss_before": at[GROWTH]}
    assert {key: grown[key] for key in expected} == expected
    assert grown.loss_after != grown.loss_before
    assert grown.growth_seconds > 0
    ((_, grown),) = lines(finished(tiny_recipe(growth__operator="identity")), "growth").iterrows()
    assert grown.loss_after == pytest.approx(grown.loss_before, abs=1e-5), "as identity promises"


def test_every_checkpoint_opens_in_transformers_with_the_ledgers_loss(run, tiny_corpus) -> None:
    """By transformers' own dense loss on the validation rows, each position through the head."""
    batch = validation_batch(RECIPE, tiny_corpus)
    labels = torch.full(batch.input_ids_BS.shape, -100)
    labels.scatter_(1, batch.columns_BK, batch.labels_BK)
    at = lines(run, "evaluation").set_index("step").loss
    folders = checkpoints(run) | {0: run / "model"}
    assert list(folders) == [*range(1, TOTAL + 1), 0]
    for step, folder in folders.items():
        model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert type(model).__module__.startswith("transformers.")
        assert model.config.num_hidden_layers == (1 if 0 < step <= GROWTH else 2)
        with torch.no_grad():
            loss = float(model(input_ids=batch.input_ids_BS, labels=labels).loss)
        assert loss == pytest.approx(at[step or TOTAL], abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert len(tokenizer("river " * 99, truncation=True).input_ids) == 16
    assert len(set(at)) == TOTAL + 1, "the losses tell the checkpoints apart"


def test_a_model_trained_on_pairs_keeps_its_second_head(finished) -> None:
    from transformers import AutoModelForNextSentencePrediction

    run = finished(tiny_recipe(**PAIRS))
    steps = lines(run, "step")
    assert steps.loss.tolist() == pytest.approx((steps.masked_lm + steps.next_sentence).tolist())
    for opener in (AutoModelForMaskedLM, AutoModelForNextSentencePrediction):
        _, report = opener.from_pretrained(run / "model", output_loading_info=True)
        assert not report["missing_keys"]


def test_the_stages_table_and_the_result_follow_from_the_ledger(run, tiny_corpus) -> None:
    heard = At()
    result = pretrain(RECIPE, corpus=tiny_corpus, out=run, progress=heard)
    assert heard.said == [f"{run} is finished already; its model is {run / 'model'}."]
    table, at = stage_table(run), lines(run, "evaluation").set_index("step")
    pd.testing.assert_frame_equal(result.stages, table)
    assert table.depth.tolist() == [1, 2]
    assert table.tokens.tolist() == [256, 256]
    assert table.flops.sum() == at.flops[TOTAL]
    assert table.loss.tolist() == [at.loss[GROWTH], at.loss[TOTAL]]
    assert table.loss_grown[1] == lines(run, "growth").loss_after[0]
    rate = read_run(run).matrix_rate
    assert table.mfu.tolist() == pytest.approx((table.flops / table.seconds / rate).tolist())
    assert result.loss == at.loss[TOTAL]
    assert result.seconds == pytest.approx(at.seconds[TOTAL] - at.seconds[0])
    assert f"({result.seconds / (2 * table.seconds[1]):.0%})" in result.table()
    assert f"{result.loss:.3f}" in result.table()


def test_kinds_of_work_add_up_to_the_wall_time_over_a_resumption(tiny_corpus, tmp_path) -> None:
    took, recipe = 0.0, tiny_recipe(checkpoint__every_steps=1)
    for progress in (At(6), None):
        start = time.perf_counter()
        with contextlib.suppress(Crash):
            pretrain(recipe, corpus=tiny_corpus, out=tmp_path, progress=progress)
        took += time.perf_counter() - start
    ledger = read_ledger(tmp_path)
    *stages, end = ledger.wall.dropna()
    assert set(end) == set(WORK)
    # What the crash threw away, the export and the model card are not in it.
    assert 0.1 * took < sum(end.values()) < took
    assert {kind for kind in WORK if end[kind] == 0.0} == {"compilation"}
    assert ledger.seconds.is_monotonic_increasing, "the clock of training continues"
    for before, after in itertools.pairwise([*stages, end]):
        assert all(before[kind] <= after[kind] for kind in WORK)


def test_a_cut_off_last_line_is_left_out_and_a_damaged_one_is_named(run, tmp_path) -> None:
    path = Path(shutil.copy(run / LEDGER, tmp_path))
    whole, rows = path.read_bytes(), read_ledger(tmp_path)
    *_, last = whole.splitlines(keepends=True)
    # A line that lacks only its end is whole.
    for cut, lost in ((1, 0), (2, 1), (len(last) - 1, 1)):
        path.write_bytes(whole[:-cut])
        assert len(read_ledger(tmp_path)) == len(rows) - lost
    for damage in (b"\xff\xfe\n", b"nonsense\n", b"[1]\n"):
        parts = whole.splitlines(keepends=True)
        parts[4] = damage
        path.write_bytes(b"".join(parts))
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: .*Line 5 is damaged"):
            read_ledger(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"is not a run directory: it has no metrics\.jsonl"):
        read_ledger(tmp_path)


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
