"""Two gloo processes, started once in a test run, that run functions for any test."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests import forks

RANKS = 2
_pair: Pair | None = None


def run_on_both(function: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """Call `function(*arguments[rank])` on both processes, and return both values by rank.

    The function must be importable. Tensors in arguments and values travel as arrays, and come
    out as tensors.
    """
    global _pair
    if _pair is None:
        _pair = Pair()
    try:
        return _pair.run(function, arguments)
    except BaseException:
        # One side may be waiting for the other: start afresh.
        _pair.close()
        _pair = None
        raise


class Pair:
    def __init__(self) -> None:
        context = forks.context()
        self.folder = tempfile.TemporaryDirectory()
        store = Path(self.folder.name) / "store"
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, store, theirs), daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)
        atexit.register(self.close)

    def run(self, function: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> list[Any]:
        for connection, own in zip(self.connections, arguments, strict=True):
            connection.send((function, pack(list(own))))
        replies = [connection.recv() for connection in self.connections]
        errors = [text for text, _ in replies if text]
        if errors:
            raise AssertionError("\n".join(errors))
        return [unpack(value) for _, value in replies]

    def close(self) -> None:
        atexit.unregister(self.close)
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.terminate()
            process.join()
        self.folder.cleanup()


def serve(rank: int, store: Path, connection: Connection) -> None:
    """Answer calls until the other end closes."""
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            reply = ("", pack(function(*unpack(arguments))))
        except Exception:
            reply = (f"rank {rank}: {traceback.format_exc()}", None)
        connection.send(reply)


def pack(value: Any) -> Any:
    """Replace tensors by arrays, which pass a pipe without shared memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item) for item in value]
    return value
