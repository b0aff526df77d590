"""A run's checkpoints as models to fine-tune: score against pre-training (the paper's figure 6)."""

from collections.abc import Sequence
from pathlib import Path

from stackbert.errors import UserError
from stackbert.finetuning.folder import Contender, Member, Progress
from stackbert.finetuning.heads import find_source


def checkpoints(run: str | Path) -> tuple[Contender, ...]:
    """Every checkpoint that a run has kept, oldest first.

    A run keeps those at the end of each stage and its newest (`checkpoint.keep` of its recipe
    says how many); a finished run's last one is its final model.

    Args:
        run: the run directory; it need not be finished.

    Raises:
        UserError: it is no run, has no checkpoint, or one is damaged.
    """
    from stackbert.pretraining.checkpoints import (
        CheckpointStore,
        DamagedCheckpointError,
        read_state,
    )
    from stackbert.pretraining.rundir import CHECKPOINTS, is_run

    run = Path(run)
    if not is_run(run):
        raise UserError(f"{run} is not a run directory, so there are no checkpoints to go along.")
    name = run.resolve().name
    found: list[Contender] = []
    for folder in CheckpointStore(run / CHECKPOINTS).paths():
        try:
            state = read_state(folder)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}. Remove that checkpoint to go along the others.") from error
        progress = Progress(name, state.step, float(state.seconds["training"]), state.depth)
        source = find_source(folder, f"{name} step {state.step:,}")
        member = Member(source.name, str(folder), source.key, source.fingerprint, progress)
        found.append(Contender(source.name, (member,)))
    if not found:
        raise UserError(f"{run} has kept no checkpoints. Fine-tune its final model instead.")
    return tuple(found)


def all_checkpoints(runs: Sequence[str | Path]) -> tuple[Contender, ...]:
    """Those of several runs, one run after the other.

    Raises:
        UserError: as `checkpoints`, or two runs share a name.
    """
    names = [Path(run).resolve().name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"Two runs are called {', '.join(twice)}, and could not be told apart in the figure. "
            "Rename one's folder."
        )
    return tuple(each for run in runs for each in checkpoints(run))
