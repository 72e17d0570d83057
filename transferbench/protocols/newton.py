"""Newton's method for the problems of `logistic.fit_path`, along a path of penalties.

With intercepts at their optimum for W, the residuals P - Y are a feasible point of the dual, and J
minus its dual value is exactly ||dJ/dW||^2 / (2 wd): the gap that certifies a solution. For J minus
the dual value of Q is sum KL(Q || P) + ||X'(Q - Y) + wd W||^2 / (2 wd) wherever 1'(Q - Y) = 0, and
Q = P leaves the second term alone.

Penalties are solved in the order of `continuation`, some of them together.

Cost: with N images in R = min(N, D) coordinates and K classes, a pair of products X'(XW') is
4 N R K FLOPs; a penalty takes one in float64, and one more a Newton step, with some tens in float32
(`curvature`) where it is weak; the rotation takes 4 N D R once. Memory beyond the features: 12 N R
bytes for two precisions, 8 D R for the basis, at most N R for directions of the last search, and
about 4 N max(K, 64) float64 numbers: so many columns are multiplied at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from transferbench.measures.metrics import Array, Floats
from transferbench.protocols import continuation
from transferbench.protocols.continuation import Solved
from transferbench.protocols.curvature import (
    Curvature,
    Past,
    conjugate_direction,
    exact_direction,
    total,
)
from transferbench.protocols.intercepts import balance, probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from transferbench.protocols.span import Span

NEWTON_STEPS = 100
LOOSE = 0.01
"""Tolerance of the penalties that only lead to one that was asked for."""

ENOUGH = 0.6
"""Share of the tolerance that Newton's direction is meant to leave."""

NEAR_ZERO = 0.1
"""Relative gap of W = 0 at the penalty where a path begins."""

IMAGES = 4096
"""Images whose losses are computed at once."""

COLUMNS = 64
"""Columns of W, penalties times classes, that are multiplied at once: beyond, little is gained."""


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
        Newton steps; none where the curve through other penalties' solutions is near enough.
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
    """Where P searches stand: w (P, K, R), b (P, K), z (P, K, N), sums as of `total`.

    The loss is the objective without its penalty.
    """

    w: Tensor
    b: Tensor
    z: Tensor
    loss: Tensor
    objective: Tensor
    gradient: Tensor
    gap: Tensor

    def of(self, places: Tensor | slice) -> _State:
        """Return those of some problems."""
        return _State(**{field.name: getattr(self, field.name)[places] for field in fields(self)})

    def certified(self, tol: float) -> Tensor:
        """Return whether each problem (P,) is within the tolerance."""
        allowed = tol * (self.objective - self.gap).clamp_min(0)
        return (self.gap <= allowed).flatten(1).all(dim=1)


class Problem:
    """One softmax problem, or K sigmoid problems side by side, at any penalty."""

    def __init__(self, span: Span, targets: Tensor, softmax: bool) -> None:
        """Take the features, and targets (K, N) of 0 and 1 of type uint8."""
        import torch

        self.span, self.y, self.softmax = span, targets, softmax
        self.past: Past | None = None
        self.label = targets.argmax(dim=0)
        self.counts = targets.sum(dim=1, dtype=torch.float64)

    def path(self, weight_decays: Sequence[float], tol: float) -> Iterator[tuple[int, Point]]:
        """Solve for falling penalties, no two the same; yield each one's place and solution."""
        import torch

        decays = [decay / self.span.scale**2 for decay in weight_decays]
        first, between = continuation.order(decays)
        found: dict[int, Solved] = {}
        state, before = self._zero()
        trail: list[Solved] = []
        self.past = None
        for place in first:
            spent = 0
            for decay in (*continuation.stones(before, decays[place]), decays[place]):
                aim = tol if decay == decays[place] else max(tol, LOOSE)
                state = self._start(state, trail, decay)
                ((_, state, steps),) = self._newton(state, [decay], aim)
                trail = [*trail[-1:], Solved(decay, state.w[0], state.b[0])]
                before, spent = decay, spent + steps
            found[place] = trail[-1]
            yield place, self._point(state, weight_decays[place], spent, tol)
        together = max(1, COLUMNS // len(self.y))
        for i in range(0, len(between), together):
            some = between[i : i + together]
            near = [[found[j] for j in continuation.around(decays, first, place)] for place in some]
            chosen = [decays[place] for place in some]
            starts = map(continuation.curve, near, chosen)
            w, b = (torch.stack(tensors) for tensors in zip(*starts, strict=True))
            state = self._state(w, b, self.span.scores(w) + b[..., None], self._column(chosen))
            for at, solved, steps in self._newton(state, chosen, tol):
                yield some[at], self._point(solved, weight_decays[some[at]], steps, tol)

    def _zero(self) -> tuple[_State, float]:
        """Return the state at W = 0, and the penalty down to which that is near a solution."""
        share = self.y.double().mean(dim=1)
        b = (share.log() if self.softmax else share.logit())[None]
        w = b.new_zeros(1, len(self.y), self.span.x.shape[1])
        z = b[..., None].repeat(1, 1, self.y.shape[1])
        state = self._state(w, b, z, self._column([1.0]))
        # The gap falls with the penalty, the objective is that of any; features may not vary.
        return state, max(float((state.gap / state.objective).max()) / NEAR_ZERO, 1e-300)

    def _column(self, decays: Sequence[float]) -> Tensor:
        """Return penalties as a tensor (P, 1, 1)."""
        import torch

        return torch.tensor(decays, dtype=torch.float64, device=self.y.device).view(-1, 1, 1)

    def _start(self, last: _State, trail: Sequence[Solved], decay: float) -> _State:
        """Return the state of the lower objective: at the last solution, or on the line ahead."""
        column = self._column([decay])
        if len(trail) == 2:
            w, b = (tensor[None] for tensor in continuation.curve(trail, decay))
            z = self.span.scores(w) + b[..., None]
            p = probabilities(z, self.softmax)
            ahead = self._loss(z, p) + self._penalty(w, column)
            if float(ahead.sum()) < float((last.loss + self._penalty(last.w, column)).sum()):
                return self._state(w, b, z, column, p)
            del z, p
        return self._state(last.w, last.b, last.z.clone(), column)

    def _point(self, state: _State, decay: float, steps: int, tol: float) -> Point:
        """Return the solution in the features' coordinates."""
        weights = self.span.weights(state.w[0])
        intercepts = state.b[0] - weights @ self.span.mean
        if self.softmax:
            intercepts = intercepts - intercepts.mean()
        bound = state.objective - state.gap
        known = bool((bound > 0).all())
        relative = float((state.gap / bound).max()) if known else None
        return Point(
            weight_decay=decay,
            weights=weights.cpu().numpy(),
            intercepts=intercepts.cpu().numpy(),
            objective=float(state.objective.sum()),
            gradient_norm=float(state.gradient.norm()) * self.span.scale,
            iterations=steps,
            converged=relative is not None and relative <= tol,
            relative_gap=relative,
        )

    def _newton(
        self, state: _State, decays: Sequence[float], tol: float
    ) -> Iterator[tuple[int, _State, int]]:
        """Yield each problem's place, state and number of steps, as soon as it is done."""
        import torch

        decay = self._column(decays)
        places = torch.arange(len(decays))
        stuck = torch.zeros(len(decays), dtype=torch.bool)
        single = True
        for steps in range(NEWTON_STEPS + 1):
            done = state.certified(tol).cpu() | stuck | (steps == NEWTON_STEPS)
            for i in done.nonzero()[:, 0].tolist():
                yield int(places[i]), state.of(slice(i, i + 1)), steps
            if bool(done.all()):
                return
            if bool(done.any()):
                left = (~done).nonzero()[:, 0]
                places, state, decay = places[left], state.of(left), decay[left.to(decay.device)]
            moved = self._search(state, *self._direction(state, decay, tol, single), decay)
            fell = (moved.gap < state.gap) | (
                moved.objective < state.objective - _noise(state.objective)
            )
            stuck = ~fell.flatten(1).any(dim=1).cpu()
            state = moved
            if single and bool(stuck.any()):
                # Another try from float64.
                single, stuck = False, torch.zeros_like(stuck)

    def _direction(
        self, state: _State, decay: Tensor, tol: float, single: bool
    ) -> tuple[Tensor, Tensor]:
        p = probabilities(state.z, self.softmax)
        exact = exact_direction(self.span, p, state.gradient, decay, self.softmax)
        if exact is not None:
            return exact
        square = total(state.gradient.square(), self.softmax) + 1e-300
        # The squared residual of the Newton system that such a gap allows.
        enough = ENOUGH * 2 * decay * tol * state.objective / square
        relative = (state.gap / state.objective).clamp(1e-8 if single else 1e-12, 0.01)
        curvature = Curvature(self.span, p, decay, self.softmax, single=single)
        del p
        past = self.past if len(decay) == 1 else None
        dw, db, found = conjugate_direction(
            curvature, state.gradient, enough.maximum(relative), past
        )
        self.past = found or self.past
        return dw, db

    def _search(self, state: _State, dw: Tensor, db: Tensor, decay: Tensor) -> _State:
        """Halve the step, each problem its own, until the objective falls enough; else stay."""
        import torch

        if self.softmax:
            # The part common to all classes changes no probability and costs penalty.
            dw, db = dw - dw.mean(dim=1, keepdim=True), db - db.mean(dim=1, keepdim=True)
        slope = total(state.gradient * dw, self.softmax)
        allowed = state.objective + _noise(state.objective)
        w = state.w + dw
        z = self.span.scores(dw).add_(db[..., None]).add_(state.z)
        p = probabilities(z, self.softmax)
        if bool((self._loss(z, p) + self._penalty(w, decay) <= allowed + 1e-4 * slope).all()):
            return self._state(w, state.b + db, z, decay, p)
        del p
        dz = z.sub_(state.z)
        step, good = torch.ones_like(slope), torch.zeros_like(slope, dtype=torch.bool)
        for _ in range(40):
            z = state.z + step * dz
            value = self._loss(z, probabilities(z, self.softmax))
            value = value + self._penalty(state.w + step * dw, decay)
            good = value <= allowed + 1e-4 * step * slope
            if bool(good.all()):
                break
            step = torch.where(good, step, step / 2)
        # Not by a step of 0: a direction may not be finite.
        dw, db = (step * dw).where(good, 0.0), (step[..., 0] * db).where(good[..., 0], 0.0)
        z = dz.mul_(step).masked_fill_(~good, 0.0).add_(state.z)
        return self._state(state.w + dw, state.b + db, z, decay)

    def _state(
        self, w: Tensor, b: Tensor, z: Tensor, decay: Tensor, p: Tensor | None = None
    ) -> _State:
        """Evaluate at W (P, K, R), the intercepts moved to their optimum.

        z and the probabilities p (P, K, N), if they are known, are changed in place.
        """
        import torch

        n = z.shape[-1]
        p = probabilities(z, self.softmax) if p is None else p
        b, z, p = balance(b, z, p, self.counts, self.softmax)
        loss = self._loss(z, p)
        off = (p.sum(dim=-1) - self.counts).abs().amax(dim=1)[:, None, None] > 1e-10 * n
        if self.softmax:
            residual = p.scatter_add_(
                1, self.label.expand(len(p), 1, -1), -torch.ones_like(z[:, :1])
            )
        else:
            residual = p.sub_(self.y)
        gradient = self.span.sums(residual) + decay * w
        gap = total(gradient.square(), self.softmax) / (2 * decay)
        # The bound needs the intercepts at their optimum.
        gap = gap.masked_fill(off, float("inf"))
        return _State(w, b, z, loss, loss + self._penalty(w, decay), gradient, gap)

    def _penalty(self, w: Tensor, decay: Tensor) -> Tensor:
        return 0.5 * decay * total(w.square(), self.softmax)

    def _loss(self, z: Tensor, p: Tensor) -> Tensor:
        """Return the losses' sums at z (P, K, N), whose probabilities are p."""
        import torch

        if not self.softmax:
            losses = z.new_zeros(*z.shape[:2], 1)
            for start in range(0, z.shape[-1], IMAGES):
                some = slice(start, start + IMAGES)
                signs = 1 - 2 * self.y[:, some].double()
                each = torch.nn.functional.softplus(signs * z[..., some])
                losses += each.sum(dim=-1, keepdim=True)
            return losses
        label = self.label.expand(len(z), 1, -1)
        own = p.gather(1, label)
        losses = -own.clamp_min(1e-300).log()
        # Where a probability has no digits, its logarithm is that of a sum relative to it.
        lost = (own < 1e-300).flatten(0, 1).any(dim=0).nonzero()[:, 0]
        if len(lost) > 0:
            z, label = z[..., lost], label[..., lost]
            losses[..., lost] = torch.logsumexp(z - z.gather(1, label), dim=1, keepdim=True)
        return losses.sum(dim=-1, keepdim=True)


def _noise(objective: Tensor) -> Tensor:
    """Return by how much rounding may change an objective."""
    return 1e-14 * (objective + 1)
