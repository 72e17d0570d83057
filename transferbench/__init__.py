"""Transfer evaluation of self-supervised image representations.

>>> import transferbench as tb
>>> run = tb.pretrain("swav", scale="tiny", data="drawn")  # doctest: +SKIP
>>> score = tb.evaluate(run, "digits", protocol="linear")  # doctest: +SKIP
>>> frame = tb.results("leaderboards/demo")  # doctest: +SKIP

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transferbench.api import TransferCallback, evaluate, pretrain, results
    from transferbench.backbones.backbone import Backbone
    from transferbench.errors import UserError
    from transferbench.pretrain.run import Run

__all__ = ["Backbone", "Run", "TransferCallback", "UserError", "evaluate", "pretrain", "results"]

_HOMES = {
    "Backbone": "transferbench.backbones.backbone",
    "Run": "transferbench.pretrain.run",
    "TransferCallback": "transferbench.api",
    "UserError": "transferbench.errors",
    "evaluate": "transferbench.api",
    "results": "transferbench.api",
}


def __getattr__(name: str) -> Any:
    if name == "pretrain":
        return import_module("transferbench.pretrain")
    if name == "__version__":
        from importlib.metadata import version

        return version("transferbench")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'transferbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Room(ModuleType):
    """The room `transferbench.pretrain`, which is also the function `transferbench.pretrain`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("transferbench.api").pretrain(*arguments, **options)


class _Package(ModuleType):
    """Python binds a sub-package to its name here; the name `pretrain` must stay callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pretrain" and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
