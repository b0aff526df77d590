"""What each layer does to the residual stream, on a few validation rows: healthy or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stackbert.batches.batches import IGNORED, Batch
from stackbert.growth.grow import find_layers
from stackbert.pretraining.ledger import read_ledger

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 8
"""Validation rows looked at: under a hundredth of an evaluation, so next to nothing of a run."""
COLUMNS = ("norm", "cosine", "token_cosine", "rms")
# Healthy models at 128 wide have cosines of 0.5-0.8 with the embedding, sick ones 0.0 (and the
# norm of 1.7 becomes 113 in one layer); tokens of a sick one have cosines of 0.83-0.87.
MIN_COSINE, MAX_GROWTH, MAX_TOKEN_COSINE = 0.05, 10.0, 0.8


@torch.no_grad()
def measure_layers(model: "PreTrainedModel", batch: Batch) -> dict[str, list[float]]:
    """Means over the tokens of the first `ROWS` rows, without masks and their first position, of an
    unsharded model in evaluation mode.

    Returns:
        Of the embeddings' output and of each layer's: `norm` of a token's vector, its `cosine` with
        its embedding, its `token_cosine` with the row's other tokens, and the `rms` of the layer's
        matrices (of the token embeddings, first).
    """
    batch = batch.rows(0, ROWS)
    masked = batch.labels_BK != IGNORED
    at_columns_BK = batch.input_ids_BS.gather(1, batch.columns_BK)
    labels_BK = torch.where(masked, batch.labels_BK, at_columns_BK)
    ids_BS = batch.input_ids_BS.scatter(1, batch.columns_BK, labels_BK)
    types = {} if batch.token_types_BS is None else {"token_type_ids": batch.token_types_BS}
    layers, stream = find_layers(model)[1], list[Tensor]()

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream.append(inputs[0] if inputs else named["hidden_states"])

    def after(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ANN401
        stream.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        model.base_model(input_ids=ids_BS, **types)
    finally:
        for hook in hooks:
            hook.remove()

    weights: Any = model.get_input_embeddings().weight
    matrices = [[weights], *([p for p in layer.parameters() if p.ndim == 2] for layer in layers)]
    embedded = F.normalize(stream[0][:, 1:].float(), dim=-1)
    found: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for x_BSH, held in zip(stream, matrices, strict=True):
        tokens_BTH = x_BSH[:, 1:].float()
        one_BTH = F.normalize(tokens_BTH, dim=-1)
        others_BTH = one_BTH.sum(1, keepdim=True) - one_BTH
        squares, count = sum(p.square().sum() for p in held), sum(p.numel() for p in held)
        numbers = (
            tokens_BTH.norm(dim=-1).mean(),
            (one_BTH * embedded).sum(-1).mean(),
            (one_BTH * others_BTH).sum(-1).mean() / (one_BTH.size(1) - 1),
            (squares / count) ** 0.5,
        )
        for column, number in zip(found.values(), numbers, strict=True):
            column.append(round(float(number), 5))
    return found


def layer_warning(found: dict[str, list[float]]) -> str | None:
    """A sentence if a layer overwrites its input or the tokens collapse; None if all is well."""
    norm, cosine, token_cosine = found["norm"], found["cosine"], found["token_cosine"]
    remedy = "A norm on the embeddings or more weight decay may help."
    for layer in range(1, len(norm)):
        if cosine[layer] < MIN_COSINE or norm[layer] > MAX_GROWTH * norm[layer - 1]:
            return (
                f"Layer {layer} overwrites its input: a token's vector has cosine "
                f"{cosine[layer]:.2f} with its embedding and {norm[layer] / norm[layer - 1]:.1f} "
                f"times the norm it had before the layer. {remedy}"
            )
    for layer, value in enumerate(token_cosine):
        if value > MAX_TOKEN_COSINE:
            return (
                f"Tokens collapse: after layer {layer} the vectors of a row's tokens have a mean "
                f"cosine of {value:.2f} with each other. {remedy}"
            )
    return None


def layer_table(run: str | Path) -> pd.DataFrame:
    """What the evaluations of a run saw of its layers: one row an evaluation and layer.

    Returns:
        step, layer (0: the embeddings), norm, cosine, token_cosine, rms; as `measure_layers`.

    Raises:
        UserError: there is no ledger, or it is damaged.
    """
    ledger = read_ledger(run)
    lines = ledger[ledger.layers.notna()] if "layers" in ledger else ledger[:0]
    tables = [
        pd.DataFrame({"step": int(line.step), **line.layers}).rename_axis("layer").reset_index()
        for line in lines.itertuples()
    ]
    none = pd.DataFrame(columns=["step", "layer", *COLUMNS])
    return pd.concat(tables, ignore_index=True)[[*none]] if tables else none
