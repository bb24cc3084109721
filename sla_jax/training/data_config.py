"""What a run reads: where rows come from, which of them, and how they become tokens (`sla_jax.training.data`)."""

import dataclasses
import math
from typing import Literal

from sla_jax.config import Variables
from sla_jax.errors import UserError
from sla_jax.text import DAY, check_date

Task = Literal["pairs", "sft", "steps"]
OnBadRow = Literal["raise", "skip"]
SEPARATOR = "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One part of a mix: `files` or `dataset`, and its weight (see `sla_jax.training.sources` for what that means)."""

    files: tuple[str, ...] = ()
    dataset: str | None = None
    subset: str | None = None
    split: str | None = "train"
    weight: float = 1.0  # relative to the other sources'

    def __post_init__(self) -> None:
        _one_of("data.sources", self, ("files", "dataset"))
        if not (self.files or self.dataset):
            raise UserError("a source in data.sources names neither files nor dataset; give one of them.")
        _needs(self.subset is None or self.dataset is not None, "data.sources: subset", "dataset")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise UserError(f"data.sources: weight={self.weight} must be a number above 0; leave the source out for 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The rows of one run, from exactly one of `files`, `dataset`, `generated` and `sources`."""

    files: tuple[str, ...] = ()  # .jsonl and .json (plain or .gz), .parquet, .arrow
    dataset: str | None = None  # a hub name or a local folder, for `datasets.load_dataset`
    subset: str | None = None  # its configuration, if it has several
    generated: int = 0  # make this many toy pairs (the tiny preset)
    sources: tuple[SourceConfig, ...] = ()  # a mix
    split: str | None = "train"  # rows whose `split` says so (rows of files may name none and count too); None = all
    heldout: int = 10  # hold out every row whose salted md5(prompt) % heldout == 0; 0 holds out none
    heldout_split: str | None = None  # the held-out part is this split, and heldout is 0
    limit: int = 0  # rows of the training part, those with the smallest salted md5, in their order; 0 = all
    heldout_limit: int = 0  # the same of the held-out part
    max_length: int = 1024  # tokens of prompt + answer
    max_prompt_length: int = 768  # tokens; longer prompts lose their left end
    on_bad_row: OnBadRow = "raise"
    max_bad: float = 0.1  # part of all rows that may be bad (on_bad_row: skip) or empty before that is an error
    workers: int = 0  # processes that tokenize; 0 = as many as there are CPUs, and this one alone when rows are few
    cache: str | None = ".cache/tokens"  # folder of tokenized data, shared by runs; None keeps them in memory
    length_pool: int = 0  # steps whose rows are sorted by length together; 0 = 16 when features are recomputed, else 1
    separator: str = SEPARATOR  # steps: put after every step; its last token carries the step's label
    last_step_only: bool = False  # steps: score the last step's label alone
    # variables of the chat template: --data.template.enable_thinking false
    template: Variables = dataclasses.field(default_factory=dict, hash=False)
    date: str = DAY  # what a template that writes today's date takes for today, so that tokens are the same every day

    def __post_init__(self) -> None:
        _one_of("data", self, ("files", "dataset", "generated", "sources"))
        for name in ("generated", "heldout", "limit", "heldout_limit", "workers", "length_pool"):
            _at_least(f"data.{name}", getattr(self, name), 0)
        _needs(self.subset is None or self.dataset is not None, "data.subset", "data.dataset")
        if not 0 < self.max_prompt_length < self.max_length:
            raise UserError(
                f"data.max_prompt_length={self.max_prompt_length} must be at least 1 and below "
                f"data.max_length={self.max_length}, so that some response fits behind the prompt."
            )
        if not 0 <= self.max_bad < 1:
            raise UserError(f"data.max_bad={self.max_bad} is a part of all rows: at least 0, below 1.")
        if not self.separator:
            raise UserError("data.separator is empty; its last token carries a step's label, so it needs some text.")
        if self.cache == "":
            raise UserError("data.cache is empty; give a folder, or None (null in YAML) to keep tokens in memory.")
        check_date(self.date)
        self._check_parts()

    def _check_parts(self) -> None:
        """Contradictions about what is held out."""
        if self.heldout == 1:
            raise UserError("data.heldout=1 would hold out every row; use 0 (none) or at least 2 (one in that many).")
        if self.heldout_split is not None:
            if self.heldout:
                raise UserError(
                    f"data.heldout={self.heldout} and data.heldout_split={self.heldout_split!r} both say what is held "
                    "out; set data.heldout to 0 to hold out the split."
                )
            if self.generated:
                raise UserError("data.heldout_split names a split, and the pairs of data.generated have none.")
            if self.heldout_split in (self.split, *(source.split for source in self.sources)):
                raise UserError(
                    f"data.heldout_split={self.heldout_split!r} is also the split to train on; name another one."
                )
        elif not self.heldout:
            _needs(not self.heldout_limit, "data.heldout_limit", "data.heldout or data.heldout_split")
        if self.sources and self.split != "train":
            raise UserError(
                f"data.split={self.split!r} stands beside data.sources; each source has its own split, so set it there."
            )


def check_task(data: DataConfig, task: Task) -> None:
    """Raises UserError when `data` asks for what this kind of rows does not have."""
    if task != "pairs" and data.generated:
        raise UserError(f"data.generated makes preference pairs, and this run trains on {task} rows; give data.files.")
    if task != "steps" and data.separator != SEPARATOR:
        raise UserError(f"data.separator belongs to rows of steps, and this run trains on {task}; leave it out.")
    if task != "steps" and data.last_step_only:
        raise UserError(f"data.last_step_only belongs to rows of steps, and this run trains on {task}; leave it out.")


def _one_of(what: str, config: object, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(config, name)]
    if len(given) > 1:
        raise UserError(f"{what} names {' and '.join(given)}; give one source of rows, not several.")


def _needs(fulfilled: bool, name: str, other: str) -> None:
    if not fulfilled:
        raise UserError(f"{name} is given without {other}; give that too, or leave {name} out.")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name}={value} must be at least {least}.")
