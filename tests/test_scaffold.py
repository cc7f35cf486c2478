"""`new-variant` writes a package that installs, passes its own test and is found by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polydream.__main__ import main
from polydream.core.config import ConfigError
from polydream.scaffold import write_package

ROOT = Path(__file__).parent.parent


def test_the_files_of_a_package() -> None:
    written = write_package("deep_thought", Path("new"))
    assert [str(p) for p in written] == [
        "new/pyproject.toml", "new/README.md", "new/polydream_deep_thought.py", "new/tests/test_deep_thought.py"
    ]  # fmt: skip
    for path in written:
        assert not re.search("NAME|TITLE", path.read_text()), path
    assert "class DeepThought(Dreamer):" in written[2].read_text()
    assert 'deep_thought = "polydream_deep_thought:DeepThought"' in written[0].read_text()


@pytest.mark.parametrize("name", ["Curious", "9lives", "a-b", "", "class", "a b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="a word of small letters"):
        write_package(name, Path("new"))
    assert not Path("new").exists()


def test_nothing_is_overwritten() -> None:
    Path("full").mkdir()
    (Path("full") / "mine.txt").write_text("mine")
    for folder in (Path("full"), Path("full/mine.txt")):
        with pytest.raises(ConfigError, match="is there already and not an empty folder"):
            write_package("curious", folder)
    Path("empty").mkdir()
    assert write_package("curious", Path("empty"))


@pytest.mark.slow
def test_a_new_package_installs_passes_its_test_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-variant", "curious", "package"]) == 0
    assert "package/polydream_curious.py" in capsys.readouterr().out
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", "site", "./package")
    for words, extra in (
        (pip, {}),
        (("-m", "ruff", "check", "--isolated", "--line-length", "140", "package"), {}),
        (("-m", "pytest", "-q", "package"), {}),
        (("-m", "polydream", "list", "curious"), {"PYTHONPATH": f"site{os.pathsep}{ROOT}"}),
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140", **extra}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert "changes: build, scales, model_losses" in done.stdout
    assert re.search(r"--agent.curious.weight 0.1 +of the extra loss; 0 leaves the base agent as it is", done.stdout)
