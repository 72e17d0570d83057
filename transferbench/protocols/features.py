"""Features of a split, extracted once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transferbench.data.dataset import PIXELS_VERSION
from transferbench.errors import UserError
from transferbench.progress import SILENT, Progress
from transferbench.storage import cache_folder, digest, write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transferbench.backbones.backbone import Backbone
    from transferbench.data.dataset import Dataset, Split

Features = NDArray[np.float32]

VERSION = 1  # raised whenever the same backbone and split would give other features


@dataclass(frozen=True)
class View:
    """How a split's images come to a backbone.

    Attributes
    ----------
    name : str
        Tells its features from others in the cache; raised, say to "flip-2", whenever the same
        images would give others. Empty for `PLAIN`.
    pixels : callable
        From split, backbone and progress to the stored images, uint8 (N, S, S, 3).
    prepare : callable
        From backbone, images (B, S, S, 3) and the place of the first to the module's input.
    """

    name: str
    pixels: Callable[[Split, Backbone, Progress], NDArray[np.uint8]]
    prepare: Callable[[Backbone, Tensor, int], Tensor]


def _fitted(split: Split, backbone: Backbone, progress: Progress) -> NDArray[np.uint8]:
    return split.pixels(
        backbone.input_size, interpolation=backbone.interpolation, progress=progress
    )


# Channels last from the pixels on: the normalised images keep the bytes' order.
PLAIN = View("", _fitted, lambda backbone, images, start: backbone.normalize(images))
"""Shorter side to the input size, centre cut out, normalised."""


def extract(
    backbone: Backbone,
    split: Split,
    *,
    view: View = PLAIN,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> Features:
    """Return the features of a split's images, from the cache if they are there.

    Those of a backbone that is not `cacheable` are computed every time. The network runs in
    evaluation mode and float32; its flags are left as they were.

    Parameters
    ----------
    backbone : Backbone
    split : Split
        N images.
    view : View
        How they are shown.
    device : str
        Where to compute; not part of the cache's key.
    progress : Progress
        Shows images per second.

    Returns
    -------
    array (N, D) float32
        Memory-mapped and read-only if they are kept in the cache.

    Raises
    ------
    UserError
        If the device is not at hand, or the network refuses the images or gives anything but
        (B, D).
    """
    if not backbone.cacheable:
        return _forward(backbone, split, view, device, progress)
    path = features_path(backbone, split, view)
    kept = _open_kept(path, len(split))
    if kept is None:
        features = _forward(backbone, split, view, device, progress)
        write_atomic(path, lambda file: np.save(file, features))
        kept = _open_kept(path, len(split))
    assert kept is not None, f"{path} cannot be read back"
    return kept


def features_path(backbone: Backbone, split: Split, view: View = PLAIN) -> Path:
    """Return the cache file that holds, or will hold, the features of a split."""
    shown = [view.name] if view.name else []
    versions = [VERSION, PIXELS_VERSION]
    key = digest([*versions, backbone.digest, split.fingerprint, backbone.input_size, *shown])
    return cache_folder("features") / f"{key}.npy"


def _open_kept(path: Path, count: int) -> Features | None:
    """Open a cache file; one that is absent, cut short or no features of `count` images is None."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    # The header is parsed as Python text, so that damage meets many kinds of exception.
    except Exception:
        return None
    sound = isinstance(array, np.memmap) and array.dtype == np.float32 and array.ndim == 2
    return array if sound and len(array) == count and size == array.offset + array.nbytes else None


def gather(
    backbone: Backbone,
    dataset: Dataset,
    names: tuple[str, ...],
    *,
    view: View = PLAIN,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> tuple[Features, NDArray[Any]]:
    """Return features (N, D) and labels (N,) or (N, K) of some splits, one after the other.

    Splits that the data set lacks are left out.

    Raises
    ------
    UserError
        As `extract`, and if a feature is not a finite number or all training images have the same.
    """
    splits = [dataset.splits[name] for name in names if name in dataset.splits]
    parts = [
        extract(backbone, split, view=view, device=device, progress=progress) for split in splits
    ]
    features = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise UserError(
            f"{backbone.name} gives features that are not finite numbers for {bad} of "
            f"{len(features)} images of '{dataset.name}'"
        )
    if "train" in names and len(features) > 1 and (features == features[0]).all():
        raise UserError(
            f"{backbone.name} gives all {len(features)} training images of '{dataset.name}' the "
            "same features: it has collapsed, or its weights are not those of a trained network"
        )
    return features, np.concatenate([split.labels for split in splits])


def batch_size(input_size: int) -> int:
    """Return images per batch: as many as keep a layer of a usual network near the caches."""
    return 256 if input_size <= 64 else 128 if input_size <= 128 else 64


def _forward(
    backbone: Backbone, split: Split, view: View, device: str, progress: Progress
) -> Features:
    import torch

    from transferbench.backbones.build import first_line

    pixels = view.pixels(split, backbone, progress)
    features: Features | None = None
    done = 0
    with (
        _evaluating(backbone, device) as module,
        # A module may keep what it computes; training could not use tensors of inference mode.
        torch.no_grad(),
        progress.task(f"features of {split.name}", len(pixels), "images") as task,
    ):
        for images in _batches(pixels, batch_size(backbone.input_size), device):
            given = view.prepare(backbone, images.to(device, non_blocking=True), done)
            try:
                output = module(given)
            # Each architecture checks its input in its own way, or breaks where it does not.
            except Exception as error:
                if done or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise UserError(
                    f"{backbone.name} does not take images of {backbone.input_size} px: "
                    f"{first_line(error)}"
                ) from error
            if not isinstance(output, torch.Tensor) or output.ndim != 2:
                shape = tuple(getattr(output, "shape", ())) or type(output).__name__
                raise UserError(
                    f"{backbone.name} gives {shape} for {len(given)} images, "
                    "but features must be (images, D)"
                )
            if features is None:
                features = np.empty((len(pixels), output.shape[1]), dtype=np.float32)
            features[done : done + len(output)] = output.float().cpu().numpy()
            done += len(output)
            task.advance(len(output))
    if features is None:
        raise UserError(f"the split '{split.name}' has no images")
    return features


def _batches(pixels: NDArray[np.uint8], size: int, device: str) -> Iterator[Tensor]:
    """Yield uint8 batches (B, S, S, 3); the next is read from disk while one is computed on."""
    import torch

    from transferbench.data.images import rows

    def read(start: int) -> Tensor:
        batch = torch.from_numpy(rows(pixels, start, start + size))
        return batch.pin_memory() if device.startswith("cuda") else batch

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, 0)
        for start in range(0, len(pixels), size):
            batch = coming.result()
            coming = reader.submit(read, start + size)
            yield batch


@contextmanager
def _evaluating(backbone: Backbone, device: str) -> Iterator[nn.Module]:
    """Place a network for extraction; each of its parts gets its training flag back."""
    import torch

    from transferbench.backbones.build import place
    from transferbench.protocols.arithmetic import arithmetic

    module = backbone.module
    flags = [(part, part.training) for part in module.modules()]
    try:
        placed = place(module, device)
        # Someone's own module keeps the layout that its training has.
        if backbone.cacheable:
            placed = placed.to(memory_format=torch.channels_last)
        # The number must depend neither on the device, by rounding of products to TF32, nor on
        # the autocast of who calls.
        with (
            arithmetic(tf32=False, benchmark=False, deterministic=True),
            torch.autocast(device.partition(":")[0], enabled=False),
        ):
            yield placed
    finally:
        for part, flag in flags:
            part.training = flag
