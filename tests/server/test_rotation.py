"""rotation.py: of several keys, those of partners with permissions among them, each is followed by one of its owner."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.keys import MAX_KEYS, Credentials, Key, Secrets, secrets_from_json, secrets_to_json
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubserver.config import load_secrets
from httppubsubserver.provision import rotate, set_up
from httppubsubserver.rotation import MAX_LIVE_KEYS, Rotated, rotated_secrets

NOW = 1_800_000_000
GRACE = 1000
LIMITED = Permissions(("orders/eu/**",), (), quotas=Quotas(subscriptions=3))
SITE = Key("site", b"s" * 31 + b"1")
PARTNER = Key("partner", b"p" * 31 + b"1", permissions=LIMITED)
SHARED = Credentials("hmac", (Key("shared", b"x" * 31 + b"1"),))


def of(*keys: Key) -> Secrets:
    return Secrets(Credentials("hmac", keys), SHARED, ())


def rotation(present: Secrets, subscriber: Secrets | None = None, *, now: int = NOW, grace: int = GRACE) -> Rotated:
    return rotated_secrets(present, subscriber, now=now, grace_seconds=grace)


def told(secrets: Secrets) -> list[tuple[str, bool, float | None]]:
    """Of each key: its owner, whether it is limited, its end."""
    return [(key.owner, key.permissions == LIMITED, key.valid_until) for key in secrets.to_broadcasters.keys]


def test_what_was_made_with_the_old_key_belongs_to_the_new_one_too() -> None:
    once = rotation(of(SITE), of(SITE))
    again = rotation(once.broadcaster, once.subscriber, now=NOW + 10)
    assert [key.owner for key in again.broadcaster.to_broadcasters.keys] == ["site"] * 3
    assert len({key.id for key in again.broadcaster.to_broadcasters.keys}) == 3


@pytest.mark.parametrize("grace", [0, GRACE])
@pytest.mark.parametrize("keys", [(SITE, PARTNER), (PARTNER, SITE)])
def test_each_owner_has_a_successor_with_his_permissions(keys: tuple[Key, ...], grace: int) -> None:
    present = of(*keys)
    rotated = rotation(present, of(SITE), grace=grace)
    owners = [key.owner for key in keys]
    kept = [(owner, owner == "partner", NOW + grace) for owner in owners] if grace else []
    assert told(rotated.broadcaster) == [*kept, *((owner, owner == "partner", None) for owner in owners)]
    assert rotated.broadcaster.to_broadcasters.signing_key(NOW + grace).owner == owners[-1]


def test_the_subscribers_file_gets_no_key_that_it_did_not_have_an_older_one_of() -> None:
    rotated = rotation(of(SITE, PARTNER), of(SITE))
    assert {owner for owner, *_ in told(rotated.subscriber)} == {"site"}
    assert [key.owner for key in rotated.handed_out] == ["partner"]
    other = rotation(of(SITE, PARTNER), of(PARTNER))
    assert {owner for owner, *_ in told(other.subscriber)} == {"partner"}
    assert rotated.subscriber.to_subscribers == rotated.broadcaster.to_subscribers


def test_a_subscribers_file_that_is_not_there_is_made_of_keys_without_restrictions() -> None:
    assert {owner for owner, *_ in told(rotation(of(SITE, PARTNER)).subscriber)} == {"site"}
    with pytest.raises(ConfigurationError, match="no key to broadcasters"):
        rotation(of(PARTNER))
    assert rotation(of(PARTNER), of(PARTNER)).handed_out == ()


def test_rotating_prolongs_nobody() -> None:
    limited = replace(PARTNER, valid_until=NOW + 5000)
    rotated = rotation(of(limited, SITE), of(SITE))
    assert told(rotated.broadcaster) == [
        ("partner", True, NOW + GRACE),
        ("site", False, NOW + GRACE),
        ("partner", True, NOW + 5000),
        ("site", False, None),
    ]
    soon = replace(PARTNER, valid_until=NOW + 5)
    assert [end for owner, _, end in told(rotation(of(soon, SITE), of(SITE)).broadcaster) if owner == "partner"] == [
        NOW + 5,
        NOW + 5,
    ]


@pytest.mark.parametrize("grace", [0, GRACE])
def test_an_owner_whose_keys_have_ended_is_not_let_in_again(grace: int) -> None:
    ended = (replace(PARTNER, valid_until=NOW), replace(SITE, id="old", owner="old", valid_until=NOW - 1))
    rotated = rotation(of(*ended, SITE), of(*ended, SITE), grace=grace)
    assert {owner for owner, *_ in told(rotated.broadcaster)} == {"site"}
    last = rotation(of(SITE, *ended), of(SITE), grace=grace)
    assert {owner for owner, *_ in told(last.broadcaster)} == {"site"}


def test_permissions_that_have_ended_everywhere_are_not_guessed_at() -> None:
    ended = of(replace(PARTNER, valid_until=NOW))
    with pytest.raises(ConfigurationError, match="every key of to-broadcasters has ended"):
        rotation(ended, ended)


def test_a_newer_key_that_ended_first_gives_its_end_to_nobody() -> None:
    keys = (replace(SITE, valid_until=NOW + 50), replace(SITE, id="site2", owner="site", valid_until=NOW - 50))
    rotated = rotation(of(*keys, PARTNER), of(*keys))
    ends = [end for owner, _, end in told(rotated.broadcaster) if owner == "site"]
    assert ends == [NOW + 50, NOW + 50]


def test_the_bound_of_live_keys_is_that_of_each_owner() -> None:
    secrets = of(SITE, *(replace(PARTNER, id=f"p{n}", owner=f"p{n}") for n in range(20)))
    subscriber = of(SITE)
    for number in range(MAX_LIVE_KEYS - 1):
        rotated = rotation(secrets, subscriber, now=NOW + number)
        secrets, subscriber = rotated.broadcaster, rotated.subscriber
    with pytest.raises(ConfigurationError, match="8 is the most"):
        rotation(secrets, subscriber, now=NOW + 100)


def test_no_more_keys_come_about_than_can_be_read() -> None:
    many = of(SITE, *(replace(PARTNER, id=f"p{n}", owner=f"p{n}") for n in range(MAX_KEYS // 2)))
    with pytest.raises(ConfigurationError, match=f"more than {MAX_KEYS} keys"):
        rotation(many, of(SITE))


def test_the_command_hands_the_keys_of_partners_to_nobody_else(tmp_path: Path) -> None:
    set_up(tmp_path)
    path = tmp_path / "broadcaster-secrets.json"
    present = load_secrets(path)
    keys = (*present.to_broadcasters.keys, PARTNER)
    path.write_text(json.dumps(secrets_to_json(replace(present, to_broadcasters=Credentials("hmac", keys)))))
    steps = rotate(tmp_path, now=NOW)
    ours, theirs = load_secrets(path), load_secrets(tmp_path / "subscriber-secrets.json")
    [partner] = [key for key in ours.to_broadcasters.keys if key.owner == "partner" and key.id != "partner"]
    assert partner.permissions == LIMITED
    assert f"  {partner.id}   of partner" in steps
    assert "behind the old key in his own secrets file" in steps
    file = tmp_path / f"{partner.id}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert str(file) in steps
    handed = json.loads(file.read_text())
    assert handed.keys() == {"id", "secret", "use_after"}
    old = {"id": "partner", "secret": b64encode(PARTNER.secret).decode()}
    direction = {"type": "hmac", "keys": [old, handed]}
    his = secrets_from_json({"version": 1, "to_broadcasters": direction, "to_subscribers": {"type": "none"}})
    assert [his.to_broadcasters.signing_key(moment).id for moment in (NOW, partner.use_after)] == [
        "partner",
        partner.id,
    ]
    assert all(key.owner != "partner" for key in theirs.to_broadcasters.keys)
    assert len(theirs.to_broadcasters.keys) == 2
    for key in ours.to_broadcasters.keys:
        assert key.secret.hex() not in steps
