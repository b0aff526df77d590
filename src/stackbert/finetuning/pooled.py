"""A head on the mean of a text's tokens; a small encoder's [CLS] token says little of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from stackbert.model_files import open_model


class MeanPooled(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Any encoder of transformers with a linear head on means of its last hidden states.

    Of a sentence, the head sees the mean over its tokens; of a pair, with u and v the means of its
    texts, u, v, |u − v| and u · v (Conneau et al. 2017, section 3.1). Special tokens and padding do
    not count.
    """

    _supports_sdpa = True

    def __init__(self, config: Any) -> None:  # noqa: ANN401 (any config)
        auto: Any = AutoModel
        encoder = auto.from_config(config)  # first, as it knows which attention it has
        super().__init__(config)
        # Under its usual name, so that tensors of any checkpoint of its type land by theirs.
        self.base_model_prefix = encoder.base_model_prefix
        self.add_module(encoder.base_model_prefix, encoder)
        parts = 4 if config.pooled_texts == 2 else 1
        self.head = nn.Linear(parts * config.hidden_size, config.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, spans: Tensor, labels: Tensor | None = None, **inputs: Tensor
    ) -> SequenceClassifierOutput:
        """Logits, and with `labels` (rows,) the loss of transformers' own heads.

        `spans` (rows, texts, 2) say where each text's tokens begin and end; `inputs` go to the
        encoder.
        """
        x_BSH = self.base_model(**inputs).last_hidden_state.float()
        place_S = torch.arange(x_BSH.shape[1], device=x_BSH.device)
        inside_BKS = (place_S >= spans[..., :1]) & (place_S < spans[..., 1:])
        with torch.autocast(x_BSH.device.type, enabled=False):  # means and head in full precision
            sums_BKH = inside_BKS.float() @ x_BSH
            first_BH, *second = (sums_BKH / inside_BKS.sum(2)[..., None]).unbind(1)
            parts = [first_BH]
            for second_BH in second:
                parts += [second_BH, (first_BH - second_BH).abs(), first_BH * second_BH]
            logits = self.head(torch.cat(parts, dim=1))
        output = SequenceClassifierOutput(logits=logits)
        if labels is not None:
            output.loss = ForSequenceClassificationLoss(labels, logits, self.config)
        return output


def open_pooled(folder: str | Path) -> MeanPooled:
    """Open a fine-tuned `MeanPooled` that was saved.

    Raises:
        UserError: the folder holds something else, or is damaged.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = open_model(Path(folder), MeanPooled, config=config)
    assert isinstance(model, MeanPooled)
    return model
