"""The structure of the package, read from its syntax trees: imports point down only, names are declared, house rules hold."""

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"

FLOORS = (
    "random",
    "files",
    "variates",
    "bases",
    "covariance",
    "marginal",
    "statistics",
    "propagation",
    "operators",
    "energy",
    "gaussian",
    "nn",
    "images",
    "sheet",
    "data",
    "corruptions",
    "evaluator",
    "headroom",
    "network",
    "calibrate",
    "losses",
    "hub",
    "train",
    "sample",
    "restorer",
    "restoration",
    "likelihood",
    "blind",
    "baselines",
    "metrics",
    "__init__",
    "bench",
    "cli",
    "demo",
    "__main__",
)
"""Every part of the package, lowest first: a part imports only parts before it. ``__init__`` is the public surface ``anem``."""

FRONT = {"bench", "cli", "demo", "__main__"}
"""The parts that face a person: they may print, plot and draw progress."""

IMPORT_NAMES = {"pillow": "PIL"}
"""Import names of distributions, where they differ."""


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(SOURCE.rglob("*.py"))}
PACKAGES = {module_name(path) for path in SOURCE.rglob("__init__.py")}


def part_of(module: str) -> str:
    """The part a module belongs to: ``anem.train.loop`` is of ``train``, ``anem`` itself is ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, name or None) of every import in a tree, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, "." * node.level + (node.module or ""), alias.name) for alias in node.names)


def imported_modules(tree: ast.AST, trees: dict[str, ast.Module] = TREES) -> Iterator[tuple[int, str]]:
    """(line, module) of every module of this package that a tree imports; ``from anem import x`` is ``anem.x`` if that is a module."""
    for line, module, name in imports(tree):
        if module.split(".")[0] == "anem":
            yield line, f"{module}.{name}" if f"{module}.{name}" in trees else module


def at_import(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: the tree without the bodies of functions and without what only a type checker reads."""
    return _AtImport().visit(ast.parse(ast.unparse(tree)))


class _AtImport(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Pass()]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> ast.AST:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
        return self.generic_visit(node)


def upward_imports(trees: dict[str, ast.Module]) -> list[str]:
    """Imports of a part that is not below, lazy ones and those for type checkers included."""
    found = []
    for module, tree in trees.items():
        part = part_of(module)
        for line, target in imported_modules(tree, trees):
            above = part_of(target)
            if above != part and FLOORS.index(above) >= FLOORS.index(part):
                found.append(f"{module}:{line} imports {target}, which is not below it")
    return found


def forwarded_keywords(tree: ast.AST) -> list[str]:
    """Calls that hand on a function's own ``**kwargs``.

    Three kinds are none: to ``.to`` of torch; to ``replace`` of dataclasses, which names a wrong field; and from the override of a private
    hook of torch's to the hook itself.
    """
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.args.kwarg is None:
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            starred = [k.value.id for k in call.keywords if k.arg is None and isinstance(k.value, ast.Name)]
            target = ast.unparse(call.func).split(".")[-1]
            hook = target == function.name and re.fullmatch(r"_[a-z]\w*", target) and ast.unparse(call.func).startswith("super().")
            if function.args.kwarg.arg in starred and target not in ("to", "replace") and not hook:
                found.append(f"line {call.lineno}: {function.name} passes **{function.args.kwarg.arg} on to {ast.unparse(call.func)}")
    return found


def named_calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of a plain name, such as ``print(…)``."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]


def literal_all(tree: ast.Module) -> list[str] | None:
    """The value of ``__all__``, or None if there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


def defined_names(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level by itself: definitions and assignments, not imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def top_imports(tree: ast.Module) -> set[str]:
    """Names that a module imports at its top level, those for type checkers included."""
    nodes = [n for node in tree.body for n in (ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node])]
    return {(a.asname or a.name).split(".")[0] for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}


def requirements() -> tuple[set[str], set[str]]:
    """Import names of the core dependencies, and of the core and all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(specifiers: list[str]) -> set[str]:
        found = {re.match(r"[\w-]+", s).group() for s in specifiers}
        return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in found}

    core = names(project["dependencies"])
    return core, core.union(*(names(extra) for extra in project["optional-dependencies"].values()))


modules = pytest.mark.parametrize("module", TREES)


def test_every_part_has_a_floor():
    parts = {part_of(module) for module in TREES}
    assert parts - set(FLOORS) == set(), "give the new part its place in FLOORS, as low as its imports allow"


def test_imports_point_down_only():
    assert upward_imports(TREES) == []


def test_an_upward_import_is_found_wherever_it_hides():
    trees = {
        "anem": ast.parse("from anem.cli import main"),
        "anem.cli": ast.parse("import anem\nfrom anem.energy import E"),
        "anem.energy": ast.parse("def f():\n    from anem.network import N"),
        "anem.network": ast.parse("if TYPE_CHECKING:\n    from anem import train"),
        "anem.train": ast.parse("from anem.network import N"),
    }
    found = [line.split(" ")[0] for line in upward_imports(trees)]
    assert found == ["anem:1", "anem.energy:2", "anem.network:2"]


def test_modules_import_each_other_in_no_circle():
    """By what runs at import, with a package counted as its ``__init__`` module."""
    graph = {module: {t for _, t in imported_modules(at_import(tree)) if t != module} for module, tree in TREES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@modules
def test_imports_are_absolute_and_without_stars(module):
    assert [f"line {line}" for line, source, name in imports(TREES[module]) if name == "*" or source.startswith(".")] == []


@modules
def test_third_party_imports_are_declared(module):
    """What runs at import needs only the core dependencies; an extra is imported where it is used."""
    core, everything = requirements()

    def undeclared(tree: ast.AST, declared: set[str]) -> list[str]:
        known = declared | set(sys.stdlib_module_names) | {"anem"}
        return [f"line {line}: {source}" for line, source, _ in imports(tree) if source.split(".")[0] not in known]

    assert undeclared(TREES[module], everything) == []
    if part_of(module) != "demo":
        assert undeclared(at_import(TREES[module]), core) == []


@modules
def test_the_core_imports_no_framework_that_may_be_absent(module):
    """torchvision does not import beside every torch build, and deepinv imports it; gradio is for the demo alone."""
    banned = {"torchvision", "deepinv"} | (set() if part_of(module) == "demo" else {"gradio"})
    assert [f"line {line}: {source}" for line, source, _ in imports(TREES[module]) if source.split(".")[0] in banned] == []


@modules
def test_all_is_a_literal_list_of_names_that_exist(module):
    tree = TREES[module]
    listed = literal_all(tree)
    public = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")}
    if listed is None:
        assert not public or part_of(module) in FRONT, "public names and no __all__"
        return
    own = defined_names(tree) | (top_imports(tree) if module in PACKAGES else set())
    assert len(listed) == len(set(listed))
    assert [name for name in listed if name not in own] == [], "in __all__ but not defined here"


@modules
def test_only_listed_names_are_imported_from_elsewhere(module):
    """Across parts of the library, a module's ``__all__`` is its whole surface."""
    found = []
    for line, source, name in imports(TREES[module]):
        if source not in TREES or source == "anem" or f"{source}.{name}" in TREES or part_of(source) in FRONT | {part_of(module)}:
            continue
        if name and name not in (literal_all(TREES[source]) or []):
            found.append(f"line {line}: {source}.{name}")
    assert found == []


@modules
def test_no_keyword_arguments_are_passed_through(module):
    assert forwarded_keywords(TREES[module]) == []


def test_a_keyword_pass_through_is_found():
    assert forwarded_keywords(ast.parse("def f(**options):\n    return g(1, **options)"))
    assert forwarded_keywords(ast.parse("class A(B):\n    def __init__(self, **k):\n        super().__init__(**k)"))
    assert not forwarded_keywords(ast.parse("def to(self, *a, **k):\n    return self.values.to(*a, **k)"))
    assert not forwarded_keywords(ast.parse("def override(self, **changes):\n    return replace(self, **changes)"))
    assert not forwarded_keywords(ast.parse("def f(d):\n    return g(**d)"))


@modules
def test_no_module_keeps_hidden_state_or_evaluates_text(module):
    found = [f"line {n.lineno}: global" for n in ast.walk(TREES[module]) if isinstance(n, ast.Global)]
    found += [f"line {call.lineno}: {call.func.id}()" for call in named_calls(TREES[module]) if call.func.id in ("eval", "exec")]
    assert found == []


@modules
def test_the_library_neither_prints_nor_plots(module):
    """A message for a person names its stream (``file=sys.stderr``); standard output and matplotlib belong to the front."""
    if part_of(module) in FRONT:
        return
    prints = [call for call in named_calls(TREES[module]) if call.func.id == "print" and "file" not in {k.arg for k in call.keywords}]
    plots = [line for line, source, _ in imports(TREES[module]) if source.split(".")[0] == "matplotlib"]
    assert [call.lineno for call in prints] == []
    assert plots == []


@modules
def test_every_module_says_what_it_is(module):
    tree = TREES[module]
    assert not tree.body or ast.get_docstring(tree)
