"""Lists the licence of every package that is installed: `python -m tests.licences` (`make licences`).

A licence is what the package's own metadata say: an SPDX expression; without one a name in the old field, or in the
classifiers, that is known here. What is in none of the lists below is unknown, and the command exits 1: somebody has to
read it.
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

# the SPDX names of licences under which what is installed may be used and passed on beside Apache-2.0
ACCEPTED = frozenset(
    "0BSD AFL-2.1 Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python ISC MIT MIT-CMU MPL-2.0 PSF-2.0 "
    "Zlib LLVM-exception".split()
)
SPELLED = {  # other spellings; "BSD" without a number is that of three clauses wherever it was looked up
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
READ = {"axe-playwright-python": "MIT"}  # whose metadata say nothing: what their LICENSE file says
OSI = re.compile(r"License :: (?:OSI Approved :: )?(.+)")
UNKNOWN = "unknown"


class Package(NamedTuple):
    """One that is installed."""

    name: str
    version: str
    licence: str  # an SPDX expression, or UNKNOWN


def packages(found: Iterable[importlib.metadata.Distribution] | None = None) -> list[Package]:
    """Every package, by name."""
    known = importlib.metadata.distributions() if found is None else found
    listed = {Package(one.name, one.version, licence(one)) for one in known}
    return sorted(listed, key=lambda one: one.name.lower())


def licence(package: importlib.metadata.Distribution) -> str:
    """What a package may be used under, as SPDX writes it."""
    expressions, fields, lines = (
        package.metadata.get_all(name) or [] for name in ("License-Expression", "License", "Classifier")
    )
    classifiers, old = [OSI.fullmatch(line) for line in lines], next(iter(fields), "")
    named = {SPELLED.get(line[1], line[1]) for line in classifiers if line}
    guesses = [SPELLED.get(old, old), " AND ".join(sorted(named)), READ.get(package.name.lower(), "")]
    said = expressions or guesses
    return next(filter(_is_accepted, said), UNKNOWN)


def _is_accepted(expression: str) -> bool:
    words = set(re.findall(r"[^\s()]+", expression)) - {"AND", "OR", "WITH"}
    return bool(words) and words <= ACCEPTED


def main() -> int:
    """Print the table; 1 if a licence is unknown."""
    listed = packages()
    width = max(len(one.name) for one in listed)
    for one in listed:
        print(f"{one.name:<{width}}  {one.version:<20}  {one.licence}")
    unknown = [one.name for one in listed if one.licence == UNKNOWN]
    if unknown:
        print(f"read the licences of {', '.join(unknown)}, and name them in tests/licences.py", file=sys.stderr)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
