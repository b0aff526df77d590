"""`evaluate`: each model takes each test, random weights the probes; kept in evaluation.json."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from stackbert.errors import UserError
from stackbert.evaluation import masked, probes
from stackbert.evaluation.data import PROBES, Test, read_tests
from stackbert.evaluation.models import Subject, find_models, open_subject
from stackbert.files import Record, refuse_foreign, writing
from stackbert.intervals import Score, difference
from stackbert.machine import describe, pick_device
from stackbert.progress import Progress
from stackbert.tables import Frame, Tables
from stackbert.units import did_you_mean

EVALUATION = "evaluation.json"
MEANING = (
    "A probe is a linear classifier on a frozen layer: its score says how much of the labels can "
    "be read off the layer. What it has above the embeddings, the layers took from the context; "
    "what it has above random weights of the same shape, pre-training put there."
)
_ABOUT = ["model", "folder", "type", "depth", "hidden_size", "step", "seconds"]
Layers = list[dict[str, Score]]
"""Scores by metric, of the embeddings and of each layer; of what is not a probe only one."""


class EvaluationResult(Record, Tables):
    """What `evaluate` found: accuracies, F1 and pairs in hundredths, losses in nats."""

    what: ClassVar[str] = "a folder of 'stackbert evaluate'"
    version: ClassVar[int] = 3

    machine: dict[str, Any]
    settings: dict[str, int]
    models: Frame
    """A row a model: model, folder, type, depth, hidden_size, step (of a run), seconds it took."""
    scores: Frame
    """A row for each test, metric and model: score (of a probe's last layer), ± (standard error),
    vs. first and p (paired test with the first model); of a probe also embeddings, best, at layer,
    random, above embeddings and ±, above random and ±, majority, majority of word."""
    layers: Frame
    """A row for each layer of a probe: test, metric, model, weights, layer (0: the embeddings),
    score, ±."""
    notes: tuple[str, ...] = ()

    def tables(self) -> dict[str, pd.DataFrame]:
        """The scores of probes and the others, without what `sentences` say."""
        shown = self.scores.loc[:, ~self.scores.columns.str.match("above|± ")]
        others = ~shown["test"].isin(self.layers.get("test", ()))
        return {
            "scores" if other else "probes": own.dropna(axis=1, how="all")
            for other, own in shown.groupby(others)
        }

    def sentences(self) -> list[str]:
        """What a probe means, then what the layers and pre-training add to each model's probes."""
        lines = [
            f"{row['test']}, {row['metric']} {row['score']:.1f}: the last layer of {row['model']} "
            f"has {row['above embeddings']:+.1f} (± {row['± embeddings']:.1f}) to its embeddings, "
            f"{row['above random']:+.1f} (± {row['± random']:.1f}) to random weights."
            for _, row in self.scores.drop_duplicates(["test", "model"]).iterrows()
            if pd.notna(row.get("above random"))
        ]
        return [*([MEANING] if lines else []), *lines, *self.notes]


def read_evaluation(folder: str | Path) -> EvaluationResult:
    """Read what `evaluate` wrote; UserError if the folder is another one, or damaged."""
    return EvaluationResult.read(Path(folder) / EVALUATION)


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    data: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    train: int = 2000,
    test: int = 1000,
    pairs: int = 200,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure what models have learned, without training them.

    Args:
        models: checkpoint folders or run directories, of which each checkpoint is measured. The
            others are compared with the first.
        data: a folder of tests, a corpus, or a single file (docs/evaluation.md).
        out: a folder for evaluation.json, which `read_evaluation` reads.
        train, test: sentences that a probe learns from and is tested on.
        pairs: of each paradigm. 200 of each of 18 give a standard error of 0.8 points.

    Raises:
        UserError: a model cannot be opened, or there is no such test.
    """
    progress = progress or Progress()
    places = find_models([models] if isinstance(models, str | Path) else models)
    settings = {"train": train, "test": test, "pairs": pairs}
    tests, notes = read_tests(Path(data), **settings)
    known = [each.name for each in tests]
    for name in only:
        if name not in known:
            raise UserError(f"{data} has no test '{name}'{did_you_mean(name, known)}.")
    tests = [each for each in tests if each.name in only or not only]
    if out is not None:  # said before the long work
        refuse_foreign(Path(out), EvaluationResult.what, EVALUATION)
        with writing(f"making {out}"):
            Path(out).mkdir(parents=True, exist_ok=True)
    about, rows, layer_rows = [], [], []
    twins: dict[tuple[str, str], Layers] = {}
    first: dict[str, dict[str, Score]] = {}
    for name, folder in places.items():
        start = time.perf_counter()
        subject = open_subject(folder)
        if not subject.has_head and any(each.kind not in PROBES for each in tests):
            notes.append(f"{name} has no masked-LM head, so it takes the probes alone.")
        for number, each in enumerate(tests):
            progress.step(number, len(tests), f"tests, {name}: {each.name}")
            twin: Layers = []
            if each.kind in PROBES:
                key = (subject.shape, each.name)  # a stage's checkpoints share their random twin
                twins[key] = twin = twins.get(key) or take(subject.random_twin(), each)
            layers, named = take(subject, each), {"test": each.name, "model": name}
            found = _rows(each, layers, twin, first.setdefault(each.name, layers[-1]))
            rows += [{**named, **row} for row in found]
            layer_rows += [
                {**named, "metric": metric, "weights": weights, "layer": layer, **score.row()}
                for weights, of in (("trained", layers), ("random", twin))
                for layer, scores in enumerate(of if twin else ())
                for metric, score in scores.items()
            ]
        config, seconds = subject.model.config, time.perf_counter() - start
        shape = config.model_type, config.num_hidden_layers, config.hidden_size
        step = folder.name.removeprefix("step-")
        about.append((name, str(folder), *shape, int(step) if step.isdigit() else None, seconds))
    order = list(dict.fromkeys((row["test"], row["metric"]) for row in rows))
    rows.sort(key=lambda row: order.index((row["test"], row["metric"])))  # models side by side
    result = EvaluationResult(
        machine=describe(pick_device()),
        settings=settings,
        models=pd.DataFrame(about, columns=_ABOUT),
        scores=pd.DataFrame(rows),
        layers=pd.DataFrame(layer_rows),
        notes=tuple(notes),
    )
    if out is not None:
        with writing(f"writing {out}"):
            result.write(Path(out) / EVALUATION)
    return result


def take(subject: Subject, test: Test) -> Layers:
    """A model's scores in a test; none of pairs and text without a masked-LM head."""
    if test.kind in PROBES:
        return [probes.score(test, labels) for labels in probes.answers(subject, test)]
    if not subject.has_head:
        return [{}]
    measure: Any = masked.pair_scores if test.kind == "pairs" else masked.text_losses
    return [measure(subject, test.items)]


def _rows(
    test: Test, layers: Layers, twin: Layers, first: dict[str, Score]
) -> Iterator[dict[str, Any]]:
    for metric, score in layers[-1].items():
        row = {"metric": metric, **score.row()}
        if metric in first and first[metric] is not score:
            row["vs. first"], _, row["p"] = difference(score, first[metric])
        if twin:
            values = [layer[metric].value for layer in layers]
            row |= {"embeddings": values[0], "best": max(values)}
            row |= {"at layer": values.index(max(values)), "random": twin[-1][metric].value}
            for name, other in (("embeddings", layers[0]), ("random", twin[-1])):
                row[f"above {name}"], row[f"± {name}"], _ = difference(score, other[metric])
            for name, labels in probes.without_model(test).items():
                row[name] = probes.score(test, labels)[metric].value
        yield row
