"""Readers of checkpoints, StackBERT's own and others'."""

import contextlib
import copy
import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import fuzz_damage as damage
import fuzz_structure as structure
from fuzz_cases import Reader, WrongResult
from fuzz_runs import TINY, small_corpus
from stackbert.corpus.store import Corpus
from stackbert.pretraining.checkpoints import (
    OPTIMIZER,
    STATE,
    RunState,
    checkpoint_name,
    load_model,
    load_optimizer_state,
    read_state,
    save_checkpoint,
)
from stackbert.recipe_files import parse_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def signed_json(data: bytes, draw: random.Random) -> bytes:
    """A state.json that is wrong, and sometimes has the checksum that makes it look right."""
    changed = structure.of_json(data, draw)
    if draw.random() < 0.6:
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
            raw = json.loads(changed)
            raw.pop("own_sha256")
            digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
            return json.dumps({**raw, "own_sha256": digest}).encode()
    return changed


def save_small_checkpoint(folder: Path, corpus: Corpus) -> Path:
    """A checkpoint of the tiny recipe's model, as a run saves it."""
    import torch

    from stackbert.models import create_model
    from stackbert.vocabulary import load_vocabulary

    recipe = parse_recipe(copy.deepcopy(TINY), "tiny.yaml")
    model = create_model(
        recipe.model,
        depth=2,
        vocabulary=load_vocabulary(corpus),
        sequence_length=16,
        next_sentence=False,
        seed=0,
    )
    state = RunState(
        step=12,
        depth=2,
        tokens=768,
        flops=10**9,
        seconds={"training": 1.5},
        ledger_bytes=0,
        last_loss=4.25,
        corpus=corpus.manifest.fingerprint,
        window={"started": 0.5, "steps": 2},
    )
    moments = {name: {"exp_avg": p.detach() * 0.1} for name, p in model.named_parameters()}
    moments["bert.embeddings.LayerNorm.bias"]["step"] = torch.tensor(12.0)
    out = folder / checkpoint_name(12)
    save_checkpoint(out, model, moments, state, corpus.tokenizer_folder, 16)
    return out


def tiny_bert(vocab_size: int) -> "PreTrainedModel":
    """A BERT of two layers, always with the same weights."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForMaskedLM(config)


class State(Reader):
    """A checkpoint's counters and checksums."""

    name = "state"
    reads = "a checkpoint: state.json and checksums"
    _STEP = checkpoint_name(12)
    damages: ClassVar = {
        f"{_STEP}/{STATE}": signed_json,
        f"{_STEP}/config.json": structure.of_json,
        f"{_STEP}/model.safetensors": structure.of_safetensors,
        f"{_STEP}/tokenizer.json": damage.of_bytes,
    }

    def prepare(self, folder: Path) -> None:
        """As a run saves it."""
        self._valid = read_state(save_small_checkpoint(folder, small_corpus(folder)))

    def read(self, folder: Path, damaged: str) -> None:
        """Nothing may change unseen; what is signed has the types of counters."""
        state = read_state(folder / self._STEP)
        if not damaged.endswith(STATE):
            valid = json.loads((folder / self._STEP / STATE).read_bytes())["sha256"]
            content = (folder / damaged).read_bytes()
            if valid[Path(damaged).name] != hashlib.sha256(content).hexdigest():
                raise WrongResult(f"a change of {damaged} was not seen")
        if state == self._valid:
            return
        raw = json.loads((folder / damaged).read_bytes())
        body = {key: value for key, value in raw.items() if key != "own_sha256"}
        if (
            raw["own_sha256"]
            != hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        ):
            raise WrongResult("counters that the checksum does not fit")
        counts = (state.step, state.depth, state.tokens, state.flops, state.ledger_bytes)
        if any(type(count) is not int or count < 0 for count in counts):
            raise WrongResult(f"counters that are none: {str(counts)[:80]}")
        checkpoint_name(state.step)
        if not all(isinstance(v, int | float) for v in state.seconds.values()):
            raise WrongResult("seconds that are none")


class Weights(Reader):
    """A checkpoint's model, whatever its checksums say."""

    name = "weights"
    reads = "a checkpoint: config.json, safetensors"
    _STEP = checkpoint_name(12)
    damages: ClassVar = {
        f"{_STEP}/config.json": structure.of_json,
        f"{_STEP}/model.safetensors": structure.of_safetensors,
    }

    def prepare(self, folder: Path) -> None:
        """As a run saves it."""
        save_small_checkpoint(folder, small_corpus(folder))

    def read(self, folder: Path, damaged: str) -> None:
        """Every tensor as it stands in the file, by its name."""
        import torch
        from safetensors.torch import load_file
        from transformers import BertForMaskedLM

        model = load_model(folder / self._STEP, BertForMaskedLM)
        stored = load_file(folder / self._STEP / "model.safetensors")
        found = dict(model.named_parameters())
        for name, tensor in stored.items():
            if not torch.equal(found[name].detach(), tensor.float()):
                same = found[name].isnan() & tensor.float().isnan()
                if not (same | (found[name] == tensor.float())).all():
                    raise WrongResult(f"another tensor {name}")


class OptimizerState(Reader):
    """A checkpoint's optimiser."""

    name = "optimizer"
    reads = "a checkpoint: optimizer.safetensors"
    _FILE = f"{checkpoint_name(12)}/{OPTIMIZER}"
    damages: ClassVar = {_FILE: structure.of_safetensors}

    def prepare(self, folder: Path) -> None:
        """As a run saves it."""
        save_small_checkpoint(folder, small_corpus(folder))

    def read(self, folder: Path, damaged: str) -> None:
        """As many tensors as the header names, by their names."""
        state = load_optimizer_state((folder / damaged).parent)
        data = (folder / damaged).read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        header.pop("__metadata__", None)
        found = {
            f"{name}|{key}": list(tensor.shape)
            for name, tensors in state.items()
            for key, tensor in tensors.items()
        }
        wanted = {name: entry["shape"] for name, entry in header.items()}
        if found != {name if "|" in name else f"|{name}": s for name, s in wanted.items()}:
            raise WrongResult("other tensors than the header's")


class Foreign(Reader):
    """A checkpoint of others, in several files, as `grow`, `attention` and `finetune` open it."""

    name = "foreign"
    reads = "another's checkpoint: config, index, shards"
    damages: ClassVar = {
        "model/config.json": structure.of_json,
        "model/model.safetensors.index.json": structure.of_json,
        "model/model-00001-of-00002.safetensors": structure.of_safetensors,
    }

    def prepare(self, folder: Path) -> None:
        """A tiny one."""
        model = tiny_bert(vocab_size=64)
        model.save_pretrained(folder / "model", max_shard_size="20KB")
        shards = sorted(path.name for path in (folder / "model").glob("*.safetensors"))
        if len(shards) != 2:
            raise RuntimeError(f"shards {shards}")

    def read(self, folder: Path, damaged: str) -> None:
        """Every tensor as it stands in its file."""
        import torch
        from safetensors.torch import load_file

        from stackbert.growth.checkpoint import inspect_checkpoint, load_checkpoint

        model = load_checkpoint(inspect_checkpoint(folder / "model"))
        found = model.state_dict()
        for path in sorted((folder / "model").glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                if name in found and not torch.allclose(
                    found[name].float(), tensor.float(), equal_nan=True
                ):
                    raise WrongResult(f"another tensor {name}")
