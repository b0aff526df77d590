"""Growth in loops of one's own: the optimizer's state by name, and the examples."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import stackbert as sb
from tiny_encoders import tiny_encoder

EXAMPLES = Path(__file__).parents[2] / "examples"


def trained(kind, depth, token_ids, steps=3):
    """A model and its optimizers after some steps, each with a schedule."""
    model = tiny_encoder(kind, depth)
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if re.search(r"layers?\.\d", n) and p.ndim == 2]
    rest = [p for p in named.values() if not any(p is each for each in matrices)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "lr": 2e-3},
    ]
    optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(groups, lr=1e-3)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in optimizers]
    for _ in range(steps):
        step(model, optimizers, schedules, token_ids)
    return model, optimizers, schedules


def step(model, optimizers, schedules, token_ids) -> None:
    model(token_ids, labels=token_ids).loss.backward()
    for each in (*optimizers, *schedules):
        each.step()
    for each in optimizers:
        each.zero_grad()


@pytest.mark.parametrize("policy", ["copy", "split", "reset"])
@pytest.mark.parametrize(("kind", "depth"), [("bert", 2), ("modernbert", 1)])
def test_state_groups_and_schedule_go_with_the_parameters(kind, depth, policy, token_ids) -> None:
    """ModernBERT's lowest layer lacks a norm, which its copy has."""
    model, optimizers, schedules = trained(kind, depth, token_ids)
    old = dict(model.named_parameters())
    state = {
        name: each.state[p] for name, p in old.items() for each in optimizers if p in each.state
    }
    state = {name: {k: t.clone() for k, t in tensors.items()} for name, tensors in state.items()}
    options = [[{**g, "params": 0} for g in each.param_groups] for each in optimizers]
    grown, same = sb.grow(model, 2 * depth, optimizer=optimizers, optimizer_state=policy)
    assert same is optimizers
    assert [[{**g, "params": 0} for g in each.param_groups] for each in optimizers] == options

    held = {p for each in optimizers for g in each.param_groups for p in g["params"]}
    assert held == set(grown.parameters())
    for name, parameter in grown.named_parameters():
        (optimizer,) = (
            o
            for o in optimizers
            if any(parameter is p for g in o.param_groups for p in g["params"])
        )
        place = re.search(r"(?<=layer\.|ayers\.)\d+", name)
        layer = int(place[0]) if place else 0
        source = re.sub(r"(layers?\.)\d+", rf"\g<1>{layer % depth}", name)
        if policy == "reset" or source not in state or (policy == "split" and layer >= depth):
            assert parameter not in optimizer.state, name
            continue
        for key, tensor in state[source].items():
            assert torch.equal(optimizer.state[parameter][key], tensor), (name, key)
    rates = [each.get_last_lr() for each in schedules]
    step(grown, optimizers, schedules, token_ids)
    assert [each.get_last_lr() for each in schedules] == [[0.9 * r for r in rs] for rs in rates]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "example", ["own_loop", "trainer_growth", "accelerate_growth", "lightning_growth"]
)
def test_the_examples_train_on_through_a_growth_without_a_jump(example, capsys) -> None:
    if example == "lightning_growth":
        pytest.importorskip("lightning")
    runpy.run_path(str(EXAMPLES / f"{example}.py"))
    found = re.findall(r"step (\d+): depth (\d), loss ([\d.]+)", capsys.readouterr().out)
    losses = {depth: [float(loss) for _, d, loss in found if d == depth] for depth in "24"}
    first, before, after, last = (
        *losses["2"][:: len(losses["2"]) - 1],
        *losses["4"][:: len(losses["4"]) - 1],
    )
    assert after < before + 0.3 < first - 0.3
    assert last < after - 0.1
