"""Golden cases of the data room."""

from __future__ import annotations

from typing import Any

from tests.golden.harness import golden
from transferbench.data.splits import random_fifth


@golden("protocol/split/random-fifth")
def split_random_fifth(inputs: dict[str, Any], params: dict[str, Any], key: str) -> Any:
    train, validation = random_fifth(params["n"], seed=params["seed"])
    return {"n_val": len(validation), "val": validation, "first_train": train[:5]}
