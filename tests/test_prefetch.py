"""Prefetch: the thread changes when batches are copied, never which."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polydream.core.prefetch import Prefetch
from polydream.core.replay import Replay, ReplayConfig
from polydream.core.specs import Space, Spec

SPEC = Spec(obs={"x": Space(shape=(3,)), "arm/x": Space()}, action={"a": Space(shape=(1,))})
LATENT = {"deter": Space(shape=(4,))}


def make() -> Replay:
    return Replay(SPEC, LATENT, ReplayConfig(capacity=200, memmap=False), batch=4, length=5, streams=2, seed=1)


def add(replay: Replay, t: int) -> None:
    x = np.full((2, 3), t, np.float32)
    flags = {k: np.zeros(2, bool) for k in ("is_first", "is_last", "is_terminal")}
    obs, latent = {"x": x, "arm/x": -x[:, 0]}, {"deter": np.full((2, 4), t % 64, np.float32)}
    replay.add({"obs": obs, "action": {"a": x[:, :1]}, "reward": x[:, 0], "latent": latent, **flags})


def filled() -> Replay:
    replay = make()
    for t in range(30):
        add(replay, t)
    return replay


def learn(replay: Replay, batch: TensorDict, t: int) -> None:
    """What a learner does between batches: new steps, and fresh latents for the steps of this batch."""
    add(replay, t)
    replay.write(batch["stepid"][:, 1:], {"deter": batch["latent", "deter"][:, 1:].float() / 2 + t / 64})


def equal(a: TensorDict, b: TensorDict) -> bool:
    return set(a.keys(True, True)) == set(b.keys(True, True)) and all(torch.equal(a[k], b[k]) for k in a.keys(True, True))


def expected(count: int) -> list[TensorDict]:
    """The stated rule by hand: every batch is sampled when the one before is taken."""
    replay = filled()
    batches = [replay.sample()]
    for t in range(30, 30 + count):
        batches.append(replay.sample())
        learn(replay, batches[-2], t)
    return batches[:count]


def slowly(replay: Replay, seconds: Callable[[], float]) -> None:
    """Let every copy begin late, so that the learner is ahead of the thread."""
    gather = replay._gather

    def late(items: np.ndarray) -> TensorDict:
        time.sleep(seconds())
        return gather(items)

    replay._gather = late  # type: ignore[method-assign]


@pytest.mark.parametrize("delay", ["none", "thread", "learner", "random"])
def test_batches_do_not_depend_on_timing(delay: str) -> None:
    rng = np.random.default_rng(0)
    replay = filled()
    if delay in ("thread", "random"):
        slowly(replay, lambda: 0.002 if delay == "thread" else rng.random() * 0.003)
    with Prefetch(replay) as prefetch:
        for t, wanted in enumerate(expected(40)):
            batch = prefetch.next()
            if delay in ("learner", "random"):
                time.sleep(0.002 if delay == "learner" else rng.random() * 0.003)
            assert equal(batch, wanted), t
            learn(replay, batch, 30 + t)


def test_disabled_it_samples_on_the_spot() -> None:
    one, two = filled(), filled()
    with Prefetch(one, enabled=False) as prefetch:
        for t in range(30, 60):
            batch = prefetch.next()
            assert equal(batch, two.sample())
            assert prefetch.state_dict() == {}
            learn(one, batch, t)
            learn(two, batch, t)
    assert one.state_dict() == two.state_dict()


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_saving_and_resuming_change_nothing(cut: int, tmp_path: Path) -> None:
    wanted = expected(20)
    one = filled()
    with Prefetch(one) as prefetch:
        for i in range(cut):
            learn(one, prefetch.next(), 30 + i)
        prefetch.drain()
        state = {k: v.clone() for k, v in prefetch.state_dict().items()}
        assert bool(state) == (cut > 0)
        one.save(tmp_path)
        two = make()
        two.load(tmp_path)
        with Prefetch(two) as resumed:
            resumed.load_state_dict(state)
            for i in range(cut, 20):
                for replay, source in ((one, prefetch), (two, resumed)):
                    batch = source.next()
                    assert equal(batch, wanted[i])
                    learn(replay, batch, 30 + i)


def test_whoever_changes_the_replay_waits_for_the_copy() -> None:
    replay = filled()
    go, order = threading.Event(), []
    gather = replay._gather

    def gated(items: np.ndarray) -> TensorDict:
        if threading.current_thread() is not threading.main_thread():
            go.wait(10)
        batch = gather(items)
        order.append("copied")
        return batch

    replay._gather = gated  # type: ignore[method-assign]
    with Prefetch(replay) as prefetch:
        prefetch.next()
        writer = threading.Thread(target=lambda: (add(replay, 30), order.append("added")))
        writer.start()
        assert order == ["copied"] and writer.is_alive()
        go.set()
        writer.join()
        prefetch.drain()
    assert order == ["copied", "copied", "added"]


def test_what_goes_wrong_in_the_thread_is_raised_and_can_be_survived() -> None:
    replay = filled()
    gather, broken = replay._gather, [False]

    def failing(items: np.ndarray) -> TensorDict:
        if broken[0]:
            raise OSError("the disk is gone")
        return gather(items)

    replay._gather = failing  # type: ignore[method-assign]
    with Prefetch(replay) as prefetch:
        broken[0] = True
        with pytest.raises(OSError, match="the disk is gone"):
            prefetch.next()
        broken[0] = False
        first = prefetch.next()
        prefetch.drain()
        broken[0] = True
        prefetch.next()
        for call in (prefetch.drain, prefetch.state_dict, prefetch.next):
            with pytest.raises(OSError, match="the disk is gone"):
                call()
        broken[0] = False
        add(replay, 30)  # the replay was let go
        assert prefetch.next().shape == first.shape


def test_an_empty_replay_is_said_to_be_empty_and_stays_usable() -> None:
    replay = make()
    with Prefetch(replay) as prefetch:
        with pytest.raises(RuntimeError, match="no stream holds a sequence"):
            prefetch.next()
        with pytest.raises(RuntimeError, match="no stream holds a sequence"):
            replay.begin()
        for t in range(10):
            add(replay, t)
        assert prefetch.next().shape == (4, 6)


def test_closing_ends_the_thread() -> None:
    def alive() -> list[Any]:
        return [t for t in threading.enumerate() if t.name.startswith("prefetch")]

    before = alive()
    prefetch = Prefetch(filled())
    prefetch.next()
    assert len(alive()) == len(before) + 1
    prefetch.close()
    assert alive() == before


def test_a_closed_prefetch_refuses_and_lets_the_replay_go() -> None:
    replay = filled()
    prefetch = Prefetch(replay)
    prefetch.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        prefetch.next()
    add(replay, 30)
    assert replay.sample().shape == (4, 6)
