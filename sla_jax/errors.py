"""Errors meant for the person at the keyboard: one paragraph, exit code 2, no traceback.

Everything that a user can get wrong (a flag, a config, a checkpoint, a data row, a prompt) raises `UserError`;
`assert` is kept for our own invariants. An OSError about a file is the user's to mend, too: nobody else named the path,
filled the disk or forbade the folder. `front_door` is what every program's `main` runs under.
"""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """What came, what was expected and what to do about it, in one paragraph."""


CLOSE = 0.6  # of difflib's ratio, 2 × (letters that two names share) / (letters of both)


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or an empty string when none is close.

    Never `name` itself: what was refused is no advice. A name so long that it shares too little with every known one,
    even if it has all of their letters, is not compared: difflib takes minutes for a text of megabytes."""
    others = [other for other in known if other != name]
    if len(name) > max(map(len, others), default=0) * (2 / CLOSE - 1):
        return ""
    close = difflib.get_close_matches(name, others, n=1, cutoff=CLOSE)
    return f" Did you mean {close[0]!r}?" if close else ""


def shortened(text: str, most: int = 80) -> str:
    """The text, or its first `most` characters and how many more there were: for what somebody else wrote."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more characters)"


def quoted(value: object, most: int = 80) -> str:
    """`repr` of what somebody else wrote, shortened; of a long text only the beginning is spelled."""
    if not isinstance(value, str):
        return shortened(repr(value), most)
    more = f"… ({len(value) - most} more characters)" if len(value) > most else ""
    return repr(value[:most]) + more


# what to do about an OSError, by its number; of any other the file's name has to do
REMEDIES = {
    errno.ENOSPC: "Make room on that disk, or give a folder on another one; what was written before is kept.",
    errno.EDQUOT: "Your quota on that disk is used up: make room, or give a folder on another one.",
    errno.EROFS: "That file system can only be read; give a folder on another one.",
    errno.EACCES: "Give a path that you may use, or change the permissions of this one.",
    errno.EPERM: "Give a path that you may use, or change the permissions of this one.",
    errno.ENOENT: "Is the path spelled rightly?",
    errno.ENOTDIR: "A file stands where a folder is needed; give another path, or move that file.",
    errno.EEXIST: "Something of that name is there already; give another path, or move it.",
    errno.EISDIR: "A folder stands where a file is needed; give the path of a file.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.EIO: "The disk or the network folder failed; give a path on another one.",
}
OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # need no file name to be about files


def for_the_user(error: BaseException) -> str | None:
    """What to tell the user of an error that is theirs to mend: a UserError, or an OSError about a file; else None.

    A socket's OSError has no file's name, and those of urllib, ssl and others have something else in its place."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__module__ != "builtins" or not isinstance(error, OSError):
        return None
    if error.filename is None and error.errno not in OF_DISKS:
        return None
    name = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
    about = "a file" if name is None else str(name)
    return f"{about}: {error.strerror or error}. {REMEDIES.get(error.errno or 0, '')}".rstrip()


def front_door(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run a program: a `UserError`, or an OSError about a file, becomes its message on stderr and exit code 2.

    `--debug` shows the traceback instead."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        main(argv)
    except Exception as error:
        said = for_the_user(error)
        if debug or said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
