from __future__ import annotations

from typing import Any

from tests.golden.harness import check


def test_golden_case(golden_case: dict[str, Any]) -> None:
    check(golden_case)


def test_a_case_may_write_its_rows_in_whole_numbers() -> None:
    rows = {"x": {"values": [[0, 0], [0, 2], [8, 0]]}, "init": {"values": [[0, 1], [9, 0]]}}
    expected = [[0, 0, 1], [[0, 1], [1, 0]], [1, 1, 0]]
    case = {"key": "pcl-v1/kmeans/axes", "inputs": rows, "params": {"steps": 1}}
    check({**case, "expected": expected})
    logits = {"logits": {"values": [[0, 0]]}, "labels": {"values": [1]}}
    case = {"key": "supervised/ce/uniform", "inputs": logits, "params": {}}
    check({**case, "expected": 0.69314718056})
