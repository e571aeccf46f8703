"""Digests of weight files."""

import hashlib

from pelacli.manifest import digests


def test_the_digest_is_the_sha256_of_the_file(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"pela" * 1_000_000)
    assert digests.digest_file(file) == hashlib.sha256(b"pela" * 1_000_000).hexdigest()
    assert digests.digest_file(str(file)) == digests.digest_file(file)
