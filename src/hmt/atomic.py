"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _write_errors(path):
            yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A directory to fill beside `path`; it takes the place of `path` when the block ends without an error.

    Raises:
        FileExistsError: If `path` is a file, or a directory that holds something else than a checkpoint.
    """
    path = path.resolve()
    recover_directory(path)
    check_output_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        with _write_errors(path):
            yield unfinished
        for file in unfinished.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(replaced)
        unfinished.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Errors of writing as what they are, an OSError: safetensors and torch have their own for a full disk."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save, into an open file
            raise error.__context__ from error
        raise


def recover_directory(path: Path) -> None:
    """Bring back the old directory of a writer that was killed before the new one was in its place."""
    path = path.resolve()
    if not path.parent.is_dir():
        return
    left = re.compile(re.escape(f".{path.name}.") + r"(\d+)(\.old)?")
    with contextlib.suppress(FileNotFoundError):  # another process of the same run was quicker
        for entry in sorted(path.parent.iterdir()):
            found = left.fullmatch(entry.name)
            if found is None or _is_running(int(found[1])):
                continue
            if found[2] and not path.exists():
                entry.rename(path)
            else:
                shutil.rmtree(entry, ignore_errors=True)


def check_output_directory(path: Path) -> None:
    """Make sure that a checkpoint may take the place of a path: a free one, an empty directory or an old checkpoint.

    Raises:
        FileExistsError: If something else is there that would be lost.
        NotADirectoryError: If what should be the directory around it is a file.
    """
    _check_parents(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, not a directory")
    if path.is_dir() and any(path.iterdir()) and not _is_checkpoint(path):
        raise FileExistsError(
            f"{path} holds other files than a checkpoint, which would be lost; name another directory"
        )


def _is_running(process: int) -> bool:
    """Whether there is such a process, other than this one."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_output_file(path: Path) -> None:
    """Make sure that a path can become a file.

    Raises:
        IsADirectoryError: If it is a directory.
        NotADirectoryError: If what should be its directory is a file.
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
        return json.loads((path / "config.json").read_text()).get("model_type") == "hmt"
    except (OSError, ValueError, AttributeError):
        return False


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
