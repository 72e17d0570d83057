"""The path of penalties as a scikit-learn estimator, for pipelines other than this project's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from transferbench.data.splits import balanced_order
from transferbench.errors import UserError
from transferbench.measures.metrics import Array, Floats, predictions, top1
from transferbench.protocols.grids import weight_decays
from transferbench.protocols.linear import select
from transferbench.protocols.logistic import Path, Task, fit_path


class LogisticRegressionPath(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """L2-regularised logistic regression whose penalty is chosen on validation samples.

    For each C the objective of `sklearn.linear_model.LogisticRegression`,

        sum_i loss(y_i, w.x_i + b) + 1 / (2 C) ||w||^2,

    a sum over samples with free intercepts, is solved on the samples that are not for validation,
    to a certified relative distance from its minimum. The C of the highest validation accuracy,
    the largest C where several are equal, is then solved on all samples. As in scikit-learn two
    classes are one binary problem, more are one softmax.

    Parameters
    ----------
    Cs : sequence of float, optional
        Inverse penalties, above 0, in any order; default the 45 of [1]_, 1e-5 to 1e6. With a
        single one nothing is to be chosen, and no sample is kept for validation.
    tol : float, default=1e-4
        Largest certified (J - min J) / min J of a solution, J the objective (for the certificate
        see `transferbench.protocols.newton.Point`). Unlike a bound on the gradient it means the
        same at every C and every scale of the features.
    device : str, default="cpu"
        Where torch computes, in float64.

    Attributes
    ----------
    classes_ : array (K,)
        The labels, sorted.
    coef_ : array (1, D) of two classes, else (K, D)
    intercept_ : array (1,) of two classes, else (K,)
        Those of more classes have mean 0.
    C_ : float
        The chosen one.
    Cs_ : array (P,)
        All, in the order given.
    scores_ : array (P,)
        Validation accuracy of each; not-a-number where none was kept for validation.
    path_ : transferbench.protocols.logistic.Path
        `path_.points[i]` is the solution of `Cs_[i]` without the validation samples (of a single
        C: with all samples). A class that is only among these has weights 0.
    point_ : transferbench.protocols.newton.Point
        The final solution, with its certified gap and whether `tol` was met.
    n_iter_ : int
        Newton steps of the final solution.
    n_features_in_ : int
        D.
    feature_names_in_ : array (D,)
        Names of the columns, where X has them.

    See Also
    --------
    transferbench.protocols.logistic.fit_path : the solver, also for several labels a sample.
    sklearn.linear_model.LogisticRegressionCV : the same model, chosen by cross-validation.

    References
    ----------
    .. [1] L. Ericsson, H. Gouk, T. Hospedales. How Well Do Self-Supervised Models Transfer?
       CVPR 2021. arXiv 2011.13377, appendix A.2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from transferbench.protocols import LogisticRegressionPath
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegressionPath(Cs=[0.01, 1.0, 100.0]).fit(X, y, validation=range(0, 150, 3))
    >>> model.C_, model.scores_.round(2).tolist()
    (1.0, [0.82, 1.0, 0.98])
    >>> model.point_.relative_gap < model.tol
    True
    >>> model.predict(X[[0, 60, 120]]).tolist()
    [0, 1, 2]
    """

    def __init__(
        self, Cs: Sequence[float] | None = None, *, tol: float = 1e-4, device: str = "cpu"
    ) -> None:
        self.Cs = Cs
        self.tol = tol
        self.device = device

    def fit(self, X: Any, y: Any, validation: Any = None) -> LogisticRegressionPath:
        """Choose C on some samples, and solve for it on all.

        Parameters
        ----------
        X : array (N, D)
        y : array (N,)
            Labels of any type, of two classes or more.
        validation : array of positions or of N booleans, optional
            The samples to choose on. Default: of each class one sample in five, drawn from a fixed
            seed (`transferbench.data.splits.balanced_order`).

        Returns
        -------
        LogisticRegressionPath
            Itself.

        Raises
        ------
        ValueError
            If X is not finite, C or `tol` is not above 0, there is one class, or no sample is
            left to fit or to choose on.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}: nothing can be learned")
        cs = 1 / np.array(weight_decays()) if self.Cs is None else np.asarray(self.Cs, float)
        if cs.ndim != 1 or len(cs) == 0 or not ((cs > 0) & (cs < np.inf)).all():
            raise ValueError(f"Cs must be numbers above 0, one or more, not {self.Cs!r}")
        self.Cs_ = cs
        if len(cs) == 1 and validation is None:
            self.scores_ = np.full(1, np.nan)
            self.path_ = self._solve(X, labels, cs)
            best, self.point_ = 0, self.path_.points[0]
        else:
            held = _held_out(labels, validation)
            self.path_ = self._solve(X[~held], labels[~held], cs)
            self.scores_ = np.array(
                [top1(labels[held], self._chosen(p.scores(X[held]))) for p in self.path_.points]
            )
            weakest_first = np.argsort(-cs, kind="stable")
            best = int(weakest_first[select(self.scores_[weakest_first].tolist())])
            (self.point_,) = self._solve(X, labels, cs[[best]]).points
        self.C_ = float(cs[best])
        self.coef_, self.intercept_ = self.point_.weights, self.point_.intercepts
        self.n_iter_ = self.point_.iterations
        return self

    def decision_function(self, X: Any) -> Floats:
        """Return w.x + b for samples X (N, D): (N,) of two classes, the second's; else (N, K)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores: Floats = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """Return the labels (N,) of samples X (N, D)."""
        scores = self.decision_function(X)
        labels: Array = self.classes_[self._chosen(scores)]
        return labels

    def predict_proba(self, X: Any) -> Floats:
        """Return the probabilities (N, K) of samples X (N, D), in the order of `classes_`."""
        from scipy.special import expit, softmax

        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        probabilities: Floats = softmax(scores, axis=1)
        return probabilities

    def _solve(self, x: Array, labels: Array, cs: Floats) -> Path:
        """Solve on some samples for each C."""
        two = len(self.classes_) == 2
        task: Task = "multilabel" if two else "multiclass"
        try:
            return fit_path(
                x,
                labels[:, None] if two else labels,
                [float(decay) for decay in 1 / cs],
                task=task,
                classes=1 if two else len(self.classes_),
                tol=self.tol,
                device=self.device,
            )
        except UserError as error:
            raise ValueError(str(error)) from error

    def _chosen(self, scores: Floats) -> Array:
        """Return the position among the classes (N,) of the highest score."""
        if len(self.classes_) == 2:
            return (scores.reshape(len(scores)) > 0).astype(np.int64)
        return predictions(scores)


def _held_out(labels: Array, validation: Any) -> Array:
    """Return which samples (N,) are to choose on, and not to be fitted before."""
    held = np.zeros(len(labels), dtype=bool)
    if validation is None:
        order, ranks = balanced_order(labels, len(labels), classes=int(labels.max()) + 1, seed=0)
        # Not the first of a class: a class of one sample is learned, not validated.
        held[order[ranks % 5 == 1]] = True
        if not held.any():
            raise ValueError("every class has one sample: say which are for validation")
        return held
    given = np.asarray(validation)
    try:
        held[given if given.size else given.astype(int)] = True
    except IndexError as error:
        raise ValueError(
            f"validation does not name samples 0 to {len(held) - 1}: {error}"
        ) from error
    if held.all() or not held.any():
        raise ValueError(f"{held.sum()} of {len(held)} samples are for validation: leave some each")
    return held
