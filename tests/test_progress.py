"""The progress line tells exact numbers from a clock held in hand, live in a terminal and plain elsewhere."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from polydream.core.progress import Progress, first_screen, rate, span


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(*, terminal: bool = False, total: int = 1000, start: int = 0, every: float = 60.0) -> tuple[Progress, Clock, StringIO]:
    clock, out = Clock(), StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, soft_wrap=not terminal, highlight=False)
    return Progress(total, start=start, every=every, console=console, clock=clock), clock, out


def test_line_by_hand() -> None:
    progress, clock, _ = make()
    clock.now += 20
    progress.update(200, updates=100, score=3.0)
    clock.now += 20
    progress.update(600, updates=300, score=5.0)
    # 600 steps and 300 updates in 40 s; 400 steps are left at 15 per second
    assert progress.speeds() == {"fps": 15.0, "ups": 5.0}
    assert progress.line() == "step 600/1,000 (60%) | return 4.0 (last 2 episodes) | 15.0 env steps/s | 5.0 updates/s | 27 s left"


def test_speed_is_that_of_the_last_minute() -> None:
    progress, clock, _ = make(total=10**6)
    for _ in range(100):  # slow while compiling
        clock.now += 1
        progress.update(progress.step + 1, updates=progress.step)
    for _ in range(61):
        clock.now += 1
        progress.update(progress.step + 50, updates=progress.step)
    assert progress.speeds() == {"fps": 50.0, "ups": 50.0}


def test_a_resumed_run_counts_only_its_own_steps_and_updates() -> None:
    progress, clock, _ = make(start=500)
    clock.now += 10
    progress.update(500, updates=9000)
    clock.now += 10
    progress.update(540, updates=9010)
    assert progress.speeds() == {"fps": 2.0, "ups": 0.5}
    assert "step 540/1,000 (54%)" in progress.line()


def test_return_is_the_mean_of_the_last_ten_episodes() -> None:
    progress, clock, _ = make()
    assert "return" not in progress.line()
    for i in range(25):
        progress.update(i, score=float(i))  # within one refresh: nothing may be lost
    assert "return 19.5 (last 10 episodes)" in progress.line()


def test_plain_lines_come_once_per_minute() -> None:
    progress, clock, out = make(total=100_000)
    for second in range(1, 301):
        clock.now += 1
        progress.update(second)
        if second == 10:
            assert out.getvalue().count("\n") == 1  # the first one early
    lines = out.getvalue().splitlines()
    assert [int(re.findall(r"step (\d+)", line)[0]) for line in lines] == [10, 70, 130, 190, 250]
    assert "\x1b" not in out.getvalue()
    progress.close()
    progress.close()
    assert out.getvalue().count("\n") == 6
    assert "300 s" not in out.getvalue()
    assert out.getvalue().splitlines()[-1].endswith("5 min 00 s elapsed")


def test_terminal_gets_one_line_redrawn() -> None:
    progress, clock, out = make(terminal=True)
    for step in range(0, 1000, 100):
        clock.now += 1
        progress.update(step)
    assert out.getvalue().count("\n") == 0
    assert "step 900/1,000 (90%)" in out.getvalue()
    progress.warn("the GPU [cuda:0] is not used")
    progress.say("evaluation: [12]")
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", out.getvalue())
    assert "warning: the GPU [cuda:0] is not used" in text
    assert "evaluation: [12]\n" in text
    assert text.rstrip().endswith("| 10 s elapsed | 1 warning")
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # the cursor is given back


def test_the_terminal_is_given_back_after_an_error() -> None:
    progress, _, out = make(terminal=True)
    with pytest.raises(RuntimeError), progress:
        raise RuntimeError
    assert "\x1b[?25h" in out.getvalue()


def test_redrawing_is_bounded() -> None:
    progress, clock, out = make(terminal=True, total=10**6)
    for step in range(10_000):
        clock.now += 0.001
        progress.update(step)
    assert out.getvalue().count("step ") <= 42  # 10 s at four per second


def test_numbers_as_people_read_them() -> None:
    assert [span(s) for s in (-1, 0, 42.4, 59.6, 185, 7620, 273_600)] == [
        "0 s",
        "0 s",
        "42 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 07 min",
        "3 d 04 h",
    ]
    assert [rate(r) for r in (0, 0.516, 8.06, 210.4, 12_345)] == ["0.00", "0.52", "8.1", "210", "12,345"]


def test_first_screen_plain() -> None:
    rows = {
        "task": "dmc/x",
        "parameters": {"encoder": 14304, "total": 688004},
        "ratio": 512.0,
        "video": True,
        "dir": "runs/[x]",
        "modes": ("a", "b"),
    }
    assert first_screen(rows, terminal=False) == (
        "task        dmc/x\n"
        "parameters  encoder   14,304\n"
        "            total    688,004\n"
        "ratio       512\n"
        "video       yes\n"
        "dir         runs/[x]\n"
        "modes       a, b\n"
    )


def test_first_screen_in_a_terminal_has_colour_and_keeps_every_value() -> None:
    text = first_screen({"task": "dmc/x", "where": "/very/long/" + "p" * 100}, terminal=True, width=60)
    assert "\x1b[" in text
    bare = re.sub(r"\x1b\[[0-9;]*m|\s", "", text)
    assert "/very/long/" + "p" * 100 in bare
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 60 for line in text.splitlines())
