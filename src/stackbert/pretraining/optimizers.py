"""AdamW and Muon over a model's parameters, their state addressed by parameter name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stackbert.growth.grow import find_layers
from stackbert.model import training_flops
from stackbert.pretraining.distributed import distribute_tensor, full_tensor
from stackbert.recipe import OptimizerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Muon's iteration in Jordan et al. (2024) and torch: five steps of one polynomial.
NEWTON_SCHULZ_STEPS, COEFFICIENTS, EPS = 5, (3.4445, -4.775, 2.0315), 1e-7
NamedState = dict[str, dict[str, Tensor]]
"""Optimizer tensors by parameter name, then by their own name ("exp_avg", "step", …)."""


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon (Jordan et al., 2024), its orthogonalisation batched and its dtype chosen.

    All matrices of one shape go through Newton-Schulz in one product; where the processor emulates
    bf16 the iteration runs in fp32. The update rule is torch's, with Nesterov's momentum.
    """

    def __init__(
        self,
        params: list[Tensor],
        *,
        newton_schulz: torch.dtype,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._dtype = newton_schulz

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_one_shape(group, parameters)

    def _step_one_shape(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        torch._foreach_lerp_(gradients, buffers, momentum)  # in place, as shards can in torch 2.11
        whole_NRC = torch.stack([full_tensor(each) for each in gradients])  # a shard will not do
        directions_NRC = orthogonalise(whole_NRC, self._dtype)
        moves = [distribute_tensor(d, p) for d, p in zip(directions_NRC, parameters, strict=True)]
        # A tall matrix's orthogonal update moves its outputs less; torch's "original" adjustment.
        rows, columns = parameters[0].shape
        scale = -lr * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, moves, alpha=scale)


def orthogonalise(x_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring each of N matrices (R × C) near the orthogonal one of its singular vectors.

    The quintic Newton-Schulz iteration of Muon; singular values end between about 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    tall = x_NRC.size(-2) > x_NRC.size(-1)
    x = x_NRC.to(dtype)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for together in _taken_together(x.size(-2), x.size(-1)):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if together == 1:
            x = torch.baddbmm(x, polynomial, x, beta=a)
            continue
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial
        for _ in range(together - 1):
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            factor = torch.bmm(polynomial, factor)
        x = torch.bmm(factor, x)
    return (x.mT if tall else x).to(x_NRC.dtype)


def _taken_together(short: int, long: int) -> tuple[int, ...]:
    """How many steps of the iteration are taken on the small Gram matrix before it is made anew.

    A long matrix saves products that way. Not all five steps: what rounding leaves of the smallest
    eigenvalues would grow.
    """
    return (2, 3) if long >= 2 * short else (1,) * NEWTON_SCHULZ_STEPS


def step_flops(
    model: "PreTrainedModel", spec: OptimizerSpec, *, rows: int, sequence_length: int, masked: int
) -> int:
    """FLOPs of a whole training step: forward, backward, and Muon's Newton-Schulz iterations.

    Args: as `stackbert.model.training_flops`; works on the meta device too.
    """
    total = training_flops(model, rows=rows, sequence_length=sequence_length, masked=masked)
    for name in _muon_names(model, spec):
        matrix = model.get_parameter(name)
        if not matrix.requires_grad:
            continue
        short, long = sorted(matrix.shape)
        for together in _taken_together(short, long):
            # The Gram matrix and its product with x are long, the others as small as it is.
            small = 4 * (together - 1) + 1
            total += 2 * short * short * (2 * long + small * short)
    return total


def _muon_names(model: "PreTrainedModel", spec: OptimizerSpec) -> set[str]:
    """The parameters that Muon updates: the matrices of the encoder's layers."""
    if spec.name != "muon":
        return set()
    layers = find_layers(model)[0] + "."
    named = model.named_parameters()
    return {name for name, each in named if each.ndim == 2 and name.startswith(layers)}


class Optimizers:
    """Every parameter of a model on its device in one optimizer: `places`, by their names.

    `newton_schulz` is the dtype of Muon's iteration.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        spec: OptimizerSpec,
        *,
        newton_schulz: torch.dtype = torch.bfloat16,
    ) -> None:
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        muon_names = _muon_names(model, spec)
        muon = [p for p, name in names.items() if name in muon_names]
        others = [p for p, name in names.items() if name not in muon_names]
        decayed, plain = ([p for p in others if (p.ndim > 1) == decays] for decays in (True, False))
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        decay: dict[str, Any] = {"weight_decay": spec.weight_decay}
        options = decay | {"betas": spec.betas, "eps": spec.eps, "fused": True}
        # Each with its peak learning rate.
        self._all: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(groups, lr=spec.lr, **options), spec.lr)
        ]
        if muon:
            options = decay | {"momentum": spec.muon_momentum, "newton_schulz": newton_schulz}
            self._all.append((BatchedMuon(muon, lr=spec.muon_lr, **options), spec.muon_lr))
        self.places = {
            names[parameter]: (parameter, optimizer)
            for optimizer, _ in self._all
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def step(self, factor: float) -> None:
        """Update every parameter at `factor` times its peak learning rate; drop gradients."""
        for optimizer, peak in self._all:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for optimizer, _ in self._all:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> NamedState:
        """The optimizers' tensors by parameter name; no copies."""
        return {
            name: dict(optimizer.state[parameter])
            for name, (parameter, optimizer) in self.places.items()
            if parameter in optimizer.state
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over state by name, copied to the parameters' device; others start anew."""
        for name, tensors in state.items():
            parameter, optimizer = self.places[name]
            # Copied, so that its memory is aligned as a fresh tensor's is: some CPU kernels round
            # differently otherwise, and a resumed run would differ in the last bit.
            optimizer.state[parameter] = {
                key: distribute_tensor(tensor.to(parameter.device, copy=True), parameter)
                for key, tensor in tensors.items()
            }
