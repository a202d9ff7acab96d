"""Certificates and keys in files: read, judged, put into TLS contexts, and watched while a server runs.

What is wrong with a file is told at start, by the name of the setting: missing, unreadable, not PEM, encrypted, the key
of another certificate, not valid yet, expired. One that ends soon is a warning in the log, once a day. A server whose
files are replaced uses the new ones for new connections within the hour, without a restart; if they are no good, it
says so and goes on with the old ones.

TLS 1.2 is the least, everywhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import certifi

from httppubsubclient.protocol.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["ENDS_SOON", "Identity", "ServerTls", "client_context"]

_LOG = logging.getLogger("httppubsub.tls")

ENDS_SOON: Final = timedelta(days=30)
_LOOK_SECONDS: Final = 3600.0
_SAY_AGAIN: Final = timedelta(days=1)

Clock = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Identity(NamedTuple):
    """Who we are in TLS, and the names of the settings that said so."""

    certfile: Path
    """PEM: the certificate, then those that lead from it to its root."""
    keyfile: Path | None
    """PEM, not encrypted; None when it is in the same file."""
    cert_setting: str
    key_setting: str

    @classmethod
    def of(
        cls,
        certfile: str | os.PathLike[str] | None,
        keyfile: str | os.PathLike[str] | None,
        cert_setting: str,
        key_setting: str,
    ) -> Identity | None:
        """None when neither is given. Raises `ConfigurationError` when there is only a key."""
        if certfile is None:
            if keyfile is not None:
                raise ConfigurationError(f"{key_setting} is the key of a certificate: set {cert_setting}, too")
            return None
        return cls(Path(certfile), None if keyfile is None else Path(keyfile), cert_setting, key_setting)

    def ends_at(self, now: datetime) -> datetime:
        """Until when the certificate is good. Raises `ConfigurationError` when it is not, or not yet."""
        own, *_ = _certificates(self.certfile, self.cert_setting)
        first, last = own.not_valid_before_utc, own.not_valid_after_utc
        if now > last:
            raise ConfigurationError(
                f"{self.cert_setting}: the certificate {self.certfile} expired on {_day(last)}: renew it"
            )
        if now < first:
            raise ConfigurationError(
                f"{self.cert_setting}: the certificate {self.certfile} is not valid before {_day(first)}; "
                f"the clock of this machine says {_day(now)}"
            )
        return last

    def check(self, now: datetime | None = None) -> None:
        """Say in the log that it ends soon. Raises `ConfigurationError` when it has ended, or has not begun."""
        at = _utc_now() if now is None else now
        left = self.ends_at(at) - at
        if left < ENDS_SOON:
            _LOG.warning(
                "%s: the certificate %s expires on %s, in %d days: renew it",
                self.cert_setting, self.certfile, _day(at + left), left.days,
            )  # fmt: skip

    def load_into(self, context: ssl.SSLContext, now: datetime | None = None) -> None:
        """Show this certificate from now on. Raises `ConfigurationError`; the context is as it was then."""
        self.ends_at(_utc_now() if now is None else now)
        # A context that has taken a certificate and then not its key is of no use: the first try is another's.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._load(context)
        self._warn_if_open()

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """Something that changes when the files do. Raises `OSError`."""
        return tuple(
            (status.st_ino, status.st_size, status.st_mtime_ns)
            for status in (os.stat(path) for path in (self.certfile, self.keyfile) if path is not None)
        )

    def _load(self, context: ssl.SSLContext) -> None:
        def passphrase() -> str:
            # OpenSSL would ask the terminal.
            raise _EncryptedError

        keyfile = self.certfile if self.keyfile is None else self.keyfile
        key_setting = self.cert_setting if self.keyfile is None else self.key_setting
        try:
            keyfile.read_bytes()
            context.load_cert_chain(self.certfile, keyfile, passphrase)
        except _EncryptedError:
            fault = "is encrypted; `openssl pkey -in KEY -out NEW` writes one without a passphrase (chmod 600 it)"
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                fault = f"is not the key of the certificate {self.certfile}"
            elif self.keyfile is None:
                fault = f"has no private key that can be read beside the certificate: set {self.key_setting}"
            else:
                fault = f"is not a private key in PEM ({error.reason or 'unreadable'})"
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        else:
            return
        raise ConfigurationError(f"{key_setting}: {keyfile} {fault}")

    def _warn_if_open(self) -> None:
        keyfile = self.certfile if self.keyfile is None else self.keyfile
        try:
            mode = stat.S_IMODE(os.stat(keyfile).st_mode)
        except OSError:
            return  # told by whoever reads it
        if os.name == "posix" and mode & 0o007:
            _LOG.warning("the private key %s is open to all users (mode %03o): chmod 600 it", keyfile, mode)


class _EncryptedError(Exception):
    pass


class ServerTls:
    """The TLS of a server. `context` is for the next connection."""

    def __init__(
        self,
        identity: Identity,
        *,
        client_ca_file: Path | None,
        ca_setting: str,
        now: Clock = _utc_now,
    ) -> None:
        """With `client_ca_file` only those are let in who show a certificate that leads to one in it.

        Raises `ConfigurationError`.
        """
        self._identity = identity
        self._client_ca_file = client_ca_file
        self._ca_setting = ca_setting
        self._now = now
        self._said_at: datetime | None = None
        self._seen = self._state()
        self.context = self._made()
        self._warn()

    async def keep_watch(self, every_seconds: float = _LOOK_SECONDS) -> None:
        """Look after the files until cancelled."""
        while True:
            await asyncio.sleep(every_seconds)
            self.look()

    def look(self) -> None:
        """Take what is new; say what ends soon, or has ended."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            self._said_at = None
            try:
                # A context of its own, so that connections of before cannot be resumed past a new `client_ca_file`.
                self.context = self._made()
            except ConfigurationError as error:
                _LOG.error("%s; going on with the former certificate", error)
            else:
                _LOG.info("took the new certificate %s", self._identity.certfile)
        self._warn()

    def _state(self) -> object:
        try:
            ca = None if self._client_ca_file is None else os.stat(self._client_ca_file).st_mtime_ns
            return self._identity.state(), ca
        except OSError:
            return None

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        self._identity.load_into(context, self._now())
        if self._client_ca_file is not None:
            _trust(context, self._client_ca_file, self._ca_setting)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _warn(self) -> None:
        now = self._now()
        if self._said_at is not None and now - self._said_at < _SAY_AGAIN:
            return
        try:
            if self._identity.ends_at(now) - now >= ENDS_SOON:
                return
            self._identity.check(now)
        except ConfigurationError as error:
            _LOG.error("%s", error)
        self._said_at = now


def client_context(
    *, ca_file: str | os.PathLike[str] | None, ca_setting: str, identity: Identity | None
) -> ssl.SSLContext:
    """Whom to trust, and the certificate to show if the server asks for one. Raises `ConfigurationError`.

    Without `ca_file` those of certifi, which comes with httpx, whatever SSL_CERT_FILE says.
    """
    # Not ssl.create_default_context: that writes the keys of every connection to where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        context.load_verify_locations(certifi.where())
    else:
        _trust(context, Path(ca_file), ca_setting)
    if identity is not None:
        identity.load_into(context)
        identity.check()
    return context


def _trust(context: ssl.SSLContext, ca_file: Path, setting: str) -> None:
    _certificates(ca_file, setting)
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{setting}: {ca_file} holds no certificates that can be trusted: {error}") from None


def _certificates(path: Path, setting: str) -> list[x509.Certificate]:
    """At least one."""
    from cryptography import x509  # takes long to load, and most never need it

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"{setting}: {path} holds no readable certificates in PEM") from None


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
