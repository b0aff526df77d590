"""A run that starts from a trained model, and a finished run that is trained longer."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from stackbert.batches.batches import IGNORED, training_plan, validation_batch
from stackbert.corpus.build import build_corpus
from stackbert.errors import UserError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.optimizers import step_flops
from stackbert.pretraining.run import extend, pretrain, resume_run
from stackbert.pretraining.trainer import recipe_model, stage_flops
from stackbert.recipes import load_recipe
from tiny_encoders import tiny_encoder
from tiny_runs import At, Crash, break_off, checkpoints, outcome, tiny_recipe

STAGES = [{"depth": 2, "steps": 4}, {"depth": 4, "steps": 4}]
RECIPE = tiny_recipe(stages=STAGES)
TYPES = ("modernbert", "distilbert", "xlm-roberta")


@pytest.fixture
def save(tiny_corpus, tmp_path):
    """Writes a model with the corpus' tokenizer into a folder."""

    def write(model, name="source", tokenizer=tiny_corpus.tokenizer_folder) -> Path:
        model.save_pretrained(tmp_path / name)
        shutil.copytree(tokenizer, tmp_path / name, dirs_exist_ok=True)
        return tmp_path / name

    return write


def encoder(kind="bert", depth=2, **fields):
    sizes = {"vocab_size": 128, "max_position_embeddings": 40, "type_vocab_size": 2}
    if kind == "electra":
        sizes["embedding_size"] = 24
    return tiny_encoder(kind, depth, **{**sizes, **fields})


@pytest.mark.parametrize("kind", TYPES)
def test_a_run_starts_where_the_model_was_and_is_resumed_to_the_bit_without_it(
    kind, save, tiny_corpus, tmp_path
) -> None:
    source = save(encoder(kind, seed=7))  # not the seed of the run
    result = pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "run", start=source)
    losses = read_ledger(result.folder).query("kind == 'evaluation'").loss
    rows = validation_batch(RECIPE, tiny_corpus)
    labels = torch.full_like(rows.input_ids_BS, IGNORED).scatter(1, rows.columns_BK, rows.labels_BK)
    model = AutoModelForMaskedLM.from_pretrained(source).eval()
    with torch.no_grad():
        assert losses.iloc[0] == pytest.approx(
            model(input_ids=rows.input_ids_BS, labels=labels).loss.item(), rel=1e-5
        )
    grown = AutoModelForMaskedLM.from_pretrained(result.model_folder)
    assert (type(grown), grown.config.num_hidden_layers) == (type(model), 4)

    break_off(RECIPE, corpus=tiny_corpus, out=tmp_path / "again", start=source, at=6)
    shutil.rmtree(source)
    pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "again", start=source)
    assert outcome(tmp_path / "again") == outcome(result.folder)


def test_another_start_is_refused_and_a_runs_recipe_repeats_it(save, tiny_corpus, tmp_path) -> None:
    source = save(encoder())
    run = pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "run", start=source).folder
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.model is None
    assert recipe.start.config["hidden_size"] == 32
    pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "repeated")
    assert outcome(tmp_path / "repeated") == outcome(run)
    with pytest.raises(UserError, match=r"--from \(.*source, \w+ there, none here\)"):
        pretrain(RECIPE, corpus=tiny_corpus, out=run)
    break_off(RECIPE, corpus=tiny_corpus, out=tmp_path / "begun", start=source, at=2)
    save(encoder(seed=1))
    with pytest.raises(UserError, match=r"differs in: --from \(.* there, .* here\)\. Resume"):
        pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "begun", start=source)
    with pytest.raises(UserError, match="other weights than when this recipe was written"):
        pretrain(recipe, corpus=tiny_corpus, out=tmp_path / "new")


def test_what_does_not_fit_gets_the_way_out(save, tiny_corpus, factbook_corpus, tmp_path) -> None:
    gpt = AutoConfig.for_model("gpt2", n_layer=2, n_embd=32, n_head=2, vocab_size=128)
    short, other = encoder(max_position_embeddings=12), factbook_corpus.tokenizer_folder
    cases = {
        r"has 3 layers, and the first stage 2.*--set 'stages=": save(encoder(depth=3), "deep"),
        r"reach 12 tokens.*--set batch.sequence_length=12": save(short, "short"),
        r"differ in model\).*--tokenizer": save(encoder(), "foreign", other),
        "do not fit a deeper one": save(encoder("esm", mask_token_id=4), "own shape a layer"),
        "no masked-LM class for a gpt2": save(AutoModelForCausalLM.from_config(gpt), "decoder"),
    }
    for sentence, source in cases.items():
        with pytest.raises(UserError, match=sentence):
            pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "run", start=source)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_model_without_a_head_gets_one_and_a_card_tells_all(save, tiny_corpus, tmp_path) -> None:
    heard = At()
    bare = save(encoder("electra").base_model, "bare `x`")
    first = pretrain(RECIPE, corpus=tiny_corpus, out=tmp_path / "first", start=bare, progress=heard)
    fresh = "no weights for generator_lm_head, generator_predictions: these began at random"
    assert any(fresh in text for text in heard.said)
    longer = tiny_recipe(stages=[{"depth": 4, "steps": 2}], schedule__warmup_steps=0)
    result = pretrain(longer, corpus=tiny_corpus, out=tmp_path / "second", start=first.folder)
    card = (result.model_folder / "README.md").read_text("utf-8")
    for part in (
        "A `electra` encoder of 4 layers, pre-trained with",
        "Started from `bare x`: ElectraForMaskedLM, 2 layers",
        "Trained as `tiny`: 2 → 4 layers by stack, 8 steps",
        "Started from `first`: ElectraForMaskedLM, 4 layers",
    ):
        assert part in " ".join(card.split())
    assert str(tmp_path) not in card
    assert "progressive stacking (" not in card, "one stage is continued pre-training"


def test_new_tokens_get_rows_and_the_old_ones_stay(save, tiny_corpus, tmp_path) -> None:
    source, text = save(encoder()), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The drawbridge {n} and the Funicular {n}." for n in range(60)))
    (tmp_path / "words.txt").write_text("drawbridge\nfunicular\n")
    built = build_corpus(
        tmp_path / "corpus",
        text=[text],
        tokenizer=source,
        added_tokens=tmp_path / "words.txt",
        validation=0.2,
    )
    assert built.vocabulary.tokenizer_size == tiny_corpus.vocabulary.tokenizer_size + 2
    assert {128, 129} <= set(built.train.read(0, 200).tolist()), "capitals are the same word"
    frozen = tiny_recipe(stages=STAGES[:1], optimizer__lr=1e-9, optimizer__weight_decay=0.0)
    result = pretrain(frozen, corpus=built, out=tmp_path / "run", start=source)
    words = "bert.embeddings.word_embeddings.weight"
    folders = source, result.model_folder
    before, after = (load_file(each / "model.safetensors")[words] for each in folders)
    assert (len(before), len(after)) == (128, 192)
    torch.testing.assert_close(after[:128], before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["wsd", "constant", "linear"])
def test_an_extended_run_is_the_longer_run(schedule, finished, tiny_corpus, tmp_path) -> None:
    """From before wsd's decay (step 7 of 8); after another decay with a warm-up, state kept."""
    recipe = tiny_recipe(schedule__name=schedule, schedule__decay_fraction=0.125)
    call = {"by": "24steps", "corpus": tiny_corpus, "out": tmp_path / "out"}
    with pytest.raises(Crash):
        extend(finished(recipe), **call, progress=At(20))
    resume_run(tmp_path / "out")  # asks nothing of the finished run
    record = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert [stage.steps for stage in record.stages] == [4, 28]
    pretrain(record, corpus=tiny_corpus, out=tmp_path / "long")
    parts = [outcome(tmp_path / name) for name in ("out", "long")]
    for part in parts:  # the shorter run's last stage had an end of its own
        part["ledger"] = [line for line in part["ledger"] if line["kind"] != "time"]
    assert parts[0] == parts[1]
    steps = read_ledger(tmp_path / "out").query("kind == 'step'").set_index("step").lr / 5e-3
    if schedule == "linear":
        assert record.schedule.restarts == (8,)
        assert steps[[8, 9, 10, 32]].tolist() == pytest.approx([1 / 6, 1, 1, 1 / 23], abs=0.01)
    else:
        assert not record.schedule.restarts
        assert steps.loc[2:24].tolist() == [1.0] * 23


def test_what_cannot_be_extended_is_a_sentence(finished, tiny_corpus, tmp_path, stackbert) -> None:
    recipe, call = tiny_recipe(), {"corpus": tiny_corpus, "out": tmp_path / "out"}
    break_off(recipe, corpus=tiny_corpus, out=tmp_path / "half", at=6)
    with pytest.raises(UserError, match="is not finished"):
        extend(tmp_path / "half", by="4steps", **call)
    with pytest.raises(UserError, match="'soon' is not a duration"):
        extend(finished(recipe), by="soon", **call)
    options = ("--corpus", tiny_corpus.folder, "--out", tmp_path / "out", "--extend", "4steps")
    said = stackbert("pretrain", finished(recipe), *options, "--set", "seed=1")
    assert (said.code, "--extend keeps a run's recipe" in said.err) == (2, True)
    assert stackbert("pretrain", finished(recipe), *options).code == 0
    with pytest.raises(UserError, match=r"--extend \(4steps there, 5steps here\)"):
        extend(finished(recipe), by="5steps", **call)
    for name in ("checkpoints", "model"):
        shutil.rmtree(tmp_path / "out" / name)
    with pytest.raises(UserError, match=r"has no checkpoint yet\. Give the whole command again"):
        resume_run(tmp_path / "out")


def test_a_stage_of_new_layers_leaves_the_old_at_its_own_cost(tiny_corpus, tmp_path) -> None:
    stages = [*STAGES[:1], {"depth": 4, "steps": 2, "train": "new"}, {"depth": 4, "steps": 2}]
    options = {"growth__operator": "identity-copy", "checkpoint__every_steps": 1}
    recipe = tiny_recipe(stages=stages, **options)
    break_off(recipe, corpus=tiny_corpus, out=tmp_path / "again", at=6)
    for name in ("run", "again"):
        pretrain(recipe, corpus=tiny_corpus, out=tmp_path / name)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "again")
    saved = checkpoints(tmp_path / "run")
    before, new, last = (load_file(saved[step] / "model.safetensors") for step in (4, 6, 8))
    layers = "bert.encoder.layer"
    old = {f"{layers}.{2 * n}": f"{layers}.{n}" for n in range(2)}  # each with a silent copy behind
    for name, tensor in new.items():
        layer = name[: len(layers) + 2]
        source = before.get(name.replace(layer, old.get(layer, layer)))
        is_old = layer in old or "embeddings" in name
        if source is not None and (is_old or layers not in name):
            assert torch.equal(tensor, source) == is_old, name
    assert not any(torch.equal(last[name], new[name]) for name in new if new[name].ndim == 2)

    model = recipe_model(recipe, tiny_corpus.vocabulary, 4)
    rows, masked = training_plan(recipe, tiny_corpus).masked_rows(4)
    whole = step_flops(model, recipe.optimizer, rows=rows, sequence_length=16, masked=masked)
    _, some, everything = stage_flops(recipe, tiny_corpus)
    assert everything == whole
    assert 0.5 * whole < some < 0.9 * whole
