"""Checkpoints: what is saved comes back bit for bit; what was damaged is never used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polydream.core import checkpoint, durable
from polydream.core.config import ConfigError
from polydream.core.lock import Lock
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from tests.fixtures import VECTOR, agent, batch, tiny

ROOT = Path(__file__).parent.parent


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    first = agent(optim=replace(tiny().optim, warmup=0))
    optimizer = first.optimizer()
    for step in range(2):
        first.update(batch(VECTOR, seed=step), optimizer, Draws(0, step))
    tensors, state = checkpoint.agent_tensors(first, optimizer)
    path = checkpoint.save(tmp_path, 2, tensors, {"optimizer": state})
    second = agent(seed=9, optim=replace(tiny().optim, warmup=0))
    other = second.optimizer()
    groups, loaded = checkpoint.read(path)
    checkpoint.restore_agent(second, other, groups, loaded["optimizer"])
    for step in range(2, 4):
        ours, _ = first.update(batch(VECTOR, seed=step), optimizer, Draws(0, step))
        theirs, _ = second.update(batch(VECTOR, seed=step), other, Draws(0, step))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_the_agent_is_rebuilt_from_the_checkpoint_alone(tmp_path: Path) -> None:
    cfg = resolve({"preset": "smoke"}, {"agent.rssm.stoch": "6"})
    from polydream.core.agent import Dreamer

    first = Dreamer(VECTOR, cfg.agent, 4)
    tensors, state = checkpoint.agent_tensors(first, first.optimizer())
    checkpoint.save(tmp_path / "run" / "checkpoints", 7, tensors, {**checkpoint.header(cfg, VECTOR), "optimizer": state})
    second = checkpoint.load_agent(tmp_path / "run")
    assert second.cfg == cfg.agent and second.spec == VECTOR
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_specs_come_back_with_the_order_of_their_keys() -> None:
    spec = Spec(
        obs={"z": Space(shape=(8, 8, 1), dtype="uint8"), "a": Space(shape=(2,), low=(-1.0, 0.0), high=2.0)},
        action={"b": Space(dtype="int32", classes=3), "a": Space()},
        hidden=frozenset({"a"}),
        repeat=4,
        limit=9,
    )
    back = checkpoint.spec_from(checkpoint.spec_to(spec))
    assert back == spec and list(back.obs) == ["z", "a"]


def test_trees_of_plain_values_and_arrays_come_back() -> None:
    tree = {"a": [1, 2.5, None, {"b": np.arange(3)}], "c": "text", "d": True, "e": np.float32(2), "f": np.array(7)}
    plain, arrays = checkpoint.pack(tree)
    back = checkpoint.unpack(plain, arrays)
    assert (
        back["a"][:3] == [1, 2.5, None]
        and back["a"][3]["b"].tolist() == [0, 1, 2]
        and back["c"] == "text"
        and back["e"] == 2.0
        and back["f"].shape == ()
    )
    with pytest.raises(ValueError, match="'/x/0' is a set"):
        checkpoint.pack({"x": [{1}]})


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, harm: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"agent": {"w": torch.full((64,), float(step))}}, {"step": step})
    newest = checkpoint.newest(tmp_path)
    assert newest.name.endswith("2")
    file = newest / ("manifest.json" if harm == "manifest" else "agent.safetensors")
    content = bytearray(file.read_bytes())
    if harm == "delete":
        file.unlink()
    elif harm == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append).name.endswith("1")
    assert len(said) == 1 and newest.name in said[0]
    with pytest.raises(checkpoint.CheckpointError, match="cannot be used"):
        checkpoint.read(newest)


def test_only_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for step in range(5):
        checkpoint.save(tmp_path, step, {"agent": {"w": torch.zeros(1)}}, {"arrays": np.zeros(2), "number": np.array(3)})
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"{s:012d}" for s in (3, 4)]
    assert checkpoint.read(checkpoint.newest(tmp_path))[1]["number"].shape == (), "numbers as arrays keep their shape"


def test_a_second_checkpoint_of_a_step_writes_nothing_over(tmp_path: Path) -> None:
    paths = [checkpoint.save(tmp_path, 7, {"agent": {"w": torch.full((1,), float(i))}}, {"i": i}, keep=20) for i in range(12)]
    assert [p.name for p in checkpoint.complete(tmp_path)] == [p.name for p in paths]
    assert [checkpoint.read(p)[1]["i"] for p in paths] == list(range(12))
    assert checkpoint.newest(tmp_path) == paths[-1]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, {"agent": {"w": torch.zeros(9)}}, {"step": 1})
    original = durable.unfit
    monkeypatch.setattr(durable, "unfit", lambda path, mark: "w has been changed" if "000002" in str(path) else original(path, mark))
    with pytest.raises(checkpoint.CheckpointError, match="could not be read back"):
        checkpoint.save(tmp_path, 2, {"agent": {"w": torch.zeros(9)}}, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["000000000001"]


def test_only_what_the_manifest_names_is_read(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"agent": {"w": torch.zeros(9)}}, {"step": 1})
    (path / "more.safetensors").write_bytes(b"not tensors")
    assert set(checkpoint.read(path)[0]) == {"agent"}
    manifest = json.loads((path / "manifest.json").read_text())
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((path / "agent.safetensors").read_bytes())
    for name in ("../outside.safetensors", str(outside), "Agent.safetensors", "agent.pkl"):
        (path / "manifest.json").write_text(
            json.dumps(manifest | {"files": manifest["files"] | {name: manifest["files"]["agent.safetensors"]}})
        )
        with pytest.raises(checkpoint.CheckpointError, match="no file of a checkpoint"):
            checkpoint.read(path)
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "agent.safetensors").unlink()
    (path / "agent.safetensors").symlink_to(outside)
    with pytest.raises(checkpoint.CheckpointError, match="not a plain file"):
        checkpoint.read(path)


def test_a_checkpoint_chooses_neither_code_nor_the_memory_it_takes(tmp_path: Path) -> None:
    cfg = resolve({"preset": "smoke"})
    from polydream.core.agent import Dreamer

    first = Dreamer(VECTOR, cfg.agent)
    tensors, state = checkpoint.agent_tensors(first, first.optimizer())
    for path, change, match in (
        ("a", {"variant": "antigravity:fly"}, "would run code"),
        ("b", {"variant": "base+antigravity:fly"}, "would run code"),
        ("c", {"agent": {"rssm": {"deter": 10**9}}}, "agent.rssm.deter=1000000000"),
        ("d", {"agent": {"rssm": {"deter": 64}}}, "differ"),
    ):
        header = checkpoint.header(cfg, VECTOR)
        header["config"] |= change
        checkpoint.save(tmp_path / path, 7, tensors, {**header, "optimizer": state})
        with pytest.raises((checkpoint.CheckpointError, ConfigError), match=match):
            checkpoint.load_agent(tmp_path / path)
    assert "antigravity" not in sys.modules


def test_a_second_process_on_a_run_is_refused(tmp_path: Path) -> None:
    other = "import sys, pathlib; from polydream.core.lock import Lock; Lock(pathlib.Path(sys.argv[1]))"
    with Lock(tmp_path):
        answer = subprocess.run(
            [sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert f"is in use by another process (process {os.getpid()}" in answer.stderr
    Lock(tmp_path).close()


def test_no_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        checkpoint.locate(tmp_path)
