"""The distribution: wheel, sdist and editable installs that work from another folder, and MLflow's way in."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCES = ("core", "variants", "tasks", "eval", "polydream")
FILES = ("pyproject.toml", "README.md", "LICENSE")
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=kept | environment, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what is built from, so that nothing is left in the real one and nothing left there gets in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built through the sdist: what is missing in either is missing here."""
    out = tmp_path_factory.mktemp("dist")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (sdist,) = out.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, sdist, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def environment(folder: Path) -> Path:
    """A fresh virtual environment that sees the dependencies of this one, but no polydream. Returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (own,) = (folder / "lib").glob("python*/site-packages")
    # Later on the path than its own packages. .pth files found there are not run, so an editable polydream stays unseen.
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path, cwd: Path) -> None:
    flags = ("-q", "--no-deps", "--no-build-isolation", "--force-reinstall")
    run(sys.executable, "-m", "pip", "--python", python, "install", *flags, *what, cwd=cwd)


PROBE = """
import importlib, pathlib, pickle, pkgutil, sys
from importlib.metadata import entry_points, version
from importlib.resources import files
import polydream
from polydream.core import registry
from polydream.core.config import override
from polydream.core.presets import resolve

home = pathlib.Path(sys.argv[1])
names = []
for room in ("core", "variants", "tasks", "eval"):
    package = importlib.import_module(f"polydream.{room}")
    names += [m.name for m in pkgutil.iter_modules(package.__path__, f"polydream.{room}.")]
for name in names:
    if name == "polydream.core.gpukernels":
        continue  # in Triton, which comes with torch for GPUs
    module = importlib.import_module(name)
    assert home in pathlib.Path(module.__file__).resolve().parents, module.__file__
assert "polydream.core.agent" in names and "polydream.eval.report" in names
assert version("polydream") == polydream.__version__
for group, few in (("polydream.variants", {"base"}), ("polydream.tasks", {"dmc", "gym", "module", "world"})):
    assert few <= {e.name for e in entry_points(group=group)} and few <= set(registry.registered(group))
assert registry.variant("base").__module__ == "polydream.variants.base"
assert any(p.name.endswith(".json.gz") for p in (files("polydream.eval") / "data").iterdir())
assert (files("polydream") / "py.typed").is_file()
cfg = override(resolve({}), "agent.rssm.deter", "64")
assert pickle.loads(pickle.dumps(cfg)) == cfg
assert not {"core", "tasks", "eval", "variants"} & set(sys.modules)
print(len(names))
"""


def test_wheel_holds_every_file(wheel: Path, checkout: Path) -> None:
    shipped = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    rooms = {f"polydream/{p.relative_to(checkout)}" for room in SOURCES[:4] for p in (checkout / room).rglob("*") if p.is_file()}
    front = {str(p.relative_to(checkout)) for p in (checkout / "polydream").rglob("*") if p.is_file()}
    assert shipped == rooms | front


def test_wheel_installs_and_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install(python, wheel, cwd=tmp_path)
    assert int(run(python, "-c", PROBE, tmp_path / "venv", cwd=tmp_path)) > 30
    assert run(tmp_path / "venv/bin/polydream", "--version", cwd=tmp_path) == run(python, "-m", "polydream", "--version", cwd=tmp_path)
    assert "dmc/NAME" in run(tmp_path / "venv/bin/polydream", "list", cwd=tmp_path)


def test_editable_install_sees_new_files(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install(python, "-e", checkout, cwd=tmp_path)
    assert int(run(python, "-c", PROBE, checkout.resolve(), cwd=tmp_path)) > 30
    fresh = checkout / "variants" / "fresh.py"
    fresh.write_text('"""New."""\n\nfrom ..core.specs import Spec\n\nCLASS = Spec\n')
    try:
        assert (
            run(python, "-c", "import polydream.variants.fresh as f; print(f.CLASS.__module__)", cwd=tmp_path) == "polydream.core.specs\n"
        )
    finally:
        fresh.unlink()


STRANGER = '''
"""A variant of somebody else."""
from polydream.core.agent import Dreamer

class Odd(Dreamer):
    """Odd one."""
'''


def test_a_strangers_package_is_found_like_ours(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger/odd_agent.py").write_text(STRANGER)
    project = '[project]\nname = "odd-agent"\nversion = "1"\n[project.entry-points."polydream.variants"]\nodd = "odd_agent:Odd"\n'
    (tmp_path / "stranger/pyproject.toml").write_text(project + '[tool.setuptools]\npy-modules = ["odd_agent"]\n')
    python = environment(tmp_path / "venv")
    install(python, checkout, tmp_path / "stranger", cwd=tmp_path)
    assert "Odd one." in run(tmp_path / "venv/bin/polydream", "list", cwd=tmp_path)
    shown = run(tmp_path / "venv/bin/polydream", "train", "--variant", "odd", "--show-config", cwd=tmp_path)
    assert yaml.safe_load(shown)["variant"] == "odd"


# ---------------------------------------------------------------------------------------------------- MLflow


def test_mlproject_passes_every_key_on() -> None:
    from mlflow.projects._project_spec import load_project

    project = load_project(str(ROOT))
    main = project.get_entry_point("main")
    given = {"task": "world/chain", "agent.rssm.deter": "512", "dir": "a b"}
    assert main.compute_command(given, None) == (
        "python -m polydream train --variant base --task world/chain --agent.rssm.deter 512 --dir 'a b'"
    )
    # A declared default would override what a preset says, so only the variant, which no preset chooses, has one.
    assert {name: p.default for name, p in main.parameters.items()} == {"variant": "base"}
    given = {"run": "r", "register": "walker", "mode": "mode"}
    assert project.get_entry_point("export").compute_command(given, None) == (
        "python -m polydream export r --format pt2 --mode mode --register walker"
    )
    for name in ("resume", "eval", "report"):
        assert project.get_entry_point(name).compute_command({"run": "r", "seed": "3"}, None) == f"python -m polydream {name} r --seed 3"


def test_mlflow_run_from_a_checkout(tmp_path: Path) -> None:
    """As a user types it, in an environment where polydream itself need not be installed."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    mlflow = (sys.executable, "-m", "mlflow", "run", ROOT, "--env-manager", "local", "-P", "variant=base", "-P", "task=world/chain")
    shown = run(*mlflow, "-P", "preset=smoke", "-P", "steps=123", "-P", "show-config=true", cwd=tmp_path, **store)
    config = yaml.safe_load(shown[shown.index("variant:") :])
    assert (config["variant"], config["task"], config["preset"], config["steps"]) == ("base", "world/chain", "smoke", 123)
    command = [str(c) for c in (*mlflow, "-P", "agent.rsm.deter=3")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | store, check=False)
    assert done.returncode != 0
    assert "no option 'agent.rsm.deter'; did you mean 'agent.rssm.deter'?" in done.stderr + done.stdout
