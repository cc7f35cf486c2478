"""The table of the campaigns, printed after the tests. `make faults` runs the full lane."""

from __future__ import annotations

from typing import Any

from . import harness


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per campaign: cases that held, of how many."""
    if harness.RESULTS:
        terminalreporter.section(f"faults, {'full' if harness.FULL else 'short'} lane")
        for campaign, held, cases, remark in harness.RESULTS:
            terminalreporter.write_line(f"{campaign:70} {held:4} of {cases:4}  {remark}")
        held, cases = (sum(row[i] for row in harness.RESULTS) for i in (1, 2))
        terminalreporter.write_line(f"{'all of these':70} {held:4} of {cases:4}")
