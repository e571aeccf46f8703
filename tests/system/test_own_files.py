"""Nothing is read for ever, or waited for."""

from __future__ import annotations

import os

import pytest

from pelacli.errors import RequestError
from pelacli.recipe import toml_file
from pelacli.system import json_files, own_files


def test_a_device_in_the_place_of_a_document_is_refused(tmp_path):
    for name, read in (
        ("recipe.toml", toml_file.read),
        ("plan.json", lambda file: json_files.read(file, "restore it")),
    ):
        (tmp_path / name).symlink_to("/dev/zero")
        with pytest.raises(RequestError, match="it is a pipe or a device, not a file"):
            read(tmp_path / name)


def test_a_pipe_is_read_where_a_shell_gives_one_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    own_files.check_ends(tmp_path / "pipe", pipes=True)
    with pytest.raises(OSError, match="a pipe or a device"):
        own_files.check_ends(tmp_path / "pipe")


def test_what_is_usual_is_left_to_its_reader(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nothing").symlink_to("nowhere")
    for name in ("file", "link", "nothing", "missing", "."):
        own_files.check_ends(tmp_path / name)


def test_json_of_a_strangers_directory_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(RequestError, match="it is a pipe or a device, not a file; restore it"):
        json_files.read(tmp_path / "config.json", "restore it")
