"""provision.py: what --setup writes is complete, private and never half there; rotation leaves no gap."""

from __future__ import annotations

import ast
import os
import re
import shlex
import stat
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.protocol.credentials import sign_request, verify_request
from httppubsubclient.protocol.errors import ConfigurationError, Unauthorized
from httppubsubclient.protocol.keys import Secrets
from httppubsubserver.config import load_secrets
from httppubsubserver.provision import DEFAULT_DATABASE, MAX_LIVE_KEYS, AuthType, rotate, set_up
from httppubsubserver.vault import open_vault

NOW = 1_800_000_000
DAY = 86_400
AUTH_TYPES: tuple[AuthType, ...] = ("hmac", "token", "none")
FILES = ("broadcaster-secrets.json", "subscriber-secrets.json", "main.py")


def both(site: Path) -> tuple[Secrets, Secrets]:
    return load_secrets(site / "broadcaster-secrets.json"), load_secrets(site / "subscriber-secrets.json")


def content(site: Path) -> dict[str, bytes]:
    """Everything in the folder, hidden files too."""
    return {path.name: path.read_bytes() for path in site.iterdir()}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    set_up(tmp_path / "site")
    return tmp_path / "site"


# -- setup ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_broadcasters", AUTH_TYPES)
@pytest.mark.parametrize("to_subscribers", AUTH_TYPES)
def test_both_sides_get_the_same_keys_of_the_asked_types(
    tmp_path: Path, to_broadcasters: AuthType, to_subscribers: AuthType
) -> None:
    steps = set_up(tmp_path, to_broadcasters=to_broadcasters, to_subscribers=to_subscribers)
    broadcaster, subscriber = both(tmp_path)
    assert broadcaster == subscriber
    assert broadcaster.to_broadcasters.type == to_broadcasters
    assert broadcaster.to_subscribers.type == to_subscribers
    assert [len(keys) for keys in (broadcaster.to_broadcasters.keys, broadcaster.to_subscribers.keys)] == [
        int(to_broadcasters != "none"),
        int(to_subscribers != "none"),
    ]
    assert ("Nobody has to prove anything" in steps) == ("none" in (to_broadcasters, to_subscribers))


def test_every_key_is_another_one(tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b"):
        set_up(tmp_path / name, to_subscribers="token")
        secrets, _ = both(tmp_path / name)
        keys += [*secrets.to_broadcasters.keys, *secrets.to_subscribers.keys]
    assert len({key.secret for key in keys}) == len({key.id for key in keys}) == 4


def test_the_secrets_are_for_their_owner_alone(site: Path) -> None:
    for name in FILES[:2]:
        assert stat.S_IMODE((site / name).stat().st_mode) == 0o600


def test_the_urls_of_the_broadcasters_are_kept(tmp_path: Path) -> None:
    set_up(tmp_path, broadcaster_urls=["https://one.example/pubsub/", "http://192.0.2.1:4000"])
    assert load_secrets(tmp_path / FILES[1]).broadcasters == ("https://one.example/pubsub", "http://192.0.2.1:4000")


@pytest.mark.parametrize(
    "url", ["host:3003", "ftp://host", "http://me:hunter2@host", "http://host/?a=1", "http://host/#1", "http://h:0"]
)
def test_what_is_no_url_of_a_broadcaster_is_refused_and_nothing_is_written(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="--broadcaster-url") as caught:
        set_up(tmp_path / "site", broadcaster_urls=[url])
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("db", ["x.db", "sqlite://x.db", "sqlite:///", "postgresql://me:hunter2@db/x"])
def test_what_is_no_database_is_refused_without_repeating_it(tmp_path: Path, db: str) -> None:
    with pytest.raises(ConfigurationError, match="--db should be sqlite:///") as caught:
        set_up(tmp_path, db=db)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("db", ["sqlite:///x.db?mode=ro", "sqlite:///a#b", "sqlite:///x%00.db"])
def test_a_database_that_could_not_be_opened_later_is_refused(tmp_path: Path, db: str) -> None:
    with pytest.raises(ConfigurationError, match="--db has no parameters"):
        set_up(tmp_path, db=db)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("absolute", [False, True])
def test_the_folder_of_the_database_is_made_and_named(tmp_path: Path, absolute: bool) -> None:
    folder = tmp_path / "else where" / "deep" if absolute else tmp_path / "site" / "my sub"
    db = f"sqlite:///{str(folder).replace(' ', '%20')}/x.db" if absolute else "sqlite:///my%20sub/x.db"
    assert f"  {folder}/   for the database" in set_up(tmp_path / "site", db=db)
    assert folder.is_dir()
    assert str(folder) + "/" not in set_up(tmp_path / "site", db=db, force=True).split("Start the broadcaster")[0]


def test_a_folder_of_the_database_that_cannot_be_made_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"--db: the folder .*sub cannot be made"):
        set_up(tmp_path, db="sqlite:///sub/x.db")
    assert set(content(tmp_path)) == {"sub"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten_unless_forced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path / name))):
        set_up(tmp_path)
    assert content(tmp_path) == {name: b"mine"}
    set_up(tmp_path, force=True)
    assert set(content(tmp_path)) == {*FILES, "storage-key"}
    both(tmp_path)


def test_a_storage_key_is_made_for_its_owner_alone(site: Path) -> None:
    path = site / "storage-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    vault = open_vault(path, environ={})
    assert vault is not None
    assert vault.open(vault.seal(b"x", context=b""), context=b"") == b"x"


@pytest.mark.parametrize("force", [False, True])
def test_a_storage_key_that_is_there_stays_because_nothing_else_opens_what_it_has_sealed(
    site: Path, force: bool
) -> None:
    before = (site / "storage-key").read_bytes()
    if not force:
        for name in FILES:
            (site / name).unlink()
    steps = set_up(site, force=force)
    assert (site / "storage-key").read_bytes() == before
    assert "storage-key was there and stays" in steps
    rotate(site)
    assert (site / "storage-key").read_bytes() == before


def test_a_forced_setup_closes_files_that_were_open_to_others(site: Path) -> None:
    (site / FILES[0]).chmod(0o644)
    set_up(site, force=True)
    assert stat.S_IMODE((site / FILES[0]).stat().st_mode) == 0o600


def test_a_crash_while_writing_leaves_what_was_there(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(site)

    def crash(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(ConfigurationError, match="No space left"):
        set_up(site, force=True)
    assert content(site) == before
    with pytest.raises(ConfigurationError, match="No space left"):
        rotate(site)
    assert content(site) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file/site"):
        set_up(tmp_path / "file" / "site")


def main_app(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application of main.py, made while some other folder is the current one."""
    for name in [name for name in os.environ if name.startswith("HTTPPUBSUB_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir("/")
    path = site / "main.py"
    names: dict[str, Any] = {"__file__": str(path), "__name__": "main"}
    exec(compile(path.read_text(), path, "exec"), names)
    return names["app"]


@pytest.mark.parametrize("folder", ["site", 'a "b" \'c\' 100% #1? """ ü \\'])
@pytest.mark.parametrize(
    ("db", "file"),
    [(DEFAULT_DATABASE, "{site}/httppubsub.sqlite3"), ("sqlite:///x.db", "{site}/x.db"), ("sqlite:////x", "/x")],
)
def test_main_py_works_from_anywhere(
    tmp_path: Path, folder: str, db: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from httppubsubserver.stores.sqlite_file import sqlite_path

    site = tmp_path / folder
    set_up(site, db=db)
    config = main_app(site, monkeypatch).state.broadcaster.config
    assert sqlite_path(config.db) == file.format(site=site)
    assert config.secrets_file == site / "broadcaster-secrets.json"
    assert config.storage_key_file == site / "storage-key"
    command = shlex.split((ast.get_docstring(ast.parse((site / "main.py").read_text())) or "").splitlines()[2])
    assert command[:4] == ["uvicorn", "--app-dir", str(site), "main:app"]


def test_the_environment_changes_the_settings_of_main_py(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setenv("HTTPPUBSUB_MAX_BODY_BYTES", "1")
        context.chdir("/")
        names: dict[str, Any] = {"__file__": str(site / "main.py")}
        exec(compile((site / "main.py").read_text(), "main.py", "exec"), names)
    assert names["app"].state.broadcaster.config.max_body_bytes == 1


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        (None, "127.0.0.1", "3003"),
        ("http://localhost:4000", "127.0.0.1", "4000"),
        ("http://192.0.2.1:4000/pubsub", "0.0.0.0", "4000"),
        ("http://[2001:db8::1]:4000", "::", "4000"),
        ("https://pubsub.example", "127.0.0.1", "3003"),
        ("http://pubsub.example", "127.0.0.1", "3003"),
    ],
)
def test_what_is_printed_can_be_pasted(tmp_path: Path, url: str | None, host: str, port: str) -> None:
    site = tmp_path / "my site"
    lines = set_up(site, broadcaster_urls=[url] if url else []).splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith(("  http", "  uvicorn"))]
    serve, uvicorn, listen, notify = commands
    assert serve == [
        *("httppubsubserver", "serve", "--secrets", str(site / "broadcaster-secrets.json")),
        *("--storage-key-file", str(site / "storage-key")),
        *("--db", f"sqlite:///{tmp_path}/my%20site/httppubsub.sqlite3", "--host", host, "--port", port),
    ]
    assert uvicorn == ["uvicorn", "--app-dir", str(site), "main:app", "--host", host, "--port", port]
    assert listen[:4] == ["httppubsubclient", "listen", "--secrets", str(site / "subscriber-secrets.json")]
    assert notify[:4] == ["httppubsubclient", "notify", "--secrets", str(site / "subscriber-secrets.json")]


# -- rotate -----------------------------------------------------------------------------------------------------------


def accepted(by: Secrets, signed_with: Secrets, now: int) -> str:
    """The id of the key with which the one signs a request that the other takes."""
    request: dict[str, Any] = {"method": "GET", "path": "/v1/subscriptions", "query": ""}
    headers = sign_request(signed_with.to_broadcasters, **request, headers={}, now=now, nonce="AAAAAAAAAAAAAAAAAAAAAA")
    lower = {name.lower(): value for name, value in headers.items()}
    proof = verify_request(by.to_broadcasters, **request, headers=lower, has_body=False, now=now, tolerance_seconds=300)
    assert proof.key_id is not None
    return proof.key_id


@pytest.mark.parametrize("kind", ["hmac", "token"])
def test_everybody_can_be_restarted_in_any_order_during_the_first_half(tmp_path: Path, kind: AuthType) -> None:
    set_up(tmp_path, to_broadcasters=kind)
    old, _ = both(tmp_path)
    rotate(tmp_path, now=NOW)
    new, subscriber = both(tmp_path)
    assert new == subscriber
    [old_key], new_key = old.to_broadcasters.keys, new.to_broadcasters.keys[-1]
    for now in (NOW, NOW + DAY // 2 - 1):
        for by, signed_with in ((old, new), (new, old), (new, new)):
            assert accepted(by, signed_with, now) == old_key.id
    for now in (NOW + DAY // 2, NOW + DAY - 1):
        assert accepted(new, new, now) == new_key.id
        assert accepted(new, old, now) == old_key.id
    with pytest.raises(Unauthorized):
        accepted(new, old, NOW + DAY)
    assert accepted(new, new, NOW + DAY) == new_key.id


def test_rotating_leaves_main_py_modes_and_the_urls_of_each_side_alone(site: Path) -> None:
    subscriber = site / "subscriber-secrets.json"
    subscriber.write_text(subscriber.read_text().replace("http://127.0.0.1:3003", "https://outside.example"))
    subscriber.chmod(0o640)
    main = (site / "main.py").stat()
    rotate(site)
    ours, theirs = both(site)
    assert (ours.broadcasters, theirs.broadcasters) == (("http://127.0.0.1:3003",), ("https://outside.example",))
    assert ours.to_subscribers.keys == theirs.to_subscribers.keys
    assert stat.S_IMODE(subscriber.stat().st_mode) == 0o640
    assert (site / "main.py").stat().st_mtime_ns == main.st_mtime_ns


def test_rotating_writes_through_a_link_and_makes_a_file_that_was_moved_away(site: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    (site / FILES[0]).rename(real)
    (site / FILES[0]).symlink_to(real)
    (site / FILES[1]).unlink()
    rotate(site)
    assert (site / FILES[0]).is_symlink()
    ours, theirs = both(site)
    assert ours == theirs == load_secrets(real)
    assert len(ours.to_broadcasters.keys) == 2
    assert stat.S_IMODE((site / FILES[1]).stat().st_mode) == 0o600


def test_without_grace_only_the_new_key_is_left(site: Path) -> None:
    old, _ = both(site)
    steps = rotate(site, grace_seconds=0, now=NOW)
    new, _ = both(site)
    [key] = new.to_broadcasters.keys
    assert key not in old.to_broadcasters.keys
    assert (key.use_after, key.valid_until) == (0, None)
    assert "The old keys have ended" in steps


def test_ended_keys_are_dropped_and_none_is_prolonged(site: Path) -> None:
    rotate(site, now=NOW, grace_seconds=100)
    rotate(site, now=NOW + 60, grace_seconds=100)
    secrets, _ = both(site)
    assert [key.valid_until for key in secrets.to_broadcasters.keys] == [NOW + 100, NOW + 160, None]
    rotate(site, now=NOW + 100, grace_seconds=100)
    secrets, _ = both(site)
    assert [key.valid_until for key in secrets.to_broadcasters.keys] == [NOW + 160, NOW + 200, None]


@pytest.mark.parametrize("rotations", [[(0, 100), (1, 100), (2, 1000)], [(0, 1000), (3, 10), (4, 0), (5, 100)]])
def test_there_is_a_key_to_sign_with_at_every_moment(site: Path, rotations: list[tuple[int, int]]) -> None:
    for after, grace_seconds in rotations:
        rotate(site, now=NOW + after, grace_seconds=grace_seconds)
        secrets, _ = both(site)
        for moment in range(NOW + after, NOW + after + 2000, 7):
            assert secrets.to_subscribers.signing_key(moment)


@pytest.mark.parametrize("end", [NOW - 1, NOW + 10])
def test_a_key_that_was_made_to_end_by_hand_leaves_no_gap(site: Path, end: int) -> None:
    path = site / FILES[0]
    path.write_text(path.read_text().replace('"secret":', f'"valid_until": {end}, "secret":'))
    rotate(site, now=NOW)
    secrets = load_secrets(path)
    for moment in range(NOW, NOW + 30):
        assert secrets.to_broadcasters.signing_key(moment)


def test_rotating_on_and_on_is_refused_with_the_time_when_it_goes_on(site: Path) -> None:
    for number in range(MAX_LIVE_KEYS - 1):
        rotate(site, now=NOW + number)
    before = content(site)
    with pytest.raises(ConfigurationError, match="8 is the most: the first ends at 2027-01-16 08:00:00 UTC"):
        rotate(site, now=NOW + 60)
    assert content(site) == before
    rotate(site, now=NOW + DAY)
    rotate(site, now=NOW + DAY, grace_seconds=0)


def test_directions_without_keys_stay_so(tmp_path: Path) -> None:
    set_up(tmp_path, to_subscribers="none")
    rotate(tmp_path)
    secrets, _ = both(tmp_path)
    assert len(secrets.to_broadcasters.keys) == 2
    assert secrets.to_subscribers.type == "none"


def test_where_there_is_nothing_to_rotate_this_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--setup makes one"):
        rotate(tmp_path)
    set_up(tmp_path, to_broadcasters="none", to_subscribers="none")
    with pytest.raises(ConfigurationError, match="nothing to rotate"):
        rotate(tmp_path)


def test_what_to_do_is_said_with_times_and_without_secrets(site: Path) -> None:
    steps = rotate(site, now=NOW)
    assert "Before 2027-01-15 20:00:00 UTC" in steps
    assert "end at 2027-01-16 08:00:00 UTC" in steps
    text = (site / FILES[0]).read_text()
    for secret in re.findall(r'"secret": "([^"]+)"', text):
        assert secret not in steps
