"""Every recorded case of the reference implementation. A case of a kind unknown here fails: nothing is skipped.

`POLYDREAM_GOLDEN=DIR pytest tests/conformance` runs another folder of the same format.
"""

import pytest

from tests.conformance import agents, data, parts, replay
from tests.conformance.golden import ROOT, Case, cases

CHECKS = parts.CHECKS | data.CHECKS | replay.CHECKS | {"agent": agents.check_agent}


def test_the_folder_holds_cases() -> None:
    assert cases(), f"no recorded cases under {ROOT}"


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.topic}/{c.name}")
def test_case(case: Case) -> None:
    assert case.topic in CHECKS, f"no check for recorded values of kind {case.topic!r}"
    CHECKS[case.topic](case.load())
