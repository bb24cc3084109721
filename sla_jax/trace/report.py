"""What `eval.py replay` does: read a trace, check it, say it in words."""

from sla_jax.api import load
from sla_jax.loading import use_compilation_cache
from sla_jax.trace.config import ReplayConfig
from sla_jax.trace.lines import Trace, TreeRound, read
from sla_jax.trace.replay import TOLERANCE, Comparison, read_again, search_again
from sla_jax.trace.structure import faults

SHOWN = 20  # faults


def replayed(config: ReplayConfig) -> tuple[str, bool]:
    """(what was found, whether all is well). Raises UserError for a file that cannot be read, or another checkpoint."""
    trace = read(config.trace)
    found = list(faults(trace))
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        return "\n".join([f"{config.trace} does not agree with itself:", *found[:SHOWN], *more]), False
    said = f"{config.trace}: {described(trace)}\nit agrees with itself"
    if config.checkpoint is None:
        return said, True
    comparison = _compared(config, trace, config.checkpoint)
    return f"{said}\n{_told(config, trace, comparison)}", comparison.first is None


def described(trace: Trace) -> str:
    """`sla on smollm2, 26 rounds, 204 branches, 2040 tokens explored, 256 committed (length)`."""
    cost, trees = trace.end.cost, isinstance(trace.rounds[0], TreeRound)
    count = sum(len(line.branches if isinstance(line, TreeRound) else line.candidates) for line in trace.rounds)
    parts = (
        f"{trace.header.method} on {trace.header.checkpoint}",
        f"{len(trace.rounds)} rounds",
        f"{count} {'branches' if trees else 'candidates'}",
        f"{cost.explored_tokens} tokens explored",
        f"{cost.committed_tokens} committed ({trace.end.finish_reason})",
    )
    return ", ".join(parts)


def _compared(config: ReplayConfig, trace: Trace, checkpoint: str) -> Comparison:
    use_compilation_cache()
    model = load(checkpoint, dtype=trace.header.dtype)
    if config.teacher_forced:
        return read_again(trace, model, TOLERANCE if config.tolerance is None else config.tolerance)
    return search_again(trace, model, config.tolerance)


def _told(config: ReplayConfig, trace: Trace, found: Comparison) -> str:
    what = "one forward pass a path" if config.teacher_forced else "the same search"
    if found.first is not None:
        return f"{what} differs: {found.first}\n(recorded on {trace.header.backend} with jax {trace.header.jax})"
    if found.tolerance is None:
        return f"{what} gives the same, bit for bit: {found.values} values"
    return (
        f"{what} gives the same within {found.tolerance:g}: {found.values} values, largest difference {found.largest:g}"
    )
