"""Checkpoints in and out of sla-jax: `python convert.py import|export|inspect …`. See docs/conversion.md.

import:   a Hugging Face directory, a public SLA checkpoint, a .gguf file, a hub name, or the word smollm2
export:   our checkpoint → a Hugging Face directory
inspect:  what a checkpoint is: config, sizes, channel, end tokens, provenance
"""

import contextlib
import dataclasses
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sla_jax.errors import UserError, front_door, nearest
from sla_jax.escape import printable
from sla_jax.text import tokens_beyond

if TYPE_CHECKING:
    from sla_jax.checkpoint import Info
    from sla_jax.checkpoint.importer import Report

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Write SRC as a sla-jax checkpoint to DST."""

    src: tyro.conf.Positional[str]
    """Hugging Face directory, .gguf file, hub name ORG/NAME, or smollm2."""
    dst: tyro.conf.Positional[Path]
    """New or empty directory."""
    dtype: Dtype | None = None
    """Type of the stored weights; the source's own if not given (float32 for GGUF)."""
    channel: Path | None = None
    """Reward channel (safetensors) to attach."""
    overwrite: bool = False
    """Replace the checkpoint at DST."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write the checkpoint SRC as a Hugging Face directory to DST."""

    src: tyro.conf.Positional[Path]
    """A sla-jax checkpoint."""
    dst: tyro.conf.Positional[Path]
    """New or empty directory."""
    dtype: Dtype | None = None
    """Type of the written weights; the stored one if not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Print what the checkpoint DIR is."""

    dir: tyro.conf.Positional[Path]
    """A sla-jax checkpoint."""


COMMANDS = {"import": Import, "export": Export, "inspect": Inspect}
Command = (
    Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
)


def main(argv: list[str]) -> None:
    """Run one command."""
    command = parse(argv)
    # jax and orbax take seconds to import: only after the command line is known to be right
    from sla_jax import checkpoint

    if isinstance(command, Inspect):
        show(checkpoint.info(command.dir))
        return
    notes: list[str] = []
    with progress() as report:
        if isinstance(command, Import):
            notes = checkpoint.import_checkpoint(
                command.src,
                command.dst,
                dtype=command.dtype,
                channel=command.channel,
                overwrite=command.overwrite,
                report=report,
            )
        else:
            checkpoint.export_checkpoint(command.src, command.dst, dtype=command.dtype, report=report)
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    print(f"wrote {command.dst}")


def parse(argv: list[str]) -> Import | Export | Inspect:
    """The command line; whatever is wrong with it raises UserError."""
    asks_help = any(word in ("-h", "--help") for word in argv)
    if not asks_help and (not argv or argv[0] not in COMMANDS):
        came = f"there is no command {argv[0]!r}" if argv else "no command was given"
        hint = nearest(argv[0], COMMANDS) if argv else ""
        raise UserError(f"{came}; use one of {', '.join(COMMANDS)} (`python convert.py import --help`).{hint}")
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            command, strays = tyro.cli(
                Command, args=argv, prog="convert.py", description=__doc__, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"convert.py {argv[0]}: {plain(heard.getvalue())}") from None
    if strays:
        flags = ["--" + field.name for field in dataclasses.fields(command)]
        raise UserError(
            f"convert.py {argv[0]} does not know {strays[0]!r}; see `python convert.py {argv[0]} --help`."
            f"{nearest(strays[0], flags)}"
        )
    return command


def plain(box: str) -> str:
    """The first part of a tyro error box as one sentence, without its borders."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = next((i for i, line in enumerate(lines) if line.startswith(("─", "╰"))), len(lines))
    return " ".join(" ".join(lines[:rule]).split()).rstrip(".") + "."


@contextlib.contextmanager
def progress() -> Iterator["Report"]:
    """A progress bar over bytes, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


def show(found: "Info") -> None:
    """Print config, sizes, channel, end tokens and provenance as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    sizes = {name: math.prod(param.shape) for name, param in found.params.items()}
    table = Table("", "", show_header=False)
    for name, value in facts(found, sizes).items():
        table.add_row(name, escape(printable(value)))
    shapes = Table("parameter", "shape", "size", "type")
    for name, param in found.params.items():
        shapes.add_row(name, " × ".join(map(str, param.shape)), f"{sizes[name]:,}", str(param.dtype))
    console = Console()
    console.print(table)
    console.print(shapes)


def facts(found: "Info", sizes: dict[str, int]) -> dict[str, str]:
    """What `inspect` prints first, by label."""
    total = sum(sizes.values())
    channel, score = (sum(sizes[name] for name in sizes if name.startswith(part)) for part in ("channel.", "score."))
    size = sum(sizes[name] * param.dtype.itemsize for name, param in found.params.items())
    config = {
        name: value for name, value in dataclasses.asdict(found.config).items() if name not in ("channel", "score")
    }
    beyond = [f"{token} ({i})" for token, i in tokens_beyond(found.dir, found.config.vocab_size).items()]
    config["windows"] = sorted({str(window) for window in config["windows"]})
    return {
        "checkpoint": str(found.dir),
        "architecture": ", ".join(found.raw_config["architectures"]),
        "parameters": f"{total:,} as {found.dtype} ({size / 1e6:,.1f} MB)",
        "channel": f"{found.channel}, {channel:,} parameters, {found.config.channel}" if channel else "none",
        "end tokens": ends(found.dir),
        **({"tokens without embedding": ", ".join(beyond)} if beyond else {}),
        "score head": f"{score:,} parameters, {found.config.score}" if found.config.score else "none",
        **{f"config: {name}": str(value) for name, value in config.items()},
        **{f"provenance: {name}": str(value) for name, value in found.provenance.items()},
    }


def ends(directory: Path) -> str:
    """The tokens that end an answer, by name and id."""
    from sla_jax.loading import end_tokens
    from sla_jax.text import load_tokenizer

    if not (directory / "tokenizer.json").is_file():
        return "not known without a tokenizer.json"
    tokenizer = load_tokenizer(directory)
    found = end_tokens(directory, tokenizer)
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in found) or "none"


if __name__ == "__main__":
    front_door(main)
