"""The intercepts of logistic regression, which are free: always at their optimum for W."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 50


def probabilities(z: Tensor, softmax: bool) -> Tensor:
    """Return those of scores (P, K, N)."""
    return z.softmax(dim=1) if softmax else z.sigmoid()


def intercept_hessian(p: Tensor, softmax: bool) -> Tensor:
    """Return the second derivatives by the intercepts, invertible: (P, K, K), of sigmoids (P, K).

    A constant common to all classes changes no probability; with its direction filled, the inverse
    is one, and a step has mean 0.
    """
    return filled(class_hessian(p)) if softmax else (p * (1 - p)).sum(dim=-1) + 1e-300


def class_hessian(p: Tensor) -> Tensor:
    """Return the sum (P, K, K) of H_n of a softmax, for probabilities (P, K, N)."""
    import torch

    return torch.diag_embed(p.sum(dim=-1)) - p @ p.mT


def filled(hessian: Tensor) -> Tensor:
    """Fill the direction of a constant in `class_hessian`."""
    import torch

    size = hessian.diagonal(dim1=1, dim2=2).mean(dim=-1)[:, None, None] + 1e-300
    identity = torch.eye(hessian.shape[-1]).to(hessian)
    return hessian + size / len(identity) + 1e-14 * size * identity


def balance(
    b: Tensor, z: Tensor, p: Tensor, counts: Tensor, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Move the intercepts to where each class's probabilities sum to its images' number.

    Newton's method, with the first Hessian for as long as that is good enough. A softmax is not
    computed again: of z + s it is p exp(s), divided by its sum.

    Parameters
    ----------
    b : tensor (P, K)
    z, p : tensors (P, K, N)
        Scores, b included, and their probabilities; both are overwritten.
    counts : tensor (K,)

    Returns
    -------
    b, z, p
    """
    import torch

    n, left, hessian = z.shape[-1], float("inf"), None
    shift, scale = torch.zeros_like(b), torch.ones_like(b)
    for _ in range(STEPS):
        if softmax:
            norm = scale[:, None] @ p
            sums = scale * (p @ norm.reciprocal().mT)[..., 0]
        else:
            sums = p.sum(dim=-1)
        residual = sums - counts
        was, left = left, float(residual.abs().max())
        if left <= 1e-13 * n or (left <= 1e-11 * n and left > was / 2):
            break
        if hessian is None or left > was / 10:
            if softmax:
                p, scale = p.mul_(scale[..., None]).div_(norm), torch.ones_like(b)
            hessian = intercept_hessian(p, softmax)
        step = _step(hessian, residual, softmax)
        shift = shift + step
        if softmax:
            scale = scale * step.exp()
        else:
            z += step[..., None]
            p = probabilities(z, softmax)
    if softmax:
        norm = scale[:, None] @ p
        p.mul_(scale[..., None]).div_(norm)
        z += shift[..., None]
    return b + shift, z, p


def _step(hessian: Tensor, residual: Tensor, softmax: bool) -> Tensor:
    """Newton's step (P, K), shortened: on a sigmoid it overshoots from further than 2.17."""
    import torch

    if not softmax:
        return (-residual / hessian).clamp(-2, 2)
    step: Tensor = -torch.linalg.solve(hessian, residual)
    step *= 2 / step.abs().amax(dim=1, keepdim=True).clamp_min(2)
    return step
