"""The comparison's own figures, as Vega-Lite specifications."""

from collections.abc import Sequence
from typing import Any

from stackbert.comparison.results import Results
from stackbert.comparison.statistics import interval


def loss_by_budget(results: Results) -> dict[str, Any]:
    """Final loss of every variant over its share of the budget, with intervals."""
    rows = []
    for name in results.variants:
        for fraction in results.fractions(name):
            losses = results.losses(name, fraction)
            found = interval(list(losses.values()))
            rows.append(
                {
                    "variant": name,
                    "budget": fraction,
                    "loss": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "seeds": found.number,
                }
            )
    return lines_with_intervals(
        rows, x="budget", x_title="share of the budget (logarithmic)", order=results.variants
    )


def lines_with_intervals(
    rows: Sequence[dict[str, Any]], *, x: str, x_title: str, order: Sequence[str]
) -> dict[str, Any]:
    """Lines of `loss` over a logarithmic `x`, a bar from `low` to `high` where both are known.

    Args:
        rows: with "variant", `x`, "loss", "low", "high", "seeds".
        x: the field.
        x_title: of the axis.
        order: of the legend.
    """
    import altair as alt

    from stackbert.reporting.charts import colours, specification

    title = "final validation loss (nats)"
    base = alt.Chart(alt.NamedData(name="runs")).encode(
        x=alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(type="log", nice=False, padding=24)),
        color=colours("variant", order),
    )
    loss = alt.Y("loss:Q", title=title, scale=alt.Scale(zero=False))
    bars = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.6)
        .encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    )
    lines = base.mark_line(strokeWidth=2).encode(y=loss)
    hover = [
        alt.Tooltip("variant:N"),
        alt.Tooltip(f"{x}:Q", format=".3~g"),
        *(alt.Tooltip(f"{field}:Q", format=".4f") for field in ("loss", "low", "high")),
        alt.Tooltip("seeds:Q"),
    ]
    dots = base.mark_point(filled=True, size=70, opacity=1.0).encode(y=loss, tooltip=hover)
    return specification(alt.LayerChart(layer=[bars, lines, dots]), datasets={"runs": rows})
