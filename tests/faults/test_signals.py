"""SIGTERM in every phase: the process saves, ends with 143 and leaves what can be resumed; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polydream.core.signals import Signals, Stopped
from polydream.core.train import Trainer, train
from polydream.eval.judge import Judge
from polydream.eval.video import Film

from .harness import FULL, child, ended, lane, loadable, record, tiny

ROOT = Path(__file__).parent.parent.parent

PHASES = {  # phase -> the call during which the signal comes, and how often it was called before
    "prefill": ("collect", 5),
    "collect": ("collect", 60),
    "flight": ("step", 60),
    "update": ("learn", 3),
    "evaluate": ("evaluate", 1),
    "video": ("add", 5),
    "report": ("report", 0),
    "save": ("save", 0),
    "upload": ("close", 0),
    "compile": ("learn", 0),  # the first update, where steps are compiled
}
SLOW = ("compile",)  # half a minute each: not in the short lane


def interrupted(owner: Any, name: str, after: int) -> None:
    """Have the n-th call of a method send SIGTERM to its own process, in the middle."""
    original: Callable[..., Any] = getattr(owner, name)
    count = iter(range(10**9))

    def call(*args: Any, **options: Any) -> Any:
        if next(count) == after:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return original(*args, **options)

    setattr(owner, name, call)


@pytest.mark.parametrize("phase", [p for p in PHASES if FULL or p not in SLOW])
def test_sigterm_saves_and_ends_in_every_phase(phase: str, tmp_path: Path) -> None:
    held, cases = 0, lane(3, 1)
    for case in range(cases):
        place = tmp_path / str(case)

        def run(case: int = case, place: Path = place) -> None:
            more: dict[str, Any] = {"compile": "steps", "grace": 300.0} if phase == "compile" else {"eval__video": phase == "video"}
            more["env__ahead"] = 3 if phase == "flight" else 0  # steps are taken by a thread then, updates made meanwhile
            cfg = tiny(place, steps=100 + 10 * case, eval__every=40, log__report=40, eval__episodes=1, save_every=0.2, **more)
            judge = Judge()
            with Signals(cfg.grace) as signals, Trainer(cfg, judge, signals=signals) as trainer:
                method, after = PHASES[phase]
                owner: Any = judge if hasattr(judge, method) else trainer.log if method == "close" else trainer
                owner = Film if method == "add" else trainer.collector if method == "step" else owner
                interrupted(owner, method, after + case if method in ("collect", "learn", "step") else after)
                trainer.run()

        code = ended(child(run))
        held += code == 143 and loadable(place)

        def resume(place: Path = place, case: int = case) -> None:
            train(tiny(place, steps=120 + 10 * case, eval__every=0), Judge(), place)

        assert ended(child(resume)) == 0
    record(f"SIGTERM while: {phase}", held, cases)
    assert held == cases


def test_sigterm_while_importing_leaves_nothing(tmp_path: Path) -> None:
    held, cases = 0, lane(3, 1)
    for case in range(cases):
        command = [
            sys.executable,
            "-m",
            "polydream",
            "train",
            "--preset",
            "smoke",
            "--task",
            "world/fourrooms",
            "--dir",
            str(tmp_path / "run"),
        ]
        process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
        time.sleep(0.8 + 0.4 * case)
        process.terminate()
        _, told = process.communicate(timeout=60)
        held += process.returncode in (143, -signal.SIGTERM) and "Traceback" not in told and not (tmp_path / "run").exists()
    record("SIGTERM while: import", held, cases)
    assert held == cases


def test_a_second_signal_and_a_spent_grace_end_the_process_at_once() -> None:
    def busy(grace: float) -> None:
        with Signals(grace) as signals, signals.held():
            os.kill(os.getpid(), signal.SIGINT)
            if grace > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            while True:
                pass

    assert ended(child(lambda: busy(60.0))) == 143
    assert ended(child(lambda: busy(0.2))) == 130


def test_signals_wait_for_the_end_of_what_is_held_and_not_in_a_window() -> None:
    done: list[str] = []
    with Signals() as signals, pytest.raises(Stopped) as stop, signals.held():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("held")
        with signals.open():
            done.append("never")
    assert done == ["held"] and stop.value.code == 143
    with Signals() as signals:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        signals.check()  # told once
        with signals.held():
            pass
