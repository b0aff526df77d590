"""Runs beside each other: each measured as alone, on the same sentences; only like is compared."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from stackbert.attention.beside import beside_statement, growth_groups, of_one_start
from stackbert.attention.growth import observe_growths
from stackbert.attention.loading import load_tokenizer
from stackbert.attention.measure import measure_attention
from stackbert.attention.observe import Material
from stackbert.attention.page_tables import growths_table
from stackbert.attention.result import AttentionResult
from stackbert.attention.runs import run_names
from stackbert.attention.statements import growth_statements, statements
from stackbert.errors import UserError

SENTENCES = (
    "The river runs from the mountains in the north to the sea in the south of the country.",
    "The economy depends on agriculture, on fishing and on the export of minerals and wood.",
    "Most of the people live in the capital and in the towns along the coast of the island.",
)
OPERATORS = ("stack", "identity", "interleave")


@pytest.fixture(scope="module")
def runs(make_run):
    return [make_run(operator) for operator in OPERATORS]


@pytest.fixture(scope="module")
def found(runs) -> AttentionResult:
    return measure_attention(runs[0], text=SENTENCES, beside=runs[1:])


def test_each_run_is_measured_as_it_is_alone(found, runs):
    assert [(growth.run, growth.step) for growth in found.growths] == [
        (operator, step) for operator in OPERATORS for step in (4, 8)
    ]
    material = Material(SENTENCES, load_tokenizer(runs[0] / "model"), found.max_length, seed=0)
    alone = [growth for run in runs for growth in observe_growths(run, material)]
    for one, other in zip(alone, found.growths, strict=True):
        assert one.weights == other.weights
        assert one.moment("next").divergence == pytest.approx(other.moment("next").divergence)
        assert one.outcome.tolist() == other.outcome.tolist()


def test_what_was_found_beside_survives_json(found):
    again = AttentionResult.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert [growth.run for growth in again.growths] == [growth.run for growth in found.growths]
    assert statements(again) == statements(found)


def test_growths_compare_where_depths_and_heads_are_the_same(found):
    first, second = growth_groups(found.growths)
    for group, depths in ((first, (1, 2)), (second, (2, 4))):
        assert [growth.run for growth in group] == list(OPERATORS)
        assert {(growth.source_depth, growth.depth) for growth in group} == {depths}
    assert of_one_start(first), "the first stage knows of no operator"
    assert not of_one_start(second)
    other = replace(second[0], source_depth=3)
    assert [len(group) for group in growth_groups([*second, other])] == [3, 1]
    shallow = second[0].moment("shallow")
    fewer = replace(shallow, measures=replace(shallow.measures, first=np.ones((2, 1))))
    other = replace(second[0], moments=(fewer, *second[0].moments[1:]))
    assert [len(group) for group in growth_groups([*second, other])] == [3, 1]


def test_the_statements_say_it_of_each_run_and_then_compare(found):
    said = statements(found)[2:]
    expected = []
    for group in growth_groups(found.growths):
        expected += [line for growth in group for line in growth_statements(growth)]
        expected.append(beside_statement(group))
    assert list(said) == expected
    for operator in OPERATORS:
        assert sum(f"Growth by {operator}, " in line for line in said) == 2


def with_values(growth, *, first, divergence, patterned):
    """The same with other measures in the new layers: of each a value right after growing and
    one at the end of the next stage; at the end so many heads are local."""
    moments = []
    for moment in growth.moments:
        if moment.name in ("grown", "next"):
            at = 0 if moment.name == "grown" else 1
            measures, new = moment.measures, growth.new_layers
            masses, classes = np.ones_like(measures.first), measures.classes.copy()
            masses[new] = first[at]
            classes[new] = "broad"
            classes[new[0], :patterned] = "local"
            differs = np.ones_like(moment.divergence)
            differs[new] = divergence[at]
            measures = replace(measures, first=masses, classes=classes)
            moment = replace(moment, measures=measures, divergence=differs)
        moments.append(moment)
    return replace(growth, moments=tuple(moments))


def test_the_comparison_names_the_lowest_and_the_highest(found):
    stack, identity, interleave = growth_groups(found.growths)[1]
    stack = with_values(stack, first=(0.3, 0.6), divergence=(0.01, 0.2), patterned=2)
    identity = with_values(identity, first=(0.9, 0.5), divergence=(0.7, 0.3), patterned=0)
    interleave = with_values(interleave, first=(0.4, 0.5), divergence=(0.3, 0.4), patterned=1)
    sentence = beside_statement([stack, identity, interleave])
    assert sentence.startswith("Beside each other, growing 2 to 4 layers: ")
    for part in (
        "0.30 (stack) to 0.90 (identity) right after growing",
        "0.50 (identity) to 0.60 (stack) at the end of the next stage",
        "by 0.010 (stack) to 0.700 (identity), then by 0.200 (stack) to 0.400 (interleave)",
        "is 0% (identity) to 50% (stack) at the end",
    ):
        assert part in sentence
    same = beside_statement([stack, replace(stack, run="again")])
    assert "0.30 with all right after growing" in same
    assert "again" not in same


def test_the_table_has_the_rows_of_all_runs(found):
    table = growths_table(found.growths)
    growths = [row[0] for row in table.rows]
    assert growths[::3] == [
        f"{change}, {operator}" for change in ("1 → 2", "2 → 4") for operator in OPERATORS
    ]
    for growth in found.growths:
        label = f"{growth.source_depth} → {growth.depth}, {growth.run}"
        rows = [row for row in table.rows if row[0] == label]
        first = growth.moment("next").measures.first[growth.new_layers].mean()
        assert rows[2][table.columns.index("[CLS]")] == f"{first:.3f}"


def test_runs_are_called_by_operators_or_else_by_folders(runs, make_run, tmp_path):
    assert run_names(runs) == list(OPERATORS)
    again = make_run("stack", seed=4)
    copy = tmp_path / "elsewhere"
    shutil.copytree(again, copy)
    assert run_names([runs[0], copy]) == ["stack-run", "elsewhere"]
    assert run_names([runs[0], again]) == [str(runs[0]), str(again)]
    result = measure_attention(runs[0], text=SENTENCES, beside=[copy])
    labels = {growth.label for growth in result.growths}
    assert labels == {"stack-run (stack)", "elsewhere (stack)"}
    assert not any(of_one_start(group) for group in growth_groups(result.growths))


def test_what_cannot_be_held_beside_is_refused_before_anything_is_measured(
    runs, make_run, make_model, tokenizer, save, tmp_path
):
    heard: list[str] = []
    level = make_run("stack", stages=[{"depth": 2, "steps": 2}])
    partial, foreign = tmp_path / "partial", tmp_path / "foreign"
    for folder in (partial, foreign):
        shutil.copytree(runs[1], folder)
    shutil.rmtree(partial / "checkpoints" / "step-00000004")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(save(make_model()) / name, foreign / "model" / name)
    refused = {
        "never grew": (runs[0], level),
        "level.* never grew|never grew": (level, runs[0]),
        "no checkpoint after step 4": (runs[0], partial),
        "is named twice": (runs[0], runs[0]),
        "is not a run directory": (runs[0], save(make_model())),
        "must be a run directory": (save(make_model()), runs[0]),
        "different vocabularies": (runs[0], foreign),
    }
    for sentence, (model, other) in refused.items():
        with pytest.raises(UserError, match=sentence):
            measure_attention(model, text=SENTENCES, beside=[other], say=heard.append)
    with pytest.raises(UserError, match="must be a run directory"):
        measure_attention(make_model(), text=SENTENCES, tokenizer=tokenizer, beside=[runs[0]])
    assert heard == []


def test_sentences_are_cut_where_the_shortest_run_would(runs, make_run):
    short = make_run("identity", batch={"sequences": 4, "sequence_length": 16, "micro_batch": 4})
    alone, other = (measure_attention(run, text=SENTENCES) for run in (short, runs[0]))
    together = measure_attention(runs[0], text=SENTENCES, beside=[short])
    assert together.max_length == alone.max_length < other.max_length
