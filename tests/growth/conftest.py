"""Tiny models of the five masked-LM types, with weights that no initialisation would give."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

VOCABULARY = 128
_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

MASKED = {
    "bert": (BertForMaskedLM, BertConfig, _NO_DROPOUT),
    "roberta": (RobertaForMaskedLM, RobertaConfig, _NO_DROPOUT),
    "roberta-prelayernorm": (
        RobertaPreLayerNormForMaskedLM,
        RobertaPreLayerNormConfig,
        _NO_DROPOUT,
    ),
    "megatron-bert": (MegatronBertForMaskedLM, MegatronBertConfig, _NO_DROPOUT),
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig,
        {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
}
CAUSAL = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
}
PRE_NORM = ("roberta-prelayernorm", "megatron-bert", "modernbert", "gpt2", "llama")

ModelFactory = Callable[..., PreTrainedModel]


def build(kind: str, depth: int, **fields: object) -> PreTrainedModel:
    model_class, config_class, extra = {**MASKED, **CAUSAL}[kind]
    config = config_class(num_hidden_layers=depth, **{**_COMMON, **extra, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        model = model_class(config)
        with torch.no_grad():
            # Zero biases and unit norms would hide a tensor that was not copied.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.fixture(params=list(MASKED))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_model() -> ModelFactory:
    return build


@pytest.fixture
def token_ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, VOCABULARY, (4, 24), generator=generator)
