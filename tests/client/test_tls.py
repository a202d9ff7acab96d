"""tls.py: what is wrong with a certificate is told before anybody connects; one that is renewed is taken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.tls import Identity, ServerTls, client_context
from httppubsubserver.certificates import Files, Pair, new_authority, signed

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
NAMES = ("ssl_certfile", "ssl_keyfile")


def write(directory: Path, name: str, pair: Pair) -> Files:
    files = Files.of(directory, name)
    files.certificate.write_bytes(pair.certificate)
    files.key.write_bytes(pair.key)
    files.key.chmod(0o600)
    return files


def identity(files: Files) -> Identity:
    made = Identity.of(files.certificate, files.key, *NAMES)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def authority() -> Pair:
    return new_authority()


@pytest.fixture
def good(tmp_path: Path, authority: Pair) -> Files:
    write(tmp_path, "ca", authority)
    return write(tmp_path, "good", signed(authority, "good", ["localhost"]))


def served(files: Files, *, ca: Path | None = None, now: Callable[[], datetime] | None = None) -> ServerTls:
    clock = {} if now is None else {"now": now}
    return ServerTls(identity(files), client_ca_file=ca, ca_setting="ssl_ca_certs", **clock)


def shown_by(context: ssl.SSLContext) -> bytes:
    """The certificate that a server with this context shows, in DER."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    client = asking.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


# -- what is wrong ----------------------------------------------------------------------------------------------------


def break_nothing(files: Files) -> None:
    pass


def encrypt(files: Files) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )


@pytest.mark.parametrize(
    ("breaking", "told"),
    [
        (lambda files: files.certificate.unlink(), "ssl_certfile: .*good.pem cannot be read: No such file"),
        (lambda files: files.key.unlink(), "ssl_keyfile: .*good-key.pem cannot be read: No such file"),
        (lambda files: (files.certificate.unlink(), files.certificate.mkdir()), "ssl_certfile: .*Is a directory"),
        (lambda files: files.certificate.write_text("no"), "ssl_certfile: .*no readable certificates in PEM"),
        (lambda files: files.certificate.write_bytes(b""), "ssl_certfile: .*no readable certificates in PEM"),
        (lambda files: files.certificate.write_bytes(files.key.read_bytes()), "ssl_certfile: .*no readable"),
        (lambda files: files.key.write_text("no"), "ssl_keyfile: .*is not a private key in PEM"),
        (lambda files: files.key.write_bytes(files.certificate.read_bytes()), "ssl_keyfile: .*not a private key"),
        (lambda files: files.key.write_bytes(new_authority().key), "ssl_keyfile: .*is not the key of the certificate"),
        (encrypt, "ssl_keyfile: .*is encrypted; `openssl pkey"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(good: Files, breaking: Callable[[Files], object], told: str) -> None:
    served(good)
    breaking(good)
    with pytest.raises(ConfigurationError, match=told) as raised:
        served(good)
    assert "PRIVATE KEY" not in str(raised.value)


def test_a_key_that_may_not_be_read_is_told(good: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        if path == good.key:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ConfigurationError, match=r"ssl_keyfile: .*Permission denied"):
        served(good)


def test_an_expired_certificate_is_refused_and_the_day_is_told(tmp_path: Path, authority: Pair) -> None:
    files = write(tmp_path, "old", signed(new_authority(NOW - 800 * DAY), "old", ["x"], NOW - 400 * DAY))
    with pytest.raises(ConfigurationError, match=r"old\.pem expired on 20\d\d-\d\d-\d\d .*UTC: renew it"):
        served(files)
    with pytest.raises(ConfigurationError, match="expired on"):
        client_context(ca_file=None, ca_setting="x", identity=identity(files))


def test_one_that_is_not_valid_yet_is_refused_and_the_clock_is_told(tmp_path: Path, authority: Pair) -> None:
    files = write(tmp_path, "early", signed(authority, "early", ["x"], NOW + DAY))
    with pytest.raises(ConfigurationError, match=r"is not valid before .* the clock of this machine says"):
        served(files)


def test_a_key_alone_and_an_authority_that_is_none_are_told(good: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ssl_keyfile is the key of a certificate: set ssl_certfile"):
        Identity.of(None, good.key, *NAMES)
    (tmp_path / "empty.pem").write_text("")
    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigurationError, match=f"ssl_ca_certs: .*{path.name}"):
            served(good, ca=path)
        with pytest.raises(ConfigurationError, match=f"broadcaster_ca_file: .*{path.name}"):
            client_context(ca_file=path, ca_setting="broadcaster_ca_file", identity=None)


def test_certificate_and_key_may_lie_in_one_file(good: Files, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(good.certificate.read_bytes() + good.key.read_bytes())
    alone = Identity.of(both, None, *NAMES)
    assert alone is not None
    alone.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    without = Identity.of(good.certificate, None, *NAMES)
    assert without is not None
    with pytest.raises(ConfigurationError, match="no private key that can be read beside the certificate"):
        without.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_an_open_key_is_warned_about(good: Files, caplog: pytest.LogCaptureFixture) -> None:
    good.key.chmod(0o644)
    served(good)
    assert "good-key.pem is open to all users (mode 644): chmod 600 it" in caplog.text


# -- the context ------------------------------------------------------------------------------------------------------


def test_tls_1_2_is_the_least_and_clients_show_certificates_only_when_asked(good: Files, tmp_path: Path) -> None:
    plain, mutual = served(good).context, served(good, ca=tmp_path / "ca.pem").context
    client = client_context(ca_file=tmp_path / "ca.pem", ca_setting="x", identity=identity(good))
    assert {context.minimum_version for context in (plain, mutual, client)} == {ssl.TLSVersion.TLSv1_2}
    assert plain.verify_mode == ssl.CERT_NONE
    assert mutual.verify_mode == client.verify_mode == ssl.CERT_REQUIRED
    assert client.check_hostname
    assert plain.options & ssl.OP_NO_RENEGOTIATION


def test_the_environment_says_nothing_about_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    write(tmp_path, "ca", new_authority())
    own = client_context(ca_file=tmp_path / "ca.pem", ca_setting="x", identity=None)
    assert own.cert_store_stats()["x509_ca"] == 1
    assert client_context(ca_file=None, ca_setting="x", identity=None).cert_store_stats()["x509_ca"] > 10
    assert not (tmp_path / "keys").exists()


# -- while it runs ----------------------------------------------------------------------------------------------------


def test_a_certificate_near_its_end_is_warned_about_once_a_day(good: Files, caplog: pytest.LogCaptureFixture) -> None:
    now = NOW + 360 * DAY
    tls = served(good, now=lambda: now)
    assert caplog.text == ""
    now = NOW + 370.5 * DAY
    for _ in range(24):
        tls.look()
    assert caplog.text.count("good.pem expires on") == 1
    assert "in 26 days: renew it" in caplog.text
    now = NOW + 371.5 * DAY
    tls.look()
    assert caplog.text.count("good.pem expires on") == 2
    now = NOW + 400 * DAY
    tls.look()
    assert "good.pem expired on" in caplog.text


def test_new_files_are_taken_and_bad_ones_are_not(
    good: Files, authority: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "httppubsub.tls")
    tls = served(good)
    first = shown_by(tls.context)
    tls.look()
    assert shown_by(tls.context) == first
    good.key.write_bytes(new_authority().key)
    tls.look()
    assert "is not the key of the certificate" in caplog.text
    assert "going on with the former certificate" in caplog.text
    assert shown_by(tls.context) == first
    write(tmp_path, "good", signed(authority, "good", ["localhost"]))
    tls.look()
    assert "took the new certificate" in caplog.text
    assert shown_by(tls.context) != first
    good.certificate.unlink()
    second = shown_by(tls.context)
    tls.look()
    assert shown_by(tls.context) == second


async def test_the_watch_looks_again_and_again(good: Files, authority: Pair, tmp_path: Path) -> None:
    tls = served(good)
    first = tls.context
    watching = asyncio.create_task(tls.keep_watch(0.001))
    write(tmp_path, "good", signed(authority, "good", ["localhost"]))
    async with asyncio.timeout(30):
        while tls.context is first:
            await asyncio.sleep(0.001)
    watching.cancel()
