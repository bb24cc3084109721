"""Every ink can be read on every background that it stands on: a contrast of 4.5 (WCAG 2), of lines 3."""

import re

import pytest

from sla_jax.evaluation.viewer.pages import STATIC

CSS = (STATIC / "colours.css").read_text(encoding="utf-8")


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))


LIGHT = variables(CSS.split("@media")[0])
DARK = {**LIGHT, **variables(CSS.split("@media")[1])}
TEXTS = [
    *[(ink, ground) for ink in ("ink", "soft", "accent", "wrong") for ground in ("page", "panel")],
    ("on-accent", "accent"),
    *[("reward-ink", f"reward-{level}") for level in range(11)],
    *[("heat-ink" if level < 6 else "heat-ink-dark", f"heat-{level}") for level in range(11)],
]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_is_the_standards():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), TEXTS)
def test_text_can_be_read(theme, ink, ground):
    assert contrast(theme[ink], theme[ground]) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("line", ["line", "accent", "ink"])
def test_lines_can_be_seen(theme, line):
    assert contrast(theme[line], theme["page"]) >= 3 and contrast(theme[line], theme["panel"]) >= 3


def test_less_certain_is_darker():
    shades = [luminance(LIGHT[f"heat-{level}"]) for level in range(11)]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == 11


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_rewards_go_away_from_the_middle_on_both_sides(theme):
    away = [contrast(theme[f"reward-{level}"], theme["reward-5"]) for level in range(11)]
    assert away[:6] == sorted(away[:6], reverse=True) and away[5:] == sorted(away[5:])


def test_a_dark_theme_changes_all_but_the_heat_map():
    assert {name for name in LIGHT if DARK[name] == LIGHT[name]} == {name for name in LIGHT if name.startswith("heat-")}


def test_the_style_has_no_colours_of_its_own():
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb|hsl", (STATIC / "style.css").read_text(encoding="utf-8"))
