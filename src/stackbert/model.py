"""Transformers' own models: built from a recipe, loaded, and their pre-training loss and FLOPs.

What is ours is the way to the loss: `encode` goes only as far as the masked positions need, and the
model's own head sees only those. At 3 layers of BERT-base it would be half of all the arithmetic.

Shape letters: B rows, S positions of a row, K masked positions of each, M of all, H hidden size.
"""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from stackbert.encoder import EAGER, Kernels, encode, supports_masked_forward
from stackbert.errors import UserError
from stackbert.growth.grow import find_layers
from stackbert.model_files import seeded
from stackbert.recipe import ModelSpec, ModelType
from stackbert.units import did_you_mean

if TYPE_CHECKING:
    from stackbert.batches.batches import Batch
    from stackbert.corpus.tokenizer import Vocabulary


FAMILIES: dict[ModelType, tuple[str, ...]] = {
    "bert": ("BertForMaskedLM", "BertForPreTraining"),
    "megatron-bert": ("MegatronBertForMaskedLM", "MegatronBertForPreTraining"),
    "roberta": ("RobertaForMaskedLM",),
    "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM",),
    "modernbert": ("ModernBertForMaskedLM",),
}
"""Of each type the transformers class with a masked-LM head, and with a next-sentence head, too."""
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def build_config(
    spec: ModelSpec, *, depth: int, vocabulary: "Vocabulary", sequence_length: int
) -> PretrainedConfig:
    """The transformers config of a recipe's model at one depth.

    Dropout is 0 unless the recipe sets it: a corpus that is seen about once does not overfit, and
    dropout costs time. `sequence_length` is the longest row, in tokens, of any stage.

    Raises:
        UserError: a field that this type's config does not have, or a value that it refuses.
    """
    config_class: Any = model_class(spec.type, next_sentence=False).config_class
    name = config_class.__name__
    extra: dict[str, Any] = dict(spec.model_extra or {})
    known = set(config_class().to_dict())
    for field in extra:
        if field not in known:
            hint = did_you_mean(field, sorted(known))
            raise UserError(f"model.{field}: {name} has no such field{hint}.")
    # RoBERTa's positions are counted from behind the padding id.
    positions = sequence_length + (vocabulary.pad + 1 if spec.type.startswith("roberta") else 0)
    if positions > 2 * sequence_length + 1:
        raise UserError(
            f"model.type: {spec.type} counts positions from behind the padding token, and this "
            f"tokenizer's has the id {vocabulary.pad}: that many rows of the table would never be "
            "used. Save the tokenizer with the padding token in front, or take another type."
        )
    given = extra.setdefault("max_position_embeddings", positions)
    if not isinstance(given, int) or given < positions:
        raise UserError(
            f"model.max_position_embeddings: rows of {sequence_length} tokens need at least "
            f"{positions}, got {given!r}."
        )
    set_here = {
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_attention_heads,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": depth,
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.pad,
        "cls_token_id": vocabulary.cls,
        "sep_token_id": vocabulary.sep,
        "bos_token_id": vocabulary.cls,
        "eos_token_id": vocabulary.sep,
    }
    dropouts = {field: 0.0 for field in _DROPOUTS if field in known}
    try:
        config: PretrainedConfig = config_class(**{**dropouts, **extra, **set_here})
    except Exception as error:  # each config class has its own validation errors
        raise UserError(f"model: {name} refuses these values: {error}") from error
    return config


def model_class(model_type: ModelType, *, next_sentence: bool) -> type[PreTrainedModel]:
    """The transformers class that pre-trains `model_type`; recipes see to it that it exists."""
    found: type[PreTrainedModel] = getattr(transformers, FAMILIES[model_type][next_sentence])
    return found


def create_model(
    spec: ModelSpec,
    *,
    depth: int,
    vocabulary: "Vocabulary",
    sequence_length: int,
    next_sentence: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """A freshly initialised model of a recipe, in fp32, on the CPU, in training mode.

    The weights are a function of the arguments alone; the global random state is untouched.

    Raises:
        UserError: as `build_config`, or transformers cannot build the model.
    """
    config = build_config(spec, depth=depth, vocabulary=vocabulary, sequence_length=sequence_length)
    with seeded(seed):
        try:
            model: PreTrainedModel = model_class(spec.type, next_sentence=next_sentence)(config)
        except (ValueError, KeyError, TypeError) as error:
            name = type(error).__name__
            raise UserError(
                f"model: transformers cannot build a {spec.type} of these fields ({name}: {error})."
            ) from error
    model.train()
    return model


_HEADS = (
    ("cls.predictions",),
    ("head", "decoder"),  # modernbert
    ("generator_predictions", "generator_lm_head"),  # electra
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # distilbert
    ("lm_head",),
)


def prediction_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """The model's own masked-LM head: hidden states (…, H) to vocabulary logits (…, V).

    None if it is of no known form; then only the model's own forward pass goes through it.
    """
    for first, *rest in _HEADS:
        if all(hasattr(model, name.partition(".")[0]) for name in (first, *rest)):
            parts = [model.get_submodule(name) for name in (first, *rest)]
            return nn.Sequential(*parts) if rest else parts[0]
    return None


def logits_at(model: PreTrainedModel, ids_BS: Tensor, columns_BK: Tensor) -> Tensor:
    """Logits (B·K, V) at some columns of each row, by the model's own forward pass."""
    rows_B1 = torch.arange(len(ids_BS), device=ids_BS.device)[:, None]
    logits_BSV: Tensor = model(input_ids=ids_BS).logits
    return logits_BSV[rows_B1, columns_BK].flatten(0, 1)


def loss_sums(model: PreTrainedModel, batch: "Batch", kernels: Kernels = EAGER) -> Tensor:
    """The pre-training losses of some rows, in nats, equal to transformers' dense loss up to
    rounding: the same modules, at fewer positions.

    Returns:
        (2,): of masked LM, summed over the masked positions, and of next sentence, summed over the
        rows (0 without pairs), so that micro-batches and ranks simply add up.
    """
    head, labels_M = prediction_head(model), batch.labels_BK.flatten()
    if head is None:
        logits_MV = logits_at(model, batch.input_ids_BS, batch.columns_BK)
        masked = kernels.masked_loss(nn.Identity(), logits_MV, labels_M)
        return torch.stack([masked, masked.new_zeros(())])
    hidden_MH, pooled_BH = encode(
        model, batch.input_ids_BS, batch.columns_BK, batch.token_types_BS, kernels
    )
    masked = kernels.masked_loss(head, hidden_MH, labels_M)
    if batch.is_random_B is None:
        return torch.stack([masked, masked.new_zeros(())])
    parts: Any = model
    relation_B2 = parts.cls.seq_relationship(pooled_BH)
    pair = F.cross_entropy(relation_B2.float(), batch.is_random_B, reduction="sum")
    return torch.stack([masked, pair])


def parameter_count(model: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def freeze(model: PreTrainedModel, layers: frozenset[int]) -> None:
    """Train all but these layers and the embeddings; everything if there are none."""
    stack = find_layers(model)[0]
    model.requires_grad_(True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place = _place(name, stack)
        if layers and ("embed" in name if place is None else place in layers):
            parameter.requires_grad_(False)


def _place(name: str, stack: str) -> int | None:
    """Of the layer that a module or parameter belongs to; None outside the layers."""
    found = re.match(rf"{re.escape(stack)}\.(\d+)", name)
    return int(found[1]) if found else None


def forward_flops(model: PreTrainedModel, *, rows: int, sequence_length: int, masked: int) -> int:
    """FLOPs of one forward pass of `loss_sums`, a multiply-add counted as two.

    Counts matrix products only, as torch's FlopCounterMode does, where `encode` computes them (the
    last layer's queries, output projection and feed-forward only where the loss looks). `masked`
    positions are of the whole batch. Works on the meta device too.
    """
    return sum(flops for _, flops in _products(model, rows, sequence_length, masked))


def training_flops(model: PreTrainedModel, *, rows: int, sequence_length: int, masked: int) -> int:
    """FLOPs of a training step: a product costs as much again for the gradient of each factor.

    A frozen matrix needs none of its own, and below the lowest trained layer nothing does.
    """
    stack, layers = find_layers(model)
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    lowest = 0 if model.get_input_embeddings().weight.requires_grad else trained.index(True)
    total = 0
    for name, flops in _products(model, rows, sequence_length, masked):
        place = _place(name, stack)
        reached = place is None or place >= lowest
        weight = getattr(model.get_submodule(name), "weight", None)  # attention has none
        total += flops * (1 + reached + (reached if weight is None else weight.requires_grad))
    return total


def _products(
    model: PreTrainedModel, rows: int, sequence_length: int, masked: int
) -> Iterator[tuple[str, int]]:
    """(module, FLOPs) of each linear map; a layer's name stands for its attention."""
    every = rows * sequence_length
    # The pooler of a next-sentence head looks at the first position of each row, too.
    looked_at = masked + (rows if getattr(model.base_model, "pooler", None) is not None else 0)
    asking = looked_at if supports_masked_forward(model) else every
    predicting = every if prediction_head(model) is None else masked
    stack, layers = find_layers(model)
    last = f".{len(layers) - 1}."
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        thirds = 3 * every  # of the positions where it is computed
        if "pooler" in name or "seq_relationship" in name:
            thirds = 3 * rows
        elif not name.startswith(f"{model.base_model_prefix}."):
            thirds = 3 * predicting
        elif last in name and name.endswith(".Wqkv"):
            thirds = asking + 2 * every
        elif last in name and not name.endswith((".key", ".value")):
            thirds = 3 * asking
        yield name, 2 * thirds * module.in_features * module.out_features // 3
    # Two products of (positions that ask) × S × H a layer; the width of a head drops out.
    each_query = 2 * 2 * sequence_length * model.config.hidden_size
    for place in range(len(layers)):
        yield f"{stack}.{place}", each_query * (asking if place == len(layers) - 1 else every)
