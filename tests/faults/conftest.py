"""What a campaign recorded goes with its test's report, so that the table (tests/conftest.py) is whole however many processes play."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import harness


@pytest.fixture(autouse=True)
def handed_in(request: pytest.FixtureRequest) -> Iterator[None]:
    """Attach the rows that a test recorded, also where it failed."""
    yield
    request.node.user_properties += [("fault campaign", row) for row in harness.RESULTS]
    harness.RESULTS.clear()
