"""The flows, joined; the commands are thin over exactly these. Importing it costs no torch."""

from __future__ import annotations

from transferbench.api.boards import (
    Evaluation,
    Grid,
    Leaderboard,
    evaluate_board,
    leaderboard,
)
from transferbench.api.callback import TransferCallback
from transferbench.api.comparing import Comparison, compare
from transferbench.api.evaluating import evaluate, results
from transferbench.api.pretraining import (
    Pretrained,
    board_recipes,
    choose_recipe,
    method_recipes,
    pretrain,
    pretrain_recipes,
)

__all__ = [
    "Comparison",
    "Evaluation",
    "Grid",
    "Leaderboard",
    "Pretrained",
    "TransferCallback",
    "board_recipes",
    "choose_recipe",
    "compare",
    "evaluate",
    "evaluate_board",
    "leaderboard",
    "method_recipes",
    "pretrain",
    "pretrain_recipes",
    "results",
]
