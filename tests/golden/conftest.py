import importlib
from pathlib import Path

import pytest

# Each room keeps its adapters in its own file here.
for file in sorted(Path(__file__).parent.glob("adapters_*.py")):
    importlib.import_module(f"tests.golden.{file.stem}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from tests.golden.harness import CASES, adapter_of, load_cases

    if "golden_case" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--golden-dir")
        folder = Path(chosen) if chosen else CASES
        cases = load_cases(folder)
        if not chosen:
            pending = pending_prefixes()
            cases = [
                c
                for c in cases
                if not c["key"].startswith(tuple(pending)) or adapter_of(c["key"]) is not None
            ]
        metafunc.parametrize("golden_case", cases, ids=[c["key"] for c in cases])


def pending_prefixes() -> list[str]:
    """Key prefixes of quantities that are not written yet, one a line."""
    text = (Path(__file__).parent / "cases" / "pending.txt").read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
