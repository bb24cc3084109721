"""What `eval.py report` takes."""

import dataclasses
from pathlib import Path

import tyro

from sla_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run to report on, and against what."""

    out: tyro.conf.Positional[Path]
    """The run's folder: eval.py generate and eval.py judge have filled it. The report is written to OUT/report."""
    baseline: str = "greedy"
    """The method that the others are compared with."""
    best_of_n: str | None = None
    """The method whose candidates are the yardstick of the improvement score; no such table without it."""
    devices: dict[str, int] = dataclasses.field(default_factory=dict)
    """Devices that a method ran on, by its name, for relative compute; 1 if not given."""
    proxy: str | None = None
    """The judge that search climbs; if not given, the one whose label is "teacher's proxy"."""
    gold: str | None = None
    """The judge that search does not see; if not given, the one whose label is "independent"."""
    resamples: int = 10_000
    """Bootstrap resamples, and sign patterns of the permutation test."""
    seed: int = 0
    """Of both."""
    timeout: int = 5
    """Seconds that reading or comparing one answer as mathematics may take."""
    page: Path | None = None
    """Also replace what stands in this Markdown page between the comments "begin NAME" and "end NAME", NAME being the
    last part of OUT."""
    tables: tuple[str, ...] = ()
    """Tables to show on that page, by the names of their files in OUT/report, without .csv; all if not given."""
    pictures: tuple[str, ...] = ()
    """Pictures to show on that page too, by the names of their files in OUT/report, without .svg: they are copied into
    a folder beside it."""

    def __post_init__(self) -> None:
        for name, low in (("resamples", 100), ("timeout", 1)):
            if getattr(self, name) < low:
                raise UserError(f"--{name} {getattr(self, name)} is out of range; it has to be at least {low}.")
        for name in ("tables", "pictures"):
            if getattr(self, name) and self.page is None:
                raise UserError(f"--{name} are those of a page, and none is given; OUT/report has all of them anyway.")
        for method, count in self.devices.items():
            if count < 1:
                raise UserError(f"--devices says {count} for {method}; it has to be at least 1.")
