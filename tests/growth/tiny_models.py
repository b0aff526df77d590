"""Tiny models whose weights no initialisation would give."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tiny_encoders import tiny_encoder

_DECODERS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}
_NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def build(kind, depth, **fields):
    if kind in _DECODERS:
        model_class, config_class = _DECODERS[kind]
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(
                config_class(**{"vocab_size": 96, **sizes, "num_hidden_layers": depth, **fields})
            )
    else:
        dropout = {} if kind == "modernbert" else dict.fromkeys(_NO_DROPOUT, 0.0)
        model = tiny_encoder(kind, depth, **dropout, **fields)
    generator = torch.Generator().manual_seed(depth)
    with torch.no_grad():
        # Zero biases and unit norms would hide a tensor that was not copied.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model
