"""One model, one optimizer, one step at a time; knows nothing of stages or files."""

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
import transformers
from torch import Tensor, nn

from stackbert.batches.batches import IGNORED, Batch, training_plan
from stackbert.batches.randomness import derive_key
from stackbert.corpus.store import Corpus
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.encoder import EAGER, BF16Norm, compiled, supports_masked_forward
from stackbert.growth.grow import grow_optimizer_state, grow_with_origins, grown_config
from stackbert.machine import DTYPES, working_precision
from stackbert.model import create_model, freeze, model_class
from stackbert.model_files import seeded
from stackbert.pretraining.distributed import SINGLE, ParallelModel, World, full_tensor
from stackbert.pretraining.layers import ROWS, measure_layers
from stackbert.pretraining.optimizers import NamedState, Optimizers, step_flops
from stackbert.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS_AT_ONCE = {"cpu": 8192, "cuda": 65536}
"""Positions of a micro-batch that was not measured, and of evaluations. At 12 × 768 in bf16
autocast that is some 24 GB of activations on a GPU (40 bytes a position, layer and unit)."""


class Trainer:
    """A model in training, weights and optimizer state in fp32: `step`, `evaluate`, `grow`.

    `recipe` is autotuned; its stages are the caller's. `state` is the optimizer's, of a run that
    resumes. Of the `world`, each process does the rows that it is given.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        recipe: Recipe,
        *,
        device: torch.device,
        state: NamedState | None = None,
        world: World = SINGLE,
    ) -> None:
        self.device = device
        self.micro_batch: int | str = recipe.batch.micro_batch
        self._recipe = recipe
        self._precision = working_precision(recipe)
        # Looking at a step before it changes the weights waits for the device; a CPU never waits.
        self._check_finite = recipe.skip_bad_steps > 0 or device.type == "cpu"
        self._world = world
        self._compile = recipe.compile is True and supports_masked_forward(model)
        self._compiled: set[tuple[int, ...]] = set()  # shapes
        self._halvings = 0  # of the micro-batch, where the GPU's memory ended
        self._last_step: Any = None  # a CUDA event, once there is one
        self._frozen: frozenset[int] | None = frozenset()
        self._take(model, state or {})

    def _take(self, model: "PreTrainedModel", state: NamedState) -> None:
        self.model = model.to(self.device)  # type: ignore[arg-type]
        if self._recipe.bf16_norms and self._precision == "bf16":
            for module in self.model.modules():
                if type(module) is nn.LayerNorm:
                    module.__class__ = BF16Norm
        self.parallel = ParallelModel(self.model, self._world, self._recipe.engine)
        dtype = DTYPES[self._precision]
        self.optimizers = Optimizers(self.model, self._recipe.optimizer, newton_schulz=dtype)
        self.optimizers.load_state(state)

    def freeze(self, layers: frozenset[int]) -> None:
        """From the next step on, train all but these layers and the embeddings; or everything."""
        if layers == self._frozen:
            return
        freeze(self.model, layers)
        if self.parallel.is_copied:
            del self.parallel  # DDP lets go of the parameters that it waited for
            self.parallel = ParallelModel(self.model, self._world, self._recipe.engine)
        self._frozen = layers

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return int(self.model.config.num_hidden_layers)

    @property
    def idle(self) -> bool:
        """Whether the device has done all steps that it was given."""
        return self._last_step is None or bool(self._last_step.query())

    def will_compile(self, batch: Batch) -> bool:
        """Whether the next step on such a batch compiles first, as its shape is new."""
        if self.depth == 1 and self.device.type == "cpu":  # where the last layer is not compiled
            return False
        return self._compile and self._shape(batch) not in self._compiled

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        rows, length = batch.input_ids_BS.shape
        size = self._rows_at_once(rows, length)
        return size, rows % size, length, batch.columns_BK.shape[1], min(self.depth, 2)

    def _rows_at_once(self, rows: int, length: int, micro_batch: int | str | None = None) -> int:
        size = rows_at_once(micro_batch or self.micro_batch, rows, length, self.device)
        return max(1, size >> self._halvings)

    def step(self, number: int, batch: Batch, factor: float) -> Tensor:
        """Train on one batch.

        Losses are divided by the masked positions (and rows) of the whole step, so micro-batches
        and processes add up to the same gradient whatever their size and number.

        Args:
            number: of the step; seeds dropout, so that a resumed run draws what it would have.
            batch: all its rows, or this process' equal share of them.
            factor: share of the peak learning rates.

        Returns:
            (3,), on the device: mean masked-LM and next-sentence loss (0 without pairs) in nats,
            the gradient's norm before clipping. If one is not finite, the weights were left as they
            were (on a CPU or if steps may be skipped) or are not worth keeping.
        """
        seed = derive_key(self._recipe.seed, "dropout", number)
        # Rank 0 drops the units that a run in one process drops, the other ranks others.
        seed = derive_key(seed, "rank", self._world.rank) if self._world.rank else seed
        batch = batch.to(self.device)
        rows = len(batch) * self._world.size
        masked = self._world.all_reduce((batch.labels_BK != IGNORED).sum()).clamp(min=1)
        sums = None
        while sums is None:
            torch.manual_seed(seed)
            sums = self._backward_in_parts(batch, masked, rows)
        sums = self._world.all_reduce(sums)
        self._compiled.add(self._shape(batch))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        sums = sums.double()
        result = torch.stack([sums[0] / masked, sums[1] / rows, full_tensor(norm).double()])
        if self._check_finite and not result.isfinite().all():
            self.optimizers.zero_grad()
        else:
            limit = self._recipe.optimizer.clip_norm
            if limit is not None:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
            self.optimizers.step(factor)
        if self.device.type == "cuda":
            self._last_step = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last_step.record()
        return result

    def _backward_in_parts(self, batch: Batch, masked: Tensor, rows: int) -> Tensor | None:
        """`backward` in micro-batches; None if memory ended, after which these are half as large.
        Not until this has returned are the tensors of the failed pass freed."""
        size, *_ = self._shape(batch)
        sums = torch.zeros(2, device=self.device)
        try:
            for start in range(0, len(batch), size):
                last = start + size >= len(batch)
                sums += self.backward(batch.rows(start, start + size), masked, rows, last=last)
        except torch.OutOfMemoryError:
            if size == 1 or self._world.size > 1:  # the other processes would wait for this one
                raise
            self.optimizers.zero_grad()
            self._halvings += 1
            return None
        return sums

    def backward(
        self, batch: Batch, masked: int | Tensor, rows: int, *, last: bool = True
    ) -> Tensor:
        """Add the gradients of some rows, on the device; returns their losses (2,), summed.

        `masked` positions and `rows` are those of the whole step; with this process' `last` rows of
        it, gradients are exchanged.
        """
        kernels, limit = EAGER, contextlib.nullcontext()
        if self._compile:
            kernels = compiled(self.device.type)
            # Graphs a function, one for each shape; after 8 it would silently stop compiling.
            limit = torch._dynamo.config.patch(recompile_limit=64)
        with self.parallel.gradient_sync(last):
            with limit, self._autocast():
                sums = self.parallel(batch, kernels)
            loss = sums[0] / masked + sums[1] / rows
            # The engines take the mean of the processes' gradients, which are shares of one sum.
            torch.autograd.backward(loss * self._world.size)
        return sums.detach()

    def _autocast(self) -> torch.autocast:
        enabled = self._precision != "fp32"
        return torch.autocast(self.device.type, DTYPES[self._precision], enabled=enabled)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """Mean masked-LM and next-sentence loss of a validation batch: all its rows, on every
        process, which does its share. Not compiled, as it is seldom and of another shape."""
        rows, length = batch.input_ids_BS.shape
        size = self._rows_at_once(rows, length, "auto")
        share = batch.share(self._world.rank, self._world.size).to(self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.model.train(False)
        for start in range(0, len(share), size):
            with self._autocast():
                sums += self.parallel(share.rows(start, start + size))
        self.model.train(True)
        masked_lm, pair = self._world.all_reduce(sums).tolist()
        return masked_lm / max(1, int((batch.labels_BK != IGNORED).sum())), pair / rows

    def layers(self, batch: Batch) -> dict[str, list[float]] | None:
        """`measure_layers` of a validation batch; None of a sharded model."""
        if self.parallel.is_sharded:
            return None
        self.model.train(False)
        with self._autocast():
            found = measure_layers(self.model, batch.rows(0, ROWS).to(self.device))
        self.model.train(True)
        return found

    @torch.no_grad()
    def average(self, before: int) -> None:
        """Let the weights join their mean over `before` others, kept as optimizer state."""
        if not before:
            state = self.optimizers.state()
            for name, tensors in state.items():
                tensors["average"] = self.model.get_parameter(name).detach()
            self.optimizers.load_state(state)
        for name, tensors in self.optimizers.state().items():
            tensors["average"].lerp_(self.model.get_parameter(name), 1.0 / (before + 1))

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchange the weights and their mean."""
        self.parallel.reshard()
        for name, tensors in self.optimizers.state().items():
            parameter = self.model.get_parameter(name)
            plain = parameter.clone()
            parameter.copy_(tensors["average"])
            tensors["average"].copy_(plain)

    def full_optimizer_state(self) -> NamedState:
        """The optimizer's tensors by parameter name, every tensor whole; a collective call."""
        return {
            name: {key: full_tensor(tensor) for key, tensor in tensors.items()}
            for name, tensors in self.optimizers.state().items()
        }

    def grow(self, depth: int, number: int) -> None:
        """Replace the model by one of `depth` layers, with the optimizer's state, before a step
        whose number seeds fresh layers and noise."""
        spec = self._recipe.growth
        seed = derive_key(self._recipe.seed, "growth", number) >> 1  # torch seeds are signed
        source = self.model
        if self.parallel.is_sharded:
            source = type(self.model)(self.model.config)
            source.load_state_dict({n: t.cpu() for n, t in self.parallel.full_weights().items()})
        growth = grow_with_origins(source, depth, spec.rule, seed=seed)
        state = self.full_optimizer_state()
        state = grow_optimizer_state(state, growth, spec.optimizer_state)
        self._take(growth.model, state)
        if self._frozen:  # its layers have other numbers now
            self._frozen = None


def rows_at_once(
    micro_batch: int | str, rows: int, sequence_length: int, device: torch.device
) -> int:
    """Rows of a forward pass of a batch of `rows`; with "auto" as many as usually run well."""
    if isinstance(micro_batch, int):
        return min(rows, micro_batch)
    return max(1, min(rows, POSITIONS_AT_ONCE[device.type] // sequence_length))


def recipe_model(
    recipe: Recipe, vocabulary: Vocabulary, depth: int, *, seed: int = 0
) -> "PreTrainedModel":
    """A freshly initialised model of a recipe at some depth, on the CPU (or torch's device)."""
    if recipe.model is not None:
        length, pairs = recipe.longest_sequence, recipe.objective.next_sentence
        shape: dict[str, Any] = {"depth": depth, "sequence_length": length, "next_sentence": pairs}
        return create_model(recipe.model, vocabulary=vocabulary, seed=seed, **shape)
    kind = recipe_class(recipe)
    assert recipe.start is not None
    config = kind.config_class.from_dict(dict(recipe.start.config))
    depths = [recipe.start.depth, *(s.depth for s in recipe.stages if s.depth <= depth)]
    for before, after in itertools.pairwise(depths):
        if before < after:
            config = grown_config(config, recipe.growth.rule.depth_map(before, after))
    with seeded(seed):
        model: PreTrainedModel = kind(config).train()
    return model


def recipe_class(recipe: Recipe) -> Any:  # noqa: ANN401 (a class of transformers)
    """The transformers class that a recipe trains."""
    if recipe.start is not None:
        return getattr(transformers, recipe.start.model)
    assert recipe.model is not None
    return model_class(recipe.model.type, next_sentence=recipe.objective.next_sentence)


def stage_flops(recipe: Recipe, corpus: Corpus) -> list[int]:
    """FLOPs of a training step of each stage, over all processes."""
    plan, flops = training_plan(recipe, corpus), []
    starts = zip(plan.stages, recipe.boundaries[:-1], strict=True)
    for index, (stage, first_step) in enumerate(starts):
        with torch.device("meta"):
            model = recipe_model(recipe, corpus.vocabulary, stage.depth)
            freeze(model, recipe.frozen_layers(index))
        rows, masked = plan.masked_rows(first_step)
        shape = {"rows": rows, "sequence_length": stage.sequence_length, "masked": masked}
        flops.append(step_flops(model, recipe.optimizer, **shape))
    return flops
