"""`hub:ORG/NAME`: a model on the Hugging Face Hub in timm's layout, or a folder of that layout.

What was fetched once is taken from the Hub's cache, without asking the server again; a pinned
`?revision=` says which copy a number belongs to.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from transferbench.backbones.identity import (
    describe,
    full_preprocessing,
    make_backbone,
    short_name,
)
from transferbench.backbones.settings import NetworkSettings, Preprocessing
from transferbench.backbones.texts import parse_text
from transferbench.errors import NotAtHand, UserError
from transferbench.storage import file_digest

if TYPE_CHECKING:
    from transferbench.backbones.backbone import Backbone

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Own(BaseModel):
    """What our exports add to timm's `config.json`, under "transferbench"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkSettings
    preprocessing: Preprocessing


class HubReference:
    """`hub:ORG/NAME[@SIZE][?options]`, or `hub:FOLDER`. The weights are not chance."""

    def __init__(self, rest: str, *, seed: int) -> None:
        self.text = f"hub:{rest}"
        form = re.fullmatch(r"(?P<place>[^@?]+)(?P<further>(@\d+)?(\?.+)?)", rest)
        if form is None:
            raise UserError(
                f"'{self.text}' names no model; write hub:ORG/NAME, for example "
                "hub:timm/resnet18.a1_in1k, or hub:FOLDER"
            )
        self.place = form["place"]
        self._asked, self._given, options = parse_text(
            self.text, f"hub{form['further']}", ("revision",)
        )
        self._revision = options.get("revision")

    @property
    def name(self) -> str:
        """The last part of the name and the first characters of the digest."""
        return short_name(Path(self.place).name, self)

    def identity(self) -> dict[str, Any]:
        """Return digest, weights, network and preprocessing; the first time fetches the files."""
        network, given = self._described()
        return describe(file_digest(self._weights()), network, given)

    def load(self, device: str) -> Backbone:
        """Return the backbone; every name and shape of the file must be the network's."""
        from transferbench.backbones.build import build_network
        from transferbench.backbones.weights import load_weights, read_weights

        network, given = self._described()
        path = self._weights()
        module = build_network(network, seed=0)
        load_weights(module, read_weights(path), path=path, name=network.name)
        return make_backbone(self.name, module, network, given, file_digest(path), device)

    def _described(self) -> tuple[NetworkSettings, Preprocessing]:
        path = self._file(CONFIG)
        if path is None:
            raise UserError(f"'{self.text}' is no model of timm's layout: it has no {CONFIG}")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return _read_config(config, self._asked, self._given)
        except UserError:
            raise
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{CONFIG} of '{self.text}': {place}: {first['msg']}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{CONFIG} of '{self.text}' is not timm's: {error}") from error
        except KeyError as error:
            raise UserError(
                f"{CONFIG} of '{self.text}' has no {error}, so it is not a model of timm's layout"
            ) from error

    def _weights(self) -> Path:
        for name in WEIGHTS:
            if (path := self._file(name)) is not None:
                return path
        raise UserError(f"'{self.text}' holds none of {', '.join(WEIGHTS)}")

    def _file(self, name: str) -> Path | None:
        """Return a file of the folder, of the Hub's cache or fetched; None if there is none."""
        folder = Path(self.place)
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", self.place):
            raise NotAtHand(f"there is no folder {self.place}, and the Hub's names are ORG/NAME")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            try:
                return Path(
                    hf_hub_download(
                        self.place, name, revision=self._revision, local_files_only=True
                    )
                )
            except LocalEntryNotFoundError:
                return Path(hf_hub_download(self.place, name, revision=self._revision))
        except LocalEntryNotFoundError as error:
            raise self._absent(name, error) from error
        except EntryNotFoundError:
            return None
        # The Hub's client fails in as many ways as the network and its own server do.
        except Exception as error:
            raise self._absent(name, error) from error

    def _absent(self, name: str, error: BaseException) -> NotAtHand:
        said = " ".join(str(error).split())[:200]
        return NotAtHand(
            f"{name} of '{self.text}' is neither in the Hub's cache nor to be fetched: {said}"
        )


def _read_config(
    config: dict[str, Any], asked: NetworkSettings, given: dict[str, Any]
) -> tuple[NetworkSettings, Preprocessing]:
    """Turn timm's config into a network and its input; what the reference says goes before."""
    said = {key: getattr(asked, key) for key in asked.model_fields_set if key != "name"}
    if "transferbench" in config:
        own = Own.model_validate(config["transferbench"])
        network = {**own.network.model_dump(), **said}
        network["args"] = {**own.network.args, **asked.args}
        preprocessing = own.preprocessing.model_dump(mode="json")
        return NetworkSettings.model_validate(network), Preprocessing.model_validate(
            {**preprocessing, **given}
        )
    trained = config.get("pretrained_cfg", config)
    args = {**(config.get("model_args") or {}), **asked.args}
    settings = NetworkSettings.model_validate(
        {"name": config["architecture"], **said, "args": args}
    )
    known: dict[str, Any] = {}
    if "input_size" in trained:
        known["input_size"] = trained["input_size"][-1]
    known |= {key: trained[key] for key in ("mean", "std") if key in trained}
    if trained.get("interpolation") in ("bilinear", "bicubic"):
        known["interpolation"] = trained["interpolation"]
    return settings, full_preprocessing(settings.name, {**known, **given})
