"""Opening an encoder with a new head on top: any Hugging Face folder, or a run directory.

Nothing is taken on trust: weights come from safetensors, code from the folder is never run, and an
encoder tensor that is missing, left over or of another shape is an error. Only the head, and the
pooler under it where pre-training had none, may be new; both are drawn from the fine-tuning seed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackbert.errors import UserError
from stackbert.files import explaining_os_errors, sha256_of
from stackbert.finetuning.work import Head
from stackbert.reporting.wording import slug

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_VOCABULARY = tuple(name for name in _TOKENIZER if not name.endswith(("config.json", "map.json")))


@dataclass(frozen=True)
class Source:
    """A model that is to be fine-tuned, not yet opened."""

    folder: Path
    """With the weights: of a run directory its final model."""
    name: str
    """The folder's, or the run's."""
    fingerprint: str
    """SHA-256 of weights, config and tokenizer."""
    random: bool = False
    """Whether the weights in the folder are left alone, and all are drawn at random instead, by
    the fingerprint and the fine-tuning seed."""

    @property
    def key(self) -> str:
        """For file names."""
        return f"{slug(self.name)[:48]}-{self.fingerprint[:10]}"


@dataclass(frozen=True)
class Opened:
    """A model with a head, and its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: Any
    takes_types: bool
    """Whether it tells the two texts of a pair apart by token-type ids."""
    notes: tuple[str, ...]

    def longest(self, asked: int) -> int:
        """Tokens that a row may have: `asked`, or what model and tokenizer allow."""
        from stackbert.attention.maps import longest_sentence

        return longest_sentence(self.model, self.tokenizer, asked)


def find_source(path: str | Path, name: str | None = None) -> Source:
    """Look at a model's folder without opening it.

    Args:
        path: a Hugging Face checkpoint folder or a run directory (its final model is taken).
        name: what to call it; by default as its folder, of a run's final model as the run.

    Raises:
        UserError: there is no such folder, it holds no weights or no tokenizer, or it is a run that
            is not finished.
    """
    from stackbert.attention.loading import final_model
    from stackbert.growth.checkpoint import inspect_checkpoint

    given = Path(path)
    folder = final_model(given)
    inspect_checkpoint(folder)  # its errors are this function's
    if not any((folder / file).is_file() for file in _VOCABULARY):
        # Without one, transformers makes up a tokenizer of five special tokens and says nothing.
        raise UserError(
            f"{folder} has no tokenizer (no {', '.join(_VOCABULARY[:2])} or the like). Copy the "
            "files of the one that the model was pre-trained with into it."
        )
    return Source(folder, name or _name_of(given), _fingerprint(folder))


def untrained(source: Source, name: str, draw: int = 0) -> Source:
    """The same model as it was before any pre-training: its config and tokenizer, new weights.

    Args:
        source: the model.
        name: what to call the untrained one.
        draw: which of several; each has weights of its own for every fine-tuning seed.
    """
    shape = _fingerprint(source.folder, weights=False)
    whole = hashlib.sha256(f"untrained {draw} {shape}".encode()).hexdigest()
    return Source(source.folder, name, whole, random=True)


def check_head(source: Source, head: Head) -> None:
    """See that transformers has such a head for a model, reading no weights.

    Raises:
        UserError: it has none.
    """
    from stackbert.growth.checkpoint import inspect_checkpoint

    _loader(inspect_checkpoint(source.folder).config, head, source.folder)


def open_model(source: Source, head: Head, *, seed: int, dropout: float | None) -> Opened:
    """Open a model in fp32, with a head.

    Args:
        source: the model.
        head: what to put on top.
        seed: of what is new; of an untrained model that is everything. The global random state is
            untouched.
        dropout: in place of every dropout rate of its config; None leaves them.

    Raises:
        UserError: transformers has no such head for it, the folder is damaged, or model and
            tokenizer do not belong together.
    """
    import torch
    from safetensors import SafetensorError

    from stackbert.growth.checkpoint import inspect_checkpoint
    from stackbert.pretraining.checkpoints import quiet_transformers

    config = inspect_checkpoint(source.folder).config
    _set_dropout(config, dropout)
    loader = _loader(config, head, source.folder)
    # Asked for where the first copy of a config is made, as labels decide the head's size.
    config.num_labels = head.outputs
    if head.kind == "classes":
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: number for number, label in enumerate(head.labels)}
        config.problem_type = "single_label_classification"
    elif head.kind == "number":
        config.problem_type = "regression"
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            if not source.random:
                torch.default_generator.manual_seed(seed)
                model, info = loader.from_pretrained(
                    str(source.folder),
                    config=config,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # refused below, by name
                )
            else:
                torch.default_generator.manual_seed(_draw_seed(source, seed))
                model, info = loader.from_config(config, dtype=torch.float32), None
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"transformers cannot open {source.folder}: {error}") from error
    if info is not None:
        _check_encoder(source.folder, model, info)
    tokenizer = _open_tokenizer(source.folder, model)
    notes = () if info is None or _is_new(model, info) else (_OLD_HEAD.format(name=source.name),)
    return Opened(model, tokenizer, _takes_types(model), notes)


_OLD_HEAD = "{name} comes with a head of this shape, and is fine-tuned on from it."


def _name_of(folder: Path) -> str:
    from stackbert.pretraining.rundir import MODEL, is_run

    folder = folder.resolve()
    inside = folder.name == MODEL and is_run(folder.parent)
    return folder.parent.name if inside else folder.name


def _fingerprint(folder: Path, *, weights: bool = True) -> str:
    """Of what decides a model's outputs; an optimiser's state beside it does not."""
    named = {"config.json", *_TOKENIZER}
    whole = hashlib.sha256()
    with explaining_os_errors(f"reading {folder}"):
        for path in sorted(folder.iterdir()):
            is_weights = path.name.startswith("model") and ".safetensors" in path.name
            if path.is_file() and (path.name in named or (weights and is_weights)):
                whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    return whole.hexdigest()


def _draw_seed(source: Source, seed: int) -> int:
    """Of 32 bits, as torch's generator for a CPU drops the others."""
    drawn = hashlib.sha256(f"{source.fingerprint} {seed}".encode()).digest()
    return int.from_bytes(drawn[:4], "big")


def _loader(config: Any, head: Head, folder: Path) -> Any:  # noqa: ANN401 (an Auto class)
    import transformers
    from transformers.models.auto import modeling_auto as auto

    loader: Any
    if head.kind == "span":
        what, loader = "questions", transformers.AutoModelForQuestionAnswering
        known = auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
    else:
        what, loader = "sentences", transformers.AutoModelForSequenceClassification
        known = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if config.model_type not in known:
        raise UserError(
            f"{folder} is a model of type '{config.model_type}', for which transformers "
            f"{transformers.__version__} has no head for {what}. Take an encoder such as BERT."
        )
    return loader


def _set_dropout(config: Any, rate: float | None) -> None:  # noqa: ANN401 (any config)
    """Put `rate` in place of every dropout rate; of a head's, None means the hidden layers'."""
    if rate is None:
        return
    for field, value in config.to_dict().items():
        if "dropout" in field and (value is None or isinstance(value, int | float)):
            if isinstance(value, bool):
                continue
            setattr(config, field, rate)


def _check_encoder(folder: Path, model: "PreTrainedModel", info: Mapping[str, Any]) -> None:
    """Refuse weights that do not account for every tensor of the encoder, and only for those."""
    prefix = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.base_model.named_children()}

    def of_encoder(names: Iterable[str]) -> list[str]:
        inner = {name: name.removeprefix(prefix) for name in names}
        return sorted(
            name
            for name, short in inner.items()
            if short.split(".")[0] in parts - {"pooler"} and not short.endswith("position_ids")
        )

    missing = of_encoder(info["missing_keys"])
    foreign = of_encoder(info["unexpected_keys"])
    misshapen = of_encoder(str(entry[0]) for entry in info["mismatched_keys"])
    problems = [
        f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (
            ("missing are", missing),
            ("without a place are", foreign),
            ("of another shape are", misshapen),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"The weights in {folder} are not those of its config.json: {'; '.join(problems)}. "
            "Save or download the checkpoint again."
        )


def _is_new(model: "PreTrainedModel", info: Mapping[str, Any]) -> bool:
    prefix = f"{model.base_model_prefix}."
    fresh = {*info["missing_keys"], *(str(entry[0]) for entry in info["mismatched_keys"])}
    return any(not name.startswith(prefix) for name in fresh)


def _open_tokenizer(folder: Path, model: "PreTrainedModel") -> Any:  # noqa: ANN401
    from stackbert.attention.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer in {folder} has no fast form (tokenizer.json). Save it once with "
            "transformers' fast tokenizer."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer in {folder} has no padding token, so rows of several lengths cannot "
            "share a batch. Fine-tuning is for encoders, which have one."
        )
    embedding: Any = model.get_input_embeddings()
    known = int(embedding.weight.shape[0])
    highest = max(tokenizer.get_vocab().values())
    if highest >= known:
        raise UserError(
            f"The tokenizer in {folder} has ids up to {highest:,}, the model's embedding only "
            f"{known:,} rows: they do not belong together."
        )
    return tokenizer


def _takes_types(model: "PreTrainedModel") -> bool:
    """RoBERTa takes the argument but has one type only; ids of 1 would be out of its range."""
    import inspect

    argument = "token_type_ids" in inspect.signature(model.forward).parameters
    return argument and getattr(model.config, "type_vocab_size", 0) > 1
