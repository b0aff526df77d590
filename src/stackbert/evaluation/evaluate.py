"""`evaluate`: every model on every test, with random weights beside it; kept in evaluation.json."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from stackbert.errors import UserError
from stackbert.evaluation import masked, probes
from stackbert.evaluation.data import Pairs, Probe, Test, read_tests
from stackbert.evaluation.models import Subject, find_places, open_subject, random_twin
from stackbert.evaluation.scores import Score, difference
from stackbert.files import Record, writing
from stackbert.machine import describe, pick_device
from stackbert.progress import Progress
from stackbert.tables import Frame
from stackbert.units import did_you_mean

EVALUATION = "evaluation.json"
TRAINED, RANDOM, NONE = "trained", "random", "none"
_SCORES = ["test", "kind", "metric", "model", "weights", "layer", "score", "error", "items"]
_COMPARISONS = ["test", "metric", "model", "versus", "difference", "error", "p"]


class EvaluationResult(Record):
    """What `evaluate` found. Accuracies and F1 are shares of 1, losses nats."""

    what: ClassVar[str] = "a folder of 'stackbert evaluate'"

    machine: dict[str, Any]
    settings: dict[str, int]
    models: Frame
    """A row a model: name, folder, type, depth, hidden_size, step (of a run's checkpoint),
    seconds that its evaluation took."""
    scores: Frame
    """A row a score: test, kind (probe, pairs, text), metric, model, weights ("trained", "random";
    "none" of the commonest answer), layer (0 is the embeddings; NaN if not of a layer), score, its
    standard error, items (sentences, pairs or passages)."""
    comparisons: Frame
    """A row a paired test on the same items: test, metric, model, versus, difference, its standard
    error, two-sided p. Of a probe it is the last layer that is compared."""
    notes: tuple[str, ...] = ()

    def probe_table(self) -> pd.DataFrame:
        """A row for each probe and model, in hundredths: the layers and what they stand beside."""
        rows = []
        chosen = self.scores[self.scores["kind"] == "probe"]
        for (test, metric), of_test in chosen.groupby(["test", "metric"], sort=False):
            alone = of_test[of_test["weights"] == NONE].set_index("model")["score"]
            for model, rows_of in of_test[of_test["weights"] != NONE].groupby("model", sort=False):
                trained = rows_of[rows_of["weights"] == TRAINED].set_index("layer")
                random = rows_of[rows_of["weights"] == RANDOM].set_index("layer")
                last = trained.index.max()
                best = trained["score"].idxmax()
                row = {
                    "embeddings": trained["score"][0],
                    "middle": trained["score"][(last + 1) // 2],
                    "last": trained["score"][last],
                    "±": trained["error"][last],
                    "best": trained["score"][best],
                    "random, last": random["score"][last],
                    **alone,
                }
                hundredths = {name: 100 * value for name, value in row.items()}
                rows.append({"test": test, "metric": metric, "model": model, **hundredths})
                rows[-1]["best layer"] = int(best)
        return pd.DataFrame(rows)

    def score_table(self, *, whole: bool = False) -> pd.DataFrame:
        """A row for each other score, a column a model; `whole`, of single paradigms, too."""
        chosen = self.scores[self.scores["kind"] != "probe"]
        if not whole:
            chosen = chosen[~chosen["metric"].str.startswith(masked.PARADIGM)]
        table = chosen.pivot_table(
            index=["test", "metric"], columns="model", values=["score", "error"], sort=False
        )
        table.columns = [
            model if kind == "score" else f"± {model}" for kind, model in table.columns
        ]
        return table.reset_index()

    def sentences(self) -> list[str]:
        """What the figures mean and show, in words."""
        from stackbert.evaluation.statements import statements

        return statements(self)


def read_evaluation(folder: str | Path) -> EvaluationResult:
    """Read what `evaluate` wrote.

    Raises:
        UserError: the folder is another one, or its record is damaged.
    """
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
    passages: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure what models have learned, without training them.

    Three kinds of test, by what lies in `data` (docs/evaluation.md): linear probes on each frozen
    layer, minimal pairs by pseudo-log-likelihood, loss on held-out text.

    Args:
        models: checkpoint folders or run directories, of which each checkpoint is measured. The
            others are compared with the first.
        data: a folder of tests, a corpus, or a single file.
        out: a folder for evaluation.json, which `read_evaluation` reads.
        only: names of the tests to make; by default all.
        train: sentences that a probe is trained on.
        test: sentences that it is tested on.
        pairs: of each paradigm; 200 of each of 18 give a standard error of less than a point.
        passages: of a held-out text, of 64 words.
        seed: of the samples, the masks and the random weights.
        progress: hears of progress.

    Raises:
        UserError: a model cannot be opened, or there is no test.
    """
    hears = progress or Progress()
    if out is not None:  # said before the long work
        with writing(f"making {out}"):
            Path(out).mkdir(parents=True, exist_ok=True)
    places = find_places([models] if isinstance(models, str | Path) else models)
    settings = {"train": train, "test": test, "pairs": pairs, "passages": passages, "seed": seed}
    tests, left = read_tests(Path(data), **settings)
    for name in only:
        known = [each.name for each in tests]
        if name not in known:
            raise UserError(f"{data} has no test '{name}'{did_you_mean(name, known)}.")
    tests = [each for each in tests if each.name in only or not only]
    kept = _Kept(seed)
    for each in tests:
        if isinstance(each, Probe):
            kept.add_majority(each)
    rows, notes = [], [f"{name} is no test that this command knows." for name in left]
    for place in places:
        start = time.perf_counter()
        subject = open_subject(place)
        if not subject.has_head and not all(isinstance(each, Probe) for each in tests):
            notes.append(f"{place.name} has no masked-LM head, so that it has probes alone.")
        for each in tests:
            hears.say(f"{place.name}: {each.name}")
            kept.measure(subject, each, hears)
        config: Any = subject.model.config
        about = {"name": place.name, "folder": str(place.folder), "type": config.model_type}
        about |= {"depth": config.num_hidden_layers, "hidden_size": config.hidden_size}
        about |= {"step": place.step, "seconds": time.perf_counter() - start}
        rows.append(about)
    result = EvaluationResult(
        machine=describe(pick_device()),
        settings=settings,
        models=pd.DataFrame(rows),
        scores=kept.scores(),
        comparisons=kept.comparisons([place.name for place in places]),
        notes=tuple(notes),
    )
    if out is not None:
        with writing(f"writing {out}"):
            result.write(Path(out) / EVALUATION)
    return result


@dataclass
class _Kept:
    """Scores by item, as long as tests between them may be asked for."""

    seed: int
    found: dict[tuple[str, str, str, str, str, int | None], Score] = field(default_factory=dict)
    """By test, kind, metric, model, weights, layer."""
    twins: dict[tuple[str, str], list[dict[str, Score]]] = field(default_factory=dict)
    """Of random weights, by shape and test: the checkpoints of a stage share them."""

    def add_majority(self, probe: Probe) -> None:
        """Score the answers that need no model."""
        label = "tag" if probe.unit == "word" else "label"
        answers = {f"commonest {label}": probes.commonest(probe)}
        if probe.unit == "word":
            answers["commonest tag of the word"] = probes.commonest(probe, by_word=True)
        for name, labels in answers.items():
            for metric, score in probes.score(probe, labels).items():
                self.found[probe.name, "probe", metric, name, NONE, None] = score

    def measure(self, subject: Subject, test: Test, progress: Progress) -> None:
        """Make a model take a test."""
        if isinstance(test, Probe):
            self._probe(subject, test)
        elif not subject.has_head:
            return
        elif isinstance(test, Pairs):
            hits = masked.pair_hits(subject, test, progress)
            for metric, score in masked.pair_scores(test, hits).items():
                self.found[test.name, "pairs", metric, subject.name, TRAINED, None] = score
        else:
            losses = masked.text_losses(subject, test, self.seed, progress)
            for metric, score in losses.items():
                self.found[test.name, "text", metric, subject.name, TRAINED, None] = score

    def _probe(self, subject: Subject, probe: Probe) -> None:
        config = subject.model.config.to_dict()
        named = ("_name_or_path", "architectures", "dtype", "transformers_version")
        shape = {name: value for name, value in config.items() if name not in named}
        key = (repr((shape, sorted(subject.tokenizer.get_vocab().items()))), probe.name)
        if key not in self.twins:
            self.twins[key] = _layer_scores(random_twin(subject, self.seed), probe)
        trained = _layer_scores(subject, probe)
        for weights, layers in ((TRAINED, trained), (RANDOM, self.twins[key])):
            for layer, scores in enumerate(layers):
                for metric, score in scores.items():
                    at = (probe.name, "probe", metric, subject.name, weights, layer)
                    self.found[at] = score

    def scores(self) -> pd.DataFrame:
        """As `EvaluationResult.scores`."""
        rows = [
            (*key, score.value, score.error, len(score.values_NG))
            for key, score in self.found.items()
        ]
        return pd.DataFrame(rows, columns=_SCORES).astype({"layer": "Int64"})

    def comparisons(self, models: Sequence[str]) -> pd.DataFrame:
        """As `EvaluationResult.comparisons`."""
        last = {(key[0], key[3]): key[5] for key in self.found}  # layers come in order
        rows = []
        for (test, kind, metric, model, weights, layer), score in self.found.items():
            if weights != TRAINED or layer != last[test, model]:
                continue
            first = (test, kind, metric, models[0], TRAINED, last.get((test, models[0])))
            others = {models[0]: self.found.get(first) if model != models[0] else None}
            if kind == "probe":
                others["its embeddings"] = self.found[test, kind, metric, model, TRAINED, 0]
                others["random weights"] = self.found[test, kind, metric, model, RANDOM, layer]
            for versus, other in others.items():
                if other is not None:
                    rows.append((test, metric, model, versus, *difference(score, other)))
        return pd.DataFrame(rows, columns=_COMPARISONS)


def _layer_scores(subject: Subject, probe: Probe) -> list[dict[str, Score]]:
    return [probes.score(probe, answers) for answers in probes.predictions(subject, probe)]
