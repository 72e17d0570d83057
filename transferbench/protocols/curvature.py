"""Newton's direction for P logistic-regression problems at once, that differ in the penalty.

The Hessian for W is sum_n H_n (x) x x' + wd, with H_n = diag(p) - p p' of a softmax and
diag(p (1 - p)) of sigmoids; the intercepts, at their optimum, are eliminated from it. A small one
is built and factorised. Otherwise conjugate gradients multiply by it in float32, which is enough
for a direction: what a step reached is judged in float64. The preconditioner takes H_n and x x' for
independent over images: in the eigenbasis of the features' scatter and of the mean of H_n the
Hessian is then diagonal. Where a search before has gone along some directions, it is right there.

A gap is certified by the gradient's length, so the residual's length counts, not the objective that
conjugate gradients minimise: of the iterates the combination with a short residual is returned.

A pair of products X' (X W') costs 4 N R K FLOPs, a step of conjugate gradients one pair, its
preconditioner 4 K^2 R, and 8 M K R with M directions kept; the factorisation K^2 R^2 (2 N + K R /
3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transferbench.protocols.intercepts import class_hessian, filled, intercept_hessian

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from transferbench.protocols.span import Span

CG_STEPS = 500

KEPT = 32
"""Directions of a search that are kept for the next; fewer where they would take much memory."""

LARGEST_HESSIAN = 500
"""Side of the largest Hessian that is built and factorised, or of one that costs as much as those
of all labels."""


def total(values: Tensor, softmax: bool) -> Tensor:
    """Sum (P, K, ...) over each problem: to (P, 1, 1), of sigmoids, each its own, to (P, K, 1)."""
    return values.sum(dim=(-2, -1) if softmax else -1, keepdim=True)


def exact_direction(
    span: Span, p: Tensor, gradient: Tensor, decay: Tensor, softmax: bool
) -> tuple[Tensor, Tensor] | None:
    """Newton's direction by Cholesky; None where the Hessian is large, or singular in float64.

    Parameters
    ----------
    p : tensor (P, K, N)
        Probabilities, the intercepts at their optimum.
    gradient : tensor (P, K, R)
    decay : tensor (P, 1, 1)

    Returns
    -------
    tensors (P, K, R) and (P, K), or None
    """
    import torch

    (n, r), k = span.x.shape, p.shape[1]
    if (r + 1) * (k if softmax else k**0.5) > LARGEST_HESSIAN:
        return None
    x = torch.cat([span.x, span.x.new_ones(n, 1)], dim=1)
    steps = []
    for shares, slope, penalty in zip(p, gradient, decay, strict=True):
        right = -torch.cat([slope, slope.new_zeros(k, 1)], dim=1)[..., None]
        own = shares if softmax else shares * (1 - shares)
        blocks = torch.stack([(x * row[:, None]).T @ x for row in own])
        blocks.diagonal(dim1=1, dim2=2)[:, :-1].add_(penalty)
        if softmax:
            joint = (shares.T[:, :, None] * x[:, None]).flatten(1)
            hessian = (-joint.T @ joint).view(k, r + 1, k, r + 1)
            hessian.diagonal(dim1=0, dim2=2).add_(blocks.permute(1, 2, 0))
            # As for `intercept_hessian`: what is common to all classes has the penalty alone.
            squares = torch.cat([span.squares, span.squares.new_full((1,), n)])
            hessian.diagonal(dim1=1, dim2=3).add_(squares / k**2)
            blocks, right = hessian.reshape(1, k * (r + 1), -1), right.reshape(1, -1, 1)
        factor, failed = torch.linalg.cholesky_ex(blocks)
        if bool(failed.any()):
            return None
        steps.append(torch.cholesky_solve(right, factor).view(k, r + 1))
    step = torch.stack(steps)
    return (step[..., :-1], step[..., -1]) if bool(step.isfinite().all()) else None


class Curvature:
    """The Hessians at P states, to multiply by, and an easy inverse near to theirs."""

    def __init__(
        self, span: Span, p: Tensor, decay: Tensor, softmax: bool, *, single: bool
    ) -> None:
        """Take probabilities (P, K, N) and penalties (P, 1, 1), both in float64."""
        import torch

        kind = torch.float32 if single else torch.float64
        self.span, self.softmax, self.decay = span, softmax, decay.to(kind)
        if softmax:
            hessian = class_hessian(p)
            self.inverse: Tensor = torch.linalg.inv(filled(hessian)).to(kind)
            self.p = p.to(kind)
            self.top = self.p.argmax(dim=1, keepdim=True)
            curvature, axes = torch.linalg.eigh(hessian / p.shape[-1])
            self.axes = axes.to(kind)
        else:
            # From float64: 1 - p of a p near 1 has no digits in float32.
            self.q = (p * (1 - p)).to(kind)
            curvature = self.q.double().mean(dim=-1)
            self.inverse = (1 / intercept_hessian(p, softmax)).to(kind)
        expected = curvature.clamp_min(0)[..., None] * span.squares
        self.diagonal = (expected + decay).to(kind)
        # Of one problem, as `Past` needs it.
        self.size = self.diagonal[0].sum() if softmax else self.diagonal[0].sum(dim=-1)

    def scores(self, z: Tensor) -> Tensor:
        """Multiply scores (P, K, N) by each image's H_n."""
        if not self.softmax:
            own: Tensor = self.q * z
            return own
        # Relative to the likeliest class: its own p - p^2 would have no digits near p = 1.
        weighted: Tensor = (z - z.gather(1, self.top)).mul_(self.p)
        return weighted.addcmul_(self.p, weighted.sum(dim=1, keepdim=True), value=-1)

    def intercepts(self, scores: Tensor) -> Tensor:
        """Return the intercepts (P, K) whose derivatives are those of scores (P, K, N)."""
        sums = scores.sum(dim=-1)
        if not self.softmax:
            return self.inverse * sums
        result: Tensor = (self.inverse @ sums[..., None])[..., 0]
        return result

    def product(self, w: Tensor) -> Tensor:
        """Multiply W (P, K, R) by the Hessian, the intercepts following W to their optimum."""
        scores = self.scores(self.span.scores(w))
        follow = self.intercepts(scores)
        scores -= self.scores(follow[..., None].expand_as(scores))
        return self.span.sums(scores) + self.decay * w

    def precondition(self, w: Tensor) -> Tensor:
        """Divide W (P, K, R) by the Hessian as if H_n and x x' were independent."""
        if self.softmax:
            result: Tensor = self.axes @ ((self.axes.mT @ w) / self.diagonal)
        else:
            result = w / self.diagonal
        return result


@dataclass(frozen=True)
class Past:
    """Conjugate directions of one problem's search, and what its Hessian made of them.

    Along the path the Hessian changes little but in size. On the span of the directions its
    inverse is known, and the rest is left to an easy one (J. L. Morales and J. Nocedal, Automatic
    preconditioning by limited memory quasi-Newton updating, SIAM J. Optim. 10, 2000; of conjugate
    directions their formula is a projection).

    Attributes
    ----------
    directions, products : tensors (M, K, R)
    bends : tensor (M,), or of sigmoids (M, K)
        Products of the two; 0 where a label's search had ended.
    size : tensor (), or of sigmoids (K,)
        Of the Hessian.
    """

    directions: Tensor
    products: Tensor
    bends: Tensor
    size: Tensor

    def divide(self, r: Tensor, easy: Callable[[Tensor], Tensor], size: Tensor) -> Tensor:
        """Divide r (1, K, R) by a Hessian of another size, with `easy` beside the directions."""
        growth = size / self.size
        along = self._shares(self.directions, r)
        rest = easy(r - self._sum(along, self.products))
        back = self._shares(self.products, rest)
        return rest + self._sum(along / growth - back, self.directions)

    def _shares(self, vectors: Tensor, r: Tensor) -> Tensor:
        import torch

        each = "m" if self.bends.ndim == 1 else "mk"
        products = torch.einsum(f"mkr,pkr->{each}", vectors.to(r), r)
        return torch.where(self.bends > 0, products / self.bends, 0.0).to(r)

    def _sum(self, shares: Tensor, vectors: Tensor) -> Tensor:
        import torch

        each = "m" if self.bends.ndim == 1 else "mk"
        return torch.einsum(f"{each},mkr->kr", shares, vectors.to(shares))[None]


def conjugate_direction(
    curvature: Curvature, gradient: Tensor, target: Tensor, past: Past | None = None
) -> tuple[Tensor, Tensor, Past | None]:
    """Newton's direction by preconditioned conjugate gradients.

    Parameters
    ----------
    curvature : Curvature
    gradient : tensor (P, K, R)
    target : tensor (P, 1, 1) or (P, K, 1)
        Squared residual at which a problem is done, as a share of the squared gradient.
    past : Past, optional
        What a search before has found, if P = 1.

    Returns
    -------
    tensors (P, K, R) and (P, K), float64
    Past or None
        For the next search, if P = 1.
    """
    import torch

    softmax, kind = curvature.softmax, curvature.decay.dtype
    tiny = torch.finfo(kind).tiny

    def divide(r: Tensor) -> Tensor:
        easy = curvature.precondition
        return easy(r) if past is None else past.divide(r, easy, curvature.size)

    # Of length one: float32 has a narrow range.
    length = total(gradient.square(), softmax).sqrt() + 1e-300
    r, target = (-gradient / length).to(kind), target.to(kind)
    w, q = torch.zeros_like(r), divide(r)
    rho = total(r * q, softmax)
    best, left = w.clone(), r.clone()
    busy = torch.ones_like(rho, dtype=torch.bool)
    trail: list[tuple[Tensor, ...]] = []
    kept = min(KEPT, curvature.span.x.shape[0] // (8 * r.shape[1])) if len(r) == 1 else 0
    for _ in range(CG_STEPS):
        h = curvature.product(q)
        bend = total(q * h, softmax)
        going = (bend > 0) & busy
        alpha = torch.where(going, rho / bend.clamp_min(tiny), 0.0)
        w += alpha * q
        r -= alpha * h
        if kept:
            trail = [*trail, tuple(values.where(going, 0.0) for values in (q, h, bend))][-kept:]
        # Between the best so far and this iterate, where the residual is shortest.
        change = r - left
        share = -total(left * change, softmax) / total(change.square(), softmax).clamp_min(tiny)
        share = share.clamp(0, 1)
        best += share * (w - best)
        left += share * change
        busy = going & (total(left.square(), softmax) > target)
        if not bool(busy.any()):
            break
        s = divide(r)
        fresh = total(r * s, softmax)
        q = s + torch.where(rho > 0, fresh / rho.clamp_min(tiny), 0.0) * q
        rho = fresh
    b = -curvature.intercepts(curvature.scores(curvature.span.scores(best)))
    found = None
    if kept:
        q, h, bend = (torch.cat(tensors) for tensors in zip(*trail, strict=True))
        found = Past(q, h, bend.flatten() if softmax else bend[..., 0], curvature.size)
    return best.double() * length, b.double() * length[..., 0], found
