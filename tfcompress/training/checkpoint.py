"""Checkpoints: everything a training needs to go on as if it had never stopped."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from tfcompress.files import replacing


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or was written by another training."""


def save_checkpoint(path, arrays, meta):
    """Writes arrays and a JSON-able dict to `path` in one step: a reader sees the old file or the new one.

    Args:
        path: target file.
        arrays: list of numpy arrays; bfloat16, which NumPy's files do not know, is stored as float32.
        meta: dict of what identifies the training, and its progress.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [array.astype("float32") if array.dtype.kind == "V" else array for array in arrays]
    header = json.dumps({**meta, "sha256": digest(arrays)})
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, meta=np.array(header), **{f"array_{i}": array for i, array in enumerate(arrays)})


def load_checkpoint(path):
    """Reads what `save_checkpoint` wrote.

    Returns:
        (arrays, meta), or None when there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            meta = json.loads(str(stored["meta"]))
            arrays = [stored[f"array_{i}"] for i in range(len(stored.files) - 1)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"Checkpoint {path} is damaged ({error}); delete it to compute it again") from error
    if digest(arrays) != meta.pop("sha256", None):
        raise CheckpointError(f"Checkpoint {path} does not match its checksum; delete it to compute it again")
    return arrays, meta


def digest(arrays):
    """SHA-256 over dtypes, shapes and bytes of a list of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
