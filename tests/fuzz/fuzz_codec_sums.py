"""Fuzz target: checksum files, key rings and saved digests give a value or a `CdiError`.

python tests/fuzz/fuzz_codec_sums.py -max_total_time=60
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.verify"]):
    from cdi.api.errors import CdiError
    from cdi.verify.checksum_file import find_digest
    from cdi.verify.hashing import ResumableHash
    from cdi.verify.openpgp import dearmour, parse_status

from tests.fuzz.seeds import run


def target(data: bytes) -> None:
    try:
        found = find_digest(data, "disk.img", file_name="disk.img.sha256")
        assert found is None or found.hex.encode() in data.lower() or b"\0" in data
    except CdiError:
        pass
    for call in (lambda: dearmour(data), lambda: parse_status(data.decode("utf-8", "replace"))):
        try:
            call()
        except CdiError:
            pass
    for algorithm in ("sha256", "sha512", "md5"):
        for state in (data, data + zlib.crc32(data).to_bytes(4, "big")):
            restored = ResumableHash.restore(algorithm, state)
            if restored is not None:
                restored.update(b"x" * 200)
                restored.hexdigest()


def seeds() -> list[bytes]:
    value = b"a" * 64
    made = ResumableHash("sha256")
    made.update(b"x" * 100)
    state = made.save() or b""
    return [
        value + b"  disk.img\n",
        b"SHA256 (disk.img) = " + value,
        value,
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n- "
        + value
        + b"  disk.img\n-----BEGIN PGP SIGNATURE-----\n",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n=AAAA\n-----END PGP PUBLIC KEY BLOCK-----\n",
        b"[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG A b\n[GNUPG:] VALIDSIG AB c 1 0 4 0 1 8 0 AB\n",
        state,
        state[:-4],
    ]


if __name__ == "__main__":
    run(target, seeds(), 1024, fixed=80_000)
