"""The compiler's set-up: what a second start finds, where it lies, and how parts do without."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polydream.core import compiler
from polydream.core.rng import Draws
from tests.fixtures import VECTOR, agent

ROOT = Path(__file__).parent.parent
START = """
import json
import torch
from torch._dynamo.utils import counters
from polydream.core.rng import Draws
from tests.fixtures import VECTOR, agent, batch

made = agent()
made.accelerate("float32", "steps")
state, data = made.initial(3), batch(VECTOR, 3, 9)
for t in range(2):
    state = made.policy(data[:, t].select("obs", "is_first"), state, Draws(0, t))[1]
start, steps, before = made.replay_context(data, 1)
post = made.rssm.observe(made.encode(steps), before, steps["is_first"], start, Draws(0))
post["logits"].sum().backward()
found = counters["aot_autograd"]
print(json.dumps({name: found[f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")} | {"graphs": found["total"]}))
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiling needs a C++ compiler")
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    """Neither of the policy step nor of an update's scan, forwards and backwards: every graph is found, and no code is generated."""

    def start() -> dict[str, int]:
        settings = os.environ | {compiler.CACHE: str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run([sys.executable, "-c", START], env=settings, capture_output=True, text=True, check=True, cwd=ROOT)
        found: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
        return found

    def generated() -> set[Path]:
        return {path for path in (tmp_path / "cache").rglob("*") if path.suffix in {".cpp", ".so", ".py"}}

    first, code = start(), generated()
    assert first["miss"] == first["graphs"] >= 4 and code
    assert start() == {"hit": first["graphs"], "miss": 0, "bypass": 0, "graphs": first["graphs"]}
    assert generated() == code


def test_compiled_code_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiler.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.prepare() == tmp_path / "polydream/compiled"
    assert os.environ[compiler.CACHE] == str(tmp_path / "polydream/compiled")
    assert (tmp_path / "polydream/compiled").stat().st_mode & 0o077 == 0, "others may not put code there"


def test_whoever_names_a_directory_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiler.CACHE, str(tmp_path / "mine"))
    assert compiler.prepare() == tmp_path / "mine" and os.environ[compiler.CACHE] == str(tmp_path / "mine")


def test_without_a_place_to_write_torch_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiler.CACHE, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler.prepare() is None and compiler.CACHE not in os.environ


def test_paused_parts_do_not_compile_and_are_as_before_afterwards() -> None:
    made = agent()
    made.accelerate("float32", "steps")
    parts = [part for part in made.modules() if getattr(part, "compiled", False)]
    parts[0].compiled = False  # one that was told otherwise stays so
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with pytest.raises(RuntimeError, match="out of the context"), compiler.paused(made):
        assert not any(part.compiled for part in parts)
        made.rssm.step(made.initial(2), torch.zeros(2, VECTOR.action_width), Draws(0))
        raise RuntimeError("out of the context")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert [part.compiled for part in parts] == [False] + [True] * (len(parts) - 1)
