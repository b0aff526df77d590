"""Tiny models whose weights no initialisation would give."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tiny_encoders import KINDS, tiny_encoder

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 96}


def build(kind, depth, **fields):
    if kind in KINDS:
        dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        dropout = {} if kind == "modernbert" else dict.fromkeys(dropouts, 0.0)
        model = tiny_encoder(kind, depth, **dropout, **fields)
    else:
        config = AutoConfig.for_model(kind, num_hidden_layers=depth, **SIZES, **fields)
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(depth)
    with torch.no_grad():
        # Zero biases and unit norms would hide a tensor that was not copied.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model
