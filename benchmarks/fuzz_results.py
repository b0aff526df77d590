"""Readers of results that StackBERT keeps: comparisons, attention, fine-tuning."""

import copy
import json
from pathlib import Path
from typing import ClassVar

import fuzz_structure as structure
from fuzz_cases import Reader, WrongResult
from fuzz_checkpoints import tiny_bert
from fuzz_runs import MACHINE, TINY
from stackbert.recipe_files import parse_recipe


def _plain(folder: Path, file: str) -> structure.Value:
    return json.loads((folder / file).read_text(encoding="utf-8"))


def _same(got: structure.Value, wanted: structure.Value) -> bool:
    """Equal, whatever a number is written as."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(_same(got[k], wanted[k]) for k in got)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(_same, got, wanted))
    return bool(got == wanted) and isinstance(got, bool) == isinstance(wanted, bool)


class Comparison(Reader):
    """A comparison, up to its report's content."""

    name = "comparison"
    reads = "comparison.json"
    damages: ClassVar = {"comparison/comparison.json": structure.of_json}
    named = ("comparison",)

    def prepare(self, folder: Path) -> None:
        """One whose runs have not begun."""
        from stackbert.comparison.calibration import Settings
        from stackbert.comparison.costs import (
            Budget,
            GrowthCost,
            Reference,
            StepCost,
            step_kinds,
        )
        from stackbert.comparison.folder import Entry, Question, Record, Tried, write_record

        recipe = parse_recipe(copy.deepcopy(TINY), "tiny.yaml")
        kinds = step_kinds(recipe)
        steps = tuple(StepCost(kind, 0.1 * kind.depth, (0.1, 0.2), 1000) for kind in kinds)
        record = Record(
            question=Question("variants", recipe, "f" * 16, "30m", 2, (0.5, 1.0)),
            corpus_folder="corpus",
            entropy=6.0,
            machine=MACHINE,
            threads=1,
            settings=Settings("fp32", False, tuple((kind, 4) for kind in kinds)),
            reference=Reference(steps, (GrowthCost(1, 2, 0.5),)),
            budget=Budget(1800.0, "seconds"),
            tried=(Tried(0.5, 4.5), Tried(1.0, None)),
            entries=(Entry("scratch", 1.0, 0, "0" * 12), Entry("stack", 0.5, 1, "1" * 12)),
            recipes={"scratch": recipe.model_dump(mode="json")},
        )
        (folder / "comparison").mkdir()
        write_record(folder / "comparison", record)

    def read(self, folder: Path, damaged: str) -> None:
        """What is taken is written back as it was."""
        from stackbert.comparison.folder import read_record, write_record
        from stackbert.comparison.results import read_results

        record = read_record(folder / "comparison")
        before = (folder / damaged).read_bytes()
        write_record(folder / "comparison", record)
        again = _plain(folder, damaged)
        (folder / damaged).write_bytes(before)
        raw = json.loads(before)
        # Of a recipe the fields that are not said are filled in.
        raw["question"]["recipe"] = again["question"]["recipe"]
        raw["format"] = int(raw["format"])  # which true is as well as 1
        if not _same(again, raw):
            raise WrongResult("another comparison once written")
        read_results(folder / "comparison")


class Attention(Reader):
    """A measurement of attention and the maps beside it."""

    name = "attention"
    reads = "attention.json, examples.json"
    damages: ClassVar = {
        "attention/attention.json": structure.of_json,
        "attention/examples.json": structure.of_json,
    }

    def prepare(self, folder: Path) -> None:
        """Of a tiny model on three sentences."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        from stackbert.attention.examples import Examples
        from stackbert.attention.maps import attention_maps
        from stackbert.attention.measure import measure_attention
        from stackbert.attention.stored import write_examples

        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        words = [*special, *(f"w{number}" for number in range(20))]
        inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, **dict(zip(names, special, strict=True))
        )
        model = tiny_bert(vocab_size=32)
        sentences = [" ".join(words[5 + n : 11 + 2 * n]) for n in range(3)]
        (folder / "attention").mkdir()
        measure_attention(model, text=sentences, tokenizer=tokenizer).write(
            folder / "attention" / "attention.json"
        )
        maps = attention_maps(model, tokenizer, sentences[:1], max_length=24)
        write_examples(Examples(tuple(maps)), folder / "attention")

    def read(self, folder: Path, damaged: str) -> None:
        """A page can be made of it, and its numbers are the file's."""
        from stackbert.attention.page import attention_page
        from stackbert.attention.stored import read_attention

        result, examples = read_attention(folder / "attention")
        raw = _plain(folder, "attention/attention.json")
        again = json.loads(json.dumps(result.to_json(), allow_nan=False))
        if not all(_close(again[name], raw[name]) for name in ("measures", "likeness", "model")):
            raise WrongResult("other numbers than the file's")
        attention_page(result, examples)


def _close(got: structure.Value, wanted: structure.Value) -> bool:
    if isinstance(got, dict):
        return isinstance(wanted, dict) and all(_close(got[k], wanted.get(k)) for k in got)
    if isinstance(got, list):
        same = isinstance(wanted, list) and len(got) == len(wanted)
        return same and all(map(_close, got, wanted))
    if isinstance(got, float) and isinstance(wanted, int | float):
        return abs(got - wanted) <= 1e-6 * max(1.0, abs(wanted))
    return bool(got == wanted)


class Study(Reader):
    """A folder of fine-tuning."""

    name = "finetune"
    reads = "finetune.json and a result"
    _RESULT = "study/results/rte/" + "a" * 16 + "-seed0.json"
    damages: ClassVar = {
        "study/finetune.json": structure.of_json,
        _RESULT: structure.of_json,
        _RESULT + "l": structure.of_json_lines,
    }
    named = ("study",)

    def prepare(self, folder: Path) -> None:
        """One model, one task, one run."""
        from stackbert.finetuning.folder import Contender, Member, Record, TaskRecord, write_record
        from stackbert.finetuning.runs import Result, result_path, write_result
        from stackbert.finetuning.settings import defaults_for

        study = folder / "study"
        study.mkdir()
        settings = defaults_for("rte").model_copy(update={"precision": "fp32"})
        member = Member("base", "models/base", "a" * 16, "f" * 64)
        task = TaskRecord(
            name="rte",
            title="RTE",
            metrics=("accuracy",),
            settings=settings,
            sizes={"train": 100, "dev": 20},
            fingerprints={"train": "1" * 64, "dev": "2" * 64},
            guess={"dev": {"accuracy": 0.5}},
            seeds=2,
            notes=("a note",),
        )
        contender = Contender("base", (member,))
        write_record(study, Record("models", (contender,), {"rte": task}, {"wnli": "no"}, MACHINE))
        result = Result(
            key=task.key(member, 0),
            seed=0,
            scores={"dev": {"accuracy": 0.6}},
            splits={"dev": "2" * 64},
            seconds=3.5,
            predicting=0.5,
            steps=24,
            losses=(0.7, None, 0.6),
            diverged=False,
            notes=(),
        )
        rows = [{"key": str(n), "prediction": "entailment"} for n in range(20)]
        path = result_path(study, "rte", member, 0)
        write_result(path, result, {"dev": rows})
        if path != folder / self._RESULT:
            raise RuntimeError(f"{path} instead of {self._RESULT}")

    def read(self, folder: Path, damaged: str) -> None:
        """Scores can be asked of whatever is taken."""
        from stackbert.finetuning.results import read_finetune
        from stackbert.finetuning.runs import read_predictions

        results = read_finetune(folder / "study")
        for measure in results.measures():
            for contender in results.contenders:
                score = results.score(contender, measure)
                if score is not None and not isinstance(score.median, int | float):
                    raise WrongResult(f"a score of {score.median!r}")
        read_predictions(folder / self._RESULT)
