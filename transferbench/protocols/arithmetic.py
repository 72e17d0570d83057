"""How products of float32 are computed, whatever the program around has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def arithmetic(*, tf32: bool, benchmark: bool, deterministic: bool) -> Iterator[None]:
    """Set torch's flags for a while: a number must not depend on the program that asks for it.

    Every operation has a flag of its own, in which all ways to choose a precision end.

    Parameters
    ----------
    tf32 : bool
        Whether cuDNN may round to TF32. All other products are those of float32.
    benchmark, deterministic : bool
        Whether cuDNN tries out its algorithms, and whether it keeps to those that repeat their
        bits.
    """
    import torch

    # torch makes the places of these flags as it runs.
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    cudnns = "tf32" if tf32 else "ieee"
    wanted: list[tuple[Any, str, Any]] = [
        # The older flag first: torch refuses to tell it where it contradicts the newer ones.
        (cudnn, "allow_tf32", tf32),
        (cudnn.conv, "fp32_precision", cudnns),
        (cudnn.rnn, "fp32_precision", cudnns),
        *((each, "fp32_precision", "ieee") for each in (cuda.matmul, mkldnn.matmul)),
        *((each, "fp32_precision", "ieee") for each in (mkldnn.conv, mkldnn.rnn)),
        (cudnn, "enabled", True),
        (cudnn, "benchmark", benchmark),
        (cudnn, "deterministic", deterministic),
    ]
    before = [(place, name, _told(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            if value is not None:
                setattr(place, name, value)


def _told(place: Any, name: str) -> Any:
    try:
        return getattr(place, name)
    except RuntimeError:
        return None
