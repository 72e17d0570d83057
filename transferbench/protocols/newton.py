"""Newton's method with conjugate gradients for the problems of `logistic.fit_path`.

With intercepts at their optimum for W, the residuals P - Y are a feasible point of the dual, and J
minus its dual value is exactly ||dJ/dW||^2 / (2 wd): the gap that certifies a solution.

Features are centred (which only moves b) and rotated into the eigenbasis of their scatter (which
leaves the penalty as it is, and drops what no image spans); there the Hessian is close to diagonal,
and conjugate gradients inside a Newton step need few products. Where the whole Hessian is small,
one factorisation takes their place: weak penalties need hundreds of products. The path runs from
the strongest penalty to the weakest; each point starts from a line through the two before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transferbench.measures.metrics import Array, Floats

if TYPE_CHECKING:
    from torch import Tensor

NEWTON_STEPS = 100
CG_STEPS = 500
INTERCEPT_STEPS = 50

LARGEST_HESSIAN = 1500
"""Side of the largest Hessian that is built and factorised, or of one that costs as much as those
of all labels: beyond, hundreds of products are cheaper."""


@dataclass(frozen=True)
class Point:
    """The solution at one penalty.

    Attributes
    ----------
    weight_decay : float
        wd of the objective.
    weights : array (K, D)
    intercepts : array (K,)
        Multiclass: with mean zero over the classes that have training images.
    objective : float
        J; for multilabel the sum over labels.
    gradient_norm : float
        Euclidean norm of dJ/dW; dJ/db is zero.
    iterations : int
        Newton steps.
    converged : bool
        Whether the gap is within the tolerance.
    relative_gap : float or None
        Upper bound of (J - min J) / min J, for multilabel of the worst label; None where the bound
        on min J is not above 0.
    """

    weight_decay: float
    weights: Floats
    intercepts: Floats
    objective: float
    gradient_norm: float
    iterations: int
    converged: bool
    relative_gap: float | None

    def scores(self, features: Array) -> Floats:
        """Return the decision values (N, K) of features (N, D)."""
        result: Floats = np.asarray(features, dtype=np.float64) @ self.weights.T + self.intercepts
        return result


@dataclass
class _State:
    """Where the search stands; W is (R, K) in the rotated basis, sums are () or (K,)."""

    w: Tensor
    b: Tensor
    z: Tensor
    p: Tensor
    objective: Tensor
    gradient: Tensor
    gradient_b: Tensor
    gap: Tensor


class Problem:
    """One softmax problem, or K sigmoid problems side by side (whose sums keep the last axis)."""

    def __init__(self, features: Tensor, targets: Tensor, softmax: bool) -> None:
        self.mean = features.mean(dim=0)
        self.basis, self.x = _rotate(features - self.mean)
        self.squares = self.x.square()
        self.y, self.softmax = targets, softmax

    def path(self, weight_decays: Sequence[float], tol: float) -> Iterator[Point]:
        """Solve for falling penalties, one after the other."""
        import torch

        k = self.y.shape[1]
        b = torch.log(self.y.mean(dim=0))
        if not self.softmax:
            b = b - torch.log1p(-self.y.mean(dim=0))
        w = self.x.new_zeros(self.x.shape[1], k)
        before: tuple[Tensor, Tensor, float] | None = None
        last: tuple[Tensor, Tensor, float] | None = None
        for decay in weight_decays:
            starts = [(w, b)]
            if before is not None and last is not None and before[2] > last[2] > decay:
                ratio = np.log(last[2] / decay) / np.log(before[2] / last[2])
                starts.append((w + ratio * (w - before[0]), b + ratio * (b - before[1])))
            state, steps = self._newton(starts, decay, tol)
            before, last = last, (state.w, state.b, decay)
            w, b = state.w, state.b
            yield self._point(state, decay, steps, tol)

    def _point(self, state: _State, decay: float, steps: int, tol: float) -> Point:
        weights = self.basis @ state.w
        intercepts = state.b - self.mean @ weights
        if self.softmax:
            intercepts = intercepts - intercepts.mean()
        bound = state.objective - state.gap
        known = bool((bound > 0).all())
        relative = float((state.gap / bound).max()) if known else None
        return Point(
            weight_decay=decay,
            weights=weights.T.cpu().numpy().copy(),
            intercepts=intercepts.cpu().numpy(),
            objective=float(state.objective.sum()),
            gradient_norm=float(state.gradient.norm()),
            iterations=steps,
            converged=relative is not None and relative <= tol,
            relative_gap=relative,
        )

    def _newton(
        self, starts: list[tuple[Tensor, Tensor]], decay: float, tol: float
    ) -> tuple[_State, int]:
        import torch

        states = [self._state(w, b, decay) for w, b in starts]
        state = min(states, key=lambda s: float(s.objective.sum()))
        steps = 0
        while steps < NEWTON_STEPS:
            allowed = tol * torch.clamp(state.objective - state.gap, min=0)
            if bool((state.gap <= allowed).all()):
                break
            steps += 1
            # The squared residual of the Newton system that a gap of a quarter of `tol` allows.
            enough = 0.25 * 2 * decay * tol * state.objective
            direction = self._exact_direction(state, decay)
            dw, db = direction or self._direction(state, decay, enough)
            moved = self._search(state, dw, db, decay)
            if moved is None:
                break
            state = moved
        return state, steps

    def _search(self, state: _State, dw: Tensor, db: Tensor, decay: float) -> _State | None:
        """Halve the step, each problem its own, until the objective falls enough."""
        import torch

        slope = self._dot(state.gradient, state.gradient_b, dw, db)
        dz = self.x @ dw + db
        step = torch.ones_like(state.objective)
        noise = 1e-14 * (state.objective + 1)
        for _ in range(40):
            w, b, z = state.w + step * dw, state.b + step * db, state.z + step * dz
            value = self._objective(z, w, decay)
            good = value <= state.objective + 1e-4 * step * slope + noise
            if bool(good.all()):
                moved = self._state(w, b, decay, z)
                # At the limit of float64 a step no longer helps; the gap says how far that is.
                fell = (moved.gap < state.gap) | (moved.objective < state.objective - noise)
                return moved if bool(fell.any()) else None
            step = torch.where(good, step, step / 2)
        return None

    def _state(self, w: Tensor, b: Tensor, decay: float, z: Tensor | None = None) -> _State:
        """Evaluate at W with the intercepts moved to their optimum."""
        import torch

        z = self.x @ w + b if z is None else z
        # The part common to all classes changes no probability and costs penalty.
        if self.softmax:
            w = w - w.mean(dim=1, keepdim=True)
        n, left = len(z), float("inf")
        for _ in range(INTERCEPT_STEPS):
            p = self._probabilities(z)
            residual = (p - self.y).sum(dim=0)
            was, left = left, float(residual.abs().max())
            if left <= 1e-13 * n or (left <= 1e-11 * n and left > was / 2):
                break
            db = self._intercept_step(p, residual)
            b, z = b + db, z + db
        p = self._probabilities(z)
        residual = p - self.y
        gradient, gradient_b = self.x.T @ residual + decay * w, residual.sum(dim=0)
        gap = self._sum(gradient.square()) / (2 * decay)
        # The bound needs the intercepts at their optimum.
        if float(gradient_b.abs().max()) > 1e-10 * n:
            gap = torch.full_like(gap, float("inf"))
        return _State(w, b, z, p, self._objective(z, w, decay), gradient, gradient_b, gap)

    def _intercept_step(self, p: Tensor, residual: Tensor) -> Tensor:
        import torch

        if self.softmax:
            hessian = torch.diag(p.sum(dim=0)) - p.T @ p
            size = hessian.diagonal().mean() + 1e-300
            # A common constant changes nothing: with its direction filled, the step has mean 0.
            filled = hessian + size / len(hessian)
            filled = filled + 1e-14 * size * torch.eye(len(hessian)).to(filled)
            step: Tensor = -torch.linalg.solve(filled, residual)
        else:
            step = -residual / ((p * (1 - p)).sum(dim=0) + 1e-300)
        # Newton's method on a sigmoid overshoots from further than 2.17; shorter steps do not.
        return (
            step.clamp(-2, 2)
            if not self.softmax
            else step * min(1.0, 2 / float(step.abs().max() + 1e-300))
        )

    def _exact_direction(self, state: _State, decay: float) -> tuple[Tensor, Tensor] | None:
        """Newton's direction by Cholesky; None where the Hessian is large, or singular in float64.

        With x = (features, 1), a softmax problem has sum_n (diag(p) - p p') (x) x x', and each
        sigmoid problem sum_n p (1 - p) x x' of its own.
        """
        import torch

        (n, r), k = self.x.shape, state.p.shape[1]
        if (r + 1) * (k if self.softmax else k**0.5) > LARGEST_HESSIAN:
            return None
        x = torch.cat([self.x, self.x.new_ones(n, 1)], dim=1)
        penalty = torch.full((r + 1,), decay).to(x)
        penalty[-1] = 0
        right = -torch.cat([state.gradient, state.gradient_b[None]]).T[..., None]
        own = state.p if self.softmax else state.p * (1 - state.p)
        blocks = torch.stack([(x * column[:, None]).T @ x for column in own.T])
        blocks.diagonal(dim1=1, dim2=2).add_(penalty)
        if self.softmax:
            joint = (state.p[:, :, None] * x[:, None]).flatten(1)
            hessian = (-joint.T @ joint).view(k, r + 1, k, r + 1)
            hessian.diagonal(dim1=0, dim2=2).add_(blocks.permute(1, 2, 0))
            # A constant common to all intercepts changes nothing: its direction is filled.
            hessian[:, -1, :, -1] += n / k**2
            blocks, right = hessian.reshape(1, k * (r + 1), -1), right.reshape(1, -1, 1)
        factor, failed = torch.linalg.cholesky_ex(blocks)
        if bool(failed.any()):
            return None
        step = torch.cholesky_solve(right, factor).view(k, r + 1).T
        return step[:-1], step[-1]

    def _direction(self, state: _State, decay: float, enough: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's direction by preconditioned conjugate gradients on (W, b) together."""
        import torch

        p, gradient = state.p, state.gradient
        curvature = p * (1 - p)
        scale_w = self.squares.T @ curvature + decay
        scale_b = curvature.sum(dim=0).clamp_min(1e-12)
        rw, rb = -gradient, -state.gradient_b
        dw, db = torch.zeros_like(rw), torch.zeros_like(rb)
        sw, sb = rw / scale_w, rb / scale_b
        qw, qb = sw, sb
        rho = self._dot(rw, rb, sw, sb)
        start = self._sum(rw.square())
        relative = torch.clamp(state.gap / state.objective, max=1.0)
        target = torch.maximum(enough, start * torch.clamp(relative, 1e-12, 0.01))
        for _ in range(CG_STEPS):
            hw, hb = self._hessian(p, qw, qb, decay)
            bend = self._dot(qw, qb, hw, hb)
            alpha = torch.where(bend > 0, rho / bend.clamp_min(1e-300), torch.zeros_like(rho))
            dw, db = dw + alpha * qw, db + alpha * qb
            rw, rb = rw - alpha * hw, rb - alpha * hb
            if bool((self._dot(rw, rb, rw, rb) <= target).all()):
                break
            sw, sb = rw / scale_w, rb / scale_b
            fresh = self._dot(rw, rb, sw, sb)
            beta = torch.where(rho > 0, fresh / rho.clamp_min(1e-300), torch.zeros_like(rho))
            qw, qb = sw + beta * qw, sb + beta * qb
            rho = fresh
        return dw, db

    def _hessian(self, p: Tensor, vw: Tensor, vb: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        v = self.x @ vw + vb
        u = p * v
        u = u - p * (u.sum(dim=1, keepdim=True) if self.softmax else u)
        return self.x.T @ u + decay * vw, u.sum(dim=0)

    def _probabilities(self, z: Tensor) -> Tensor:
        return z.softmax(dim=1) if self.softmax else z.sigmoid()

    def _objective(self, z: Tensor, w: Tensor, decay: float) -> Tensor:
        import torch

        penalty = 0.5 * decay * self._sum(w.square())
        if self.softmax:
            # ln sum exp(z - z_y) without cancelling two large numbers.
            own = (z * self.y).sum(dim=1, keepdim=True)
            return torch.logsumexp(z - own, dim=1).sum() + penalty
        return torch.nn.functional.softplus((1 - 2 * self.y) * z).sum(dim=0) + penalty

    def _sum(self, values: Tensor) -> Tensor:
        """Sum (R, K) to one number a problem."""
        return values.sum() if self.softmax else values.sum(dim=0)

    def _dot(self, aw: Tensor, ab: Tensor, bw: Tensor, bb: Tensor) -> Tensor:
        """Return the inner product of two (W, b) for each problem."""
        intercepts = ab * bb
        return self._sum(aw * bw) + (intercepts.sum() if self.softmax else intercepts)


def _rotate(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis (D, R) of the images' span and their coordinates (N, R)."""
    import torch

    n, d = x.shape
    if n < d:
        span, upper = torch.linalg.qr(x.T)
        _, vectors = torch.linalg.eigh(upper @ upper.T)
        return span @ vectors, (upper.T @ vectors).contiguous()
    _, vectors = torch.linalg.eigh(x.T @ x)
    return vectors, (x @ vectors).contiguous()
