"""After one thing went wrong: the next save is good, the other parts are closed, the directory can be used again."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from polydream.asked import stored_config
from polydream.core import checkpoint, durable, reporting, saving
from polydream.core.checkpoint import CheckpointError
from polydream.core.launch import write_config
from polydream.core.train import Trainer
from polydream.core.vector import Vector
from polydream.tasks import world

from .harness import tiny


def collected(trainer: Trainer, rows: int) -> None:
    for _ in range(rows):
        trainer.collect()


def test_actions_of_any_structure_are_carried_over(tmp_path: Path) -> None:
    cfg = tiny(tmp_path / "run", task="tests.faults.nested:uneven", steps=10_000, env__restarts=0, log__every=10_000)
    with Trainer(cfg) as trainer:
        assert len(trainer.spec.action) > 1 and all("/" in key for key in trainer.spec.action)
        collected(trainer, 10)
        trainer.save()
        before = trainer.collector.state.clone()
    with Trainer(cfg, resume=trainer.dir) as again:
        after = again.collector.state
        assert sorted(map(str, after.keys(True, True))) == sorted(map(str, before.keys(True, True)))
        assert all(torch.equal(after[k], v) for k, v in before.items(True, True))
        collected(again, 3)


@pytest.mark.parametrize("path", ["goal", ("action", "action"), ("action", "arm/left"), ("a/b",), ("[x",), ("action", "[0]/1")])
def test_keys_of_states_come_back(path: str | tuple[str, ...]) -> None:
    assert saving._path(saving._name(path)) == ((path,) if isinstance(path, str) else path)


def test_long_texts_are_kept_and_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    text = "a long memory, with any letter: \u00e4\u0000\ud800 " * 300_000
    path = checkpoint.save(tmp_path, 1, {"agent": {}}, {"env": [text, {"short": "x"}]})
    assert checkpoint.read(path)[1] == {"env": [text, {"short": "x"}]}
    with pytest.raises(CheckpointError, match=r"state\.json would have \d+ bytes, and none above 8388608 is read again"):
        checkpoint.save(tmp_path, 2, {"agent": {}}, {"env": [0.123456789] * 1_000_000})
    many = {f"an array with a name that is not short, number {i}": torch.zeros(1) for i in range(80_000)}
    with pytest.raises(CheckpointError, match=r"the header of agent\.safetensors would have"):
        checkpoint.save(tmp_path, 3, {"agent": many}, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000000000001"]


def test_a_save_that_failed_in_the_background_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, real = Trainer(tiny(tmp_path / "run")), checkpoint.save
    said: list[str] = []
    monkeypatch.setattr(trainer.saver, "say", said.append)
    with trainer:
        collected(trainer, 40)

        def full(*given: Any, **options: Any) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "save", full)
        with pytest.raises(OSError, match="No space"):
            trainer.saver.submit(trainer).result()
        monkeypatch.setattr(checkpoint, "save", real)
        collected(trainer, 5)
        path = trainer.save()
        assert checkpoint.read(path) and len(said) == 1 and "No space left" in said[0]


@pytest.mark.parametrize("where", ["index", "sync"])
def test_a_replay_that_could_not_be_saved_is_saved_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    write, sync = durable.write, durable.sync
    full = True

    def failing_write(path: Path, content: bytes, *, wait: bool = True) -> durable.Fingerprint:
        if full and where == "index" and path.name.startswith("index-"):
            path.write_bytes(content[:10])
            raise OSError(28, "No space left on device")
        return write(path, content, wait=wait)

    def failing_sync(path: Path) -> None:
        if full and where == "sync" and path.parent.name == "replay" and "data" in path.name:
            raise OSError(5, "Input/output error")
        sync(path)

    cfg = tiny(tmp_path / "run")
    with Trainer(cfg) as trainer:
        collected(trainer, 40)
        monkeypatch.setattr(durable, "write", failing_write)
        monkeypatch.setattr(durable, "sync", failing_sync)
        with pytest.raises(OSError, match=r"No space|Input/output"):
            trainer.save()
        collected(trainer, 40)
        full = False
        trainer.save()
        rows = trainer.replay.steps
    with Trainer(cfg, resume=trainer.dir) as again:
        assert again.replay.steps == rows


def test_the_configuration_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(tmp_path)
    write_config(cfg, tmp_path)
    before, real = (tmp_path / "config.yaml").read_bytes(), durable.write

    def full(path: Path, content: bytes, *, wait: bool = True) -> durable.Fingerprint:
        real(path, content[:10], wait=wait)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_config(tiny(tmp_path, steps=161), tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert stored_config(tmp_path).steps == 160


def test_an_environment_that_cannot_close_leaves_nothing_open(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path / "run", env__count=3))
    closed = []

    def close(number: int) -> None:
        closed.append(number)
        if number == 1:
            raise RuntimeError("this window will not close")

    with pytest.raises(RuntimeError, match="will not close"), trainer:
        collected(trainer, 4)
        for i, env in enumerate(trainer.envs._envs):
            env._task.close = lambda i=i: close(i)  # type: ignore[union-attr]
    assert sorted(closed) == [0, 1, 2]
    assert trainer.lock._file.closed and trainer.log._closed and trainer.saver._thread._shutdown
    Trainer(tiny(tmp_path / "run")).__exit__(None, None, None)


def test_a_run_that_could_not_begin_lets_go_of_its_directory(tmp_path: Path) -> None:
    cfg = tiny(tmp_path)
    kept = []
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint in") as refused:
            Trainer(cfg, resume=tmp_path)
        kept.append(refused)  # and with it every local variable on the way
    gc.collect()
    with Trainer(cfg) as trainer:
        collected(trainer, 2)


def test_the_best_agent_replaces_one_of_a_later_step(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 2000, {"agent": {}}, {"return": 50.0}, keep=1)
    path = checkpoint.save(tmp_path, 1900, {"agent": {}}, {"return": 60.0}, keep=1)
    assert list(tmp_path.iterdir()) == [path]


def test_a_fault_in_an_episode_of_the_report_is_counted_and_lived_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Trainer(tiny(tmp_path / "run"), SimpleNamespace()) as trainer:  # type: ignore[arg-type]
        collected(trainer, 60)
        tries = []

        def drawn(agent: Any, scene: Any, draws: Any) -> dict[str, Any]:
            task = scene.make()
            if not tries:
                task._task.step = lambda action: 1 / 0
            tries.append(task)
            task.reset(0)
            task.step({"action": np.int32(0)})
            return {}

        monkeypatch.setattr(reporting.pictures, "drawn", drawn)
        monkeypatch.setattr(trainer, "_write_report", lambda: None)
        reporting.report(trainer)
        assert len(tries) == 2 and trainer.faults.total == 1


def test_class_indices_outside_of_the_spec_are_a_fault() -> None:
    with Vector([lambda: world.make("fourrooms")] * 2, seed=0) as vector:
        vector.step()
        for wrong in (99, -1):
            vector._envs[1]._task._vectors = lambda wrong=wrong: {
                "x": np.int32(wrong),
                "y": np.int32(1),
                "goal_x": np.int32(1),
                "goal_y": np.int32(1),
            }  # type: ignore[union-attr]
            with pytest.raises(ValueError, match=rf"environment 1 .*: observation 'x' is {wrong}, the spec says classes 0 to 10"):
                vector.step({"action": np.zeros(2, np.int32)})
