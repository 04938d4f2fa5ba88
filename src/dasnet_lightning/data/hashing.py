"""Short digests of files and byte strings, to notice changes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

DIGEST_BYTES = 6
CHUNK = 1 << 20


def hash_file(path: Path) -> str:
    """Return a digest of a file's bytes, read in pieces; empty if it does not exist."""
    if not path.is_file():
        return ""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_parts(parts: Iterable[bytes]) -> str:
    """Return a digest of several byte strings; empty if there are none."""
    strings = [len(part).to_bytes(8, "little") + part for part in parts]
    return hashlib.blake2b(b"".join(strings), digest_size=DIGEST_BYTES).hexdigest() if strings else ""
