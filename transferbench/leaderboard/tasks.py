"""The protocols that take part in a board, with their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from transferbench import registry
from transferbench.errors import UserError, nearest, unknown
from transferbench.leaderboard.board import BoardProtocol
from transferbench.protocols.variants import VARIANTS

if TYPE_CHECKING:
    from transferbench.protocols.protocol import EvaluationProtocol, Parameters


@dataclass(frozen=True)
class Task:
    """A protocol that takes part: its short name, the protocol, its typed parameters."""

    name: str
    registered: str
    protocol: EvaluationProtocol
    parameters: Parameters

    @property
    def as_published(self) -> bool:
        """Whether the parameters repeat what the published numbers were made with."""
        chosen = (getattr(self.parameters, key, None) for key in ("mode", "augmentation"))
        return "paper" in chosen


def tasks(protocols: Iterable[BoardProtocol], where: str) -> list[Task]:
    """Look up protocols and check their parameters.

    Raises
    ------
    UserError
        On an unknown protocol, or a wrong parameter (with the nearest valid one).
    """
    found = []
    for entry in protocols:
        names = registry.names("protocols")
        if entry.registered not in names:
            raise unknown("protocol", entry.registered, {*names, *VARIANTS}, where)
        protocol = registry.load("protocols", entry.registered)
        try:
            parameters = protocol.Parameters.model_validate(entry.chosen)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"]))
            near = nearest(key, protocol.Parameters.model_fields)
            said = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                valid = sorted(protocol.Parameters.model_fields)
                hint = f"did you mean '{near[0]}'?" if near else "valid: " + ", ".join(valid)
                said = f"unknown parameter; {hint}"
            raise UserError(
                f"{where}: parameters of the protocol '{entry.name}': {key}: {said}"
            ) from None
        found.append(Task(entry.name, entry.registered, protocol(), parameters))
    return found
