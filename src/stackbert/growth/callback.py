"""Growth inside transformers' Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from stackbert.errors import UserError
from stackbert.growth.grow import OptimizerState, find_layers, grow_with_origins, move_optimizer
from stackbert.growth.operators import Operator


@dataclass
class GrowthCallback(TrainerCallback):
    """Grows the model that a Trainer trains, in place; optimizer and scheduler go on.

    In several processes or on several GPUs, whose wrappers hold the old parameters, a growth is a
    UserError. All but `depths` is as `grow` takes it.
    """

    depths: Mapping[int, int]
    """Layers that the model is to have from a step on: {1000: 6, 3000: 12}."""
    operator: str | Operator = "stack"
    seed: int = 0
    optimizer_state: OptimizerState = "copy"

    def on_step_begin(  # type: ignore[override]  # noqa: D102 (TrainerCallback's)
        self,
        args: Any,  # noqa: ANN401
        state: Any,  # noqa: ANN401
        control: Any,  # noqa: ANN401
        *,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        **others: Any,  # noqa: ANN401
    ) -> None:
        depth = max((d for step, d in self.depths.items() if step <= state.global_step), default=0)
        if depth <= len(find_layers(model)[1]):
            return
        if args.world_size > 1 or args.n_gpu > 1:
            raise UserError("GrowthCallback grows in one process on one device only.")
        growth = grow_with_origins(model, depth, self.operator, seed=self.seed)
        move_optimizer(optimizer, model, growth, self.optimizer_state)
        grown: Any = growth.model
        if args.gradient_checkpointing:
            grown.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        # The Trainer holds this very object, and has wrapped its forward method for autocast.
        new = vars(grown).items()
        vars(model).update({n: value for n, value in new if "hook" not in n and n != "forward"})
