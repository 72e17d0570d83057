from __future__ import annotations

from typing import Any

from tests.golden.harness import check


def test_golden_case(golden_case: dict[str, Any]) -> None:
    check(golden_case)
