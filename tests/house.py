"""The house's rules that no linter knows, checked on syntax trees: sizes, suppressions, annotations, layers.

`python -m tests.house` (in `make lint`) prints every breach and exits 1; `tests/test_layers.py` asserts that there are
none and that each rule can be broken. A rule is a function from a source file to the breaches in it.
"""

import ast
import dataclasses
import functools
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOORS = ("train", "serve", "eval", "convert", "generate")
CODE = ("sla_jax", "benchmarks", "tests", *(f"{door}.py" for door in DOORS))
TEXT = (
    *CODE,
    "configs",
    "docs",
    "channels",
    ".ci",
    "Makefile",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
FILE_LINES, FUNCTION_LINES = 400, 60
# what may be imported inside the project: a module of a level may import lower levels, and its own package
LEVELS = (
    {"escape"},
    {"errors", "xla", "sums"},
    {"json_text"},
    {"files", "locks"},
    {"config", "text", "sharding", "topology", "progress", "machine", "web", "client"},
    {"model"},
    {"decode", "checkpoint"},
    {"loading"},
    {"scoring"},
    {"training", "serving", "evaluation"},
    {"api"},
    {"", "terminal", "trace"},
    set(DOORS),
)
# comments that silence a tool
SILENCERS = ("noq[a]", r"type:\s*ignore", "pyright:", "mypy:", "ruff:", "fmt:", "pragma:", "pylint:", "isort:")
SUPPRESSIONS = re.compile(rf"#\s*(?:{'|'.join(SILENCERS)})", re.IGNORECASE)
TRANSFORMS = {"jit", "grad", "value_and_grad", "scan", "vmap", "pmap", "remat", "while_loop", "cond", "shard_map"}


@dataclasses.dataclass(frozen=True)
class Source:
    """One Python file of the project: its path from the root, and its text."""

    path: Path
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree; most rules look at all of them."""
        return list(ast.walk(self.tree))

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in self.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    @property
    def module(self) -> str:
        """Dotted name: sla_jax/model/config.py → sla_jax.model.config."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")

    @property
    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported; `from a import b` counts as a.b, relative imports resolved."""
        package = self.module.split(".") if self.path.name == "__init__.py" else self.module.split(".")[:-1]
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                up = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*up, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def sources(root: Path = ROOT) -> list[Source]:
    """Every Python file of the project."""
    found = [path for top in CODE for path in _files(root / top, ".py")]
    return [Source(path.relative_to(root), path.read_text(encoding="utf-8")) for path in found]


def _files(top: Path, *suffixes: str) -> list[Path]:
    if top.is_file():
        return [top]
    return sorted(path for path in top.rglob("*") if path.is_file() and path.suffix in suffixes)


# ---- the rules ----


def file_length(source: Source) -> Iterator[str]:
    """No file over 400 lines."""
    lines = len(source.text.splitlines())
    if lines > FILE_LINES:
        yield f"{source.path}: {lines} lines; at most {FILE_LINES}"


def function_length(source: Source) -> Iterator[str]:
    """No function over 60 lines, docstring included."""
    for node in source.functions:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines; at most {FUNCTION_LINES}"


def no_suppressions(source: Source) -> Iterator[str]:
    """No comment that silences a linter, a formatter or a type checker."""
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT and SUPPRESSIONS.search(token.string):
            yield f"{source.path}:{token.start[0]}: a suppression ({token.string}); mend the cause"


def annotated(source: Source) -> Iterator[str]:
    """Every public function outside tests is annotated: all arguments but self and cls, and the result."""
    if source.path.parts[0] == "tests":
        return
    for node in source.functions:
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        bare = [arg.arg for arg in arguments if not arg.annotation and arg.arg not in ("self", "cls")]
        if node.returns is None and node.name != "__init__":
            bare.append("the result")
        if bare and (not node.name.startswith("_") or node.name.startswith("__")):
            yield f"{source.path}:{node.lineno}: {node.name} does not annotate {', '.join(bare)}"


def documented(source: Source) -> Iterator[str]:
    """Every file says what it is for."""
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield f"{source.path}: no module docstring"


def layers(source: Source) -> Iterator[str]:
    """Imports only go down; siblings never meet."""
    mine = _part(source.module)
    if mine is None:
        return
    for line, name in source.imports:
        other = _part(name)
        if other is None or other == mine:
            continue
        low, high = _level(other), _level(mine)
        if low is None or high is None:
            yield f"{source.path}:{line}: {other if low is None else mine} has no level in tests/house.py"
        elif low >= high:
            yield f"{source.path}:{line}: {mine or 'sla_jax'} imports {other or 'sla_jax'}; imports only go down"


def decoders_know_no_model(source: Source) -> Iterator[str]:
    """A decoder takes a step function; the layers alone would let it import a model."""
    if source.path.parts[:2] == ("sla_jax", "decode"):
        found = ((line, name) for line, name in source.imports if _part(name) == "model")
        yield from (f"{source.path}:{line}: imports {name}; a decoder takes a step function" for line, name in found)


def _part(module: str) -> str | None:
    """The part of the house that a dotted name belongs to: "model", "text", "train"; "" is `sla_jax` itself."""
    top, *rest = module.split(".")
    if top in DOORS:
        return top
    if top != "sla_jax":
        return None
    known = set().union(*LEVELS)
    folder = ROOT / "sla_jax" / rest[0] if rest else None
    is_module = folder is not None and (folder.is_dir() or folder.with_suffix(".py").is_file() or rest[0] in known)
    return rest[0] if is_module else ""


def _level(part: str) -> int | None:
    return next((i for i, parts in enumerate(LEVELS) if part in parts), None)


def nnx_in_model_only(source: Source) -> Iterator[str]:
    """Flax NNX is imported in sla_jax/model only; above it there are pytrees and functions."""
    if source.path.parts[0] == "tests" or source.path.parts[:2] == ("sla_jax", "model"):
        return
    for line, name in source.imports:
        if name.split(".")[0] == "flax":
            yield f"{source.path}:{line}: imports {name}; only sla_jax/model does"


def plain_transforms(source: Source) -> Iterator[str]:
    """Only jax's own transforms: never nnx.jit, nnx.grad, nnx.scan, pjit and the like."""
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "nnx" and node.attr in TRANSFORMS:
                yield f"{source.path}:{node.lineno}: nnx.{node.attr}; use jax.{node.attr}"
            elif node.attr == "pjit":
                yield f"{source.path}:{node.lineno}: pjit; use jax.jit"


def runtime_protocols(source: Source) -> Iterator[str]:
    """A Protocol is @runtime_checkable: beartype checks annotations when the tests run."""
    for node in source.nodes:
        bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and any(base.split("[")[0].split(".")[-1] == "Protocol" for base in bases):
            if not any("runtime_checkable" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield f"{source.path}:{node.lineno}: {node.name} is a Protocol; decorate it with @runtime_checkable"


RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    file_length,
    function_length,
    no_suppressions,
    annotated,
    documented,
    layers,
    decoders_know_no_model,
    nnx_in_model_only,
    plain_transforms,
    runtime_protocols,
)


def shared_folder(root: Path = ROOT) -> list[str]:
    """Nothing in the project reaches for a folder beside it: data paths are arguments."""
    word = re.compile(r"\.\./sh" r"ared\b|(?<![\w.])/wo" r"rk/")
    suffixes = (".py", ".yaml", ".yml", ".md", ".toml", ".json", "")
    found = [path for top in TEXT for path in _files(root / top, *suffixes) if path.is_file()]
    return [
        f"{path.relative_to(root)}:{number}: names a folder outside the project"
        for path in found
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]


def breaches(root: Path = ROOT) -> list[str]:
    """Every breach of every rule, in the whole project."""
    return [*(said for source in sources(root) for rule in RULES for said in rule(source)), *shared_folder(root)]


def main() -> None:
    """Print the breaches and the sizes; exit 1 if there are any."""
    found = breaches()
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for source in sources() for node in source.functions)
    print("\n".join(found) if found else f"house rules: {len(sources())} files, {len(lengths)} functions, all well")
    print(f"median function {lengths[len(lengths) // 2]} lines, longest {lengths[-1]}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
