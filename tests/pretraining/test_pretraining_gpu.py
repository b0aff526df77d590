"""What a step does on a GPU, on tensors that have a device and no storage; no GPU is needed."""

import contextlib
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from stackbert import encoder
from stackbert.batches.batches import Batch
from stackbert.errors import UserError
from stackbert.machine import gpu_settings
from stackbert.model import FAMILIES
from stackbert.pretraining import autotune
from stackbert.pretraining.trainer import POSITIONS_AT_ONCE, Trainer, recipe_model
from stackbert.recipe import Recipe
from tiny_runs import batches, tiny_recipe

CPU, GPU, CUDA = map(torch.device, ("cpu", "meta", "cuda"))
SHAPE = {"sequences": 8, "sequence_length": 24, "micro_batch": 4}


def make(corpus, recipe: Recipe) -> Trainer:
    return Trainer(recipe_model(recipe, corpus.vocabulary, 1, seed=1), recipe, device=CPU)


def train(trainer: Trainer, batches: list[Batch], grown_at: int = 4) -> list[float]:
    found = []
    for step, batch in enumerate(batches):
        if step == grown_at:
            trainer.grow(2, step)
        found.append(trainer.step(step, batch, 1.0)[0])
    return list(map(float, found))


def move(model: nn.Module, device: torch.device) -> nn.Module:
    """`Module.to` for tensors without storage; tied ones stay tied."""
    moved: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in moved:
                    there = tensor.detach().to(device)
                    moved[tensor] = there if tensors is module._buffers else nn.Parameter(there)
                tensors[name] = None if tensor is None else moved[tensor]
    return model


@pytest.fixture
def imaginary_gpu(monkeypatch) -> None:
    """PyTorch needs a GPU for CUDA tensors in a backward pass, so "meta" stands for one."""
    monkeypatch.setattr(PreTrainedModel, "to", move)
    monkeypatch.setattr(Trainer, "_autocast", lambda self: contextlib.nullcontext())
    adam = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setitem(POSITIONS_AT_ONCE, GPU.type, POSITIONS_AT_ONCE["cuda"])


class CopiesBack(TorchDispatchMode):
    """Copies from the GPU. Of a number that is read, of a shape that depends on data and of tensors
    on two devices, tensors without storage themselves make an error."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        name = op._schema.name
        if name in ("aten::_to_copy", "aten::copy_") and result.device == CPU:
            self.found += [name] * (args[name == "aten::copy_"].device != CPU)
        return result


@pytest.mark.usefixtures("imaginary_gpu")
@pytest.mark.parametrize("kind", ["bert", "roberta-prelayernorm", "modernbert"])
def test_a_step_on_a_gpu_stays_there_and_never_waits_for_it(kind, tiny_corpus) -> None:
    pairs = len(FAMILIES[kind]) == 2
    fields = {"model__type": kind, "objective__next_sentence": pairs, "optimizer__clip_norm": 1.0}
    recipe = tiny_recipe(batch=SHAPE, **fields)
    rows = batches(tiny_corpus, recipe)
    models = [recipe_model(recipe, tiny_corpus.vocabulary, depth) for depth in (1, 2)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in models:
            trainer = Trainer(model, recipe, device=GPU)
            trainer.step(0, rows[0], 1.0)  # makes the optimizer's state
            with CopiesBack() as copies:
                result = trainer.step(1, rows[1], 1.0)
            assert copies.found == []
            assert {result.device, *(p.device for p in trainer.model.parameters())} == {GPU}
            with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
                trainer.evaluate(rows[0])  # its losses are read; nothing before was


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", list(FAMILIES))
def test_what_only_a_gpu_does_has_equal_losses(kind, precision, tiny_corpus, monkeypatch) -> None:
    """Broadcast embeddings, queries, keys and values in one product, torch's loss."""
    pairs = len(FAMILIES[kind]) == 2
    fields = {"model__type": kind, "objective__next_sentence": pairs, "precision": precision}
    recipe = tiny_recipe(batch=SHAPE, **fields)
    rows = batches(tiny_corpus, recipe)
    expected = train(make(tiny_corpus, recipe), rows)
    monkeypatch.setattr(encoder, "_on_cpu", lambda tensor: False)
    within = 1e-4 if precision == "fp32" else 5e-3
    assert train(make(tiny_corpus, recipe), rows) == pytest.approx(expected, rel=within)


def test_bf16_norms_keep_the_stream_in_bf16_and_the_loss(tiny_corpus) -> None:
    recipe = tiny_recipe(model__type="bert", precision="bf16", batch=SHAPE)
    rows, half = batches(tiny_corpus, recipe), recipe.model_copy(update={"bf16_norms": True})
    plain, trainer = train(make(tiny_corpus, recipe), rows), make(tiny_corpus, half)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = encoder.encode(trainer.model, rows[0].input_ids_BS, rows[0].columns_BK)
    assert hidden.dtype == torch.bfloat16
    assert train(trainer, rows) == pytest.approx(plain, rel=5e-3)


def test_micro_batches_are_halved_until_they_fit(tiny_corpus, monkeypatch) -> None:
    recipe = tiny_recipe(batch=SHAPE | {"micro_batch": 8})
    rows, true, fitting = batches(tiny_corpus, recipe), Trainer.backward, 2
    small = tiny_recipe(batch=SHAPE | {"micro_batch": 2})
    expected = train(make(tiny_corpus, small), rows)

    def backward(self, batch: Batch, *rest: Any, **options: Any) -> torch.Tensor:
        result = true(self, batch, *rest, **options)
        if len(batch) > fitting:
            raise torch.OutOfMemoryError
        return result

    monkeypatch.setattr(Trainer, "backward", backward)
    assert train(make(tiny_corpus, recipe), rows) == expected
    fitting = 0
    with pytest.raises(torch.OutOfMemoryError):
        train(make(tiny_corpus, recipe), rows)


def test_a_gpu_measures_micro_batches_compiled_and_needs_bf16(tiny_corpus, monkeypatch) -> None:
    def fastest(recipe: Recipe, batch: Batch) -> int:
        assert recipe.compile is True
        return 2

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(autotune, "matrix_rate", lambda *_: 1e14)
    monkeypatch.setattr(autotune, "compiling_lacks", lambda device: None)
    monkeypatch.setattr(autotune, "refuse_beyond_memory", lambda *_, **__: None)
    monkeypatch.setattr(autotune, "_compiling_pays", lambda *_: True)
    monkeypatch.setattr(autotune, "Trainer", lambda model, recipe, device: recipe)
    monkeypatch.setattr(autotune, "_fastest_micro_batch", fastest)
    recipe = tiny_recipe(batch__micro_batch="auto", compile="auto", precision="bf16")
    tuned, _ = autotune.autotune(recipe, tiny_corpus, device=CUDA, seconds=1e6)
    assert [stage.micro_batch for stage in tuned.stages] == [2, 2]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(UserError, match="precision: this GPU has no bf16"):
        autotune.autotune(recipe, tiny_corpus, device=CUDA, seconds=1e6)


def test_settings_of_a_gpu_are_put_back(monkeypatch) -> None:
    forked: list[Any] = []
    true = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda gpus: forked.append(gpus) or true([]))
    before = torch.get_rng_state()
    with gpu_settings(CUDA, deterministic=True):
        torch.rand(1)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "high"
    with gpu_settings(CPU, deterministic=True):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
    assert forked == [[CUDA], []]
    assert torch.equal(torch.get_rng_state(), before)
