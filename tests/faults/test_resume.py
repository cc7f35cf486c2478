"""A run stopped anywhere and resumed in a new process is bit-equal to one that was never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polydream.core.registry import registered
from polydream.core.train import Trainer
from polydream.eval.judge import Judge

from .harness import child, contents, ended, lane, record, rows, same_rows, tiny

OPTIONS = {"steps": 150, "eval__every": 60, "eval__episodes": 1, "log__every": 20, "log__report": 60, "env__count": 2}


def play(cfg, out: Path, resume: bool = False, until: int = 0) -> None:  # type: ignore[no-untyped-def]
    """Train to the end, or stop as a signal would after `until` rows; write the fingerprint."""
    with Trainer(cfg, Judge(), Path(cfg.dir) if resume else None) as trainer:
        if until:
            original = trainer.collect

            def collect() -> None:
                original()
                if trainer.count.rows >= until and not trainer.signals.pending:
                    trainer.signals._number = 15  # as if SIGTERM had arrived in the middle of the iteration

            trainer.collect = collect  # type: ignore[method-assign]
        trainer.run()
        out.write_text(contents(trainer))


CASES: dict[str, dict[str, Any]] = {name: {"variant": name} for name in sorted(registered("polydream.variants"))}
CASES["beside learning"] = {"env__ahead": 3, "env__count": 1, "env__timeout": 600.0}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_is_bit_equal_to_one_never_stopped(case: str, tmp_path: Path) -> None:
    whole = tiny(tmp_path / "whole", **OPTIONS | CASES[case])
    assert ended(child(lambda: play(whole, tmp_path / "whole.txt"))) == 0
    points = [20 + 13 * i for i in range(lane(10, 2))]
    held = 0
    for point in points:
        part = replace(whole, dir=str(tmp_path / str(point)))
        assert ended(child(lambda part=part, point=point: play(part, tmp_path / "no", until=point))) == 143  # type: ignore[misc]
        assert ended(child(lambda part=part: play(part, tmp_path / "got.txt", resume=True))) == 0  # type: ignore[misc]
        same = (tmp_path / "got.txt").read_text() == (tmp_path / "whole.txt").read_text()
        held += same and same_rows(rows(tmp_path / "whole"), rows(tmp_path / str(point)))
    record(f"bit-exact resume, {case}", held, len(points))
    assert held == len(points)


def test_save_resume_save_gives_equal_hashes(tmp_path: Path) -> None:
    cfg = tiny(tmp_path / "run", steps=80)

    def again() -> None:
        with Trainer(cfg, resume=tmp_path / "run") as trainer:
            (tmp_path / "second.txt").write_text(contents(trainer))
            trainer.save()

    assert ended(child(lambda: play(cfg, tmp_path / "first.txt"))) == 0
    for _ in range(2):
        assert ended(child(again)) == 0
        assert (tmp_path / "first.txt").read_text() == (tmp_path / "second.txt").read_text()
