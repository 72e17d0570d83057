"""Turns golden cases (JSON) into calls of the project's own code.

An adapter is a function `(inputs, params, key) -> value` registered for a key or a prefix of keys::

    @golden("swav/sinkhorn")
    def sinkhorn_case(inputs, params, key):
        return sinkhorn(inputs["scores"], params["epsilon"], params["iterations"])

The longest registered name that begins a case's key serves it. Inputs are
float64 tensors (int64 where the literal values are all integers). The returned value is compared
with the case's `expected`: a number, a list, a tensor, or a dict or list of those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

Adapter = Callable[[dict[str, Any], dict[str, Any], str], Any]
ADAPTERS: dict[str, Adapter] = {}
CASES = Path(__file__).parent / "cases"


def golden(name: str, *, whole: Set[str] | None = None) -> Callable[[Adapter], Adapter]:
    """Register an adapter for every key that is `name` or begins with `name`.

    If `whole` names the inputs that are whole numbers, the adapter gets them as `typed` does.
    """

    def register(adapter: Adapter) -> Adapter:
        assert name not in ADAPTERS, f"two adapters for {name}"
        if whole is None:
            ADAPTERS[name] = adapter
        else:
            ADAPTERS[name] = lambda inputs, params, key: adapter(typed(inputs, whole), params, key)
        return adapter

    return register


def adapter_of(key: str) -> Adapter | None:
    """Return the adapter with the longest name that begins `key`."""
    names = [name for name in ADAPTERS if key.startswith(name)]
    return ADAPTERS[max(names, key=len)] if names else None


def make_input(spec: Any) -> Any:
    """Draw or read one input of a case."""
    if not isinstance(spec, dict):
        return spec
    if "values" in spec:
        array = np.array(spec["values"])
        return torch.from_numpy(array if array.dtype == np.int64 else array.astype(np.float64))
    array = np.random.RandomState(spec["seed"]).standard_normal(spec["shape"]) * spec["scale"]
    match spec.get("post", "none"):
        case "none":
            pass
        case "l2_rows":
            array = array / np.linalg.norm(array, axis=-1, keepdims=True)
        case "softmax_rows":
            array = np.exp(array - array.max(-1, keepdims=True))
            array = array / array.sum(-1, keepdims=True)
        case "abs":
            array = np.abs(array)
        case other:
            raise ValueError(f"unknown post '{other}'")
    return torch.from_numpy(array)


def typed(inputs: dict[str, Any], whole: Set[str]) -> dict[str, Any]:
    """Make tensors int64 if `whole` has their name without its number, else float64.

    However the literals are written: [1, 0] may be a unit row, and an empty list has no type.
    """
    return {
        name: value.to(torch.int64 if name.rstrip("0123456789") in whole else torch.float64)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.items()
    }


def load_cases(folder: Path) -> list[dict[str, Any]]:
    """Return every case of every JSON file in a folder."""
    cases = []
    for file in sorted(folder.glob("*.json")):
        cases += json.loads(file.read_text())["cases"]
    return cases


def plain(value: Any) -> Any:
    """Turn tensors and arrays inside a value into nested lists of numbers."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def assert_close(actual: Any, expected: Any, where: str) -> None:
    """Compare nested values: |a - b| <= 1e-6 + 1e-6 |b|, same shapes and keys."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict), f"{where}: a mapping was expected, got {type(actual)}"
        for key in expected:
            assert key in actual, f"{where}: the adapter did not return '{key}'"
            assert_close(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list), f"{where}: a list was expected, got {actual!r}"
        assert len(actual) == len(expected), f"{where}: {len(actual)} values, not {len(expected)}"
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(a, e, f"{where}[{i}]")
    elif isinstance(expected, bool) or expected is None or isinstance(expected, str):
        assert actual == expected, f"{where}: {actual!r}, not {expected!r}"
    else:
        assert isinstance(actual, int | float), f"{where}: a number was expected, got {actual!r}"
        assert abs(actual - expected) <= 1e-6 + 1e-6 * abs(expected), (
            f"{where}: {actual!r}, not {expected!r}"
        )


def check(case: dict[str, Any]) -> None:
    """Run one case through its adapter and compare."""
    key = case["key"]
    adapter = adapter_of(key)
    assert adapter is not None, f"no adapter serves {key}"
    inputs = {name: make_input(spec) for name, spec in case["inputs"].items()}
    value = plain(adapter(inputs, case["params"], key))
    assert_close(value, plain(case["expected"]), key)
