"""The runs whose growths are looked at: that there are all they need, and what they are called."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stackbert.attention.growth import check_checkpoints, run_recipe
from stackbert.attention.loading import (
    check_same_tokenizer,
    final_model,
    load_model,
    load_tokenizer,
)
from stackbert.attention.maps import longest_sentence
from stackbert.errors import UserError
from stackbert.pretraining.rundir import is_run


def open_runs(model: object, beside: Sequence[str | Path]) -> dict[str, Path]:
    """The runs whose growths are to be looked at, by their names.

    What would stop the measuring later is looked for before it begins.

    Args:
        model: what is measured; of a run directory its growths are looked at.
        beside: further run directories.

    Returns:
        Folders by name, the first of `model`; empty if that is no run directory.

    Raises:
        UserError: one is no finished run or lacks a checkpoint; there are runs to be held beside
            something that is no run, never grew, or is one of them.
    """
    first = Path(model) if isinstance(model, str | Path) else None
    if first is None or not is_run(first):
        if beside:
            raise UserError(
                "Runs are held beside a run: to compare growths, the model must be a run "
                "directory, too."
            )
        return {}
    folders = [first, *map(Path, beside)]
    for place, folder in enumerate(folders):
        final_model(folder)
        check_checkpoints(folder)
        if beside and not run_recipe(folder).growth_steps:
            raise UserError(f"{folder} never grew, so it has no growth to compare.")
        if any(folder.resolve() == other.resolve() for other in folders[:place]):
            raise UserError(f"The run {folder} is named twice.")
    return dict(zip(run_names(folders), folders, strict=True))


def run_names(folders: Sequence[Path]) -> list[str]:
    """What runs are called: by their operators, if no two have the same.

    Else by the names of their folders, and by their paths where two of these agree.
    """
    operators = [run_recipe(folder).growth.operator for folder in folders]
    names = [folder.resolve().name for folder in folders]
    paths = [str(folder) for folder in folders]
    return next((each for each in (operators, names) if len(set(each)) == len(folders)), paths)


def common_length(
    runs: Iterable[Path],
    tokenizer: Any,  # noqa: ANN401 (a transformers tokenizer)
    max_length: int,
) -> int:
    """Tokens that a sentence may have in every one of the runs.

    Raises:
        UserError: a run has another vocabulary than `tokenizer`.
    """
    for folder in runs:
        final = final_model(folder)
        check_same_tokenizer(tokenizer, load_tokenizer(final))
        max_length = longest_sentence(load_model(final), tokenizer, max_length)
    return max_length
