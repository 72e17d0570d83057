"""Transfer measured during someone's own training, every few epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferbench.api.evaluating import evaluate
from transferbench.errors import UserError
from transferbench.protocols.protocol import Outcome

if TYPE_CHECKING:
    from torch import nn

    from transferbench.data.dataset import Dataset


class TransferCallback:
    """Evaluate the backbone of a network in training, every so many epochs.

    In a plain loop, call it with the network and the number of the epoch that ended, from 0. Its
    `on_train_epoch_end(trainer, module)` is what Lightning calls by that name; nothing of Lightning
    is imported, any trainer with a `current_epoch` will do. The network is left as it was, as
    `evaluate` has it.

    Parameters
    ----------
    dataset : str or Dataset
        As for `evaluate`. One that is loaded once, not named, saves reading it at every call.
    protocol : str
        A registered protocol.
    every : int
        Epochs from one evaluation to the next: at the end of number `every` - 1, of
        2 `every` - 1, and so on.
    backbone : callable
        From the network in training to the module (B, 3, S, S) -> (B, D) that is evaluated;
        default the network itself.
    name : str, optional
        Under which the value is logged; default "DATASET/PROTOCOL".
    options
        Further ones of `evaluate`: `parameters`, `input_size`, `mean`, `std`, `device` ...

    Attributes
    ----------
    history : dict
        Epoch to Outcome.

    Raises
    ------
    UserError
        If `every` is below 1; when called, as `evaluate`.
    """

    def __init__(
        self,
        dataset: str | Dataset,
        protocol: str = "knn",
        *,
        every: int = 1,
        backbone: Callable[[Any], nn.Module] | None = None,
        name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        data_root: str | Path | None = None,
        **options: Any,
    ) -> None:
        if every < 1:
            raise UserError(f"every is a number of epochs, 1 or more, not {every}")
        of = dataset if isinstance(dataset, str) else dataset.name
        self.dataset, self.protocol, self.every = dataset, protocol, every
        self.backbone = backbone
        self.name = name or f"{of.rpartition(':')[2]}/{protocol}"
        self.options = {"parameters": parameters, "data_root": data_root, **options}
        self.history: dict[int, Outcome] = {}

    def __call__(self, network: nn.Module, epoch: int) -> Outcome | None:
        """Evaluate if it is the epoch's turn; return the outcome, else None."""
        if (epoch + 1) % self.every:
            return None
        module = network if self.backbone is None else self.backbone(network)
        outcome = evaluate(module, self.dataset, self.protocol, **self.options)
        self.history[epoch] = outcome
        return outcome

    def on_train_epoch_end(self, trainer: Any, module: nn.Module) -> None:
        """Evaluate if it is the epoch's turn, and log the value by `module.log(name, value)`.

        Of several processes the first evaluates; the others wait for its value and log the same,
        so that it can be monitored.
        """
        epoch = int(trainer.current_epoch)
        if (epoch + 1) % self.every:
            return
        value, reason = float("nan"), ""
        failure: Exception | None = None
        if getattr(trainer, "is_global_zero", True):
            try:
                outcome = self(module, epoch)
                value = value if outcome is None else outcome.value
            # The other processes must not wait for a value that never comes.
            except Exception as error:
                failure, reason = error, f"{type(error).__name__}: {error}"
        broadcast = getattr(getattr(trainer, "strategy", None), "broadcast", None)
        if broadcast is not None:
            value, reason = broadcast((value, reason), src=0)
        if failure is not None:
            raise failure
        if reason:
            raise UserError(f"the first process could not evaluate: {reason}")
        log = getattr(module, "log", None)
        if log is not None:
            log(self.name, value)
