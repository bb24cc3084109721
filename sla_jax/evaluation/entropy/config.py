"""What `eval.py entropy` takes."""

import dataclasses
from pathlib import Path
from typing import Literal

from sla_jax.config import Variables
from sla_jax.errors import UserError
from sla_jax.text import DAY, check_date


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyConfig:
    """Which texts to read with which checkpoint, and where the rows go."""

    checkpoint: str
    """A checkpoint directory of a language model."""
    out: Path
    """The JSON lines file of the rows; what made them is beside it in NAME.settings.json."""
    data: tuple[str, ...] = ()
    """Files of rows (.jsonl, .json) or of plain text (.txt), gzipped (.gz) or not."""
    dataset: str | None = None
    """Instead of files: a data set of the `datasets` library."""
    subset: str | None = None
    """Of the data set."""
    split: str | None = None
    """Of the data set; None = all."""
    field: str = "text"
    """Of a row: a string, or a list of messages, which are put through the checkpoint's chat template."""
    template: Variables = dataclasses.field(default_factory=dict)
    """Variables of that template: --template.enable_thinking false"""
    date: str = DAY
    """What that template takes for today, YYYY-MM-DD."""
    segment: int = 8192
    """A plain text is cut into rows of at most so many characters, at line ends where there are any."""
    limit: int = 0
    """This many rows, the first; 0 = all."""
    window: int | None = None
    """Tokens that the model reads at once; None = its context, but at most 2048."""
    overlap: int | None = None
    """Tokens of a longer text that are read again, as context of the next window; None = half a window."""
    top: int = 5
    """So many most probable tokens are written for every position; 0 = none."""
    chunk: int = 256
    """Positions whose logits exist at one time."""
    batch_tokens: int = 4096
    """Tokens of one forward pass, padding included."""
    block: int = 32
    """Texts that are read and written together: what an interruption can lose."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the model; None = float32 on CPU and bfloat16 on accelerators. Entropies are float32 in any case."""
    overwrite: bool = False
    """Delete the rows that are there and start anew."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        if bool(self.data) == (self.dataset is not None):
            came = "neither is given" if not self.data else "both are given"
            raise UserError(f"texts come from --data FILE … or from --dataset NAME, and {came}; give one of them.")
        if self.dataset is None and (self.subset, self.split) != (None, None):
            raise UserError("--subset and --split belong to a --dataset; files are read whole.")
        for name, least in (("segment", 1), ("limit", 0), ("top", 0), ("chunk", 1), ("batch_tokens", 1), ("block", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is out of range; it has to be {least} or more.")
        check_date(self.date)
        if not self.out.name.endswith(".jsonl"):
            raise UserError(f"--out {self.out} is a file of JSON lines; its name has to end with .jsonl.")
