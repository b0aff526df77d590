"""A run that starts from a trained model: what the model is, whether it fits, and its weights."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from stackbert.corpus.store import Corpus
from stackbert.corpus.tokenizer import load_tokenizer
from stackbert.errors import UserError
from stackbert.files import reading, sha256
from stackbert.growth.grow import find_layers, grow
from stackbert.model import FAMILIES, model_class
from stackbert.model_files import longest_row, open_model, quiet_transformers, read_config, seeded
from stackbert.pretraining.distributed import World
from stackbert.pretraining.record import CHECKPOINTS, MODEL, is_run, read_run
from stackbert.pretraining.trainer import recipe_model
from stackbert.recipe import Recipe, StartSpec

# Stored tensors that the class may have no place for: other heads, poolers; no layer, no table.
_OTHER_HEADS = r"(?!.*(\.\d+\.|embeddings)).*|.*position_ids"


def started_from(recipe: Recipe, folder: str | Path, corpus: Corpus, run: Path) -> Recipe:
    """The recipe with the model of a folder in the place of its own.

    The folder is a finished run, or of Hugging Face with a tokenizer. Once `run` has a checkpoint
    of its own, the folder may be gone, or hold another model.

    Raises:
        UserError: the folder cannot be opened, or does not fit the recipe or the corpus.
    """
    place, given = Path(folder).resolve(), recipe.start.sha256 if recipe.start else ""
    if is_run(run) and any((run / CHECKPOINTS).glob("step-????????")):
        begun = read_run(run).request.recipe.start
        names = (place, place / MODEL)
        if begun and given in ("", begun.sha256) and Path(begun.folder) in names:
            return recipe.model_copy(update={"model": None, "start": begun})
    place = place / MODEL if is_run(place) else place
    read_config(place)
    check_tokenizer(place, corpus)
    model, fresh = _opened(place, recipe, corpus)
    depth, longest = len(find_layers(model)[1]), recipe.longest_sequence
    if recipe.stages[0].depth != depth:
        raise UserError(
            f"{place} has {depth} layers, and the first stage {recipe.stages[0].depth}. Begin at "
            f"its depth, for example with --set 'stages=[{{depth: {depth}, steps: 1000}}, "
            f"{{depth: {2 * depth}, steps: 1000}}]'."
        )
    reach = longest_row(model, longest)
    if reach < longest:
        raise UserError(
            f"The positions of {place} reach {reach} tokens, and rows have {longest}. Make them "
            f"shorter: --set batch.sequence_length={reach}, and so in every stage that names its "
            "own."
        )
    deeper = next((stage.depth for stage in recipe.stages if stage.depth > depth), None)
    if deeper is not None:
        grow(model, deeper, recipe.growth.rule)  # refuses now what it would refuse after a stage
    weights = "".join(sha256(path) for path in sorted(place.glob("model*.safetensors")))
    start = StartSpec(
        folder=str(place),
        model=type(model).__name__,
        depth=depth,
        config=json.loads(model.config.to_json_string()),
        sha256=hashlib.sha256(weights.encode()).hexdigest(),
        fresh=tuple(fresh),
        history=_history(place),
    )
    if given not in ("", start.sha256):
        raise UserError(f"{place} holds other weights than when this recipe was written.")
    return recipe.model_copy(update={"model": None, "start": start})


def first_model(recipe: Recipe, corpus: Corpus, world: World) -> PreTrainedModel:
    """At step 0: new, or with the weights that the run starts from, which rank 0 reads."""
    model = recipe_model(recipe, corpus.vocabulary, recipe.stages[0].depth, seed=recipe.seed)
    start = recipe.start
    if start is not None:

        def read() -> dict[str, Tensor]:
            source, _ = _opened(Path(start.folder), recipe, corpus)
            return {name: parameter.detach() for name, parameter in source.named_parameters()}

        tensors = world.broadcast(read)
        for name, parameter in model.named_parameters():
            parameter.data.copy_(tensors[name])
    return model


def _opened(folder: Path, recipe: Recipe, corpus: Corpus) -> tuple[PreTrainedModel, list[str]]:
    """A folder's model with a masked-LM head, and the parameters that the seed initialised.

    Embeddings get rows for tokens that the corpus' tokenizer has on top of the model's.
    """
    kind = _masked_lm_class(folder, next_sentence=recipe.objective.next_sentence)
    base, fresh = re.escape(kind.base_model_prefix), list[str]()
    with seeded(recipe.seed), quiet_transformers():
        model: Any = open_model(
            folder,
            kind,
            may_miss=rf"(?!{base}\.).*|{base}\.pooler\..*",
            may_ignore=_OTHER_HEADS,
            missing=fresh,
        )
        if model.get_input_embeddings().num_embeddings < corpus.vocabulary.tokenizer_size:
            model.resize_token_embeddings(corpus.vocabulary.size)
    decoder = model.get_output_embeddings()
    if decoder is not None and decoder.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # whatever the config says: they were stored apart
    return model, fresh


def check_tokenizer(folder: Path, corpus: Corpus) -> None:
    """Refuse a corpus whose ids mean something else to the model of a folder."""
    mine, its = (
        json.loads(load_tokenizer(each).tokenizer.to_str())
        for each in (folder, corpus.tokenizer_folder)
    )
    parts = [part for part in ("model", "normalizer", "pre_tokenizer") if mine[part] != its[part]]
    if not all(token in its["added_tokens"] for token in mine["added_tokens"]):
        parts.append("added_tokens")
    if parts:
        raise UserError(
            f"The tokenizer of {folder} is not the one that made {corpus.folder} (they differ in "
            f"{', '.join(parts)}). Build the corpus with it: stackbert corpus NEW --tokenizer "
            f"{folder} --text …"
        )


def start_sentences(start: StartSpec) -> list[str]:
    """What a run started from, and what is known of that, for people and for the model card."""
    found = [
        f"Started from `{source_name(start)}`: {start.model}, {start.depth} layers, weights "
        f"`{start.sha256[:16]}`."
    ]
    if start.fresh:
        parts = {name.partition(".")[0] for name in start.fresh}
        found.append(f"It had no weights for {', '.join(sorted(parts))}: these began at random.")
    return [*start.history, *found]


def source_name(start: StartSpec) -> str:
    """What people call the folder: of a run's final model, the run."""
    place = Path(start.folder)
    place = place.parent if start.history and place.name == MODEL else place
    return place.name.replace("`", "")


def _masked_lm_class(folder: Path, *, next_sentence: bool) -> type[PreTrainedModel]:
    with reading(folder / "config.json"):
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if next_sentence and config.model_type in FAMILIES:
        return model_class(config.model_type, next_sentence=True)
    kind: Any = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(
            f"{folder}: transformers has no masked-LM class for a {config.model_type}, so it "
            "cannot be pre-trained here. Take an encoder."
        )
    found: type[PreTrainedModel] = kind[0] if isinstance(kind, tuple) else kind
    return found


def _history(folder: Path) -> tuple[str, ...]:
    """Of a model or checkpoint of a run: how the run went."""
    run = next((each for each in folder.parents[:2] if is_run(each)), None)
    if run is None:
        return ()
    record = read_run(run)
    recipe, before = record.recipe, record.recipe.start
    step = re.search(r"step-(\d{8})$", folder.name)
    done = int(step[1]) if step else recipe.total_steps
    depths = dict.fromkeys(stage.depth for stage in recipe.stages[: recipe.stage_index(done) + 1])
    how = f" by {recipe.growth.rule.name}" if len(depths) > 1 else ""
    return (
        *(start_sentences(before) if before else ()),
        f"Trained as `{recipe.name}`: {' → '.join(map(str, depths))} layers{how}, {done:,} steps, "
        f"corpus `{record.request.corpus[:16]}`.",
    )
