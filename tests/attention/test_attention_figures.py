"""Figures show the maps that they are given: every weight in its place, every token at its row."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import vl_convert

from stackbert.attention.examples import choose_sentences, small_sentence
from stackbert.attention.explorer import explorer_figure, fitting
from stackbert.attention.figures import likeness_figure, overview_figure, profile_figure
from stackbert.attention.heatmaps import SHADES, default_heads, heads_figure
from stackbert.attention.maps import attention_maps
from stackbert.attention.moments import GrowthMaps, growth_figure, growth_heads
from stackbert.attention.result import (
    CLASSES,
    RADIUS,
    WINDOWS,
    GrowthAttention,
    Moment,
    SentenceMaps,
)
from stackbert.growth.model import grow
from stackbert.reporting.charts import PALETTE, style

SVG = "{http://www.w3.org/2000/svg}"


def draw(spec, *, dark=False) -> ElementTree.Element:
    drawn = vl_convert.vegalite_to_svg(spec, config=style(dark=dark), allowed_base_urls=[])
    return ElementTree.fromstring(drawn)


def texts(svg) -> list[str]:
    return ["".join(each.itertext()) for each in svg.iter(f"{SVG}text")]


def cell_groups(svg) -> list[list[tuple[float, float, str]]]:
    """(y, x, fill) of the cells of each group of rectangles, from the top left on."""
    groups = []
    for group in svg.iter(f"{SVG}g"):
        if "mark-rect" not in group.get("class", "") or "role-mark" not in group.get("class", ""):
            continue
        found = []
        for path in group.iter(f"{SVG}path"):
            x, y = map(float, re.match(r"M([^,]+),([-\d.e]+)", path.get("d")).groups())
            found.append((y, x, path.get("fill")))
        groups.append(sorted(found))
    return groups


def rgb(shade: str) -> str:
    return f"rgb({', '.join(str(int(shade[at : at + 2], 16)) for at in (1, 3, 5))})"


@pytest.fixture
def maps(make_model, tokenizer, sentences) -> list[SentenceMaps]:
    found = attention_maps(make_model(depth=3), tokenizer, sentences, max_length=32)
    return sorted(found, key=lambda each: each.index)


def test_heat_maps_hold_the_maps(maps):
    heads = [(2, 0), (0, 1)]
    spec = heads_figure(maps[4], heads)
    rows = spec["datasets"]["maps"]
    assert [row["panel"] for row in rows] == ["layer 3, head 1", "layer 1, head 2"]
    size = len(maps[4].tokens)
    for row, head in zip(rows, heads, strict=True):
        assert tuple(row["tokens"]) == maps[4].tokens
        drawn = np.array(row["weights"]).reshape(size, size) / 1000
        assert drawn == pytest.approx(maps[4].maps[head], abs=0.0005001)


def test_a_weight_is_drawn_in_the_row_of_its_query_and_the_column_of_its_key():
    weights = np.array([[0, 0, 1], [0.25, 0, 0.75], [0, 1, 0]], dtype=np.float32)
    # The second token twice: its rows must not fall into one.
    sentence = SentenceMaps(0, ("[CLS]", "two", "two"), (), weights[None, None])
    svg = draw(heads_figure(sentence, [(0, 0)]))
    (cells,) = cell_groups(svg)
    fills = [fill for _, _, fill in cells]
    white, middle, dark = rgb(SHADES[0]), rgb(SHADES[2]), rgb(SHADES[4])
    assert [fills[place] for place in (0, 1, 2, 3, 4, 6, 7, 8)] == [
        *(white, white, dark),
        *(middle, white),
        *(white, dark, white),
    ]
    labels = texts(svg)
    assert labels.count("two") == 4
    assert labels.count("[CLS]") == 2
    assert {"query", "key"} <= set(labels)


def test_every_head_is_drawn_with_its_tokens(maps, result):
    heads = default_heads(result.measures, 5)
    svg = draw(heads_figure(maps[4], heads, result.measures.classes))
    size = len(maps[4].tokens)
    groups = cell_groups(svg)
    assert [len(cells) for cells in groups] == [size * size] * 5
    labels = texts(svg)
    assert set(maps[4].tokens) <= set(labels)
    for layer, head in heads:
        kind = result.measures.classes[layer, head]
        assert f"layer {layer + 1}, head {head + 1} ({kind})" in labels
    # Panels are drawn in the order of the heads, each with its own map.
    for cells, head in zip(groups, heads, strict=True):
        darkest = min(range(size * size), key=lambda place: _brightness(cells[place][2]))
        weights = np.rint(maps[4].maps[head].ravel() * 1000)
        assert weights[darkest] == weights.max()


def _brightness(fill: str) -> int:
    return sum(map(int, re.findall(r"\d+", fill)))


def measures_with(measures, near, first):
    depth, heads = first.shape
    windows = np.zeros((len(WINDOWS), depth, heads))
    windows[WINDOWS.index(4)] = near
    return replace(measures, near=windows, first=first)


def test_heads_are_chosen_by_the_rule(result):
    random = np.random.default_rng(1)
    near, first = random.random((2, 7, 4))
    measures = measures_with(result.measures, near, first)
    chosen = default_heads(measures)
    thirds = [range(3), range(3, 5), range(5, 7)]
    local = [
        max(((la, h) for la in third for h in range(4)), key=near.__getitem__) for third in thirds
    ]
    assert chosen[:3] == local
    for third, head in zip(thirds, chosen[3:], strict=True):
        rest = [(la, h) for la in third for h in range(4) if (la, h) not in local]
        assert head == max(rest, key=first.__getitem__)


@pytest.mark.parametrize(("n", "found"), [(0, 0), (1, 1), (3, 3), (6, 6), (7, 7), (100, 8)])
def test_no_head_is_chosen_twice_however_small_the_model(result, n, found):
    measures = measures_with(result.measures, np.ones((2, 4)), np.ones((2, 4)))
    heads = default_heads(measures, n)
    assert len(heads) == len(set(heads)) == found
    assert default_heads(measures, n) == heads


def test_the_overview_has_a_cell_a_head_in_the_colour_of_its_class(result):
    classes = np.array([["local", "[CLS]"], ["mixed", "[SEP]"], ["broad", "other"]])
    spec = overview_figure(replace(result.measures, classes=classes))
    rows = {(row["layer"], row["head"]): row for row in spec["datasets"]["heads"]}
    assert rows[3, 2]["class"] == "other"
    assert rows[1, 2]["first"] == pytest.approx(result.measures.first[0, 1], abs=1e-4)
    within = result.measures.within[WINDOWS.index(4)]
    assert rows[2, 1]["within"] == pytest.approx(within[1, 0], abs=1e-4)
    svg = draw(spec | {"width": 400})
    (cells,) = [group for group in cell_groups(svg) if group]
    top_first = ["broad", "other", "mixed", "[SEP]", "local", "[CLS]"]
    assert [fill for _, _, fill in cells] == [PALETTE[CLASSES.index(c)] for c in top_first]
    assert set(CLASSES) <= set(texts(svg))


def test_the_profile_is_the_mean_of_a_class(result):
    classes = np.array([["local", "broad"], ["broad", "broad"], ["local", "local"]])
    measures = replace(result.measures, classes=classes)
    spec = profile_figure(measures)
    rows = spec["datasets"]["profile"]
    assert {row["group"] for row in rows} == {"local", "broad", "uniform"}
    lines = {
        name: [row["mass"] for row in rows if row["group"] == name]
        for name in ("local", "broad", "uniform")
    }
    assert [row["position"] for row in rows if row["group"] == "local"] == list(
        range(-RADIUS, RADIUS + 1)
    )
    expected = np.mean([measures.profile[0, 0], *measures.profile[2]], axis=0)
    assert lines["local"] == pytest.approx(expected, abs=1e-5)
    assert lines["uniform"] == pytest.approx(measures.profile_uniform, abs=1e-5)
    drawn = draw(spec | {"width": 400})
    assert {"local", "broad", "uniform"} <= set(texts(drawn))


def test_the_likeness_figure_has_every_two_layers(result):
    spec = likeness_figure(result.likeness)
    rows = spec["datasets"]["layers"]
    assert len(rows) == 9
    for row in rows:
        value = result.likeness.divergence[row["first"] - 1, row["second"] - 1]
        assert row["divergence"] == pytest.approx(value, abs=1e-4)
    labels = texts(draw(spec | {"width": 400}))
    assert labels.count("0.00") >= 3, "the diagonal"
    assert f"{result.likeness.divergence[0, 2]:.2f}" in labels


@pytest.fixture
def growths(make_model, tokenizer, sentences) -> list[GrowthMaps]:
    """Two growths of one shallow model that put the copies of its layers elsewhere."""
    shallow = make_model(depth=2)
    models = {"shallow": shallow, "grown": grow(shallow, 4), "next": make_model(depth=4)}
    moments = {
        name: next(attention_maps(model, tokenizer, sentences[4:5]))
        for name, model in models.items()
    }
    places = {"stack": [0, 1, 0, 1], "interleave": [0, 0, 1, 1]}
    return [GrowthMaps(name, moments, np.array(at), "same") for name, at in places.items()]


def drawn_maps(spec) -> list[tuple[str, str, str, list[int]]]:
    """(title of the block, moment, head, weights) of each map of a growth's figure."""
    titles = [block["title"]["text"] for block in spec["vconcat"]]
    names = [block.get("data", spec.get("data"))["name"] for block in spec["vconcat"]]
    assert names == list(spec["datasets"])
    return [
        (title, row["moment"], row["drawn"], row["weights"])
        for title, rows in zip(titles, spec["datasets"].values(), strict=True)
        for row in rows
    ]


def expected_maps(growth: GrowthMaps, moments: dict[str, list[tuple[int, int]]]):
    labels = {"grown": "right after growing", "next": "end of next stage"}
    return [
        (
            labels.get(moment, moment),
            f"layer {layer + 1}, head {head + 1}",
            np.rint(growth.moments[moment].maps[layer, head].ravel() * 1000).tolist(),
        )
        for moment, places in moments.items()
        for layer, head in places
    ]


def test_growth_is_drawn_run_by_run_with_the_heads_source_first(growths):
    growths[1] = replace(growths[1], weights="others")
    heads = [(1, 1), (0, 0)]
    spec = growth_figure(growths, heads)
    stacked, interleaved = [(3, 1), (2, 0)], [(3, 1), (1, 0)]
    assert drawn_maps(spec) == [
        (growth.name, *each)
        for growth, places in zip(growths, (stacked, interleaved), strict=True)
        for each in expected_maps(growth, {"shallow": heads, "grown": places, "next": places})
    ]
    svg = draw(spec)
    size = len(growths[0].moments["shallow"].tokens)
    assert [len(cells) for cells in cell_groups(svg)] == [size * size] * 12
    labels = texts(svg)
    assert labels.count("layer 4, head 2") == 2
    assert {"layer 3, head 1", "layer 2, head 1", "stack", "interleave"} <= set(labels)
    assert labels.count("shallow") == labels.count("right after growing") == 2
    assert labels.count("attention") == 1, "one legend"


def test_a_shallow_model_that_all_grew_from_is_drawn_once(growths):
    heads = [(1, 1), (0, 0)]
    first, *rest = expected_maps(growths[0], {"shallow": heads})
    drawn = drawn_maps(growth_figure(growths, heads))
    assert [each[1:] for each in drawn[:2]] == [first, *rest]
    assert [(title, moment) for title, moment, *_ in drawn[2::2]] == [
        (growth.name, moment)
        for growth in growths
        for moment in ("right after growing", "end of next stage")
    ]
    alone = drawn_maps(growth_figure(growths[:1], heads))
    assert {title for title, *_ in alone} == {"stack"}
    assert len(alone) == 6


def test_three_runs_beside_each_other_are_as_wide_as_a_page_and_can_be_read(growths):
    runs = [replace(growths[0], name=name, weights=name) for name in ("a", "b", "c")]
    svg = draw(growth_figure(runs, [(0, 0), (0, 1), (1, 0), (1, 1)]))
    assert float(svg.get("width")) < 920
    sizes = [
        float(each.get("font-size").removesuffix("px"))
        for each in svg.iter(f"{SVG}text")
        if "".join(each.itertext()) in growths[0].moments["shallow"].tokens
    ]
    assert min(sizes) >= 7
    keys = len(growths[0].moments["shallow"].tokens) * 4 * 3
    queries = len(growths[0].moments["shallow"].tokens) * 9
    assert len(sizes) == keys + queries, "each run has its keys below it"


def test_growth_of_two_sentences_is_refused(growths, maps):
    moments = dict(growths[0].moments) | {"next": maps[1]}
    with pytest.raises(ValueError, match="different sentences"):
        growth_figure([replace(growths[0], moments=moments)], [(1, 1)])


def growth_of(measures, origins, **fields) -> GrowthAttention:
    none = np.zeros(4, dtype=bool)
    nearest = np.zeros((4, 3, 2), dtype=int)
    moments = tuple(
        Moment(name, 0, measures, at, none, np.zeros((4, 3)), nearest)
        for name, at in (("shallow", np.arange(2)), ("grown", np.array(origins)))
    )
    given = {"run": "stack", "operator": "stack", "step": 8, "source_depth": 2, "depth": 4}
    given |= {"moments": moments, "outcome": np.full((4, 3), "kept"), "chance": 1 / 6}
    return GrowthAttention(**given | {"weights": "x"} | fields)


def test_heads_of_a_growth_are_chosen_in_the_first_shallow_model(result):
    random = np.random.default_rng(2)
    one, other = (measures_with(result.measures, *random.random((2, 2, 3))) for _ in range(2))
    first, second = growth_of(one, [0, 1, 0, 1]), growth_of(other, [0, 0, 1, 1])
    assert growth_heads([first]) == default_heads(one, 4)
    assert growth_heads([first, second]) == default_heads(one, 4) != default_heads(other, 4)
    # Of 2 to 3 layers there is no second copy of the upper one.
    partly = growth_of(one, [0, 1, 0])
    bottom = [head for head in default_heads(one, 4) if head[0] == 0]
    assert growth_heads([first, partly]) == bottom


def test_the_explorer_holds_every_map_of_its_sentences(maps, result):
    spec = explorer_figure(maps[:2], result.measures, (1, 1))
    data = spec["datasets"]
    assert [tuple(row["tokens"]) for row in data["sentences"]] == [m.tokens for m in maps[:2]]
    assert len(data["heads"]) == 6
    assert len(data["maps"]) == 2 * 6
    for row in data["maps"]:
        drawn = maps[row["sentence"] - 1].maps[row["layer"] - 1, row["head"] - 1]
        assert row["weights"] == np.rint(drawn.ravel() * 1000).tolist()
    svg = draw(spec)
    assert "Layer 2, head 2 on sentence 1" in texts(svg)
    assert len(maps[0].tokens) ** 2 in map(len, cell_groups(svg))
    with pytest.raises(ValueError, match="needs a sentence"):
        explorer_figure([], result.measures)


def test_the_explorer_leaves_out_what_would_make_the_page_large(maps):
    sizes = [each.maps.size for each in maps]
    assert fitting(maps, sum(sizes[:3])) == maps[:3]
    assert fitting(maps, sum(sizes[:3]) - 1) == maps[:2]
    assert fitting(maps, 1) == maps[:1]


def test_all_figures_can_be_drawn_on_black(maps, growths, result):
    for spec in (
        heads_figure(maps[0], [(0, 0)]),
        growth_figure(growths, [(1, 0)]),
        explorer_figure(maps, result.measures),
        overview_figure(result.measures),
        profile_figure(result.measures),
        likeness_figure(result.likeness),
    ):
        svg = draw(spec, dark=True)
        ink = {each.get("fill") for each in svg.iter(f"{SVG}text")}
        assert not ink & {"#000", "#000000", "black"}, "black text is not to be seen"


def test_sentences_that_fit_come_first(tokenizer, sentences):
    chosen = choose_sentences(sentences, tokenizer, count=6, longest=25)
    assert [len(each.split()) for each in chosen] == [12, 20, 11, 20, 15, 41]
    assert small_sentence([30, 25, 20, 12]) == 2
    assert small_sentence([30, 25, 27]) == 1
