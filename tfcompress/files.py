"""Files that are replaced in one step, or left as they were."""

import contextlib
import fnmatch
import glob
import os
import pathlib
import time


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path beside `path`: it takes its place if the block succeeds, and vanishes if not.

    Args:
        path: the file to write; the temporary one has its ending.

    Raises:
        OSError: nothing can be written there.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a directory.")
    # Of this process alone: another one may be writing the same file. What has not grown for an hour was left behind by
    # one that was killed.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        for other in path.parent.glob(f".{glob.escape(path.stem)}.*.part{glob.escape(path.suffix)}"):
            with contextlib.suppress(FileNotFoundError):  # the other process is done with it
                if time.time() - other.stat().st_mtime > 3600:
                    other.unlink()
        part.touch()
    except OSError as error:
        raise type(error)(f"Cannot write {path}: {error.strerror}.") from error
    try:
        yield part
        with open(part, "rb+") as file:  # else a crash of the machine may leave an empty file under the new name
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_temporary(path):
    """Whether a file is one that `replacing` yields: a process that was killed left it behind."""
    return fnmatch.fnmatch(path.name, ".*.part*")


def write_text(path, text):
    """Writes a text file; returns its path."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def save_model(model, path):
    """Saves a Keras model as a `.keras` file; returns its path."""
    with replacing(path) as part:
        model.save(part)
    return path
