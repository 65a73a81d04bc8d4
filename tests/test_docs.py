"""What the documents name exists: tests, public names, commands."""

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import anem
from anem.baselines import BASELINES
from anem.bench import BENCHES
from anem.cli import COMMANDS
from anem.cli.options import named_values

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MATHEMATICS = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", MATHEMATICS, flags=re.MULTILINE)[1:]


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("section", SECTIONS[:-1], ids=lambda s: s.splitlines()[0])
def test_every_derivation_names_tests_that_exist(section):
    named = section.partition("*Tests*")[2]
    files, tests = re.findall(r"`(test_\w+\.py)`", named), re.findall(r"`(test_\w+)`", named)
    assert files and tests
    assert set(tests) - set().union(*(functions(file) for file in files)) == set()


def test_the_example_of_an_energy_of_ones_own_runs():
    failed, attempted = doctest.testmod(import_module("anem.gaussian"))
    assert not failed and attempted > 3


@pytest.mark.parametrize("name", ["README.md", "docs/baselines.md"])
def test_the_python_of_a_page_uses_names_that_exist(name):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    tree = ast.parse(code)
    assert len(code.strip().splitlines()) <= 16
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "anem":
            assert node.attr in anem.__all__


def test_the_table_of_baselines_has_their_settings():
    rows = re.findall(r"^\| `([a-z][a-z-]+)` \| (.*?) \|", (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(BASELINES)
    for name, text in rows:
        found = dict(re.findall(r"`(\w+)=([\w.-]+)`", text))
        assert list(found) == list(BASELINES[name].settings)
        for key, value in BASELINES[name].settings.items():
            assert named_values("--set", [f"{key}={found[key]}"])[key] == (
                pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            )


def test_commands_and_benches_of_the_readme_exist():
    code = "\n".join(a or b for a, b in re.findall(r"`([^`\n]+)`|^    (.+)$", README, flags=re.MULTILINE))
    commands = set(re.findall(r"\banem ([a-z]+)\b", code))
    assert commands and commands <= set(COMMANDS)
    assert set(re.findall(r"anem bench ([a-z]+)", code)) <= set(BENCHES)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets


def test_the_reference_has_every_public_name_once():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").split("\n---\n")[0]
    listed = re.findall(r"automodule:: ([\w.]+)\n   :members: (.+)", text)
    names = [(module, name) for module, members in listed for name in members.split(", ")]
    assert sorted(name for _, name in names) == sorted(anem.__all__)
    for module, name in names:
        assert getattr(import_module(module), name) is getattr(anem, name)


@pytest.mark.parametrize("name", ["README.md", "docs/mathematics.md", "docs/figures.md", "docs/comparison.md", "docs/baselines.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []
