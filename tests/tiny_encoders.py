"""Encoders of every type that StackBERT trains, tiny, and a tokenizer of made-up words."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
KINDS: dict[str, dict[str, int]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "roberta-prelayernorm": {"type_vocab_size": 1},
    "megatron-bert": {},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
}


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token a word; pairs have the type 1 in their second part."""
    vocabulary = {word: at for at, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)))


def tiny_encoder(kind: str = "bert", depth: int = 2, seed: int = 0, **fields) -> PreTrainedModel:
    """For 91 words, with a masked-LM head; the caller's random state stays as it is."""
    defaults = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "max_position_embeddings": 66,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        **KINDS.get(kind, {}),
    }
    config = AutoConfig.for_model(kind, **{**defaults, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForMaskedLM.from_config(config)


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shaken(model: PreTrainedModel, seed: int, by: float) -> PreTrainedModel:
    """With noise on all weights, so that layers and heads differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def edit_config(folder: Path, **fields: object) -> None:
    """Sets fields in a model folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
