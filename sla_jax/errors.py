"""Errors meant for the person at the keyboard: one paragraph, exit code 2, no traceback.

Everything that a user can get wrong (a flag, a config, a checkpoint, a data row, a prompt) raises `UserError`;
`assert` is kept for our own invariants. `front_door` is what every program's `main` runs under.
"""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """What came, what was expected and what to do about it, in one paragraph."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or an empty string when none is close.

    Never `name` itself: what was refused is no advice."""
    close = difflib.get_close_matches(name, [other for other in known if other != name], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def front_door(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run a program: a `UserError` becomes its message on stderr and exit code 2 (`--debug` shows the traceback)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        main(argv)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
