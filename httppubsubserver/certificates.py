"""A private certificate authority for an internal deployment, and the certificates that it signs.

    ca.pem                the authority: whoever has it trusts what it signed
    ca-key.pem            its key: needed again only to sign; whoever has it can be anybody
    broadcaster.pem       for the hosts of the broadcasters' URLs; broadcaster-key.pem
    subscriber.pem        for the hosts of the listeners, and to be shown to the broadcasters; subscriber-key.pem

All keys are ECDSA P-256, mode 0600, not encrypted. The authority lasts ten years, the others 397 days. Each of the
others may be a server and a client, since both sides call each other. RFC 5280, as strictly as Python 3.13 checks it.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError, InvalidUrl

__all__ = ["ALWAYS", "Files", "Pair", "hosts_of", "new_authority", "renewed", "signed"]

_AUTHORITY_DAYS: Final = 3653
_DAYS: Final = 397
"""What browsers and some libraries accept at most."""

_CLOCK_SKEW: Final = timedelta(hours=1)
"""Valid from a little before now: the clocks of the other machines are not ours."""

ALWAYS: Final = ("localhost", "127.0.0.1", "::1")
"""Names of every machine for itself."""

_KEY_FAULTS: Final = (ValueError, TypeError)


class Pair(NamedTuple):
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes


class Files(NamedTuple):
    """Where a certificate and its key lie."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, directory: Path, name: str) -> Files:
        """`NAME.pem` and `NAME-key.pem`."""
        return cls(directory / f"{name}.pem", directory / f"{name}-key.pem")

    def read(self) -> Pair:
        """Raises `OSError`."""
        return Pair(self.certificate.read_bytes(), self.key.read_bytes())


def new_authority(now: datetime | None = None) -> Pair:
    """An authority of one's own, which may sign no other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"httppubsub private CA {secrets.token_hex(4)}")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    made = (
        _builder(key, name, name, _AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _as_pem(made, key)


def signed(authority: Pair, name: str, hosts: Iterable[str], now: datetime | None = None) -> Pair:
    """A certificate with a key of its own for these host names and IP addresses. `name` is for people.

    Raises `ConfigurationError` when the authority cannot sign.
    """
    issuer, issuer_key = _loaded_authority(authority, datetime.now(UTC) if now is None else now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"httppubsub {name}")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    made = (
        _builder(key, subject, issuer.subject, _DAYS, now, not_after=issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in _once(hosts)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _as_pem(made, key)


def renewed(authority: Pair, name: str, present: bytes, hosts: Iterable[str], now: datetime | None = None) -> Pair:
    """As `signed`, for all the hosts of the `present` certificate and for `hosts`. Raises `ConfigurationError`."""
    return signed(authority, name, (*hosts_of(present), *hosts), now)


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """The host names and addresses that a certificate in PEM is for. Raises `ConfigurationError`."""
    try:
        names = (
            x509.load_pem_x509_certificate(certificate)
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
    except (ValueError, x509.ExtensionNotFound):
        raise ConfigurationError("the present certificate is not readable, or has no names") from None
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def _builder(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    days: int,
    now: datetime | None,
    *,
    not_after: datetime | None = None,
) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) if now is None else now
    end = begin + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_SKEW)
        .not_valid_after(end if not_after is None else min(end, not_after))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _loaded_authority(authority: Pair, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, None)
    except _KEY_FAULTS:
        # Without the reason: it may quote what it read.
        raise ConfigurationError("ca.pem or ca-key.pem is not readable as PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError("ca-key.pem is not the key of ca.pem")
    if now > certificate.not_valid_after_utc:
        raise ConfigurationError(f"ca.pem expired on {certificate.not_valid_after_utc:%Y-%m-%d}: make a new authority")
    return certificate, key


def _general_name(host: str) -> x509.GeneralName:
    """Of a host in its canonical form, or as somebody typed it. Raises `ConfigurationError`."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        canonical = parse_callback_url(f"https://{host}/").host
    except InvalidUrl as error:
        raise ConfigurationError(f"{host!r} is no host for a certificate: {error.detail}") from None
    if canonical != host.lower().rstrip("."):
        raise ConfigurationError(f"{host!r} is no host for a certificate: give the bare name or address")
    return x509.DNSName(canonical)


def _once(hosts: Iterable[str]) -> Sequence[str]:
    return list(dict.fromkeys(host.lower() for host in hosts))


def _as_pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
