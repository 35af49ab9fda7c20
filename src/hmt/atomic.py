"""Files and directories that appear whole or not at all, written by one process at a time.

Files are readable by their user alone, since most hold something of the user's text. Checkpoints, which are made to be
shared, get the permissions that the umask leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hmt.files import read_settings

try:
    import fcntl
except ImportError:  # Windows: a second writer is not kept away there
    fcntl = None  # type: ignore[assignment]

PRIVATE = 0o600

DEVICES = (Path("/dev"), Path("/proc"))
"""Names in here are devices and open files, which are written to and never replaced."""

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of network drives without locks."""

RENAME_EXCHANGE = 2
AT_FDCWD = -100

_locked: dict[Path, int] = {}
"""Directories that this process is writing, and how often it has locked them."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file takes the place of `path` when the block ends without an error.

    A device or a pipe is written to directly.
    """
    if path.exists() and (not path.is_file() or any(folder in path.absolute().parents for folder in DEVICES)):
        with _write_errors(path):
            yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with _write_errors(path):
            os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
            yield unfinished
        unfinished.chmod(PRIVATE)  # some libraries put a file of their own there
        _flush(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def open_log(path: Path) -> int:
    """Open a private file to append to; returns its descriptor.

    Raises:
        OSError: If it cannot be opened, or is a symbolic link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, PRIVATE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a link, and is not written through") from error
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill; it takes the place of `path` when the block ends without an error.

    The two change places in one step on Linux. Elsewhere the old directory stands aside for a moment, from where
    `recover_directory` takes it if the writer is killed in between.

    Raises:
        FileExistsError: If `path` is a file, or a directory that holds anything but a checkpoint.
        OSError: If another process is writing it.
    """
    path = path.resolve()
    with locked_directory(path):
        recover_directory(path)
        check_output_directory(path)
        for left in _left_over(path, "new", "old"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
        unfinished.mkdir()
        try:
            with _write_errors(path):
                yield unfinished
            for file in unfinished.rglob("*"):
                if file.is_file():
                    _flush(file)
            _put_in_place(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def locked_directory(path: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing a directory; the system releases the lock of a process that ends.

    Args:
        path: Directory, which need not exist.
        wait: Wait for another process that is writing it.

    Raises:
        OSError: If another process is writing it.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    descriptor = None if fcntl is None or path in _locked else _take_lock(lock, path, wait)
    _locked[path] = _locked.get(path, 0) + 1
    try:
        yield
    finally:
        _locked[path] -= 1
        if not _locked[path]:
            del _locked[path]
        if descriptor is not None:
            lock.unlink(missing_ok=True)  # before it is released: a waiting process checks that it is still there
            os.close(descriptor)


def _take_lock(lock: Path, path: Path, wait: bool) -> int:
    """Descriptor of the locked file."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(lock).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:  # its last owner has just removed it
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                return descriptor
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise OSError(
                    f"{path} is being written by another process; wait for it, or name another directory"
                ) from error
            raise
        os.close(descriptor)


def _put_in_place(new: Path, path: Path) -> None:
    """Move a directory to a place that may be taken, in one step if the system can."""
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        old = new.with_suffix(".old")
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places; False if the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    failed = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(other))
    return not failed


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn the errors that safetensors and torch have for a full disk into an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save, into an open file
            raise error.__context__ from error
        raise


def recover_directory(path: Path) -> None:
    """Bring back the directory of a writer that was killed while it put a new one in its place."""
    path = path.resolve()
    if path.exists() or not _left_over(path, "old"):
        return
    with contextlib.suppress(OSError), locked_directory(path):  # unless the writer is still at it
        if not path.exists():
            _left_over(path, "old")[0].rename(path)


def _left_over(path: Path, *kinds: str) -> list[Path]:
    """Directories that killed writers of `path` left beside it."""
    pattern = re.compile(re.escape(f".{path.name}.") + rf"[0-9a-f]{{16}}\.({'|'.join(kinds)})")
    try:
        return sorted(entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name))
    except OSError:
        return []


def check_output_directory(path: Path) -> None:
    """Check that a checkpoint may be written to a path: a free one, an empty directory or an old checkpoint.

    Raises:
        FileExistsError: If something else is there that would be lost.
        NotADirectoryError: If its parent is a file.
    """
    _check_parents(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, not a directory")
    if path.is_dir() and any(path.iterdir()) and not _is_checkpoint(path):
        raise FileExistsError(
            f"{path} holds other files than a checkpoint, which would be lost; name another directory"
        )


def check_output_file(path: Path) -> None:
    """Check that a path can become a file.

    Raises:
        IsADirectoryError: If it is a directory.
        NotADirectoryError: If its parent is a file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a file")
    _check_parents(path)


def _check_parents(path: Path) -> None:
    nearest = next(parent for parent in path.resolve().parents if parent.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file, not a directory")


def _is_checkpoint(path: Path) -> bool:
    try:
        return read_settings(path / "config.json").get("model_type") == "hmt"
    except (OSError, ValueError):
        return False


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
