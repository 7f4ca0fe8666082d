"""Results of an analysis -> plotly figures: Pass@N, differences with intervals, costs, a table with notes."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.analysis.stats.passk import MajorityCurve, PassCurve
from igrpo_kit.viz.panels import add_band
from igrpo_kit.viz.style import (
    COLORS,
    GRAY,
    PATTERNS,
    WIDTH,
    apply_style,
    describe,
    ends_in_words,
    line_style,
    marker_style,
)


def as_intervals(curve: PassCurve | MajorityCurve) -> dict[int, Interval]:
    """A curve over problems, N -> its estimate with its 95% interval, as `plot_pass_at_n` takes it."""
    columns = zip(curve.n.tolist(), curve.estimate, curve.low, curve.high, strict=True)
    return {n: Interval(float(estimate), float(low), float(high), 0.95) for n, estimate, low, high in columns}


def plot_pass_at_n(
    curves: Mapping[str, Mapping[int, Interval]],
    *,
    title: str,
    subtitle: str = "unbiased estimates; bands: 95% intervals",
    before: Mapping[int, Interval] | None = None,
    draws: Mapping[str, Mapping[int, float]] | None = None,
) -> go.Figure:
    """Pass@N against N on a log axis, each curve N -> estimate with its interval (the shape of Fig. S.1).

    `before` is the policy before training, in gray. `draws` are added as points without a line, such as the
    result of a single draw of N samples per problem.
    """
    figure = apply_style(go.Figure(), title, subtitle, width=WIDTH)
    lines = {**curves, **({} if before is None else {"before training": before})}
    for i, (name, curve) in enumerate(lines.items()):
        n = np.array(list(curve), dtype=float)
        low, estimate, high = (
            np.array([getattr(interval, end) for interval in curve.values()])
            for end in ("low", "estimate", "high")
        )
        line = line_style(i) if i < len(curves) else {**line_style(i), "color": GRAY}
        add_band(figure, n, (low, high), line["color"])
        figure.add_scatter(x=n, y=estimate, name=name, mode="lines", line={**line, "width": 3})
    for i, (name, points) in enumerate((draws or {}).items(), start=len(curves)):
        marker = {**marker_style(i), "size": 9}
        figure.add_scatter(x=list(points), y=list(points.values()), name=name, mode="markers", marker=marker)
    most = max(max(curve) for curve in lines.values())
    ticks = [2**i for i in range(int(most).bit_length())]
    figure.update_xaxes(type="log", tickvals=ticks, title_text="N: attempts per problem")
    figure.update_yaxes(title_text="Pass@N")
    ends = {name: [interval.estimate for interval in curve.values()] for name, curve in lines.items()}
    return describe(
        figure, f"Lines with bands: {title}. {subtitle}. From N = 1 to {most}: {ends_in_words(ends)}."
    )


def plot_forest(
    groups: Mapping[str, Mapping[str, Interval]], *, title: str, subtitle: str = "", x_title: str
) -> go.Figure:
    """One row for each interval, group by group, and a line at 0: each difference and its uncertainty.

    Raises ValueError where there is no interval at all.
    """
    rows = [(group, name, i) for group, entries in groups.items() for name, i in entries.items()]
    if not rows:
        raise ValueError("groups: at least one interval to draw")
    figure = apply_style(
        go.Figure(), title, subtitle, hovermode="closest", width=WIDTH, height=190 + 30 * len(rows)
    )
    for number, (group, entries) in enumerate(groups.items()):
        intervals, marker = list(entries.values()), marker_style(number)
        figure.add_scatter(
            x=[i.estimate for i in intervals],
            y=[[group] * len(intervals), list(entries)],
            error_x={
                "array": [i.high - i.estimate for i in intervals],
                "arrayminus": [i.estimate - i.low for i in intervals],
                "color": marker["color"],
                "thickness": 2,
            },
            name=group,
            mode="markers",
            marker={**marker, "size": 11},
            showlegend=False,
        )
    figure.add_vline(x=0, line={"dash": "dot", "color": GRAY, "width": 2})
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", showdividers=True)
    figure.update_xaxes(title_text=x_title)
    said = "; ".join(
        f"{group}, {name}: {i.estimate:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for group, name, i in rows
    )
    return describe(
        figure, f"Points with intervals, and a line at 0: {title}. {subtitle}. {x_title}: {said}."
    )


def plot_stacked_bars(
    bars: Mapping[str, Mapping[str, float]], *, title: str, subtitle: str = "", x_title: str
) -> go.Figure:
    """One horizontal bar per entry, its parts end to end: bar -> part -> value, in the unit of `x_title`."""
    names = list(bars)
    figure = apply_style(
        go.Figure(), title, subtitle, barmode="stack", hovermode="closest", width=WIDTH,
        height=230 + 36 * len(names),
        legend={"traceorder": "normal", "y": -80 / (78 + 36 * len(names))},  # below the title of x
    )  # fmt: skip
    for i, part in enumerate(dict.fromkeys(part for parts in bars.values() for part in parts)):
        figure.add_bar(
            y=names,
            x=[bars[name].get(part, 0.0) for name in names],
            name=part,
            orientation="h",
            marker={
                "color": COLORS[i % len(COLORS)],
                "pattern": {"shape": PATTERNS[i % len(PATTERNS)], "fillmode": "overlay", "size": 6},
            },
        )
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="").update_xaxes(title_text=x_title)
    said = "; ".join(f"{name} {sum(parts.values()):.3g}" for name, parts in bars.items())
    return describe(figure, f"Stacked bars: {title}. {subtitle}. {x_title}, in all: {said}.")


def plot_marked_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Mapping[tuple[int, int], str],
    *,
    title: str,
    subtitle: str = "",
) -> go.Figure:
    """A table as printed, with a letter at each cell that has a note, and the notes below.

    `marks` is (row, column) -> note, counted from 0; cells with the same note share its letter. A marked cell
    is in bold type with its letter, not in another color.
    Raises ValueError for a ragged row or a mark outside the table.
    """
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"rows: {len(header)} cells each, as the header has")
    outside = [place for place in marks if not (0 <= place[0] < len(rows) and 0 <= place[1] < len(header))]
    if outside:
        raise ValueError(f"marks: {outside} lie outside the table")
    letters = {note: chr(ord("a") + i) for i, note in enumerate(dict.fromkeys(marks.values()))}

    def cell(row: int, column: int) -> str:
        text = rows[row][column]
        note = marks.get((row, column))
        return text if note is None else f"<b>{text}</b><sup>{letters[note]}</sup>"

    columns = [[cell(r, c) for r in range(len(rows))] for c in range(len(header))]
    widest = [max(len(text) for text in (header[c], *(row[c] for row in rows))) for c in range(len(header))]
    below = "<br>".join(f"<sup>{letter}</sup> {note}" for note, letter in letters.items())
    under_table = 24 + 22 * (below.count("<br>") + 1)
    figure = apply_style(
        go.Figure(), title, subtitle, width=WIDTH, height=150 + 27 * len(rows) + under_table,
        margin={"l": 12, "r": 12, "b": under_table},
    )  # fmt: skip
    figure.add_table(
        header={"values": list(header), "align": "left", "font": {"size": 12}, "height": 28},
        cells={"values": columns, "align": "left", "font": {"size": 13}, "height": 26},
        columnwidth=[w + 5 for w in widest],
    )
    figure.add_annotation(
        text=below, x=0, y=0, xref="paper", yref="paper", xanchor="left", yanchor="top", showarrow=False,
        align="left", font={"size": 13},
    )  # fmt: skip
    said = "; ".join(
        f"{rows[r][0]}, {header[c]}, printed {rows[r][c]}: {note}" for (r, c), note in marks.items()
    )
    return describe(figure, f"A table of {len(rows)} rows: {title}. {subtitle}. Marked: {said or 'nothing'}.")
