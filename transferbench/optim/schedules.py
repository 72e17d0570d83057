"""Learning rates and momenta as functions of the step. Imports no torch.

Steps and epochs are counted from 0. A rate of a step is the one that this step's update uses.
"""

from __future__ import annotations

import math

from transferbench.optim.formula import value_at
from transferbench.optim.settings import ScheduleSettings


def half_cosine(progress: float) -> float:
    """Fall from 1 at `progress` 0 to 0 at 1 along half a cosine (arXiv 1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def scaled_rate(base: float, batch_size: int, scaling: str = "linear") -> float:
    """Scale a rate with the images of one step, over all processes.

    "linear": base * batch_size / 256; "sqrt": base * sqrt(batch_size) (arXiv 2002.05709 app. B.1).
    """
    return base * batch_size / 256 if scaling == "linear" else base * math.sqrt(batch_size)


def warmup_then_cosine(
    at: float, *, warmup: float, total: float, peak: float, floor: float = 0.0
) -> float:
    """Rise linearly from 0 to `peak` at `warmup`, then fall to `floor * peak` at `total`.

    `at`, `warmup` and `total` are in one unit: steps, or epochs with their fraction. Past `total`
    the rate stays at its end.
    """
    if at < warmup:
        return peak * at / warmup
    if total <= warmup:
        return peak
    share = half_cosine(min((at - warmup) / (total - warmup), 1.0))
    return peak * (floor + (1.0 - floor) * share)


def simclr_steps(
    num_images: int, batch_size: int, epochs: int, warmup_epochs: float
) -> tuple[int, int]:
    """Count (warm-up steps, total steps) as SimCLR does (google-research/simclr: model_util.py).

    Images are counted across epochs, so the total is floor(images * epochs / batch) + 1.
    """
    warmup = math.floor(warmup_epochs * num_images / batch_size)
    return warmup, num_images * epochs // batch_size + 1


def epoch_steps(
    epoch: int,
    base: float,
    *,
    milestones: tuple[int, ...] | None = None,
    every: int | None = None,
    gamma: float = 0.1,
) -> float:
    """Multiply `base` by `gamma` at each milestone, or once `every` so many epochs."""
    drops = epoch // every if every else sum(epoch >= m for m in milestones or ())
    return base * gamma**drops


def swav_rate(
    step: int, *, warmup: int, total: int, base: float, start: float, final: float
) -> float:
    """Read SwAV's table (arXiv 2006.09882; facebookresearch/swav: main_swav.py).

    `warmup` steps from `start` to `base`, both included, then a cosine from `base` to `final`
    over the other steps: the peak is used twice, `final` never quite.
    """
    if step < warmup:
        return start + (base - start) * step / (warmup - 1) if warmup > 1 else start
    share = half_cosine(min((step - warmup) / max(total - warmup, 1), 1.0))
    return final + (base - final) * share


def pycontrast_rate(
    step: int,
    *,
    steps_per_epoch: int,
    warmup_epochs: float,
    epochs: int,
    base: float,
    start: float,
    final: float,
) -> float:
    """Cosine over epochs counted from 1 (HobbitLong/PyContrast: learning/base_trainer.py).

    `final + (base - final) * (1 + cos(pi * e / epochs)) / 2` in epoch e; before, in each step, a
    line from `start` to the value of the last warm-up epoch.
    """

    def at(epoch: float) -> float:
        return final + (base - final) * half_cosine(min(epoch / epochs, 1.0))

    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return start + (at(warmup_epochs) - start) * step / warmup
    return at(step // steps_per_epoch + 1)


def label_times(epochs: int, count: int) -> list[float]:
    """Return when SeLa makes its labels anew, in epochs, `count` times, ascending.

    `(epochs + 1.01) * x**2` for x on an even grid from 0 to 1, both included: often at first
    (arXiv 1911.05371; yukimasano/self-label: main.py). SeLa-v2 does so in every epoch.
    """
    steps = max(count - 1, 1)
    return [(epochs + 1.01) * (number / steps) ** 2 for number in range(count)]


def cosine_momentum(base: float, step: float, total: float) -> float:
    """Rise from `base` at step 0 to 1 at `total` along a cosine (BYOL, arXiv 2006.07733 sec. 3.3).

    1 - (1 - base) * (1 + cos(pi * step / total)) / 2; MoCo v3 gives epochs with their fraction.
    """
    return 1.0 - (1.0 - base) * half_cosine(step / total)


def learning_rate(
    settings: ScheduleSettings,
    base: float,
    step: int,
    *,
    steps_per_epoch: int,
    epochs: int,
    num_images: int | None = None,
    batch_size: int | None = None,
) -> float:
    """Return the learning rate of one step.

    Parameters
    ----------
    settings : ScheduleSettings
        The rule.
    base : float
        The peak rate of the parameter group, already scaled for the batch size.
    step : int
        Optimizer steps done before this one.
    steps_per_epoch, epochs : int
        Of the whole run.
    num_images, batch_size : int, optional
        For "cosine", which counts images across epochs; without them every epoch is taken to be
        whole batches.
    """
    warmup_epochs = settings.warmup_epochs or 0.0
    floor = settings.floor or 0.0
    epochs = settings.epochs or epochs
    epoch = step // steps_per_epoch
    match settings.name:
        case "cosine":
            if num_images is None or batch_size is None:
                num_images, batch_size = steps_per_epoch, 1
            warmup, total = simclr_steps(num_images, batch_size, epochs, warmup_epochs)
            return warmup_then_cosine(step, warmup=warmup, total=total, peak=base, floor=floor)
        case "fractional-cosine":
            at = step / steps_per_epoch
            return warmup_then_cosine(
                at, warmup=warmup_epochs, total=epochs, peak=base, floor=floor
            )
        case "epoch-cosine":
            return warmup_then_cosine(epoch, warmup=0, total=epochs, peak=base, floor=floor)
        case "pycontrast":
            return pycontrast_rate(
                step,
                steps_per_epoch=steps_per_epoch,
                warmup_epochs=warmup_epochs,
                epochs=epochs,
                base=base,
                start=(settings.warmup_start or 0.0) * base,
                final=floor * base,
            )
        case "swav":
            return swav_rate(
                step,
                warmup=round(warmup_epochs * steps_per_epoch),
                total=epochs * steps_per_epoch,
                base=base,
                start=(settings.warmup_start or 0.0) * base,
                final=floor * base,
            )
        case "step" | "constant" | "lambda":
            at = step / steps_per_epoch
            if at < warmup_epochs:
                return base * at / warmup_epochs
            if settings.name == "constant":
                return base
            if settings.name == "lambda":
                assert settings.formula is not None  # the settings hold one
                return base * value_at(settings.formula, min(epoch, epochs - 1), epochs)
            return epoch_steps(
                epoch,
                base,
                milestones=settings.milestones,
                every=settings.every,
                gamma=0.1 if settings.gamma is None else settings.gamma,
            )
