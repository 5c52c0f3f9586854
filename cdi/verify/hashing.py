"""Digests whose state can be saved and resumed by another process.

``hashlib`` cannot save its state. The low-level functions of OpenSSL's libcrypto (``SHA256_Update`` and so on,
``openssl/sha.h``, ``openssl/md5.h``) can: their context is a plain structure without pointers. They run the same
assembly as hashlib, and ``ctypes`` releases the interpreter lock around the call. Before first use, an algorithm is
tested against hashlib, with a save and a restore in the middle; if that fails (a libcrypto without these functions,
another layout), hashlib is used and no state can be saved.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from typing import Protocol, Self

from cdi.api.digest import HEX_LENGTH, Digest
from cdi.api.errors import ChecksumInvalid

_MAGIC = b"cdi-hash-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Context structure: `words` of the chaining value, the bit count, one block of input, its fill level."""

    prefix: str
    """Prefix of the C functions."""
    word: int
    """Bytes per word of the chaining value; the bit count takes two words."""
    words: int
    block: int
    """Block size in bytes."""
    has_length: bool
    """Whether the structure ends with the digest's length (the SHA-2 family)."""

    @property
    def count(self) -> int:
        return self.word * self.words

    @property
    def fill(self) -> int:
        return self.count + 2 * self.word + self.block

    @property
    def size(self) -> int:
        return self.fill + (8 if self.has_length else 4)


_LAYOUTS = {
    "md5": _Layout(prefix="MD5", word=4, words=4, block=64, has_length=False),
    "sha1": _Layout(prefix="SHA1", word=4, words=5, block=64, has_length=False),
    "sha224": _Layout(prefix="SHA224", word=4, words=8, block=64, has_length=True),
    "sha256": _Layout(prefix="SHA256", word=4, words=8, block=64, has_length=True),
    "sha384": _Layout(prefix="SHA384", word=8, words=8, block=128, has_length=True),
    "sha512": _Layout(prefix="SHA512", word=8, words=8, block=128, has_length=True),
}


class _PyBuffer(ctypes.Structure):
    """``Py_buffer`` of the C API, which gives the address of read-only memory."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


class _State(Protocol):
    def update(self, view: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _LibcryptoHash:
    """Context of libcrypto's low-level functions."""

    def __init__(self, algorithm: str, library: ctypes.CDLL) -> None:
        self._layout = layout = _LAYOUTS[algorithm]
        self._length = HEX_LENGTH[algorithm] // 2
        functions = []
        for name in ("Init", "Update", "Final"):
            function = getattr(library, f"{layout.prefix}_{name}")
            function.restype = ctypes.c_int
            functions.append(function)
        init, self._update, self._final = functions
        init.argtypes = (ctypes.c_void_p,)
        self._update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._final.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        # Twice the size: a libcrypto with a larger structure fails the test instead of corrupting memory.
        self._context = ctypes.create_string_buffer(2 * layout.size)
        if init(self._context) != 1:
            raise OSError(f"{layout.prefix}_Init failed")

    def update(self, view: bytes | memoryview, /) -> None:
        found = _PyBuffer()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
        try:
            if self._update(self._context, found.buf, found.len) != 1:
                raise OSError("cannot update the digest")
        finally:
            ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))

    def hexdigest(self) -> str:
        # Final destroys the context, and the caller may add more data.
        context = ctypes.create_string_buffer(self._context.raw, len(self._context))
        digest = ctypes.create_string_buffer(self._length)
        if self._final(digest, context) != 1:
            raise OSError("cannot finish the digest")
        return digest.raw.hex()

    def save(self) -> bytes:
        return self._context.raw[: self._layout.size]

    def load(self, context: bytes) -> bool:
        """Load a saved context; return False if it is invalid: libcrypto would trust it and overflow the block."""
        layout = self._layout
        if len(context) != layout.size:
            return False
        low, high = struct.unpack_from("=II" if layout.word == 4 else "=QQ", context, layout.count)
        bits = low | high << 8 * layout.word
        (fill,) = struct.unpack_from("=I", context, layout.fill)
        if bits % 8 or bits // 8 % layout.block != fill:
            return False
        if layout.has_length and struct.unpack_from("=I", context, layout.fill + 4) != (self._length,):
            return False
        ctypes.memmove(self._context, context, layout.size)
        return True


def _library_names() -> list[str]:
    names = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                path = line.split(maxsplit=5)[-1].strip()
                if "/libcrypto" in path and path not in names:
                    names.append(path)
    except OSError:
        pass
    return [*names, "libcrypto.so.3", "libcrypto.so.1.1"]


@functools.cache
def _library() -> tuple[ctypes.CDLL, str] | None:
    """Return the libcrypto to use, preferably the one that hashlib loaded, and its major version."""
    for name in _library_names():
        try:
            library = ctypes.CDLL(name)
            version = library.OpenSSL_version_num
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_ulong
        return library, f"{version() >> 28}"
    return None


@functools.cache
def _native(algorithm: str) -> tuple[ctypes.CDLL, str] | None:
    """Return the library to use for `algorithm` if its digests match hashlib's."""
    found = _library()
    if found is None:
        return None
    sample = bytes(range(256)) * 3
    try:
        first, second = _LibcryptoHash(algorithm, found[0]), _LibcryptoHash(algorithm, found[0])
        first.update(sample[:333])
        if not second.load(first.save()):
            return None
        second.update(memoryview(sample)[333:])
        expected = hashlib.new(algorithm, sample, usedforsecurity=False).hexdigest()
    except (OSError, AttributeError, ValueError):
        return None
    return found if second.hexdigest() == expected else None


def _tag(algorithm: str, version: str) -> bytes:
    return f"{algorithm}:{_LAYOUTS[algorithm].size}:{version}:{os.uname().machine}:{sys.byteorder}".encode()


class ResumableHash:
    """Incremental digest; not thread-safe, and `update` releases the interpreter lock."""

    def __init__(self, algorithm: str) -> None:
        """Start a digest; raise `ChecksumInvalid` if `algorithm` is not in `cdi.api.digest.HEX_LENGTH`."""
        if algorithm not in _LAYOUTS:
            raise ChecksumInvalid(f"unknown digest algorithm {algorithm!r}")
        self.algorithm = algorithm
        found = _native(algorithm)
        self._native = None if found is None else _LibcryptoHash(algorithm, found[0])
        self._tag = b"" if found is None else _tag(algorithm, found[1])
        self._state: _State = self._native or hashlib.new(algorithm, usedforsecurity=False)

    def update(self, view: bytes | memoryview) -> None:
        """Add bytes from contiguous memory."""
        self._state.update(view)

    def hexdigest(self) -> str:
        """Return the digest of the data so far in lower case; more can be added afterwards."""
        return self._state.hexdigest()

    def digest(self) -> Digest:
        return Digest(self.algorithm, self.hexdigest())

    def save(self) -> bytes | None:
        """Return the state, at most 512 bytes; None if this machine's libcrypto cannot export it."""
        if self._native is None:
            return None
        body = b"\n".join((_MAGIC, self._tag, self._native.save()))
        return body + struct.pack(">I", zlib.crc32(body))

    @classmethod
    def restore(cls, algorithm: str, state: bytes) -> Self | None:
        """Return the digest that was saved as `state`, or None if it cannot be resumed.

        That is so if another algorithm, libcrypto or machine produced the state, or if it is malformed. The content
        must then be read again from its beginning.
        """
        made = cls(algorithm)
        body, check = state[:-4], state[-4:]
        parts = body.split(b"\n", 2)
        if len(parts) != 3 or len(check) != 4 or struct.pack(">I", zlib.crc32(body)) != check:
            return None
        magic, tag, context = parts
        if made._native is None or magic != _MAGIC or tag != made._tag or not made._native.load(context):
            return None
        return made
