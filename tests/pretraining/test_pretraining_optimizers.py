"""BatchedMuon is torch's Muon; every parameter is in one group; state goes by name."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stackbert.growth.layers import find_layers
from stackbert.models import create_model
from stackbert.vocabulary import load_vocabulary
from torch import Tensor, nn

from stackbert.errors import RunError
from stackbert.pretraining.optimizers import BatchedMuon, Optimizers, orthogonalise
from stackbert.recipe import ModelSpec, OptimizerSpec

SHAPES = [(24, 8), (8, 24), (16, 16), (24, 8), (8, 24), (16, 16), (16, 16)]
OPTIONS = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        # A rate that changes, as the schedule's does.
        optimizer.param_groups[0]["lr"] = OPTIONS["lr"] * (number + 1) / steps
        optimizer.step()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_batched_muon_is_torchs_muon(nesterov: bool, momentum: float) -> None:
    ours, theirs = matrices(), matrices()
    options = OPTIONS | {"nesterov": nesterov, "momentum": momentum}
    batched = BatchedMuon(ours, newton_schulz=torch.bfloat16, **options)
    reference = torch.optim.Muon(theirs, **options)
    train(batched, ours, 6)
    train(reference, theirs, 6)
    for a, b in zip(ours, theirs, strict=True):
        # A batched product may add up in another order: a unit in bf16's last place of an update.
        torch.testing.assert_close(a, b, rtol=0, atol=6 * OPTIONS["lr"] * 2**-7)
        torch.testing.assert_close(
            batched.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"]
        )


def in_float64(gradient: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Newton-Schulz by the singular values, which it acts on one by one."""
    u, s, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / gradient.double().norm()
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_fp32_orthogonalisation_is_the_polynomial_of_the_singular_values(
    count: int, rows: int, columns: int, scale: float, seed: int
) -> None:
    coefficients = (3.4445, -4.775, 2.0315)
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(count, rows, columns, generator=generator) * scale
    result = orthogonalise(
        gradients, dtype=torch.float32, coefficients=coefficients, steps=5, eps=1e-7
    )
    assert result.dtype == torch.float32
    for one, gradient in zip(result, gradients, strict=True):
        expected = in_float64(gradient, coefficients, 5)
        torch.testing.assert_close(one.double(), expected, rtol=0, atol=2e-4)


def test_muon_leaves_a_matrix_without_gradient_alone() -> None:
    parameters = matrices()
    before = [p.detach().clone() for p in parameters]
    optimizer = BatchedMuon(parameters, newton_schulz=torch.float32, **OPTIONS)
    parameters[2].grad = torch.ones_like(parameters[2])
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
    assert moved == [place == 2 for place in range(len(parameters))]


@pytest.fixture(
    params=["bert", "roberta", "roberta-prelayernorm", "megatron-bert", "modernbert"],
    scope="module",
)
def model(request: pytest.FixtureRequest, corpus) -> nn.Module:
    return create_model(
        ModelSpec(type=request.param, hidden_size=32, num_attention_heads=2, intermediate_size=48),
        depth=2,
        vocabulary=load_vocabulary(corpus),
        sequence_length=16,
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(model: nn.Module, name: str) -> None:
    groups = Optimizers(model, OptimizerSpec(name=name)).groups()
    listed = [parameter for group in groups for parameter in group]
    assert sorted(listed) == sorted(n for n, _ in model.named_parameters())


def test_muon_gets_the_matrices_of_the_encoders_layers_and_nothing_else(model: nn.Module) -> None:
    optimizers = Optimizers(model, OptimizerSpec(name="muon"))
    muon = set(optimizers.groups()[-1])
    stack, layers = find_layers(model)
    inside = {
        f"{stack}.{number}.{name}"
        for number, layer in enumerate(layers)
        for name, parameter in layer.named_parameters()
        if parameter.ndim == 2
    }
    assert muon == inside
    assert len(muon) >= 4 * len(layers)
    assert not any("embedding" in name or "decoder" in name for name in muon)


def test_weight_decay_is_on_matrices_only(model: nn.Module) -> None:
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    for name in ("adamw", "muon"):
        optimizers = Optimizers(model, OptimizerSpec(name=name, weight_decay=0.3))
        decays = [g["weight_decay"] for o, _ in optimizers._all for g in o.param_groups]
        for names, decay in zip(optimizers.groups(), decays, strict=True):
            assert {dimensions[n] >= 2 for n in names} == {decay > 0}


def train_model(model: nn.Module, optimizers: Optimizers, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(0.5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_lands_by_name_and_training_goes_on_the_same(model: nn.Module, name: str) -> None:
    spec = OptimizerSpec(name=name)
    first = copy.deepcopy(model)
    before = Optimizers(first, spec)
    train_model(first, before, 3, seed=2)
    second = copy.deepcopy(first)
    after = Optimizers(second, spec)
    # In another order: a place must not decide anything.
    saved = {n: dict(t) for n, t in reversed(before.state().items())}
    after.load_state(saved)

    assert after.state().keys() == {n for n, _ in model.named_parameters()}
    for parameter, tensors in after.state().items():
        for key, tensor in tensors.items():
            original = saved[parameter][key]
            assert torch.equal(tensor, original)
            assert tensor.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
    train_model(first, before, 2, seed=3)
    train_model(second, after, 2, seed=3)
    for (parameter, a), (_, b) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), parameter


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_under_a_wrong_name_or_of_a_wrong_shape_is_refused(
    model: nn.Module, name: str
) -> None:
    optimizers = Optimizers(model, OptimizerSpec(name=name))
    some, parameter = next((n, p) for n, p in model.named_parameters() if p.ndim == 2)
    with pytest.raises(RunError, match="no_such_parameter"):
        optimizers.load_state({"no_such_parameter": {"exp_avg": torch.zeros(3)}})
    with pytest.raises(RunError, match=some):
        optimizers.load_state({some: {"exp_avg": torch.zeros(*parameter.shape[:-1], 1)}})


def test_a_step_uses_the_share_of_each_peak_rate_and_forgets_gradients() -> None:
    linear = nn.Linear(4, 4)
    model = SimpleNamespace(
        named_parameters=lambda: [(f"layers.0.{n}", p) for n, p in linear.named_parameters()]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "stackbert.pretraining.optimizers.find_layers", lambda _: ("layers", [linear])
        )
        optimizers = Optimizers(model, OptimizerSpec(name="muon", lr=0.1, muon_lr=0.3))
    for parameter in linear.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(0.25)
    rates = [g["lr"] for o, _ in optimizers._all for g in o.param_groups]
    assert rates == pytest.approx([0.025, 0.075])
    assert all(parameter.grad is None for parameter in linear.parameters())
