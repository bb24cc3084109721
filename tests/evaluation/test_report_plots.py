"""Pictures of a report: every name readable, the same bytes every time."""

import errno
import itertools
import os

import pytest

from sla_jax.evaluation.report.plots import Panel, Picture, Point, Series, _labels, _panel, draw
from sla_jax.evaluation.report.statistics import Estimate

pytest.importorskip("matplotlib")
textalloc = pytest.importorskip("textalloc")

METHODS = ("greedy", "temperature-0.8", "top-p-0.9", "top-k-50", "sla-2-10-2")


def crowded(joined: bool) -> Panel:
    """Methods that cost almost the same and score almost the same, and one far to the right."""
    xs = (42.0, 42.1, 42.2, 42.3, 900.0)
    points = [
        Point(x, Estimate(y := 1.0 + 0.01 * number, y - 0.2, y + 0.2, 8), name)
        for number, (x, name) in enumerate(zip(xs, METHODS, strict=True))
    ]
    return Panel("crowded", "lane-steps", "score", (Series("one", tuple(points), joined),), log=True)


@pytest.mark.parametrize("joined", [False, True])
def test_names_stay_inside_the_axes_and_off_each_other(joined):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panel = crowded(joined)
    figure = Figure(figsize=(4.8, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _panel(axes, panel)
    figure.draw_without_rendering()
    _labels(axes, panel, textalloc.allocate)
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == set(METHODS)
    frame = axes.get_window_extent()
    for box in boxes.values():
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    for one, two in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(two)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x", [35.75546759482522, 150.0])
def test_one_method_is_a_picture_too(tmp_path, x):
    series = Series("methods", (Point(x, Estimate(0.025, 0.0, 0.0625, 80), "greedy"),))
    draw(Picture("one", "One", "One mark.", (Panel("one", "seconds", "score", (series,), log=True),)), tmp_path)
    assert "greedy" in (tmp_path / "one.svg").read_text(encoding="utf-8") and (tmp_path / "one.png").exists()


def test_the_same_picture_is_the_same_bytes(tmp_path):
    picture = Picture("crowded", "Crowded", "Five marks.", (crowded(True), crowded(False)))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw(picture, tmp_path / name)
        made.append([(tmp_path / name / f"crowded.{kind}").read_bytes() for kind in ("svg", "png")])
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_that_has_no_room_leaves_nothing_of_itself(tmp_path, monkeypatch, kind):
    from matplotlib.figure import Figure

    whole = Figure.savefig

    def cut(self, path, *, format, **options):
        whole(self, path, format=format, **options)
        if format == kind:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", cut)
    with pytest.raises(OSError, match=rf"No space left on device: '.*empty\.{kind}'"):
        draw(Picture("empty", "Empty", "No mark.", (Panel("empty", "x", "y", ()),)), tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == ([] if kind == "svg" else [".svg"])
