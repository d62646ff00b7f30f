"""Files appear whole, or not at all."""

import os

import pytest

from tfcompress.files import replacing, write_text


def test_two_processes_that_write_one_file(tmp_path, monkeypatch):
    with replacing(tmp_path / "a.json") as part, open(part, "w") as file:
        file.write("mi")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        write_text(tmp_path / "a.json", "other")
        assert (tmp_path / "a.json").read_text() == "other"
        file.write("ne")
    assert (tmp_path / "a.json").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = write_text(tmp_path / "a.json", "before")
    with pytest.raises(InterruptedError), replacing(path) as part:
        part.write_text("half")
        raise InterruptedError
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
