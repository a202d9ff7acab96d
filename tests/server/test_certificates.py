"""certificates.py and provision_tls.py: an authority that signs for both sides, and nothing else trusts."""

from __future__ import annotations

import ipaddress
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.certificates import Pair, hosts_of, new_authority, renewed, signed
from httppubsubserver.cli import main
from httppubsubserver.provision import add_tls, set_up
from httppubsubserver.provision_tls import certificate_files, renew_certificates

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Pair:
    return new_authority()


def loaded(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def check(authority: Pair, pair: Pair, host: str, *, at: datetime = NOW) -> None:
    """As strictly as RFC 5280 is; raises VerificationError."""
    policy = PolicyBuilder().store(Store([loaded(authority)])).time(at)
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    policy.build_server_verifier(subject).verify(loaded(pair), [])


@pytest.mark.parametrize("host", ["localhost", "one.example", "192.0.2.7", "2001:db8::1", "xn--bcher-kva.example"])
def test_what_is_signed_is_good_for_its_hosts_and_no_others(authority: Pair, host: str) -> None:
    pair = signed(
        authority, "broadcaster", ["localhost", "one.example", "192.0.2.7", "[2001:db8::1]", "xn--bcher-kva.example"]
    )
    check(authority, pair, host)
    for other in ("two.example", "192.0.2.8", "a.one.example"):
        with pytest.raises(VerificationError):
            check(authority, pair, other)
    with pytest.raises(VerificationError):
        check(new_authority(), pair, host)


def test_each_may_be_server_and_client_and_no_authority(authority: Pair) -> None:
    certificate = loaded(signed(authority, "subscriber", ["localhost"]))
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {use.dotted_string for use in uses} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    limit = loaded(authority).extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limit.ca, limit.path_length) == (True, 0)


def test_it_lasts_397_days_but_no_longer_than_its_authority(authority: Pair) -> None:
    assert NOW + 396 * DAY < loaded(signed(authority, "x", ["x"])).not_valid_after_utc < NOW + 398 * DAY
    aged = new_authority(NOW - 3600 * DAY)
    assert loaded(signed(aged, "x", ["x"])).not_valid_after_utc == loaded(aged).not_valid_after_utc


def test_an_authority_that_cannot_sign_is_told(authority: Pair) -> None:
    with pytest.raises(ConfigurationError, match=r"ca.pem expired on"):
        signed(new_authority(NOW - 4000 * DAY), "x", ["x"])
    with pytest.raises(ConfigurationError, match="is not the key of"):
        signed(Pair(authority.certificate, new_authority().key), "x", ["x"])
    with pytest.raises(ConfigurationError, match="not readable"):
        signed(Pair(b"no", authority.key), "x", ["x"])
    with pytest.raises(ConfigurationError, match="not readable") as raised:
        signed(Pair(authority.certificate, b"secret"), "x", ["x"])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "a:80", "*.example", "http://a", "a\n", "user@a", "a?b", "a#b", "bücher.example"]
)
def test_what_is_no_host_is_refused(authority: Pair, host: str) -> None:
    with pytest.raises(ConfigurationError, match="is no host for a certificate"):
        signed(authority, "x", [host])


def test_renewing_keeps_the_hosts_and_changes_the_key(authority: Pair) -> None:
    first = signed(authority, "x", ["localhost", "127.0.0.1"])
    second = renewed(authority, "x", first.certificate, ["one.example"])
    assert hosts_of(second.certificate) == ("localhost", "one.example", "127.0.0.1")
    assert second.key != first.key
    check(authority, second, "one.example")
    with pytest.raises(ConfigurationError, match="not readable"):
        hosts_of(b"no")


# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    set_up(tmp_path, tls=True, broadcaster_urls=["https://one.example:3003"], subscriber_hosts=["10.0.0.7"])
    return tmp_path


def test_the_keys_are_for_their_owner_alone_and_each_certificate_fits_its_side(site: Path) -> None:
    assert all(path.exists() for path in certificate_files(site))
    for name in ("ca", "broadcaster", "subscriber"):
        assert stat.S_IMODE((site / f"{name}-key.pem").stat().st_mode) == 0o600
        assert b"PRIVATE" not in (site / f"{name}.pem").read_bytes()
    assert hosts_of((site / "broadcaster.pem").read_bytes()) == ("one.example", "localhost", "127.0.0.1", "::1")
    assert hosts_of((site / "subscriber.pem").read_bytes()) == ("localhost", "10.0.0.7", "127.0.0.1", "::1")


def test_the_steps_name_the_files_and_listen_where_the_url_leads(site: Path) -> None:
    steps = set_up(site, tls=True, force=True, broadcaster_urls=["https://one.example:4000"])
    assert f"--host 0.0.0.0 --port 4000 --ssl-certfile {site}/broadcaster.pem" in steps
    assert f"--ssl-ca-certs {site}/ca.pem" in steps
    assert f"--callback-client-certfile {site}/broadcaster.pem" in steps
    assert f"httppubsubclient listen --secrets {site}/subscriber-secrets.json --tls {site} " in steps
    assert "https://127.0.0.1:3003" in (set_up(site, tls=True, force=True), (site / FILE).read_text())[1]


FILE = "subscriber-secrets.json"


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    (tmp_path / "ca-key.pem").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"not overwritten: .*ca-key.pem"):
        set_up(tmp_path, tls=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ca-key.pem"]


@pytest.mark.parametrize("theirs", [True, False])
def test_a_folder_without_certificates_is_given_them_and_keeps_its_keys(
    tmp_path: Path, theirs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(tmp_path, broadcaster_urls=["http://one.example:4000", "http://two.example", "https://three.example"])
    if not theirs:
        (tmp_path / FILE).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = ["--setup", "--tls", "--directory", str(tmp_path)]
    assert main([*command, "--subscriber-host", "bad host"]) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    capsys.readouterr()

    assert main([*command, "--subscriber-host", "10.0.0.7"]) == 0
    steps = capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(after) == {*before, *(path.name for path in certificate_files(tmp_path))}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"broadcaster-secrets.json", FILE} & set(before)
    hosts = ("one.example", "two.example", "three.example", "localhost", "127.0.0.1", "::1")
    assert hosts_of(after["broadcaster.pem"]) == hosts
    assert hosts_of(after["subscriber.pem"]) == ("localhost", "10.0.0.7", "127.0.0.1", "::1")
    for name in changed:
        fields = [json.loads(files[name]) for files in (before, after)]
        assert fields[1].pop("broadcasters") == [
            "https://one.example:4000", "https://two.example", "https://three.example",
        ]  # fmt: skip
        del fields[0]["broadcasters"]
        assert fields[0] == fields[1]
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert f"--ssl-certfile {tmp_path}/broadcaster.pem" in steps
    assert "https://two.example" in steps
    assert not any(key in steps for key in secrets_in(after["broadcaster-secrets.json"]))

    assert main(command) == 1
    assert "not overwritten" in capsys.readouterr().err


def secrets_in(text: bytes) -> list[str]:
    fields = json.loads(text)
    return [key["secret"] for side in ("to_broadcasters", "to_subscribers") for key in fields[side]["keys"]]


def test_a_folder_without_certificates_takes_urls_of_https_alone(tmp_path: Path) -> None:
    set_up(tmp_path)
    with pytest.raises(ConfigurationError, match="should begin with it"):
        add_tls(tmp_path, broadcaster_urls=["http://one.example"])
    add_tls(tmp_path, broadcaster_urls=["https://one.example"])
    assert json.loads((tmp_path / FILE).read_text())["broadcasters"] == ["https://one.example"]
    with pytest.raises(ConfigurationError, match="has certificates already"):
        add_tls(tmp_path)


def test_what_adding_certificates_would_not_change_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(tmp_path)
    with pytest.raises(SystemExit):
        main(["--setup", "--tls", "--directory", str(tmp_path), "--db", "sqlite:///x"])
    assert "adds certificates alone: leave out --db" in capsys.readouterr().err


def test_a_broadcaster_of_http_has_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--broadcaster-url http://one.example:3003 should begin with it"):
        set_up(tmp_path, tls=True, broadcaster_urls=["http://one.example:3003"])
    assert list(tmp_path.iterdir()) == []


def test_renewing_needs_what_setup_made_and_changes_neither_authority_nor_secrets(site: Path) -> None:
    before = {path.name: path.read_bytes() for path in site.iterdir()}
    steps = renew_certificates(site, subscriber_hosts=["two.example"])
    after = {path.name: path.read_bytes() for path in site.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"broadcaster.pem", "broadcaster-key.pem", "subscriber.pem", "subscriber-key.pem"}
    assert all(f"{site}/{name}" in steps for name in changed)
    assert "two.example" in hosts_of(after["subscriber.pem"])
    authority = Pair(after["ca.pem"], after["ca-key.pem"])
    check(authority, Pair(after["broadcaster.pem"], b""), "one.example")
    (site / "ca-key.pem").unlink()
    with pytest.raises(ConfigurationError, match=r"there is no .*ca-key.pem to renew with"):
        renew_certificates(site)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--setup", "--subscriber-host", "x"], "goes with --tls"),
        (["--rotate", "--tls"], "--tls belongs to --setup"),
        (["--rotate", "--subscriber-host", "x"], "--subscriber-host belongs to --setup"),
        (["--renew-certificates", "--force"], "--force does not belong to --renew-certificates"),
        (["--renew-certificates", "--grace-seconds", "5"], "--grace-seconds does not belong"),
    ],
)
def test_flags_that_do_not_belong_together_are_told(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--directory", str(tmp_path)])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_command_renews(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--renew-certificates", "--directory", str(site)]) == 0
    assert "Renewed, for another 397 days" in capsys.readouterr().out
