"""Files that must never be half-written, digests, and the cache folder.

Everything here is cheap to import and open to all rooms.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from transferbench.errors import UserError

DIGEST = re.compile("[0-9a-f]{64}")


def cache_folder(*parts: str) -> Path:
    """Return a folder below the cache root, made if need be.

    The root is `$TRANSFERBENCH_CACHE`, else the platform's user cache folder. Deleting it loses
    time, never results.
    """
    import platformdirs

    root = os.environ.get("TRANSFERBENCH_CACHE") or platformdirs.user_cache_dir("transferbench")
    folder = Path(root).joinpath(*parts)
    make_folder(folder)
    return folder


def packaged_folders(name: str) -> list[Path]:
    """Return where `recipes` or `leaderboards` are looked for, first to last; those that exist.

    Here, in the wheel (`_NAME` inside the package), beside the package in a checkout, and in
    plug-ins: an entry point of the group `transferbench.NAME` names a folder of its package, e.g.
    "my_package.recipes".
    """
    package = Path(__file__).parent
    folders = [Path(name), package / f"_{name}"]
    # An editable install has no copy inside the package; its folders lie beside it.
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / name)
    folders += _plugin_folders(name)
    return [folder for folder in folders if folder.is_dir()]


@cache
def _plugin_folders(name: str) -> tuple[Path, ...]:
    """Folders that plug-ins declare, found without importing them."""
    folders = []
    for entry in entry_points(group=f"transferbench.{name}"):
        package, *inside = entry.value.split(".")
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            folders.append(Path(place, *inside))
    return tuple(folders)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

    Raises
    ------
    UserError
        If that is not permitted or a file is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error


def write_atomic(path: Path, write: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The content goes to a temporary file of the same folder, is synchronised to disk and renamed.
    A kill or a full disk at any moment leaves the old file as it was.

    Parameters
    ----------
    path : Path
        Its folder is made if need be.
    write : bytes, str or callable
        The content, or a function that writes it to an open binary file.

    Raises
    ------
    UserError
        If the folder is read-only or the disk is full.
    """
    make_folder(path.parent)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode() if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of bytes, or of a value's canonical JSON."""
    data = value if isinstance(value, bytes) else canonical_json(value).encode()
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, remembered in the cache by (path, size, mtime_ns).

    Asking again costs a stat.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    try:
        stat = path.stat()
        note = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        known = cache_folder("digests") / f"{digest(note)}.txt"
        if known.exists() and DIGEST.fullmatch(text := known.read_text(errors="replace")):
            return text
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    write_atomic(known, found)
    return found


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Hold a folder's advisory lock: one process at a time is inside.

    The lock is on a file `.lock`, opened for writing, without which network file systems grant
    none. It goes with the process, however that ends; the file is taken away at the end.

    Raises
    ------
    UserError
        If the folder is absent or read-only, or its file system has no locks.
    """
    path = folder / ".lock"
    try:
        descriptor = _locked(path)
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        # While the lock is held; whoever waits on this file then sees that it is gone.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Wait for the lock on a file that is still at its path, and return the descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:  # taken away between the two looks
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
