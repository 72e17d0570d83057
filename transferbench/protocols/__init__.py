"""A backbone and a data set in, a score with its uncertainty out.

`LogisticRegressionPath` is for use beyond the project's own protocols; it is imported when asked
for, since scikit-learn is slow to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transferbench.protocols.logistic_path import LogisticRegressionPath

__all__ = ["LogisticRegressionPath"]


def __getattr__(name: str) -> Any:
    if name == "LogisticRegressionPath":
        from transferbench.protocols import logistic_path

        return logistic_path.LogisticRegressionPath
    raise AttributeError(f"module 'transferbench.protocols' has no attribute '{name}'")
