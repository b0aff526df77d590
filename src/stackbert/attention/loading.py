"""Opening what is to be measured: a folder, a run's final model, or a model as it is."""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackbert.attention.result import ModelInfo
from stackbert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL = "model"
"""The folder of a run directory that holds its final model."""


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    model: "PreTrainedModel"
    tokenizer: Any
    info: ModelInfo

    @property
    def blueprint(self) -> "Blueprint":
        """What an untrained model of its kind is made of."""
        base: Any = self.model.base_model
        return Blueprint(type(base), copy.deepcopy(base.config), self.info)


@dataclass(frozen=True)
class Blueprint:
    """A model's class and config without its weights."""

    model_class: type["PreTrainedModel"]
    config: Any
    info: ModelInfo

    def untrained(self, seed: int) -> "PreTrainedModel":
        """The model as initialised; a function of the config and `seed`.

        The global random state is untouched.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.model_class(copy.deepcopy(self.config))


def open_subject(
    model: "str | Path | PreTrainedModel",
    tokenizer: Any = None,  # noqa: ANN401 (any transformers tokenizer)
) -> Subject:
    """Open a model and its tokenizer.

    Args:
        model: a Hugging Face checkpoint folder, a run directory (its final model is taken), or a
            transformers model.
        tokenizer: its tokenizer or the folder of one; by default the one in the model's folder.

    Raises:
        UserError: the folder holds no model that transformers opens, or there is no tokenizer.
    """
    if isinstance(model, str | Path):
        folder = final_model(Path(model))
        name = _name_of(folder)
        opened = load_model(folder)
    else:
        folder, opened = None, model
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        name = Path(name).name
    if tokenizer is None:
        if folder is None:
            raise UserError(
                "A model that is passed as an object needs its tokenizer: tokenizer=…, an object "
                "or a folder."
            )
        tokenizer = folder
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(Path(tokenizer))
    return Subject(opened, tokenizer, describe(opened, name))


def describe(model: "PreTrainedModel", name: str) -> ModelInfo:
    """Name, type and shape of a model."""
    config: Any = model.config
    return ModelInfo(
        name=name,
        type=config.model_type,
        # Some without attention have no heads; `attention_maps` says so in a sentence.
        depth=int(getattr(config, "num_hidden_layers", 0)),
        heads=int(getattr(config, "num_attention_heads", 0)),
    )


def final_model(folder: Path) -> Path:
    """The model's folder: itself, or where a run directory has it.

    Raises:
        UserError: a run that is not finished.
    """
    from stackbert.pretraining.rundir import is_run

    if not is_run(folder):
        return folder
    if not (folder / MODEL).is_dir():
        raise UserError(
            f"The run {folder} is not finished: it has no {MODEL}/ yet. Let it end, or name one of "
            "its checkpoints."
        )
    return folder / MODEL


def _name_of(folder: Path) -> str:
    """A folder's name; of a run's final model the run's."""
    from stackbert.pretraining.rundir import is_run

    folder = folder.resolve()
    is_final = folder.name == MODEL and is_run(folder.parent)
    return folder.parent.name if is_final else folder.name


def load_model(folder: Path) -> "PreTrainedModel":
    """A checkpoint folder's model in fp32, every tensor accounted for.

    Raises:
        UserError: it is no checkpoint folder, is damaged, or needs code that transformers lacks.
    """
    from stackbert.growth.checkpoint import inspect_checkpoint, load_checkpoint

    loaded: Any = load_checkpoint(inspect_checkpoint(folder))
    model: PreTrainedModel = loaded.float()
    return model


def weights_digest(model: "PreTrainedModel") -> str:
    """SHA-256 of a model's tensors by their names, those of its head left out.

    Maps depend on nothing else, so models of one digest have the same maps.
    """
    digest = hashlib.sha256()
    base: Any = model.base_model
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401
    """A folder's tokenizer.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The tokenizer in {folder} cannot be opened: {error}") from error


def check_same_tokenizer(first: Any, second: Any) -> None:  # noqa: ANN401
    """Refuse to compare maps of models that cut text differently.

    Raises:
        UserError: their vocabularies differ.
    """
    one, other = first.get_vocab(), second.get_vocab()
    if one != other:
        differing = sum(other.get(token) != at for token, at in one.items())
        raise UserError(
            f"The two models have different vocabularies ({differing:,} of {len(one):,} tokens are "
            "missing from the other or have another id there), so their maps have no common rows "
            "and columns. Compare models of one tokenizer."
        )
