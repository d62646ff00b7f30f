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


def test_what_a_killed_process_left_behind_vanishes(tmp_path):
    old, new = (tmp_path / f".a[1].{i}.part.json" for i in (1, 2))
    for part in (old, new):
        part.write_text("half")
    os.utime(old, (0, 0))
    write_text(tmp_path / "a[1].json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].json", new.name}


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = write_text(tmp_path / "a.json", "before")
    with pytest.raises(InterruptedError), replacing(path) as part:
        part.write_text("half")
        raise InterruptedError
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
