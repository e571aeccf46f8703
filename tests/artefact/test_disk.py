"""A disk that can't be written to: one line, exit code 1, and what was there is there."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError

import pelacli
from pelacli.errors import PelaError
from pelacli.manifest import digests
from pelacli.steps.verify import verify
from pelacli.system import disk, files


@contextmanager
def files_of_at_most(size: int):
    """The system refuses to write more, as a quota or a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [10, 3_000, 100_000])
def test_whatever_file_does_not_fit_the_old_artefact_stays(artefact, checkpoint, pela, size):
    before = digests.weights_digest(artefact)
    for output in ("a", "b"):
        with files_of_at_most(size):
            code, out, err = pela(
                "decompose", checkpoint, "--arch", "test_vit", "--ratio", "0.8", "-o", output
            )
        assert (code, out) == (1, ""), err
        line = err.splitlines()[-1]
        assert line.lower().startswith("pela: error: ")
        assert "file too large; raise the limit of file sizes" in line.lower()
        assert verify(artefact).whole
        assert digests.weights_digest(artefact) == before
        assert [path.name for path in Path().iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_refusal_anywhere_on_the_way_names_the_output_and_a_remedy(artefact, monkeypatch, number):
    """Other numbers, at the last moment: where the new artefact takes the old one's place."""

    def refuse(path):
        raise OSError(number, os.strerror(number))

    module = pelacli.load(artefact)
    before = digests.weights_digest(artefact)
    monkeypatch.setattr(files, "_sync", refuse)
    with pytest.raises(PelaError) as caught:
        pelacli.save(module, artefact)
    assert str(caught.value).startswith(f"{artefact}: can't be written: {os.strerror(number)}; ")
    assert digests.weights_digest(artefact) == before
    assert [path.name for path in artefact.parent.iterdir()] == ["a"]


def test_safetensors_and_files_without_a_number_are_understood_too():
    for error in (
        SafetensorError("Error while serializing: I/O error: x (os error 28)"),
        OSError("the pipe broke"),
    ):
        with (
            pytest.raises(PelaError, match="out: can't be written: "),
            disk.refusals_named(Path("out")),
        ):
            raise error
    with pytest.raises(KeyError), disk.refusals_named(Path("out")):
        raise KeyError


@pytest.mark.parametrize(
    "says", ["I/O error: File too large (os error 27)",
             'IoError(Os { code: 27, kind: FileTooLarge, message: "File too large" })']
)  # fmt: skip
def test_the_number_is_read_from_what_any_release_of_safetensors_says(says):
    assert disk.errno_of(SafetensorError(f"Error while serializing: {says}")) == errno.EFBIG
