"""Logistic regression as the transfer paper's code solved it: L-BFGS, stopped early.

The published numbers were made with scikit-learn 0.22.2, LogisticRegression(solver="lbfgs",
multi_class="multinomial", warm_start=True) and defaults else (linusericsson/ssl-transfer:
linear.py). That is SciPy's L-BFGS-B on the sum of losses plus wd/2 ||W||^2 over a row (w_k, b_k) a
class, intercepts free: at most 100 iterations, until the largest entry of the gradient is 1e-4 or
the objective's relative fall is SciPy's default of about 2.2e-9; the first fit starts from zeros,
each later one from the solution before. Later releases of scikit-learn stop elsewhere (they divide
the objective by the number of images, and fit one row for two classes), so SciPy is called here as
that release called it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transferbench.measures.metrics import Array, Floats
from transferbench.protocols.logistic import Task, finite, targets, widen
from transferbench.protocols.newton import Point

if TYPE_CHECKING:
    from torch import Tensor

MAX_ITERATIONS = 100
LARGEST_GRADIENT = 1e-4


def stopped_path(
    features: Array,
    labels: Array,
    weight_decays: Sequence[float],
    *,
    task: Task = "multiclass",
    classes: int | None = None,
    start: Point | None = None,
    iterations: int = MAX_ITERATIONS,
    largest_gradient: float = LARGEST_GRADIENT,
    device: str = "cpu",
) -> Iterator[Point]:
    """Fit each penalty in the order given, from the solution before; yield them as they come.

    Parameters
    ----------
    features : array (N, D)
        Cast to float64.
    labels : array (N,) of class indices, or (N, K) of 0 and 1 for multilabel
    weight_decays : sequence of float
        wd = 1 / C.
    task : {"multiclass", "multilabel"}
        Multilabel: one softmax over two rows a label, each from the solution of the label before;
        half its difference of rows is the decision value, so that wd penalizes half as much as in
        the usual binary problem.
    classes : int, optional
        As for `logistic.fit_path`.
    start : Point, optional
        The solution to begin from; without it, or if it has other classes, zeros.
    iterations : int
        L-BFGS iterations a fit, or for multilabel a label.
    largest_gradient : float
        Where a fit counts as solved.
    device : str
        Where objective and gradient are computed, in float64.

    Yields
    ------
    Point
        `converged` says whether L-BFGS ended before its last iteration; `relative_gap` is None,
        for the stop certifies nothing. `gradient_norm` is that of dJ/dW; dJ/db is not zero.

    Raises
    ------
    UserError
        If features are not finite, or all labels are equal.
    """
    import torch

    wanted, used, idle = targets(np.asarray(labels), task, classes)
    where = "cpu" if device.startswith("mps") else device
    # torch takes no read-only memory.
    given = np.require(finite(features).astype(np.float64, copy=False), requirements="W")
    x = torch.from_numpy(given).to(where)
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    one_hot = torch.from_numpy(wanted).to(where)
    rows = _rows(start, used, x.shape[1], task)
    for decay in weight_decays:
        fits = []
        if task == "multiclass":
            fits.append(_fit(x, one_hot, decay, rows, iterations, largest_gradient))
            rows = solved = fits[0].rows
        else:
            for k in range(one_hot.shape[1]):
                both = torch.stack([1 - one_hot[:, k], one_hot[:, k]], dim=1)
                fits.append(_fit(x, both, decay, rows, iterations, largest_gradient))
                # scikit-learn keeps the second row, and starts from it and its negative.
                rows = np.stack([-fits[k].rows[1], fits[k].rows[1]])
            solved = np.stack([fit.rows[1] for fit in fits])
        yield widen(_point(float(decay), solved, fits, iterations), used, idle)


class _Fit(NamedTuple):
    """Rows (w, b) of a problem, its objective, the norm of dJ/dW, and iterations."""

    rows: Floats
    objective: float
    gradient_norm: float
    iterations: int


def _rows(start: Point | None, used: Array, width: int, task: Task) -> Floats:
    """Return the rows (w, b) to begin from: (U, D + 1), or (2, D + 1) of the label before."""
    if start is None or start.weights.shape[1] + 1 != width:
        return np.zeros((len(used) if task == "multiclass" else 2, width))
    rows = np.concatenate([start.weights, start.intercepts[:, None]], axis=1)
    if task == "multilabel":
        return np.stack([-rows[used[-1]], rows[used[-1]]])
    return rows[used]


def _fit(
    x: Tensor, one_hot: Tensor, decay: float, rows: Floats, iterations: int, largest_gradient: float
) -> _Fit:
    """Minimize from `rows` (K, D + 1)."""
    import torch
    from scipy.optimize import minimize

    def objective(flat: Floats) -> tuple[float, Floats]:
        w = torch.from_numpy(flat.reshape(rows.shape)).to(x)
        z = x @ w.T
        penalized = w.clone()
        penalized[:, -1] = 0
        own = (z * one_hot).sum(dim=1, keepdim=True)
        value = torch.logsumexp(z - own, dim=1).sum() + 0.5 * decay * penalized.square().sum()
        gradient = (z.softmax(dim=1) - one_hot).T @ x + decay * penalized
        return float(value), gradient.cpu().numpy().ravel()

    found = minimize(
        objective,
        rows.ravel(),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": iterations, "gtol": largest_gradient},
    )
    gradient = found.jac.reshape(rows.shape)[:, :-1]
    norm = float(np.linalg.norm(gradient))
    return _Fit(found.x.reshape(rows.shape), float(found.fun), norm, int(found.nit))


def _point(decay: float, rows: Floats, fits: list[_Fit], iterations: int) -> Point:
    return Point(
        weight_decay=decay,
        weights=rows[:, :-1].copy(),
        intercepts=rows[:, -1].copy(),
        objective=float(sum(fit.objective for fit in fits)),
        gradient_norm=float(np.linalg.norm([fit.gradient_norm for fit in fits])),
        iterations=sum(fit.iterations for fit in fits),
        converged=all(fit.iterations < iterations for fit in fits),
        relative_gap=None,
    )
