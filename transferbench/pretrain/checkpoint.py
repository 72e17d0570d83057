"""Everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferbench.errors import UserError
from transferbench.storage import write_atomic

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state between two optimizer steps.

    Attributes
    ----------
    recipe : str
        Digest of the resolved recipe.
    data : str
        Fingerprint of the images.
    step : int
        Optimizer steps done; epoch and position inside it follow from the recipe.
    seconds : float
        Time spent training so far, over all processes that worked on the run.
    method, optimizer : dict
        State dictionaries.
    random : dict of Tensor
        States of the generators. The order of the images and the views need none: they are
        drawn afresh for every epoch and batch from the seed and the step.
    monitors : dict
        Sums since the last line of the log, and warnings already given.
    """

    recipe: str
    data: str
    step: int
    seconds: float
    method: dict[str, Any]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    monitors: dict[str, Any]

    def finite(self) -> bool:
        """Whether all floating-point state of the method is finite."""
        sums = [
            value.sum() for value in self.method.values()
            if isinstance(value, Tensor) and value.is_floating_point()
        ]  # fmt: skip
        return all(bool(total.isfinite()) for total in sums)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write atomically: a kill or a full disk leaves the checkpoint before it as it was.

    Raises
    ------
    UserError
        If the disk is full or the folder read-only.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    memory = io.BytesIO()
    # Through memory, because a disk that fills under torch's own writer is a RuntimeError there.
    torch.save({"format": FORMAT, **content}, memory)
    write_atomic(path, lambda file: file.write(memory.getbuffer()))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, never executing code from it.

    Raises
    ------
    UserError
        If the file is torn or is something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return Checkpoint(**content)
    except (
        OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path} cannot be read as a checkpoint of this version; "
            "run the same command with --restart to begin anew"
        ) from error


def random_states(device: torch.device) -> list[Tensor]:
    """Return the global random state: the CPU's, and the GPU's if `device` is one."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
