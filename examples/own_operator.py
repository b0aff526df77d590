"""A growth operator of your own: every trained layer is followed by a copy that starts silent.

The copy's two output projections are zero, so the model computes what it computed before and
trains on from there (LLaMA Pro, Wu et al., ACL 2024, expands its blocks like this).
"""

import torch
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

import stackbert as sb
from stackbert.growth.operators import Operator, Origin


def expand(source: int, target: int) -> list[Origin]:
    """For each new layer, bottom first: the old layer to copy and what becomes of its outputs."""
    silent = [Origin(layer, "zeroed") for layer in range(source)]
    pairs = [[Origin(layer), silent[layer]] for layer in range(source)]
    return [origin for pair in pairs for origin in pair]


operator = Operator("expand", expand, reaches=lambda old, new: new == 2 * old)
sb.register_operator(operator)  # from here on a name like "stack", also in recipes

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 100}
small = MegatronBertForMaskedLM(MegatronBertConfig(num_hidden_layers=3, **sizes)).eval()
deep = sb.grow(small, 6, "expand")
tokens = torch.arange(20)[None]
with torch.no_grad():
    assert torch.equal(deep(tokens).logits, small(tokens).logits)
recipe = sb.load_recipe("demo", ["growth.operator=expand"])
print(f"{small.num_parameters():,} → {deep.num_parameters():,} parameters, the same logits")
print(f"and recipe '{recipe.name}' grows with '{recipe.growth.operator}'")
