"""Encryption of what the database keeps secret: storage keys, and AES-256-GCM under them.

    vault = open_vault(Path("storage-key"), environ={})
    sealed = vault.seal(b"...", context=b"what it is and whose")
    assert vault.open(sealed, context=b"what it is and whose") == b"..."

Storage keys are text, a line for each: the padded base64 of 32 random bytes. The first one encrypts, all decrypt, so
that a new key is put on top of the present one, and the old one goes when nothing is sealed with it any more. Empty
lines and those that begin with `#` say nothing.

| bytes | of what is sealed                                                        |
|-------|--------------------------------------------------------------------------|
| 1     | 1, the version of this table                                             |
| 4     | which key: the beginning of its SHA-256, after a label                   |
| 12    | the nonce, random (NIST SP 800-38D section 8.2.2: 2^32 of them are fine) |
| n     | the ciphertext, as long as the plaintext                                 |
| 16    | the tag, over ciphertext, all of the above and the context               |

The context is not part of it: whoever opens it says what it has to be. So what is sealed for one row of the database
is good for no other one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.config import STORAGE_KEY_VARIABLE

__all__ = ["MAX_STORAGE_KEYS", "Unopenable", "Vault", "open_vault", "parse_storage_keys"]

_LOG = logging.getLogger("httppubsub.server")

MAX_STORAGE_KEYS: Final = 16

_KEY_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 16 * 1024
_VERSION: Final = b"\x01"
_LABEL: Final = b"httppubsub storage key\x00"
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = len(_VERSION) + _ID_BYTES + _NONCE_BYTES


class Unopenable(Exception):
    """What was sealed cannot be opened: its key is not here, or it is not what was sealed for this context."""


class Vault:
    """Seals and opens. `keys` have 32 bytes each; the first one seals. Good for any number of threads."""

    __slots__ = ("_ciphers", "_sealing_id")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers: dict[bytes, list[AESGCM]] = {}
        for key in keys:
            # Two keys of the same four bytes are not worth a longer id: both are tried.
            self._ciphers.setdefault(_key_id(key), []).append(AESGCM(key))
        self._sealing_id = _key_id(keys[0])

    def __repr__(self) -> str:
        return f"<Vault with {sum(map(len, self._ciphers.values()))} keys>"

    def seal(self, plaintext: bytes, *, context: bytes) -> bytes:
        """Encrypt; the same plaintext gives something else each time."""
        head = _VERSION + self._sealing_id + os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._sealing_id][0]
        return head + cipher.encrypt(head[-_NONCE_BYTES:], plaintext, head + context)

    def open(self, sealed: bytes, *, context: bytes) -> bytes:
        """The inverse. Raises `Unopenable`."""
        head, encrypted = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        if len(encrypted) < _TAG_BYTES or head[:1] != _VERSION:
            raise Unopenable("it does not have the form of anything that was sealed")
        ciphers = self._ciphers.get(_id_of(head))
        if ciphers is None:
            raise Unopenable("the storage key that it was sealed with is not here")
        for cipher in ciphers:
            try:
                return cipher.decrypt(head[-_NONCE_BYTES:], encrypted, head + context)
            except InvalidTag:
                continue
        raise Unopenable("it was changed, or sealed for something else")

    def is_current(self, sealed: bytes) -> bool:
        """Whether it was sealed with the key that would seal it now."""
        return _id_of(sealed) == self._sealing_id


def open_vault(file: Path | None, *, environ: Mapping[str, str] = os.environ) -> Vault | None:
    """The vault of the storage keys in HTTPPUBSUB_STORAGE_KEY and in `file`, in this order; None if there are none.

    In the variable, spaces and commas part keys, too. Raises `ConfigurationError`, whose text never holds a key.
    """
    keys: list[bytes] = []
    text = environ.get(STORAGE_KEY_VARIABLE, "")
    if text.strip():
        keys += parse_storage_keys("\n".join(text.replace(",", " ").split()), STORAGE_KEY_VARIABLE)
    if file is not None:
        keys += parse_storage_keys(_read(file), f"the storage key file {str(file)!r}")
    return Vault(keys) if keys else None


def parse_storage_keys(text: str, source: str) -> list[bytes]:
    """The keys of a text, one in each line; `source` says in errors where it stands. Raises `ConfigurationError`."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not 1 <= len(lines) <= MAX_STORAGE_KEYS:
        raise ConfigurationError(f"{source} has {len(lines)} keys; expected are 1 to {MAX_STORAGE_KEYS}, a line each")
    return [_parse_key(line, f"{source}, key {number}") for number, line in enumerate(lines, 1)]


def _parse_key(line: str, source: str) -> bytes:
    try:
        key = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(f"{source}, is not the padded base64 of {_KEY_BYTES} bytes")
    if len(set(key)) < 8:
        # Of random ones, less than one in 10^36 has so few different bytes.
        raise ConfigurationError(f"{source}, is not random")
    return key


def _read(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            content = opened.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no storage key file {str(file)!r}: `httppubsubserver --setup` makes one; it is the one thing "
            "that the secrets of subscriptions can be read with, so an old one cannot be replaced"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the storage key file {str(file)!r} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES or not content.isascii():
        raise ConfigurationError(f"the storage key file {str(file)!r} is not lines of base64")
    if mode & 0o077:
        _LOG.warning("the storage key file %r is open to other users (mode %03o): chmod 600 it", str(file), mode)
    return content.decode("ascii")


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(_LABEL + key).digest()[:_ID_BYTES]


def _id_of(sealed: bytes) -> bytes:
    return sealed[len(_VERSION) : len(_VERSION) + _ID_BYTES]
