"""Balanced assignment of a data set to classes: optimal transport of SeLa, in logarithms."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from transferbench.methods.parts.collectives import (
    max_over_processes,
    sum_over_processes,
    world_size,
)
from transferbench.methods.parts.spherical_kmeans import blocks

CHECK_EVERY = 10
"""Convergence is looked at in every tenth repeat, from the first on."""


class Transport(NamedTuple):
    """A transport plan and how it was found.

    Attributes
    ----------
    log_plan : Tensor (n, K)
        Logarithm of the mass that goes from each of this process's samples to each class. Every
        row sums to 1/N, columns to about 1/K over all processes.
    repeats : int
        Scalings of all classes and samples that were done.
    """

    log_plan: Tensor
    repeats: int


@torch.no_grad()
def balanced_transport(
    log_p: Tensor, power: float, *, iterations: int, tolerance: float | None = None
) -> Transport:
    """Find Q = diag(c) P^power diag(r) with row sums 1/N and column sums 1/K.

    From uniform c, each repeat sets r_k = (1/K) / sum_n P_nk^power c_n and then
    c_n = (1/N) / sum_k P_nk^power r_k (arXiv 1911.05371 sec. 3.2; yukimasano/self-label:
    sinkhornknopp.py). Sums over samples, and N, go over all processes; c is local. It runs on
    logarithms in float64: P^power of a confident network underflows in the linear domain.

    Parameters
    ----------
    log_p : Tensor (n, K)
        Log-probabilities of this process's samples, of which every process has as many.
    power : float
        The paper's lambda: the larger, the closer the plan is to one class a sample.
    iterations : int
        Repeats at most.
    tolerance : float, optional
        Stop once sum_n |c_old / c_new - 1| is at most this.
    """
    wide = log_p.dtype if log_p.device.type == "mps" else torch.float64
    m = log_p.to(wide, copy=True).mul_(power)
    samples, classes = len(m) * world_size(), m.shape[1]
    log_c = m.new_full((len(m),), -math.log(samples))
    log_r = m.new_full((classes,), -math.log(classes))
    repeats = 0
    while repeats < iterations:
        log_r = -math.log(classes) - _sum_of_samples(m, log_c)
        old, log_c = log_c, -math.log(samples) - _sum_of_classes(m, log_r)
        checked = repeats % CHECK_EVERY == 0
        repeats += 1
        if tolerance is not None and checked:
            change = sum_over_processes(((old - log_c).exp() - 1).abs().sum())
            if float(change) <= tolerance:
                break
    return Transport(m.add_(log_r).add_(log_c[:, None]), repeats)


def _sum_of_samples(m: Tensor, log_c: Tensor) -> Tensor:
    """Logarithm (K,) of sum_n exp(m_nk) c_n over all processes."""
    k = m.shape[1]
    pairs = zip(blocks(m, k), blocks(log_c, k), strict=True)
    parts = torch.stack([(part + c[:, None]).logsumexp(0) for part, c in pairs])
    local = parts.logsumexp(0)
    if world_size() == 1:
        return local
    largest = max_over_processes(local)
    return sum_over_processes((local - largest).exp()).log() + largest


def _sum_of_classes(m: Tensor, log_r: Tensor) -> Tensor:
    """Logarithm (n,) of sum_k exp(m_nk) r_k."""
    return torch.cat([(part + log_r).logsumexp(1) for part in blocks(m, m.shape[1])])
