"""Put the recipes and boards, top-level folders for people, inside the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What a board's owner commits; runs, local boards and the demo's own results stay out.
PACKAGED = {
    "recipes": ["**/*.toml"],
    "leaderboards": ["*/board.toml", "*/README.md", "*/records/**/*.json"],
}
RESULTS_STAY_OUT = ("local", "demo")


class PackagedFolders(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `recipes` and `leaderboards` to a wheel as `_recipes` and `_leaderboards`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """List the files to include; an editable install reads the folders in place."""
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        for folder, patterns in PACKAGED.items():
            for pattern in patterns:
                for file in sorted((root / folder).glob(pattern)):
                    inside = file.relative_to(root / folder)
                    if (
                        folder == "leaderboards"
                        and inside.parts[0] in RESULTS_STAY_OUT
                        and inside.name != "board.toml"
                    ):
                        continue
                    target = Path("transferbench", f"_{folder}", inside)
                    build_data["force_include"][str(file)] = target.as_posix()
