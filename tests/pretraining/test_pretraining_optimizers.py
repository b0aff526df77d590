"""BatchedMuon is torch's Muon; every parameter is in one group; state goes by name."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stackbert.growth.grow import find_layers
from stackbert.model import FAMILIES, create_model, training_flops
from stackbert.pretraining.optimizers import BatchedMuon, Optimizers, orthogonalise, step_flops
from stackbert.recipe import ModelSpec, OptimizerSpec

SHAPES = [(24, 8), (8, 24), (16, 16), (24, 8), (8, 24), (16, 16), (16, 16)]
each_optimizer = pytest.mark.parametrize("name", ["adamw", "muon"])


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("momentum", [0.95, 0.0])
def test_batched_muon_is_torchs_muon(momentum: float) -> None:
    ours, theirs = matrices(), matrices()
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": momentum}
    optimizers = (
        (BatchedMuon(ours, newton_schulz=torch.bfloat16, **options), ours),
        (torch.optim.Muon(theirs, **options), theirs),
    )
    for optimizer, parameters in optimizers:
        generator = torch.Generator().manual_seed(1)
        for step in range(6):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.param_groups[0]["lr"] = 0.02 * (step + 1) / 6
            optimizer.step()
    (batched, _), (reference, _) = optimizers
    for mine, its in zip(ours, theirs, strict=True):
        # Products in another order: three units in bf16's last place of an update.
        torch.testing.assert_close(mine, its, rtol=0, atol=3 * 6 * 0.02 * 2**-7)
        buffers = batched.state[mine]["momentum_buffer"], reference.state[its]["momentum_buffer"]
        torch.testing.assert_close(*buffers)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 12, 12)])
def test_orthogonalisation_is_the_polynomial_of_the_singular_values(shape) -> None:
    a, b, c = 3.4445, -4.775, 2.0315
    gradients = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(1e4 * gradients, torch.float32)
    u, s, v = torch.linalg.svd(gradients.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    exact = u * s[:, None] @ v
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-4)

    # In bf16 off by a few per cent, where the iteration itself leaves 0.7 to 1.2 for 1.
    half = orthogonalise(gradients, torch.bfloat16)
    assert (half - exact).norm() < 0.04 * exact.norm()


@each_optimizer
def test_flops_of_a_step_are_those_of_torchs_counter(name: str, tiny_corpus) -> None:
    spec = ModelSpec(hidden_size=16, num_attention_heads=2, intermediate_size=64)
    model = create_model(spec, depth=2, vocabulary=tiny_corpus.vocabulary, sequence_length=16)
    optimizer = OptimizerSpec(name=name)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    shape = {"rows": 2, "sequence_length": 16, "masked": 5}
    with FlopCounterMode(display=False) as counter:
        Optimizers(model, optimizer).step(1.0)
    wanted = training_flops(model, **shape) + counter.get_total_flops()
    assert step_flops(model, optimizer, **shape) == wanted


@pytest.fixture(params=list(FAMILIES), scope="module")
def model(request: pytest.FixtureRequest, tiny_corpus) -> nn.Module:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    spec = ModelSpec(type=request.param, **sizes)
    return create_model(spec, depth=2, vocabulary=tiny_corpus.vocabulary, sequence_length=16)


@each_optimizer
def test_every_parameter_is_in_one_group_and_muon_gets_the_layers_matrices(model, name) -> None:
    optimizers = Optimizers(model, OptimizerSpec(name=name, weight_decay=0.3))
    dimensions = {n: parameter.ndim for n, parameter in model.named_parameters()}
    assert optimizers.places.keys() == dimensions.keys()
    for each, (parameter, optimizer) in optimizers.places.items():
        (decay,) = [
            group["weight_decay"]
            for group in optimizer.param_groups
            if any(parameter is member for member in group["params"])
        ]
        assert decay == (0.3 if dimensions[each] >= 2 else 0.0), each
    muon = {n for n, (_, each) in optimizers.places.items() if isinstance(each, BatchedMuon)}
    stack, layers = find_layers(model)
    inside = {n for n in dimensions if n.startswith(f"{stack}.") and dimensions[n] == 2}
    assert muon == (inside if name == "muon" else set())
    assert len(inside) >= 4 * len(layers)
