"""Checkpoints: what is saved comes back bit for bit; what was damaged is never used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polydream.core import checkpoint
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from tests.fixtures import VECTOR, agent, batch, tiny


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


def test_no_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        checkpoint.locate(tmp_path)
