"""`python -m tests.benchmarks [NAME ...]`: run every bench_*.py beside this file, or those named.

Each has a `main()` that prints what it measured; none fails on a time.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main(names: list[str]) -> int:
    """Run benchmarks and return an exit code: 2 on an unknown name."""
    here = Path(__file__).parent
    known = {p.stem.removeprefix("bench_"): p.stem for p in here.glob("bench_*.py")}
    for name in names:
        if name not in known:
            print(f"unknown benchmark '{name}'; valid: {', '.join(sorted(known))}", file=sys.stderr)
            return 2
    for name in names or sorted(known):
        module = import_module(f"tests.benchmarks.{known[name]}")
        title = (module.__doc__ or name).strip().splitlines()[0]
        print(f"\n{name}: {title}", flush=True)
        module.main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
