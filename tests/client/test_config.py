"""config.py: a wrong setting is refused where it is written, with a text that says what is meant."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.config import (
    HttpPubSubBindManualConfig,
    HttpPubSubBindUvicornConfig,
    HttpPubSubConfig,
    get_auth_config_from_file,
)
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.errors import ConfigurationError

NONE = Credentials.none()
SECRET = bytes(range(65, 97))


def config(**settings: Any) -> HttpPubSubConfig:
    return HttpPubSubConfig(**{"send_auth": NONE, "receive_auth": NONE, "host": "http://192.0.2.0:3002", **settings})


UVICORN = HttpPubSubBindUvicornConfig(type="uvicorn", address="0.0.0.0", port=3002)


def secrets_text() -> str:
    def direction(name: str, secret: bytes) -> dict[str, Any]:
        return {"type": "hmac", "keys": [{"id": name, "secret": base64.b64encode(secret).decode()}]}

    return json.dumps(
        {
            "version": 1,
            "broadcasters": ["http://127.0.0.1:3003"],
            "to_broadcasters": direction("a", SECRET),
            "to_subscribers": direction("b", SECRET[::-1]),
        }
    )


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("http://192.0.2.0:3002", None, "http://192.0.2.0:3002/v1/receive"),
        ("http://192.0.2.0:3002/", None, "http://192.0.2.0:3002/v1/receive"),
        ("http://192.0.2.0:3002/pubsub#1", None, "http://192.0.2.0:3002/pubsub/v1/receive#1"),
        ("http://192.0.2.0:3002/pubsub/#1", 4000, "http://192.0.2.0:3002/pubsub/v1/receive#1"),
        ("http://192.0.2.0:0/pubsub#1", 4000, "http://192.0.2.0:4000/pubsub/v1/receive#1"),
        ("http://[::1]:0", 4000, "http://[::1]:4000/v1/receive"),
        ("https://example.com", None, "https://example.com/v1/receive"),
    ],
)
def test_the_callback_url_is_the_host_with_path_and_fragment(host: str, port: int | None, url: str) -> None:
    assert config(host=host, bind=UVICORN).callback_url(port) == url


def test_path_and_fragment_of_the_host_are_known() -> None:
    made = config(host="http://192.0.2.0:3002/pubsub/#1")
    assert (made.path, made.fragment) == ("/pubsub", "1")
    assert (config().path, config().fragment) == ("", None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"host": "192.0.2.0:3002"}, "host"),
        ({"host": "ftp://192.0.2.0"}, "host"),
        ({"host": "http://user:pw@192.0.2.0"}, "host"),
        ({"host": "http://192.0.2.0/?a=b"}, "no query"),
        ({"host": 3002}, "not int"),
        ({"host": "http://192.0.2.0:0"}, "port 0"),
        ({"host": None, "bind": UVICORN}, "bind needs host"),
        ({"bind": "uvicorn"}, "a dict"),
        ({"bind": {"type": "unicorn", "address": "", "port": 1}}, "did you mean 'uvicorn'"),
        ({"bind": {"type": "uvicorn", "adress": "0.0.0.0", "port": 1}}, "did you mean 'address'"),
        ({"bind": {"type": "uvicorn", "address": "0.0.0.0"}}, "'port'.* is missing"),
        ({"bind": {"type": "uvicorn", "address": "0.0.0.0", "port": "3002"}}, "of type int"),
        ({"bind": {"type": "uvicorn", "address": "0.0.0.0", "port": True}}, "of type int"),
        ({"bind": {"type": "uvicorn", "address": "0.0.0.0", "port": 70000}}, "0 to 65535"),
        ({"bind": {"type": "uvicorn", "address": "0.0.0.0", "port": 1, "ssl_certfile": 5}}, "is a path"),
        (
            {"bind": {"type": "uvicorn", "address": "0.0.0.0", "port": 1, "ssl_keyfile": "k"}},
            "set bind\\['ssl_certfile'",
        ),
        ({"bind": {"type": "uvicorn", "address": "0.0.0.0", "port": 1, "ssl_certifle": "k"}}, "mean 'ssl_certfile'"),
        ({"bind": {"type": "manual", "callback": print, "ssl_certfile": "k"}}, "means nothing with type='manual'"),
        (
            {"bind": {"type": "uvicorn", "address": "::", "port": 1, "ssl_certfile": "k"}},
            "host begins with http: write",
        ),
        ({"broadcaster_client_keyfile": "k"}, "set broadcaster_client_certfile, too"),
        ({"broadcaster_client_certfile": 5}, "broadcaster_client_certfile is a path, not int"),
        ({"bind": {"type": "manual", "callback": 5}}, "a function"),
        ({"bind": {"type": "manual"}}, "'callback'.* is missing"),
        ({"send_auth": {"type": "none"}}, "send_auth is a Credentials"),
        ({"receive_auth": None}, "receive_auth is a Credentials"),
        ({"lease_seconds": 0}, "lease_seconds .* from 1"),
        ({"lease_seconds": 1.5}, "whole number"),
        ({"request_timeout_seconds": float("nan")}, "request_timeout_seconds"),
        ({"request_timeout_seconds": float("inf")}, "request_timeout_seconds"),
        ({"buffer_messages": "many"}, "buffer_messages"),
        ({"buffer_messages": True}, "buffer_messages"),
        ({"broadcasters": "http://127.0.0.1:3003"}, "a list"),
        ({"broadcasters": [5]}, "not int"),
        ({"broadcasters": ["127.0.0.1:3003"]}, "a broadcaster's URL begins with http.*; got '127.0.0.1:3003'"),
        ({"broadcasters": ["http://me:hunter2@x"]}, "a broadcaster's URL has no user name and no password[^2]*$"),
        ({"broadcasters": ["http://127.0.0.1:3003/?a=b"]}, "neither query nor fragment"),
        ({"broadcasters": ["http://127.0.0.1:3003/#a"]}, "neither query nor fragment"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        config(**settings)


def test_bind_is_a_typed_dict_or_a_plain_one_or_nothing() -> None:
    config(bind=UVICORN)
    config(bind={"type": "uvicorn", "address": "0.0.0.0", "port": 3002})
    config(bind=HttpPubSubBindManualConfig(type="manual", callback=lambda router: None))
    config()


def test_the_broadcasters_of_the_secrets_file_are_used_unless_others_are_given() -> None:
    auth = Credentials(type="none", broadcasters=("http://one:3003/", "http://two:3003/prefix/"))
    assert config(send_auth=auth).broadcaster_urls() == ("http://one:3003", "http://two:3003/prefix")
    assert config(send_auth=auth, broadcasters=["http://three:3003", "http://three:3003/"]).broadcaster_urls() == (
        "http://three:3003",
    )


def test_no_broadcaster_at_all_is_told_when_one_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="no broadcaster is known"):
        config().broadcaster_urls()


def test_no_secret_is_in_the_repr_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "subscriber-secrets.json"
    path.write_text(secrets_text())
    path.chmod(0o600)
    send_auth, receive_auth = get_auth_config_from_file(path)
    text = repr(config(send_auth=send_auth, receive_auth=receive_auth))
    assert repr(SECRET)[2:-1] not in text
    assert base64.b64encode(SECRET).decode() not in text


def test_the_secrets_file_gives_send_first_then_receive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "subscriber-secrets.json"
    path.write_text(secrets_text())
    path.chmod(0o600)
    send_auth, receive_auth = get_auth_config_from_file(str(path))
    assert [key.id for key in send_auth.keys] == ["a"]
    assert [key.id for key in receive_auth.keys] == ["b"]
    assert send_auth.broadcasters == ("http://127.0.0.1:3003",)
    assert not caplog.records


def test_a_secrets_file_that_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "subscriber-secrets.json"
    path.write_text(secrets_text())
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        get_auth_config_from_file(path)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "copy subscriber-secrets.json from where `httppubsubserver --setup` was run"),
        ("{", "not JSON, at line 1"),
        ("[]", "subscriber-secrets.json"),
        ("{}", "subscriber-secrets.json"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_secrets_file_is_told(tmp_path: Path, content: str | bytes | None, told: str) -> None:
    path = tmp_path / "subscriber-secrets.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told):
        get_auth_config_from_file(path)


def test_a_directory_instead_of_a_secrets_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not readable"):
        get_auth_config_from_file(tmp_path)
