"""Hugging Face folders: one way to open them, one way to write them.

Nothing is fetched, no code of a checkpoint runs, and every tensor lands by its name.
"""

import contextlib
import copy
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stackbert.errors import UserError
from stackbert.files import reading, write_text

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PLAIN = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within this block transformers shows no bar, which would tear ours apart, and no report."""
    library: Any = transformers.utils.logging
    shown, verbosity = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if shown:
            library.enable_progress_bar()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this block random numbers on the CPU follow a seed; then they go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' too
        yield


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, or a UserError: it asks for code, or has no plain safetensors."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is no folder of a Hugging Face checkpoint: it has no config.json. (Names on "
            "the hub are not looked up.)"
        )
    with reading(path):
        fields: dict[str, Any] = dict(json.loads(path.read_bytes()))
    if fields.get("auto_map"):
        raise UserError(
            f"{path} asks for code of its own (auto_map). StackBERT never runs code from a "
            "checkpoint; it opens only the architectures of transformers."
        )
    if fields.get("quantization_config"):
        raise UserError(f"{path} says that the weights are quantised; StackBERT needs plain ones.")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f"{folder} has no {' or '.join(_WEIGHTS)}. A .bin file is a pickle that can run code "
            "and is never read; save the model again with transformers."
        )
    return fields


def stored_class(folder: Path) -> type[PreTrainedModel]:
    """The transformers class that a folder's config.json names, or a UserError."""
    named = read_config(folder).get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = getattr(transformers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(
            f"{folder / 'config.json'}: 'architectures' should name a model class of transformers, "
            f"and names {name}."
        )
    return found


def open_model(
    folder: Path,
    model_class: Any,  # noqa: ANN401 (a model class or one of the AutoModel classes)
    *,
    dtype: torch.dtype | None = torch.float32,
    may_miss: str = "",
    may_ignore: str = "",
    missing: list[str] | None = None,
    **config_changes: Any,  # noqa: ANN401 (fields of any config)
) -> PreTrainedModel:
    """The model of a Hugging Face folder, in evaluation mode, on the CPU.

    Args:
        model_class: such as `BertForMaskedLM` or `AutoModel`.
        dtype: of the weights; None keeps the one they are stored in.
        may_miss: a regular expression; a tensor whose whole name it matches may be missing or of
            another shape, and is initialised by the class (a new head).
        may_ignore: likewise for stored tensors that the class has no place for (an old head).
        missing: takes the names that `may_miss` allowed.
        config_changes: fields of the config to set, such as `attn_implementation="eager"`.

    Raises:
        UserError: the folder cannot be opened; a tensor is missing, left over, of another shape,
            quantised, or not finite somewhere.
    """
    read_config(folder)
    model: PreTrainedModel
    # An attention implementation named in config.json could be one that is fetched.
    config_changes.setdefault("attn_implementation", "sdpa")
    with reading(folder), quiet_transformers():
        load = functools.partial(
            model_class.from_pretrained,
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=_stored_dtype(folder) if dtype is None else dtype,
            ignore_mismatched_sizes=True,  # they are reported, and refused by name
            output_loading_info=True,
        )
        try:
            model, report = load(**config_changes)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            config_changes["attn_implementation"] = "eager"  # the class has no fused one
            model, report = load(**config_changes)
    for problem, names, allowed in (
        ("lacks", report["missing_keys"], may_miss),
        ("has no place for", report["unexpected_keys"], may_ignore),
        ("has another shape for", {name for name, *_ in report["mismatched_keys"]}, may_miss),
    ):
        wrong = sorted(name for name in names if not re.fullmatch(allowed, name))
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"{folder} does not fit {type(model).__name__}: it {problem} "
                f"{', '.join(wrong[:3])}{more}."
            )
    if missing is not None:
        missing += sorted({*report["missing_keys"], *(n for n, *_ in report["mismatched_keys"])})
    # Loaded tensors look into a mapped file at any offset; some CPU kernels round differently
    # there, and a resumed run would differ in the last bit.
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.clone()
        # Nine times as fast as isfinite().all(); in fp32, as halves overflow.
        if not parameter.data.sum(dtype=torch.float32).isfinite():
            raise UserError(f"{folder} is not finite in '{name}'. Use an earlier checkpoint.")
    return model


def open_encoder(folder: Path, model_class: Any = None) -> PreTrainedModel:  # noqa: ANN401
    """A folder's model in float32, of the class that it names or another.

    A pooler may be missing, and heads may be left over.
    """
    return open_model(
        folder,
        model_class or stored_class(folder),
        may_miss=r"(.*\.)?pooler\..*",
        may_ignore=r"(?!.*\.\d+\.).*",  # what is in no numbered layer
    )


def random_twin(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """An encoder of the same class and config as a model's, initialised with `seed`."""
    base: Any = model.base_model
    with seeded(seed):
        fresh: Any = type(base)(copy.deepcopy(base.config))
    fresh.eval()
    return cast(PreTrainedModel, fresh)


def _stored_dtype(folder: Path) -> torch.dtype:
    """The narrowest dtype that holds all stored weights without loss, whatever the config says."""
    dtypes: set[torch.dtype] = set()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                stored = file.get_slice(name).get_dtype()
                if stored in _PLAIN:
                    dtypes.add(_PLAIN[stored])
                elif name.endswith("weight"):
                    needed = f"StackBERT needs plain weights ({', '.join(_PLAIN)})"
                    raise UserError(f"{path} stores '{name}' as {stored}; {needed}.")
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, or a UserError: it has no fast one."""
    with reading(folder, "It should hold a tokenizer that transformers opens."):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer.model_max_length = int(tokenizer.model_max_length)  # it may be anything
        # From config.json alone transformers makes one up that knows only special tokens.
        if len(tokenizer) <= len(tokenizer.all_special_ids) or not tokenizer.is_fast:
            raise UserError(
                f"{folder} has no tokenizer, or no fast form of it (tokenizer.json). Copy the "
                "files of the model's own there."
            )
        if tokenizer.model_max_length < 1:
            raise ValueError(f"model_max_length is {tokenizer.model_max_length}")
    return tokenizer


def longest_row(model: PreTrainedModel, longest: int) -> int:
    """The most tokens of a row that the model's positions allow, or `longest` if that is fewer."""
    positions = int(getattr(model.config, "max_position_embeddings", None) or longest)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is not None:  # RoBERTa's first position comes after the padding id
        positions -= padding + 1
    return min(positions, longest)


def passes(
    rows: Sequence[Sequence[int]], *, tokens: int, copies: bool = False
) -> Iterator[list[int]]:
    """Places of rows of one length, the shortest first, for a forward pass of at most `tokens`.

    So nothing has to be padded. With `copies` the pass takes each row once for each of its tokens.
    """
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    for length, group in itertools.groupby(order, key=lambda at: len(rows[at])):
        size = max(1, tokens // (length * (length if copies else 1)))
        while chosen := list(itertools.islice(group, size)):
            yield chosen


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: Mapping[str, bytes] | None = None,
    sequence_length: int = 0,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write what `from_pretrained` needs into an existing folder: weights, config, tokenizer.

    Args:
        tokenizer: the files of its folder, by name; it cuts a text at `sequence_length` tokens.
        weights: to save instead of the model's present ones, by the names of its `state_dict`.
    """
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights)
    # safetensors makes its files readable by their owner alone.
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)
    if tokenizer is None:
        return
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    fields["model_max_length"] = sequence_length
    write_text(config, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
