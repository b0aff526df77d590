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

from stackbert import encoder
from stackbert.batches.batches import Batch, BatchPlan
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.errors import UserError
from stackbert.model import (
    FAMILIES,
    create_model,
    forward_flops,
    loss_sums,
    parameter_count,
    training_flops,
)
from stackbert.recipe import ModelSpec, ModelType, Stage
from tiny_encoders import shaken

SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
ROWS, LENGTH = 8, 32
KINDS = [(kind, False) for kind in FAMILIES] + [("bert", True), ("megatron-bert", True)]
each_kind = pytest.mark.parametrize(("kind", "pairs"), KINDS)


def vocabulary(pad: int = 0) -> Vocabulary:
    return Vocabulary(128, 120, pad, 2, 3, 4, (0, 1, 2, 3, 4))


def make(kind: ModelType, pairs: bool = False, **changes: Any) -> PreTrainedModel:
    options: dict[str, Any] = {"depth": 2, "vocabulary": vocabulary(), "sequence_length": LENGTH}
    options |= {"next_sentence": pairs, "seed": 1}
    return create_model(ModelSpec(type=kind, **SMALL), **{**options, **changes})


def plain_batch(pairs: bool, rows: int = 4, masked: int = 9) -> Batch:
    """`masked` positions of each row."""
    return Batch(
        input_ids_BS=torch.full((rows, LENGTH), 7),
        columns_BK=(torch.arange(masked) * 3).expand(rows, masked),
        labels_BK=torch.full((rows, masked), 9),
        token_types_BS=torch.ones((rows, LENGTH), dtype=torch.long) if pairs else None,
        is_random_B=torch.ones(rows, dtype=torch.long) if pairs else None,
    )


@each_kind
def test_the_masked_only_loss_and_its_gradients_equal_transformers_dense_loss(
    factbook_corpus, kind, pairs
):
    stages = [Stage(2, 1, ROWS, LENGTH, 0.2, "auto")]
    options = {"seed": 0, "next_sentence": pairs}
    words = factbook_corpus.vocabulary
    batch = BatchPlan(factbook_corpus.train, words, stages, **options).batch(0)
    batch.labels_BK[::3, 2:] = -100  # as in rows of few ordinary tokens
    # No bias stays zero, no norm stays one.
    model = shaken(make(kind, pairs, vocabulary=words), 7, 0.05)

    labels = torch.full((ROWS, LENGTH), -100).scatter_(1, batch.columns_BK, batch.labels_BK)
    dense: dict[str, Any] = {"input_ids": batch.input_ids_BS, "labels": labels}
    if pairs:
        dense["token_type_ids"] = batch.token_types_BS
        dense["next_sentence_label"] = batch.is_random_B  # transformers: 1 is "B is random"
        assert len(set(batch.is_random_B.tolist())) == 2
    expected = model(**dense).loss
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sums = loss_sums(model, batch)
    loss = sums[0] / (batch.labels_BK != -100).sum() + sums[1] / ROWS
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[FlopCounterMode]:
    """The counter does not know the CPU's fused attention; multiplied out, it does."""
    model.set_attn_implementation("eager")  # for types that run their own forward pass
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def total(counter: FlopCounterMode) -> int:
    """Without the tables of RoPE, which transformers makes by a product before 5.20."""
    counts = counter.get_flop_counts()
    tables = [sum(each.values()) for name, each in counts.items() if "RotaryEmbedding" in name]
    return counter.get_total_flops() - sum(tables)


@each_kind
@pytest.mark.parametrize(("rows", "masked", "depth"), [(1, 1, 1), (4, 9, 3)])
def test_flops_are_those_of_torchs_counter_and_need_no_memory(kind, pairs, rows, masked, depth):
    model = make(kind, pairs, depth=depth)
    shape = {"rows": rows, "sequence_length": LENGTH, "masked": rows * masked}
    with counted(model) as counter:
        sums = loss_sums(model, plain_batch(pairs, rows, masked))
        assert forward_flops(model, **shape) == total(counter)
        sums.sum().backward()
    assert training_flops(model, **shape) == total(counter)
    with torch.device("meta"):
        hollow = make(kind, pairs, depth=depth)
    assert {parameter.device.type for parameter in hollow.parameters()} == {"meta"}
    assert training_flops(hollow, **shape) == total(counter)
    storages = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert parameter_count(hollow) == sum(storages.values())  # tied ones once


def test_bert_base_has_berts_parameters():
    words = Vocabulary(30_522, 30_522, 0, 101, 102, 103, (0, 100, 101, 102, 103))
    with torch.device("meta"):
        model = create_model(ModelSpec(), depth=12, vocabulary=words, sequence_length=512)
    # bert-base-uncased: 109,482,240 less the pooler's 590,592, with the head's 622,650.
    assert parameter_count(model) == 109_482_240 - 590_592 + 622_650


@each_kind
def test_weights_depend_on_the_seed_alone_and_leave_the_global_randomness_alone(kind, pairs):
    before = torch.get_rng_state()
    one = make(kind, pairs).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again, other = (make(kind, pairs, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_a_model_fits_the_corpus_and_its_longest_row_and_has_no_dropout(kind):
    model = make(kind, vocabulary=vocabulary(pad=1))
    config = model.config
    assert (config.vocab_size, config.pad_token_id, config.num_hidden_layers) == (128, 1, 2)
    assert (config.bos_token_id, config.eos_token_id) == (2, 3)
    assert config.max_position_embeddings == LENGTH + (2 if kind.startswith("roberta") else 0)
    with torch.no_grad():
        assert torch.isfinite(loss_sums(model, plain_batch(pairs=False))[0])
    assert model.training
    assert not any(part.p for part in model.modules() if isinstance(part, nn.Dropout))


def test_a_padding_token_at_the_vocabulary_s_end_is_refused_for_roberta():
    late = vocabulary(pad=119)
    for kind in ("roberta", "roberta-prelayernorm"):
        with pytest.raises(UserError, match=r"model\.type: .* id 119"):
            make(kind, vocabulary=late)
    assert make("bert", vocabulary=late)


def test_dropout_and_more_positions_may_be_asked_for():
    spec = ModelSpec(max_position_embeddings=512, hidden_dropout_prob=0.1, **SMALL)
    model = create_model(spec, depth=2, vocabulary=vocabulary(), sequence_length=LENGTH)
    assert model.config.max_position_embeddings == 512
    assert any(part.p for part in model.modules() if isinstance(part, nn.Dropout))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dropout": 0.1}, r"model\.hidden_dropout: BertConfig .*'hidden_dropout_prob'"),
        ({"max_position_embeddings": LENGTH - 1}, rf"max_position_embeddings.* {LENGTH}"),
        ({"hidden_act": "nonsense"}, r"^model: "),
        ({"initializer_range": "wide"}, r"^model: "),
    ],
)
def test_a_wrong_model_field_gets_a_sentence(fields, message):
    spec = ModelSpec(type="bert", **SMALL, **fields)
    with pytest.raises(UserError, match=message):
        create_model(spec, depth=2, vocabulary=vocabulary(), sequence_length=LENGTH)


def test_attention_multiplied_out_in_bf16_equals_the_fused_one(monkeypatch):
    model, batch, found = make("megatron-bert", depth=3), plain_batch(pairs=False), []
    for positions in (encoder.MULTIPLIED_OUT, 0):
        monkeypatch.setattr(encoder, "MULTIPLIED_OUT", positions)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_sums(model, batch)[0]
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (products, gradients), (fused, others) = found
    assert products == pytest.approx(fused, rel=2e-3)
    # A sum: a key's bias has a gradient of nothing but rounding.
    assert 0.0 < (gradients - others).norm() < 0.01 * others.norm()
