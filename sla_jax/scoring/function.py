"""Any Python function as a scorer: MODULE:FUNCTION, called with a list of candidates."""

import importlib
import math
import sys
from collections.abc import Sequence

from sla_jax.errors import UserError, nearest
from sla_jax.scoring.candidate import Candidate


class FunctionScorer:
    """Calls the function once for all candidates and checks what it gives."""

    def __init__(self, path: str):
        self.name, (module, _, function) = path, path.partition(":")
        if not module or not function:
            raise UserError(f"function={path!r} is not MODULE:FUNCTION, say my_rules:helpful.")
        try:
            sys.path.insert(0, "")  # the folder in which the program was started
            found = importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"the module of function={path!r} cannot be imported: {error}.") from None
        finally:
            sys.path.remove("")
        self.function = getattr(found, function, None)
        if not callable(self.function):
            raise UserError(f"{module} has no function {function!r}.{nearest(function, dir(found))}")

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """The function's numbers. Raises UserError unless there is a finite one for every candidate."""
        assert callable(self.function), "checked when it was found"
        given = list(self.function(list(candidates)))
        numbers = [float(value) for value in given if isinstance(value, int | float) and math.isfinite(value)]
        if len(numbers) != len(candidates) or len(given) != len(candidates):
            raise UserError(
                f"{self.name} gave {len(numbers)} finite numbers for {len(candidates)} candidates; expected one each."
            )
        return numbers
