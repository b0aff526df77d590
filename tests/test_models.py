"""The masked-only loss is transformers' own, and the FLOPs are those torch counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.errors import UserError
from stackbert.models import (
    FAMILIES,
    Inputs,
    build_config,
    create_model,
    forward_flops,
    loss_sums,
    parameter_count,
    training_flops,
)
from stackbert.pretraining.evaluation import to_device
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import ModelSpec, ModelType, OptimizerSpec
from stackbert.recipe_files import load_recipe
from stackbert.vocabulary import Vocabulary

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
ROWS, LENGTH = 8, 32
KINDS = [(kind, False) for kind in FAMILIES] + [("bert", True), ("megatron-bert", True)]
each_kind = pytest.mark.parametrize(("kind", "pairs"), KINDS)
each_type = pytest.mark.parametrize("kind", list(FAMILIES))


def vocabulary(pad: int = 0) -> Vocabulary:
    return Vocabulary(128, 120, pad, 2, 3, 4, (0, 1, 2, 3, 4))


def make(kind: ModelType, pairs: bool = False, **changes: Any) -> PreTrainedModel:
    options = {
        "depth": 2,
        "vocabulary": vocabulary(),
        "sequence_length": LENGTH,
        "next_sentence": pairs,
        "seed": 1,
    }
    return create_model(ModelSpec(type=kind, **SMALL), **{**options, **changes})


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """Weights that no initialisation would give: no zero bias, no unit norm."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def real_batch(corpus, words: Vocabulary, pairs: bool) -> Batch:
    shape = StageShape(1, ROWS, LENGTH, 0.2)
    return BatchPlan(corpus.train, words, [shape], seed=0, next_sentence=pairs).batch(0)


def plain_inputs(pairs: bool, rows: int = 4, masked: int = 9) -> Inputs:
    """`masked` positions of each row."""
    return Inputs(
        input_ids_BS=torch.full((rows, LENGTH), 7),
        columns_BK=(torch.arange(masked) * 3).expand(rows, masked),
        labels_BK=torch.full((rows, masked), 9),
        token_types_BS=torch.ones((rows, LENGTH), dtype=torch.long) if pairs else None,
        is_random_B=torch.ones(rows, dtype=torch.long) if pairs else None,
    )


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- The loss -------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("ignored", [False, True])
def test_the_masked_only_loss_equals_transformers_dense_loss(
    factbook_corpus, factbook_vocabulary, kind, pairs, ignored
):
    batch = real_batch(factbook_corpus, factbook_vocabulary, pairs)
    if ignored:  # rows of few ordinary tokens have labels that do not count
        batch.labels[::3, 2:] = -100
    inputs = to_device(batch, CPU)
    labels = torch.full((ROWS, LENGTH), -100)
    labels.scatter_(1, inputs.columns_BK, inputs.labels_BK)
    dense: dict[str, Any] = {"input_ids": inputs.input_ids_BS, "labels": labels}
    if pairs:
        dense["token_type_ids"] = inputs.token_types_BS
        dense["next_sentence_label"] = inputs.is_random_B
    model = trained(make(kind, pairs, vocabulary=factbook_vocabulary))

    expected = model(**dense).loss
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    sums = loss_sums(model, inputs)
    loss = sums.masked_lm / (batch.labels != -100).sum()
    assert (sums.next_sentence is not None) == pairs
    if sums.next_sentence is not None:
        loss = loss + sums.next_sentence / ROWS
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_a_random_pair_has_transformers_label_for_one(factbook_corpus, factbook_vocabulary):
    """BERT: 0 is "B follows A", 1 is "B is random"."""
    batch = real_batch(factbook_corpus, factbook_vocabulary, pairs=True).rows(0, 5)
    random = int(batch.is_random.sum())
    assert random != 5 - random
    model = make("bert", pairs=True, vocabulary=factbook_vocabulary)
    parts: Any = model
    with torch.no_grad():
        parts.cls.seq_relationship.weight.zero_()
        parts.cls.seq_relationship.bias.copy_(torch.tensor([-20.0, 20.0]))  # "all random"
        sums = loss_sums(model, to_device(batch, CPU))
    assert float(sums.next_sentence) == pytest.approx(40.0 * (5 - random))


# --- Counting -------------------------------------------------------------------------------------


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[FlopCounterMode]:
    """The counter does not know the CPU's fused attention; multiplied out, it does."""
    model.set_attn_implementation("eager")  # for types that run their own forward pass
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


@each_kind
@pytest.mark.parametrize(("rows", "masked", "depth"), [(1, 1, 1), (4, 9, 2), (4, 9, 12)])
def test_forward_flops_are_those_of_torchs_counter(kind, pairs, rows, masked, depth):
    model = make(kind, pairs, depth=depth)
    with counted(model) as counter:
        loss_sums(model, plain_inputs(pairs, rows, masked))
    found = forward_flops(model, rows=rows, sequence_length=LENGTH, masked=rows * masked)
    assert found == counter.get_total_flops()


@each_kind
def test_training_flops_are_those_of_torchs_counter(kind, pairs):
    model = make(kind, pairs)
    with counted(model) as counter:
        sums = loss_sums(model, plain_inputs(pairs, 4, 9))
        torch.autograd.backward(sums.masked_lm + (sums.next_sentence if pairs else 0.0))
    found = training_flops(model, rows=4, sequence_length=LENGTH, masked=36)
    assert found == counter.get_total_flops()


@each_kind
def test_models_are_described_without_memory_on_the_meta_device(kind, pairs):
    real = make(kind, pairs)
    with torch.device("meta"):
        model = make(kind, pairs)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    shape = {"rows": 4, "sequence_length": LENGTH, "masked": 9}
    assert forward_flops(model, **shape) == forward_flops(real, **shape)
    assert parameter_count(model) == parameter_count(real)


@each_kind
def test_parameters_are_counted_once_though_tied(kind, pairs):
    model = make(kind, pairs)
    storages = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert parameter_count(model) == sum(storages.values())
    named = sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))
    assert named >= parameter_count(model) + 128 * 32  # the head's matrix is the embedding's


def test_bert_base_has_berts_parameters():
    words = Vocabulary(30_522, 30_522, 0, 101, 102, 103, (0, 100, 101, 102, 103))
    with torch.device("meta"):
        model = create_model(ModelSpec(), depth=12, vocabulary=words, sequence_length=512)
    # bert-base-uncased: 109,482,240 less the pooler's 590,592, with the head's 622,650.
    assert parameter_count(model) == 109_482_240 - 590_592 + 622_650


# --- Creating -------------------------------------------------------------------------------------


@each_kind
def test_the_same_seed_gives_the_same_weights_and_another_does_not(kind, pairs):
    one, again, other = (make(kind, pairs, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@each_type
def test_creating_a_model_leaves_the_global_randomness_alone(kind, monkeypatch):
    def reached(seed: int) -> None:
        raise AssertionError(f"the GPUs were seeded with {seed}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reached)
    before = torch.get_rng_state()
    make(kind)
    assert torch.equal(before, torch.get_rng_state())


@each_type
def test_weights_do_not_depend_on_the_global_randomness(kind):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        one = make(kind).state_dict()
        torch.default_generator.manual_seed(2)
        again = make(kind).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)


@each_type
def test_there_is_no_dropout_unless_asked_for(kind):
    model = make(kind)
    assert model.training
    rates = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
    assert not any(rates)
    inputs = plain_inputs(pairs=False)
    assert torch.equal(loss_sums(model, inputs).masked_lm, loss_sums(model, inputs).masked_lm)


def test_the_papers_recipe_has_the_papers_dropout():
    recipe = load_recipe("bert-base-gong2019")
    with torch.device("meta"):
        model = create_model(
            recipe.model, depth=3, vocabulary=vocabulary(), sequence_length=384, next_sentence=True
        )
    rates = {part.p for part in model.modules() if isinstance(part, nn.Dropout)}
    assert rates == {0.1}
    assert model.config.hidden_act == "gelu"


@each_type
def test_a_config_knows_the_corpus_special_tokens(kind):
    config = make(kind).config
    assert config.vocab_size == 128
    assert config.pad_token_id == 0
    assert config.num_hidden_layers == 2
    assert (config.bos_token_id, config.eos_token_id) == (2, 3)


@each_type
@pytest.mark.parametrize("pad", [0, 1])
def test_full_rows_reach_the_last_position_and_no_further(kind, pad):
    model = make(kind, vocabulary=vocabulary(pad))
    offset = pad + 1 if kind.startswith("roberta") else 0
    assert model.config.max_position_embeddings == LENGTH + offset
    with torch.no_grad():
        assert torch.isfinite(loss_sums(model, plain_inputs(pairs=False)).masked_lm)
    if kind != "modernbert":  # its positions are rotary
        tables = [p for n, p in model.named_parameters() if "position_embeddings" in n]
        assert [len(table) for table in tables] == [LENGTH + offset]
        longer = torch.full((1, LENGTH + 1), 7)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=longer)


def test_an_unknown_config_field_is_named_with_a_suggestion():
    spec = ModelSpec(type="bert", hidden_dropout=0.1, **SMALL)
    with pytest.raises(
        UserError, match=r"model\.hidden_dropout: BertConfig .* 'hidden_dropout_prob'"
    ):
        build_config(spec, depth=2, vocabulary=vocabulary(), sequence_length=LENGTH)


@pytest.mark.parametrize("given", [LENGTH - 1, "many", None, 64.5])
def test_too_few_positions_are_refused(given):
    spec = ModelSpec(type="bert", max_position_embeddings=given, **SMALL)
    with pytest.raises(UserError, match=rf"max_position_embeddings.* {LENGTH}"):
        build_config(spec, depth=2, vocabulary=vocabulary(), sequence_length=LENGTH)


def test_more_positions_may_be_asked_for():
    spec = ModelSpec(type="bert", max_position_embeddings=512, **SMALL)
    config = build_config(spec, depth=2, vocabulary=vocabulary(), sequence_length=LENGTH)
    assert config.max_position_embeddings == 512


@pytest.mark.parametrize("fields", [{"hidden_act": "nonsense"}, {"initializer_range": "wide"}])
def test_a_refused_config_value_gets_a_sentence(fields):
    spec = ModelSpec(type="bert", **SMALL, **fields)
    with pytest.raises(UserError, match=r"^model: "):
        create_model(spec, depth=2, vocabulary=vocabulary(), sequence_length=LENGTH)


@pytest.mark.parametrize("kind", ["roberta", "roberta-prelayernorm", "modernbert"])
def test_a_type_without_a_next_sentence_head_says_so(kind):
    with pytest.raises(UserError, match=f"{kind} has no next-sentence head"):
        make(kind, pairs=True)


# --- Micro-batches --------------------------------------------------------------------------------


@each_kind
def test_the_micro_batch_size_changes_neither_loss_nor_gradients(
    factbook_corpus, factbook_vocabulary, kind, pairs
):
    batch = real_batch(factbook_corpus, factbook_vocabulary, pairs)
    batch.labels[:3, 1:] = -100  # unequal counts, where a mean of means goes wrong
    # With so large an eps AdamW's update is the gradient but for a factor, not its sign.
    spec = OptimizerSpec(lr=1.0, eps=1.0, weight_decay=0.0)
    results, weights = [], []
    for micro_batch in (1, 3, ROWS, "auto"):
        model = trained(make(kind, pairs, vocabulary=factbook_vocabulary))
        trainer = Trainer(
            model, spec, device=CPU, precision="fp32", micro_batch=micro_batch, seed=0
        )
        results.append(trainer.step(0, batch, 1.0))
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    before = trained(make(kind, pairs, vocabulary=factbook_vocabulary))
    whole = weights[2]
    moved = [float((whole[name] - p.detach()).abs().max()) for name, p in before.named_parameters()]
    assert max(moved) > 1e-2
    for result, after in zip(results, weights, strict=True):
        assert result.masked_lm == pytest.approx(results[2].masked_lm, rel=1e-5)
        assert result.gradient_norm == pytest.approx(results[2].gradient_norm, rel=1e-4)
        if pairs:
            assert result.next_sentence == pytest.approx(results[2].next_sentence, rel=1e-5)
        for name, weight in whole.items():
            torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=1e-4, msg=name)
