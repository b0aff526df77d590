"""Growth of 15 architectures checked tensor by tensor, by code that shares nothing with StackBERT.

    python benchmarks/independent/growth.py

The depth maps and the names of layers and output projections are written out by hand here; from the
package comes `stackbert.grow` alone. Ends with 1 if any tensor is not what it should be.
"""

import sys
import tempfile

import torch
import transformers

from stackbert import grow

MAPS = {  # 2 layers → 4; None: a fresh layer
    "stack": [0, 1, 0, 1],
    "interleave": [0, 0, 1, 1],
    "middle": [0, 1, 0, 1],
    "identity": [0, 1, None, None],
    "identity-noise": [0, 1, None, None],
    "identity-copy": [0, 0, 1, 1],
    "random": [0, 1, None, None],
}
MOVED_NORMS = {  # post-norm: the layer whose norm after attention, after the rest, comes here
    "identity": ([0, 1, None, None], [0, None, None, 1]),  # None: a plain one
    "identity-copy": ([0, None, 1, None], [None, 0, None, 1]),
}
BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
BERT, LLAMA = ("attention.output.dense", "output.dense"), ("self_attn.o_proj", "mlp.down_proj")
ARCHITECTURES = [  # class without its ending, ending, prefix of the layers, projections, norms
    ("Bert", "ForMaskedLM", "bert.encoder.layer", BERT, BERT_NORMS),
    ("Roberta", "ForMaskedLM", "roberta.encoder.layer", BERT, BERT_NORMS),
    ("XLMRoberta", "ForMaskedLM", "roberta.encoder.layer", BERT, BERT_NORMS),
    ("Electra", "ForPreTraining", "electra.encoder.layer", BERT, BERT_NORMS),
    ("DebertaV2", "ForMaskedLM", "deberta.encoder.layer", BERT, BERT_NORMS),
    ("DistilBert", "ForMaskedLM", "distilbert.transformer.layer",
     ("attention.out_lin", "ffn.lin2"), ("sa_layer_norm", "output_layer_norm")),
    ("RobertaPreLayerNorm", "ForMaskedLM", "roberta_prelayernorm.encoder.layer", BERT, ()),
    ("MegatronBert", "ForMaskedLM", "bert.encoder.layer", BERT, ()),
    ("ModernBert", "ForMaskedLM", "model.layers", ("attn.Wo", "mlp.Wo"), ()),
    ("GPT2", "LMHeadModel", "transformer.h", ("attn.c_proj", "mlp.c_proj"), ()),
    ("GPTNeoX", "ForCausalLM", "gpt_neox.layers", ("attention.dense", "mlp.dense_4h_to_h"), ()),
    ("OPT", "ForCausalLM", "model.decoder.layers", ("self_attn.out_proj", "fc2"), ()),
    ("Llama", "ForCausalLM", "model.layers", LLAMA, ()),
    ("Qwen2", "ForCausalLM", "model.layers", LLAMA, ()),
    ("Gemma2", "ForCausalLM", "model.layers", LLAMA, ()),
]  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 96, "embedding_size": 32, "max_position_embeddings": 64,
    "dim": 32, "hidden_dim": 48, "n_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
IDS = torch.arange(5, 29).view(2, 12)


def trained(family: str, ending: str) -> torch.nn.Module:
    """A model of 2 layers whose every number is one that no initialisation gives."""
    make_config = getattr(transformers, f"{family}Config")
    fields = {k: v for k, v in SIZES.items() if k in make_config().to_dict()}
    torch.manual_seed(0)
    make_model = getattr(transformers, family + ending)
    model = make_model(make_config(**fields, num_hidden_layers=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def check(model: torch.nn.Module, operator: str, prefix: str, outputs: tuple, norms: tuple) -> int:
    """Number of tensors compared.

    Raises:
        AssertionError: one of them is wrong.
    """
    grown = grow(model, 4, operator, seed=1)
    old, new = model.state_dict(), grown.state_dict()
    for name, tensor in new.items():
        if not name.startswith(f"{prefix}."):
            assert tensor.equal(old[name]), f"{name} is not its source's"
            continue
        place, rest = name.removeprefix(f"{prefix}.").split(".", 1)
        source, projection = MAPS[operator][int(place)], rest.rpartition(".")[0] in outputs
        original = f"{prefix}.{source}.{rest}"
        norm, _, kind = rest.rpartition(".")
        if operator in MOVED_NORMS and norm in norms:
            source = MOVED_NORMS[operator][norms.index(norm)][int(place)]
            plain = torch.full_like(tensor, kind == "weight")
            expected = plain if source is None else old[f"{prefix}.{source}.{rest}"]
            assert tensor.equal(expected), f"{name} is not the norm of {source}"
        elif projection and operator == "identity-copy" and int(place) % 2:
            assert not tensor.any(), f"{name} is not zero"
        elif original in old:
            assert tensor.equal(old[original]), f"{name} is not {original}"
        elif rest.startswith("attn_norm"):  # ModernBERT's first layer has none to copy
            assert bool((tensor == 1).all()), f"{name} is not a new norm"
        else:
            assert source is None, f"{name} has no source"
            assert bool(tensor.isfinite().all()), f"{name} is not initialised"
            if projection and (operator == "identity" or rest.endswith("bias")):
                assert not tensor.any(), f"{name} is not zero"
            elif projection and operator == "identity-noise":
                assert abs(float(tensor.std()) / 0.03 - 1) < 0.15, f"{name} is not noise"
    layers = {name.removeprefix(f"{prefix}.").split(".")[0] for name in new if prefix in name}
    assert layers == {"0", "1", "2", "3"}
    assert {n for n in old if prefix not in n} == {n for n in new if prefix not in n}
    pointers = [p.data_ptr() for m in (model, grown) for p in m.parameters()]
    assert len(set(pointers)) == len(pointers), "two parameters share their storage"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        grown.save_pretrained(folder)
        again = type(grown).from_pretrained(folder)
        assert again(IDS).logits.equal(grown(IDS).logits), "another model comes back from disk"
        if operator in MOVED_NORMS:
            change = (grown(IDS).logits - model(IDS).logits).abs().max()
            assert change <= (2e-6 if norms else 0), f"{operator} changed the logits by {change}"
    return len(new)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wrong = 0
    for family, ending, *layout in ARCHITECTURES:
        model = trained(family, ending)
        for operator in MAPS:
            try:
                result = f"{check(model, operator, *layout)} tensors equal"
            except AssertionError as error:
                result, wrong = f"WRONG: {error}", wrong + 1
            print(f"{family + ending:30} {operator:15} {result}")
    sys.exit(bool(wrong))
