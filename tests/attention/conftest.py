"""A word tokenizer, sentences of it, and tiny encoders that look somewhere in particular."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [f"w{number}" for number in range(90)]
KINDS = {
    "bert": (BertForMaskedLM, BertConfig, {}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, {}),
    "roberta-prelayernorm": (RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormConfig, {}),
    "megatron-bert": (MegatronBertForMaskedLM, MegatronBertConfig, {}),
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig,
        {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
    ),
}


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: at for at, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)))


def build(kind: str = "bert", depth: int = 2, heads: int = 2, **fields):
    """With weights so large that heads differ and none is uniform."""
    model_class, config_class, extra = KINDS[kind]
    config = config_class(
        **{
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "max_position_embeddings": 66,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            **extra,
            **fields,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(WORDS)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Of 13 to 43 tokens, not in the order of their length."""
    lengths = [12, 41, 20, 33, 11, 27, 20, 15]
    starts = (7 * place for place in range(len(lengths)))
    return [
        " ".join(WORDS[(start + 11 * at) % 90] for at in range(length))
        for start, length in zip(starts, lengths, strict=True)
    ]


@pytest.fixture(params=list(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def make_model():
    return build


@pytest.fixture
def words_tokenizer():
    return make_tokenizer


@pytest.fixture
def save(tokenizer, tmp_path):
    """Writes a model with its tokenizer as a checkpoint folder."""

    def write(model, name="model", with_tokenizer=tokenizer):
        model.save_pretrained(tmp_path / name)
        with_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write
