"""Tiny models whose weights no initialisation would give."""

from transformers import AutoConfig, AutoModelForCausalLM

from tiny_encoders import KINDS, shaken, tiny_encoder

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 96}


def build(kind, depth, **fields):
    if kind in KINDS:
        dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        dropout = {} if kind == "modernbert" else dict.fromkeys(dropouts, 0.0)
        model = tiny_encoder(kind, depth, **dropout, **fields)
    else:
        config = AutoConfig.for_model(kind, num_hidden_layers=depth, **SIZES, **fields)
        model = AutoModelForCausalLM.from_config(config)
    # Zero biases and unit norms would hide a tensor that was not copied.
    return shaken(model, depth, 0.05)
