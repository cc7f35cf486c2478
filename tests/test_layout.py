"""The house rules, read from the source: doors between rooms, sizes, names, what is shipped and what is registered."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
ROOMS = ("core", "variants", "tasks", "eval")
DOORS = {"core": set(), "variants": {"core"}, "tasks": {"core"}, "eval": {"core", "tasks"}}
TASKS_MAY_SEE = {"specs", "rng", "registry", "config"}  # of core; never the agent or the training loop
LEARNING = {
    "specs", "config", "rng", "maths", "outputs", "nets", "codec", "rssm", "heads", "behavior", "normalizer", "agent", "optim",
    "openloop", "cells", "fused", "scan", "twohot", "knobs", "promises", "acting", "compiler",
    "mover", "recording", "gpuscan", "gpumover", "gpukernels",
}  # fmt: skip
LEARNING_LIBRARIES = {"torch", "tensordict", "einops", "numpy", "triton"}
EDGES = {"mlflow", "gymnasium", "dm_control", "mujoco", "matplotlib", "ray", "imageio", "av", "scipy", "plotly"}


def sources(*folders: str) -> list[Path]:
    """Python files of rooms."""
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of everything a file imports, anywhere in it; `from .. import core` gives (2, "core")."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from ..core import agent` reaches core.agent, so the imported name is kept.
            yield from ((node.level, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# ---------------------------------------------------------------------------------------------------- doors


def test_rooms_use_only_their_doors() -> None:
    bad = [
        f"{path.relative_to(ROOT)} -> {name}"
        for home in ROOMS
        for path in sources(home)
        for level, name in imports(path)
        if level == 2 and name != "__version__" and name.split(".")[0] not in DOORS[home]
    ]
    assert not bad


def test_rooms_import_each_other_relatively() -> None:
    absolute = [(path, name) for path in sources(*ROOMS) for level, name in imports(path) if not level and name != "polydream.__version__"]
    assert not [f"{path.relative_to(ROOT)}: {name}" for path, name in absolute if name.split(".")[0] in {"polydream", *ROOMS}]
    assert not [str(p) for p in sources(*ROOMS) for level, _ in imports(p) if level > 2]


def test_tasks_know_specs_and_not_the_agent() -> None:
    for path in sources("tasks"):
        seen = {name.split(".")[1] for level, name in imports(path) if level == 2 and name.startswith("core.")}
        assert seen <= TASKS_MAY_SEE, path


def test_variants_do_not_import_one_another() -> None:
    """Parts of a variant may live in files of their own; a variant meets another only through the registry."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["polydream.variants"]
    taken = {target.partition(":")[0].rpartition(".")[2] for target in entries.values()}
    assert "base" in taken
    for path in sources("variants"):
        assert not [name for level, name in imports(path) if level == 1 and name.split(".")[0] in taken], path


def test_learning_part_needs_few_libraries() -> None:
    for name in sorted(LEARNING):
        path = ROOT / "core" / f"{name}.py"
        for level, imported in imports(path):
            head = imported.split(".")[0]
            allowed = LEARNING if level else LEARNING_LIBRARIES | sys.stdlib_module_names
            assert head in allowed, f"core/{name}.py imports {imported}"


def test_the_engine_and_the_command_line_import_no_edge_library_at_start() -> None:
    """mlflow alone takes two seconds: such libraries are imported where they are used."""
    modules = [f"polydream.core.{p.stem}" for p in sources("core") if p.stem not in ("__init__", "gpukernels")] + [
        "polydream.commands",
        "polydream.flags",
    ]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint(*sorted({EDGES} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_its_bare_name(room: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {room}"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"import polydream.{room}, not {room}" in done.stderr


# ---------------------------------------------------------------------------------------------------- names and sizes


def test_core_names_no_variant() -> None:
    words = re.compile(r"multi-?_?task|hierarch|hindsight|ensemble|goal-conditioned|goal_conditioned", re.IGNORECASE)
    bad = [f"core/{p.name}: {found[0]}" for p in sources("core") if (found := words.search(p.read_text()))]
    assert not bad


def test_files_and_functions_are_short() -> None:
    for path in sources(*ROOMS, "polydream", "benchmarks", "examples"):
        assert path.name != "utils.py", path
        lines = len(path.read_text().splitlines())
        limit = 200 if path.parent.name == "variants" else 400
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 50, f"{path.relative_to(ROOT)}:{node.name} has {length} lines"


def test_public_things_are_explained_and_typed() -> None:
    for path in sources(*ROOMS, "polydream"):
        assert ast.get_docstring(tree(path)), f"{path} has no docstring"
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name} has no docstring"


# ---------------------------------------------------------------------------------------------------- packaging


def test_every_package_folder_and_data_file_is_shipped() -> None:
    settings = pyproject()["tool"]["setuptools"]
    homes = {name: settings["package-dir"][name] for name in settings["packages"]}
    assert set(homes.values()) == {"polydream", *ROOMS}
    patterns = settings["package-data"]
    for package, home in homes.items():
        for path in (ROOT / home).rglob("*"):
            inside = path.relative_to(ROOT / home)
            if "__pycache__" in path.parts or path.is_dir():
                continue
            if path.suffix == ".py":
                assert inside.parent == Path("."), f"{path} lies in a folder that is not listed as a package"
            else:
                assert any(fnmatch(str(inside), p) for p in [*patterns["*"], *patterns.get(package, [])]), f"{path} is not shipped"


ENTRIES = [
    (group, name, value)
    for group, entries in [*pyproject()["project"]["entry-points"].items(), ("scripts", pyproject()["project"]["scripts"])]
    for name, value in entries.items()
]


@pytest.mark.parametrize(("group", "name", "value"), ENTRIES)
def test_every_entry_point_resolves(group: str, name: str, value: str) -> None:
    assert callable(EntryPoint(name, value, group).load())


def test_pinned_versions_are_those_of_the_ranges() -> None:
    """requirements.txt pins every direct dependency, nothing else, within the range that pyproject.toml gives; torch first."""
    ranges = {r.name: r for r in map(Requirement, pyproject()["project"]["dependencies"])}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {r.name: r for r in map(Requirement, lines)}
    assert lines[0].startswith("torch==")
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert ranges[name].specifier.contains(exact.version), name


def test_third_party_imports_are_declared() -> None:
    """What a room imports is a dependency or, in tasks, an extra."""
    project = pyproject()["project"]
    named = [Requirement(r).name for r in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]]
    module = {"pyyaml": "yaml", "pillow": "PIL", "dm-control": "dm_control"}
    known = {module.get(n, n.replace("-", "_")) for n in named} | {"dm_env", "triton", "polydream"}  # which come with dm-control and torch
    heads = {name.split(".")[0]: p for p in sources(*ROOMS, "polydream") for level, name in imports(p) if not level}
    unknown = {h: str(p.relative_to(ROOT)) for h, p in heads.items() if h not in known | sys.stdlib_module_names}
    assert not unknown


def test_python_env_leaves_the_choice_of_python_to_the_user() -> None:
    env = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    assert env["dependencies"] == ["-r requirements.txt"]
    assert "python" not in env  # MLflow would want pyenv to build exactly that one
