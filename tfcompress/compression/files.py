"""Files that are replaced in one step, or left as they were."""

import contextlib
import os


def write_text(path, text):
    """Writes a text file; returns its path."""
    with _replacing(path, f".{path.name}.{os.getpid()}.part") as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def save_model(model, path):
    """Saves a Keras model as a `.keras` file; returns its path."""
    # Keras takes no other ending.
    with _replacing(path, f".{path.stem}.{os.getpid()}.part.keras") as part:
        model.save(part)
    return path


@contextlib.contextmanager
def _replacing(path, name):
    part = path.with_name(name)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
