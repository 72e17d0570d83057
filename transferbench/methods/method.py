"""The contract that every pretraining method meets.

A method says what its networks give for a batch of views (`embed`) and what is minimised over the
embeddings (`loss`); everything else, data, devices, optimizers, checkpoints, is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

Views = tuple[Tensor, ...]
"""One tensor (B, 3, S, S) a view, in the order of the recipe; S may differ between views."""

Embeddings = Mapping[str, Tensor]
"""Named outputs of `embed`. The first axis of every tensor counts the images of the batch.

What exists once a view is stacked along the second axis, (B, V, D), so that micro-batches can be
joined along the first. Under the key "features" every method gives the backbone's features of the
first view, (B, num_features), detached: what the collapse monitors look at.
"""


@dataclass(frozen=True)
class BatchInfo:
    """What one step may know.

    Attributes
    ----------
    indices : Tensor (B,) int64
        The images' positions in the pretraining set.
    labels : Tensor (B,) int64 or None
        None unless the method sets `reads_labels`.
    step, total_steps : int
        Optimizer steps done so far, and in the whole run.
    epoch, steps_per_epoch : int
        The epoch counted from 0, and its number of optimizer steps.
    generator : torch.Generator
        The method's source of chance, on the CPU; saved and restored with a checkpoint.
    """

    indices: Tensor
    labels: Tensor | None
    step: int
    total_steps: int
    epoch: int
    steps_per_epoch: int
    generator: torch.Generator

    def part(self, start: int, stop: int) -> BatchInfo:
        """Return the information for images `start:stop` of the batch."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, indices=self.indices[start:stop], labels=labels)


@dataclass(frozen=True)
class Context:
    """What is known before the first step.

    Attributes
    ----------
    num_images : int
        Size of the pretraining set.
    num_classes : int or None
        None where the set has no labels.
    view_sizes : tuple of int
        Side of each view in pixels, in the order of the recipe.
    batch_size : int
        Images in one optimizer step, over all processes.
    total_steps, steps_per_epoch, epochs : int
        Of the whole run, in optimizer steps.
    world_size : int
        Number of processes.
    """

    num_images: int
    num_classes: int | None
    view_sizes: tuple[int, ...]
    batch_size: int
    total_steps: int
    steps_per_epoch: int
    epochs: int
    world_size: int = 1


class EmbedAll(Protocol):
    """Walks the pretraining set once and returns (indices (N,), outputs (N, D))."""

    def __call__(
        self,
        function: Callable[[Views], Tensor],
        *,
        views: Literal["plain", "train"] = "plain",
        training: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Apply `function` to batches of views; "plain" is one unaugmented view."""
        ...


class MethodSettings(BaseModel):
    """Base of every method's Settings: a wrong key or type is refused.

    The string under a field is its description. Defaults are the paper's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Method(nn.Module):
    """Base of all methods. Subclasses define `Settings`, `embed` and `loss`.

    What a class declares: `reads_labels`, labels are handed over in `BatchInfo`;
    `global_batch_norm`, several processes share batch-norm statistics (who runs them calls
    `parts.batch_norm.synchronize_batch_norm`, and `average_gradients` in every step);
    `shuffles_batch_norm`, `embed` exchanges images between processes; `own_groups`, submodules
    whose weights form a parameter group of that name.

    Parameters
    ----------
    settings : MethodSettings
        An instance of the class's own `Settings`.
    backbone : nn.Module
        Images (B, 3, S, S) to features (B, num_features); has the attribute `num_features`.
    context : Context
        What is known beforehand.

    Raises
    ------
    UserError
        If settings, views or sizes do not fit the method: one sentence naming the key and rule.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    reads_labels: ClassVar[bool] = False
    global_batch_norm: ClassVar[bool] = False
    shuffles_batch_norm: ClassVar[bool] = False
    own_groups: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: MethodSettings, backbone: nn.Module, context: Context) -> None:
        super().__init__()
        self.settings: Any = settings
        self.backbone = backbone
        self.context = context
        self.num_features = cast(int, backbone.num_features)
        self.logged: dict[str, Tensor | float] = {}

    def embed(self, views: Views, batch: BatchInfo) -> Embeddings:
        """Return what the networks give for the views; images meet only in batch norm."""
        raise NotImplementedError

    def loss(self, embeddings: Embeddings, batch: BatchInfo) -> Tensor:
        """Return this process's share of the loss, a scalar.

        The mean over processes is the loss of the whole batch. No side effects: what must change
        is staged here and committed by a hook.
        """
        raise NotImplementedError

    def forward(self, views: Views, batch: BatchInfo) -> Tensor:
        """Return `loss(embed(views))`."""
        return self.loss(self.embed(views, batch), batch)

    # Called by the engine at the named moment; the default does nothing.

    def before_epoch(self, epoch: int, embed_all: EmbedAll, generator: torch.Generator) -> None:
        """Prepare an epoch: clustering, bank initialisation. `generator` is the steps' own."""

    def before_step(self, batch: BatchInfo) -> None:
        """Act before the forward pass, e.g. bring prototypes back to unit length."""

    def after_backward(self, batch: BatchInfo) -> None:
        """Act between backward pass and optimizer, e.g. cancel the prototypes' gradients."""

    def after_step(self, embeddings: Embeddings, batch: BatchInfo) -> None:
        """Act after the optimizer on detached embeddings: EMA, queues, banks."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name groups of parameters, each parameter that is trained in exactly one.

        A recipe's `[[optimizer.group]]` addresses them by name: "bias-and-norm" (every tensor of
        at most one dimension), one group for the other tensors of each submodule in `own_groups`
        ("predictor", "prototypes"), and "weights" (the rest).
        """
        owner = {
            id(parameter): name
            for name in self.own_groups
            for parameter in self.get_submodule(name).parameters()
        }
        groups: dict[str, list[nn.Parameter]] = {
            name: [] for name in ("weights", *self.own_groups, "bias-and-norm")
        }
        for parameter in self.parameters():
            if parameter.requires_grad:
                name = owner.get(id(parameter), "weights")
                groups["bias-and-norm" if parameter.ndim <= 1 else name].append(parameter)
        return groups

    def log(self, name: str, value: Tensor | float) -> None:
        """Offer a number to watch; the engine collects and writes it."""
        self.logged[name] = value.detach() if isinstance(value, Tensor) else value
