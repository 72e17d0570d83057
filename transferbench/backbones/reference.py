"""Model references: a text such as `run:runs/swav-drawn-s0` to a backbone.

Importing this module, and asking a reference for its identity once that is remembered, imports
neither torch nor timm: jobs are told apart first.

====================  ==========================================================================
`timm:ARCH[@TAG]`     timm's own pretrained weights
`file:PATH@ARCH`      a weights file of a timm architecture
`run:FOLDER`          the backbone of a finished pretraining run
`hub:ORG/NAME`        a model on the Hub in timm's layout, or a folder of that layout
`random:ARCH`         initial weights, drawn from the job's seed
====================  ==========================================================================

All may be followed by `@SIZE`, the side of the input in pixels, and by `?` and options joined by
`&`: `size=`, `mean=[...]`, `std=[...]`, `interpolation=`; all but `run:`, whose network is its own,
by `stem=small`, `padding=same`, `pool=avg` (of a ViT, instead of its class token), `args={...}`
(JSON, for the timm constructor); a file with several networks by `branch=`. `&`, `%` and `+` inside
a value are percent-encoded.
"""

from __future__ import annotations

import re
from copy import copy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transferbench import registry
from transferbench.backbones.identity import (
    adapt,
    describe,
    full_preprocessing,
    make_backbone,
    release_facts,
    remember,
    short_name,
    weights_digest,
)
from transferbench.backbones.settings import NetworkSettings, Preprocessing, backbone_digest
from transferbench.backbones.texts import FORMS, parse_text
from transferbench.backbones.texts import random_reference as random_reference
from transferbench.backbones.wrap import module_digest
from transferbench.backbones.wrap import wrap_module as wrap_module
from transferbench.errors import NotAtHand, UserError, unknown
from transferbench.storage import canonical_json, digest

if TYPE_CHECKING:
    from torch import nn

    from transferbench.backbones.backbone import Backbone


class Reference(Protocol):
    """A model that a text names; a plug-in's class is called with (rest of the text, seed=...)."""

    @property
    def text(self) -> str:
        """The text it was made from."""
        ...

    @property
    def name(self) -> str:
        """Short name for records: a stem, and the digest's first 8 characters if at hand."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what identifies the model, JSON values, with its "digest"; part of a job's key.

        Raises
        ------
        NotAtHand
            If the weights are not at hand.
        UserError
            If the text names nothing that could be.
        """
        ...

    def load(self, device: str) -> Backbone:
        """Return the backbone on a device, in evaluation mode; raises as `identity`."""
        ...


def parse_reference(text: str, *, seed: int) -> Reference:
    """Turn a text into a reference; nothing is read or built yet.

    Parameters
    ----------
    text : str
        See the module's table.
    seed : int
        The job's, for what a reference leaves to chance.

    Raises
    ------
    UserError
        If the text is none of the forms, with the nearest.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        raise UserError(f"'{text}' names no model; a model is given as {FORMS}")
    if kind not in registry.names("backbones"):
        raise unknown("kind of model", kind, registry.names("backbones"), where=f"'{text}'")
    reference: Reference = registry.load("backbones", kind)(rest, seed=seed)
    return reference


def as_published(reference: Reference) -> Reference:
    """Return a reference as the published transfer numbers took its model; most are the same."""
    return reference.as_published() if isinstance(reference, FileReference) else reference


class TimmReference:
    """`timm:ARCH[@TAG]` or `timm:ARCH[.TAG]`: weights that timm fetches.

    They are not chance, so `seed` is unused.
    """

    def __init__(self, rest: str, *, seed: int) -> None:
        self.text = f"timm:{rest}"
        # A number after an @ is a size; anything else is the tag, which timm writes after a dot.
        rest = re.sub(r"^([\w\-]+)@(?!\d+([?]|$))([\w.\-]+)", r"\1.\3", rest)
        self._plain = rest
        self._network, self._given, _ = parse_text(self.text, rest)

    @property
    def name(self) -> str:
        """The architecture, and a mark of what is not timm's default: another row's."""
        name = self._network.name
        if self._plain == name:
            return name
        return f"{name}-{backbone_digest('', self._network, self._input)[:8]}"

    def identity(self) -> dict[str, Any]:
        """Return digest, weights, network and preprocessing; the first time loads the weights."""
        return describe(remember(["timm", *self._note], self._digest), self._network, self._input)

    def load(self, device: str) -> Backbone:
        """Return the backbone; the weights come from the hub's cache or the network."""
        module = self._module()
        weights = remember(["timm", *self._note], lambda: module_digest(module))
        return make_backbone(self.name, module, self._network, self._input, weights, device)

    @property
    def _note(self) -> list[str]:
        return [canonical_json(self._network.model_dump(mode="json")), version("timm")]

    @property
    def _input(self) -> Preprocessing:
        return full_preprocessing(self._network.name, self._given)

    def _digest(self) -> str:
        return module_digest(self._module())

    def _module(self) -> nn.Module:
        import timm

        from transferbench.backbones.build import check_architecture, first_line

        check_architecture(self._network.name)
        if self._network.stem != "standard":
            raise UserError(f"'{self.text}': pretrained weights exist for the standard stem only")
        try:
            module: nn.Module = timm.create_model(
                self._network.name, pretrained=True, num_classes=0, **self._network.args
            )
        # What fails here is up to the network and the hub's client, in many kinds of exception.
        except Exception as error:
            raise NotAtHand(
                f"the weights of '{self.text}' are neither in the hub's cache nor to be fetched: "
                f"{first_line(error)}"
            ) from error
        return module


class FileReference:
    """`file:PATH@ARCH`: a weights file. The file is not chance, so `seed` is unused."""

    def __init__(self, rest: str, *, seed: int) -> None:
        self.text = f"file:{rest}"
        # The architecture is the last name after an @, for a path may have an @ and digits too.
        form = re.fullmatch(r"(?P<path>.+)@(?P<network>[^\W\d][\w.\-]*(@.*|\?.*)?)", rest)
        if form is None:
            raise UserError(
                f"'{self.text}' does not say the architecture; write file:PATH@ARCH, "
                "for example file:weights.safetensors@resnet50"
            )
        self.path = Path(form["path"])
        self._asked, self._given, options = parse_text(self.text, form["network"], ("branch",))
        self._branch = options.get("branch")

    @property
    def name(self) -> str:
        """The file's stem and the first characters of the digest."""
        return short_name(self.path.name.removesuffix(".tar").rpartition(".")[0], self)

    def identity(self) -> dict[str, Any]:
        """Return digest, weights, network and preprocessing; raises NotAtHand without the file.

        A published format may want a network or an input of its own; what the reference says
        goes before.
        """
        return describe(*self._resolve())

    def load(self, device: str) -> Backbone:
        """Return the backbone; every name and shape of the file must be the network's."""
        from transferbench.backbones.build import build_network
        from transferbench.backbones.notes import notes_of, warn_of_traps
        from transferbench.backbones.weights import load_weights, take_backbone

        weights, network, given = self._resolve()
        taken = take_backbone(self.path, branch=self._branch)
        module = build_network(network, seed=0)
        load_weights(module, taken.state, path=self.path, name=network.name)
        warn_of_traps(taken, self.path, network, given, said="mean" in self._given)
        notes = notes_of(taken, network)
        return make_backbone(self.name, module, network, given, weights, device, notes)

    def as_published(self) -> FileReference:
        """Return the file as arXiv 2011.13377 took it, unless the text says how to pad.

        Its code put every release into a network that pads as torch does, those that were trained
        with TensorFlow's padding too.
        """
        if "padding" in self._asked.model_fields_set:
            return self
        plain = copy(self)
        plain._asked = self._asked.model_copy(update={"padding": "standard"})
        return plain

    def _resolve(self) -> tuple[str, NetworkSettings, Preprocessing]:
        if not self.path.is_file():
            raise NotAtHand(f"there is no weights file {self.path}")
        file = weights_digest(self.path)
        facts = release_facts(self.path, file, self._branch)
        weights = file if self._branch is None else digest([file, self._branch])
        network = adapt(self._asked, facts["network"])
        given = full_preprocessing(network.name, {**facts["preprocessing"], **self._given})
        return weights, network, given


class RunReference:
    """`run:FOLDER`: what a pretraining run exported; the seed was the run's own."""

    def __init__(self, rest: str, *, seed: int) -> None:
        form = re.fullmatch(r"(?P<folder>[^?]+?)(?P<further>(@\d+)?(\?.+)?)", rest)
        if form is None:
            raise UserError("'run:' names no folder; write run:FOLDER, for example run:runs/swav")
        self.text = f"run:{rest}"
        # A folder may have a name that reads like a size.
        named = Path(rest).is_dir()
        self.folder = Path(rest if named else form["folder"])
        network, self._given, _ = parse_text(self.text, f"run{'' if named else form['further']}")
        if own := sorted(network.model_fields_set - {"name"}):
            raise UserError(
                f"'{self.text}': '{own[0]}' cannot be said of a run: its network is its own"
            )

    @property
    def name(self) -> str:
        """The folder's name and the first characters of the digest."""
        return short_name(self.folder.resolve().name, self)

    def identity(self) -> dict[str, Any]:
        """Return what `backbone.json` says; raises NotAtHand unless the run is finished."""
        return describe(*self._resolve())

    def load(self, device: str) -> Backbone:
        """Return the exported backbone at its evaluation size, or the one that is said."""
        from transferbench.backbones.build import build_network
        from transferbench.backbones.export import WEIGHTS
        from transferbench.backbones.weights import load_weights, read_weights

        weights, network, given = self._resolve()
        path = self.folder / WEIGHTS
        module = build_network(network, seed=0)
        load_weights(module, read_weights(path), path=path, name=network.name)
        return make_backbone(self.name, module, network, given, weights, device)

    def _resolve(self) -> tuple[str, NetworkSettings, Preprocessing]:
        from transferbench.backbones.export import read_export

        told = read_export(self.folder)
        given = told.preprocessing.model_dump(mode="json")
        return told.weights, told.network, Preprocessing.model_validate({**given, **self._given})


class RandomReference:
    """`random:ARCH[@SIZE]`: a network as timm initialises it, from the job's seed."""

    def __init__(self, rest: str, *, seed: int) -> None:
        self.text = f"random:{rest}"
        self.seed = seed
        self._network, self._given, _ = parse_text(self.text, rest)

    @property
    def name(self) -> str:
        """The architecture and a mark of its settings; one for all seeds, which are one row."""
        mark = backbone_digest("", self._network, self._input)
        return f"random-{self._network.name}-{mark[:8]}"

    def identity(self) -> dict[str, Any]:
        """Return digest, seed, timm's version, network and preprocessing."""
        given = {"seed": self.seed, "timm": version("timm")}
        return {**describe(digest(given), self._network, self._input), **given}

    def load(self, device: str) -> Backbone:
        """Return the backbone with the weights that the seed gives."""
        from transferbench.backbones.build import build_network

        weights = self.identity()["weights"]
        module = build_network(self._network, seed=self.seed)
        return make_backbone(self.name, module, self._network, self._input, weights, device)

    @property
    def _input(self) -> Preprocessing:
        return full_preprocessing(self._network.name, self._given)
