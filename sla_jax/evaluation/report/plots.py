"""Pictures as data, and drawn by matplotlib (the extra `eval`) as SVG and PNG, the same bytes every time."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError
from sla_jax.escape import line
from sla_jax.evaluation.report.statistics import Estimate
from sla_jax.files import replacing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # told apart by everyone
MARKS = "osD^vPX"
COLUMNS = 3  # of panels
HEIGHT, WIDTH = 3.6, 4.8  # inches, of a panel
SETTINGS = {"font.size": 9.0, "text.parse_math": False}  # a "$" in a name begins no formula


class Point(NamedTuple):
    """One mark, with its interval upwards and downwards."""

    x: float
    y: Estimate
    label: str = ""


class Series(NamedTuple):
    """Marks of one colour, joined by a line if `joined`."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    log: bool = False


class Picture(NamedTuple):
    """`name` is its files'; `alt` says in a sentence what there is to see."""

    name: str
    title: str
    alt: str
    panels: tuple[Panel, ...]


def draw(picture: Picture, folder: Path) -> Path:
    """Write FOLDER/NAME.svg and .png; the path of the PNG. Raises UserError without matplotlib."""
    try:
        import matplotlib
        import textalloc
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("plots take matplotlib and textalloc: pip install 'sla-jax[eval]'.") from None
    columns = min(COLUMNS, len(picture.panels))
    rows = math.ceil(len(picture.panels) / columns)
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": picture.name}):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(line(picture.title))
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(grid, picture.panels, strict=False):
            _panel(axes, panel)
        for axes in grid[len(picture.panels) :]:
            axes.set_visible(False)
        figure.draw_without_rendering()  # the layout, in which labels then find their places
        for axes, panel in zip(grid, picture.panels, strict=False):
            _labels(axes, panel, textalloc.allocate)
        with replacing(folder / f"{picture.name}.svg") as scratch:
            figure.savefig(scratch, format="svg", metadata={"Date": None})
        with replacing(folder / f"{picture.name}.png") as scratch:
            figure.savefig(scratch, format="png", dpi=110, metadata={"Software": None})
    return folder / f"{picture.name}.png"


def _panel(axes: Any, panel: Panel) -> None:
    drawn = _drawn(panel)
    for number, (series, points) in enumerate(zip(panel.series, drawn, strict=True)):
        _series(axes, series, points, number)
    if panel.log:
        axes.set_xscale("log")
        xs = [point.x for points in drawn for point in points]
        if xs and max(xs) < 1.01 * min(xs):  # matplotlib finds no limits around a single place
            axes.set_xlim(min(xs) / 2, max(xs) * 2)
    axes.set(title=line(panel.title), xlabel=line(panel.x), ylabel=line(panel.y))
    axes.grid(alpha=0.3)
    axes.margins(x=0.15, y=0.15)
    if len(panel.series) > 1:
        axes.legend(fontsize=8)


def _drawn(panel: Panel) -> list[list[Point]]:
    """Of each series, the marks that have a place on the axes."""
    return [[point for point in series.points if shown(point, panel.log)] for series in panel.series]


def shown(point: Point, log: bool) -> bool:
    """Whether a mark has a place on the axes."""
    return math.isfinite(point.x) and math.isfinite(point.y.value) and (point.x > 0 or not log)


def _series(axes: Any, series: Series, points: Sequence[Point], number: int) -> None:
    errors = [[_arm(one.y.value - one.y.low) for one in points], [_arm(one.y.high - one.y.value) for one in points]]
    axes.errorbar(
        [point.x for point in points],
        [point.y.value for point in points],
        yerr=errors,
        fmt=MARKS[number % len(MARKS)],
        linestyle="-" if series.joined else "none",
        color=COLOURS[number % len(COLOURS)],
        capsize=2,
        markersize=4,
        label=line(series.name),
    )


def _labels(axes: Any, panel: Panel, allocate: Callable[..., Any]) -> None:
    """Names beside the marks, inside the axes and off each other, the marks, their intervals and the lines."""
    drawn = _drawn(panel)
    points = [point for part in drawn for point in part]
    named = [point for point in points if point.label]
    if not named:
        return
    lines = [[(point.x, point.y.low), (point.x, point.y.high)] for point in points]
    lines += [
        [(point.x, point.y.value) for point in part]
        for part, one in zip(drawn, panel.series, strict=True)
        if one.joined
    ]
    lines = [one for one in lines if all(math.isfinite(y) for _, y in one)]
    allocate(
        axes,
        [point.x for point in named],
        [point.y.value for point in named],
        [line(point.label) for point in named],
        x_scatter=[point.x for point in points],
        y_scatter=[point.y.value for point in points],
        x_lines=[[x for x, _ in one] for one in lines],
        y_lines=[[y for _, y in one] for one in lines],
        textsize=7,
        linecolor="0.6",
        linewidth=0.6,
    )


def _arm(length: float) -> float:
    return max(0.0, length) if math.isfinite(length) else 0.0
