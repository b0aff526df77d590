"""What is fine-tuned: models, groups of one model's pre-training seeds, checkpoints of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stackbert.errors import UserError
from stackbert.finetuning.along import all_checkpoints
from stackbert.finetuning.folder import Contender, Member
from stackbert.finetuning.heads import Source, find_source, untrained

ModelPath = str | Path
CONTROL = "untrained"
"""What the control is called."""


def contenders_of(
    models: ModelPath | Sequence[ModelPath],
    groups: Mapping[str, Sequence[ModelPath]],
    along: ModelPath | Sequence[ModelPath],
) -> tuple[Contender, ...]:
    """What is fine-tuned, in the order it was named: models, then groups; or checkpoints.

    Args:
        models: checkpoint folders or run directories.
        groups: by name, the same model from several pre-training seeds.
        along: runs whose checkpoints are taken, instead.

    Raises:
        UserError: there is nothing to fine-tune, a folder is no model, two have one name or are
            the same weight by weight, or groups are not of one size.
    """
    models, along = _listed(models), _listed(along)
    if along and (models or groups):
        raise UserError("--along takes runs alone; leave other models and groups out.")
    if along:
        return all_checkpoints(along)
    found = [_alone(source) for source in _told_apart(models)]
    for name, paths in groups.items():
        if not paths:
            raise UserError(f"The group '{name}' has no models.")
        members = [_member(source) for source in _told_apart(list(paths))]
        _check_different(members, f"the group '{name}'")
        found.append(Contender(name, tuple(members)))
    if not found:
        raise UserError("Name at least one model to fine-tune: a checkpoint folder or a run.")
    names = [contender.name for contender in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"Two models are called {', '.join(twice)}. Give one another name.")
    _check_different([c.members[0] for c in found if len(c.members) == 1], "the call")
    if len({len(contender.members) for contender in found}) > 1:
        shown = ", ".join(f"{c.name} {len(c.members)}" for c in found)
        raise UserError(
            f"Groups are paired member by member, so all must have as many ({shown}). Name as many "
            "pre-training seeds of each."
        )
    return tuple(found)


def untrained_twin(contenders: Sequence[Contender]) -> Contender:
    """The control: the first contender's model with random weights, a draw for each member.

    Args:
        contenders: what is fine-tuned; checkpoints of runs have no control.

    Raises:
        UserError: they are checkpoints, or one has the control's name.
    """
    first = contenders[0]
    if first.members[0].progress:
        raise UserError("--control goes with models, not with --along.")
    if any(contender.name == CONTROL for contender in contenders):
        raise UserError(
            f"A model is called '{CONTROL}', as the control is. Give it another name "
            "(--group NAME=MODEL)."
        )
    source = find_source(first.members[0].folder)
    several = len(first.members) > 1
    draws = [
        untrained(source, f"{CONTROL} {draw}" if several else CONTROL, draw)
        for draw in range(len(first.members))
    ]
    return Contender(CONTROL, tuple(_member(each) for each in draws))


def _told_apart(paths: list[ModelPath]) -> list[Source]:
    """Models, by their folders' names, or by their paths where names agree."""
    sources = [find_source(path) for path in paths]
    names = [source.name for source in sources]
    return [
        source if names.count(source.name) == 1 else replace(source, name=str(path))
        for source, path in zip(sources, paths, strict=True)
    ]


def _member(source: Source) -> Member:
    return Member(source.name, str(source.folder), source.key, source.fingerprint)


def _alone(source: Source) -> Contender:
    return Contender(source.name, (_member(source),))


def _check_different(members: Sequence[Member], where: str) -> None:
    seen: dict[str, str] = {}
    for member in members:
        other = seen.setdefault(member.fingerprint, member.name)
        if other != member.name:
            raise UserError(
                f"{other} and {member.name} in {where} are the same model, weight by weight."
            )


def _listed(paths: ModelPath | Sequence[ModelPath]) -> list[ModelPath]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
