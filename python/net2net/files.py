"""Writing files and folders so that nobody ever sees half of one, whenever the process or the machine stops."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # where there are no such locks
    fcntl = None


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write beside `path`, make it durable, then rename: `path` is the old file or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in here, such as that of a full disk, names `path` where it would name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path` to write into; at the end its files are made durable, and it becomes `path`.

    Raises:
        FileExistsError: there is something at `path` already; it is never overwritten.
    """
    if os.path.lexists(path):  # a link that leads nowhere, too
        raise FileExistsError(f"{path} exists already")
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)
            _sync(file)
        temporary.chmod(0o755)
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to work in. At the end, what has the name of `path` there, a file or a
    folder, is made durable and becomes `path`; everything else is removed.

    What is left of a process that was killed is removed when the next one begins with the same `path`.

    Raises:
        FileExistsError: there is something at `path` already; it is never overwritten.
        BlockingIOError: another process is at work on `path`.
    """
    check_new(path)
    # `mkdtemp` puts eight characters in the middle; `*` would find the folders of longer names too.
    for left in path.parent.glob(f".{glob.escape(_short(path.name))}.{8 * '?'}{UNFINISHED}"):
        with alone(left, f"another process is at work on {path}"):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{_short(path.name)}.", suffix=UNFINISHED))
    try:
        with alone(folder, f"another process is at work on {path}"):
            yield folder
            made = folder / path.name
            for part in (*sorted(made.rglob("*")), made):
                _sync(part)
            check_new(path)
            made.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


#: What names of folders end in that nobody has finished.
UNFINISHED = ".unfinished"


#: Of this many bytes may the name of a file be, on all common systems.
_LONGEST = 255


def _short(name: str) -> str:
    """A name that leaves room for what is put before and behind it."""
    room = _LONGEST - len(f"..{8 * '?'}{UNFINISHED}")
    if len(os.fsencode(name)) <= room:
        return name
    return hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


def check_new(path: Path) -> None:
    """FileExistsError if there is something at `path`, FileNotFoundError if there is no folder for it."""
    if os.path.lexists(path):  # a link that leads nowhere, too
        raise FileExistsError(f"{path} exists already")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} for {path.name}")


#: Of the locks that this process holds.
_held: set[int] = set()


def _let_go() -> None:
    """A process that was forked, such as a reader of images, would hold the lock for longer than its parent lives."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Holds the lock of `folder`, which the system takes back from a process that is killed.

    Raises:
        BlockingIOError: another process has it, or this one already; with the text `refusal`.
    """
    handle = os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(refusal) from error
        yield
    finally:
        if handle in _held:  # not in a process that was forked meanwhile
            _held.remove(handle)
            os.close(handle)


def remove_folder(path: Path) -> None:
    """Rename first, so that nobody sees a folder with some of its files gone."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden)


def remove_unfinished(folder: Path, *names: str) -> None:
    """Remove what the functions here left in `folder` when they were killed; `names`: beginnings of what they wrote."""
    for name in names:
        for path in folder.glob(f".{name}*.*") if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
