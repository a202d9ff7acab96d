"""config.py: where settings come from, and that what is wrong is named with its place and with what was expected."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.config import ServerConfig, load_config, load_secrets, value_of_text
from httppubsubserver.stores.sqlite_file import sqlite_path


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "httppubsub.toml"
    path.write_text(text)
    return path


def refusal(**sources: Any) -> str:
    """The text of the error that these sources lead to; the environment is empty unless given."""
    with pytest.raises(ConfigurationError) as caught:
        load_config(**{"environ": {}, **sources})
    assert "\n" not in caught.value.detail.removesuffix("\n")
    return caught.value.detail


def test_without_any_source_everything_is_as_built_in() -> None:
    assert load_config(environ={}) == ServerConfig()


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 2\nworkers = 2\nmax_in_flight = 2\n")
    config = load_config(
        defaults={"port": 1, "workers": 1, "max_in_flight": 1, "max_body_bytes": 1},
        file=file,
        environ={"HTTPPUBSUB_PORT": "3", "HTTPPUBSUB_WORKERS": "3"},
        overrides={"port": "4"},
    )
    assert (config.port, config.workers, config.max_in_flight, config.max_body_bytes) == (4, 3, 2, 1)


def test_the_environment_may_name_the_file_and_a_flag_names_another(tmp_path: Path) -> None:
    named, other = toml(tmp_path, "port = 1"), tmp_path / "other.toml"
    other.write_text("port = 2")
    environ = {"HTTPPUBSUB_CONFIG": str(named)}
    assert load_config(environ=environ).port == 1
    assert load_config(environ=environ, file=other).port == 2


def test_variables_of_the_client_and_of_others_are_not_ours() -> None:
    environ = {"HTTPPUBSUB_CLIENT_SECRETS": "x", "HTTPPUBSUBX": "x", "PORT": "x", "httppubsub_port": "x"}
    assert load_config(environ=environ) == ServerConfig()


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        ({"environ": {"HTTPPUBSUB_PORTS": "1"}}, "'HTTPPUBSUB_PORTS' is not a setting; did you mean 'HTTPPUBSUB_PORT'"),
        ({"environ": {"HTTPPUBSUB_SECRETS": "x"}}, "did you mean 'HTTPPUBSUB_SECRETS_FILE'"),
        ({"environ": {"HTTPPUBSUB_Q_Q_Q_Q_Q_Q_Q_Q_Q_Q_Q_Q": "x"}}, "docs/configuration.md lists all"),
        ({"overrides": {"max_body_byte": 1}}, "'--max-body-byte' is not a setting; did you mean '--max-body-bytes'"),
        ({"defaults": {"prt": 1}}, "'prt' is not a setting; did you mean 'port'"),
    ],
)
def test_an_unknown_setting_is_named_with_its_place_and_the_nearest_known(sources: dict[str, Any], text: str) -> None:
    assert text in refusal(**sources)


def test_an_unknown_setting_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "[server]\nport = 1\n")
    assert f"{file}: 'server' is not a setting" in refusal(file=file)
    file = toml(tmp_path, "max_inflight = 1\n")
    assert f"{file}: 'max_inflight' is not a setting; did you mean 'max_in_flight'?" in refusal(file=file)


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        ({"environ": {"HTTPPUBSUB_PORT": "many"}}, "HTTPPUBSUB_PORT should be a valid integer"),
        ({"environ": {"HTTPPUBSUB_PORT": "many"}}, "got 'many'"),
        ({"environ": {"HTTPPUBSUB_PORT": ""}}, "HTTPPUBSUB_PORT should be a valid integer"),
        ({"environ": {"HTTPPUBSUB_PORT": "70000"}}, "should be less than or equal to 65535"),
        ({"overrides": {"workers": "0"}}, "--workers should be greater than or equal to 1"),
        ({"overrides": {"log_level": "loud"}}, "--log-level should be 'critical', 'error', 'warning', 'info' or"),
        ({"overrides": {"attempt_timeout_seconds": "inf"}}, "should be a finite number"),
        ({"overrides": {"notify_timeout_seconds": "nan"}}, "should be a finite number"),
        ({"overrides": {"host": ""}}, "--host is wrong: String should have at least 1 character"),
        (
            {"overrides": {"keep_messages_seconds": "60"}},
            "keep_bodies_seconds (604800) should be at most keep_messages",
        ),
        (
            {"overrides": {"max_stored_bytes": "-1"}},
            "--max-stored-bytes should be greater than or equal to 0; got '-1'",
        ),
        ({"overrides": {"max_lease_seconds": "60"}}, "default_lease_seconds (86400) should be at most max_lease_se"),
        ({"overrides": {"spool_directory": "/no/such/folder"}}, "--spool-directory should be a folder to write to"),
    ],
)
def test_a_wrong_value_is_named_with_its_source_and_what_was_expected(sources: dict[str, Any], text: str) -> None:
    assert text in refusal(**sources)


def test_all_wrong_values_are_named_at_once() -> None:
    text = refusal(environ={"HTTPPUBSUB_PORT": "x"}, overrides={"workers": "y"})
    assert "HTTPPUBSUB_PORT" in text
    assert "--workers" in text


def test_a_switch_is_not_a_number(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = true\n")
    assert f"{file}: port should not be true or false" in refusal(file=file)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ('[443, "8000-8999"]', ("443", "8000-8999")),
        ('["web", 9000]', ("web", "9000")),
        ("443", ("443",)),
        ('"web"', ("web",)),
        ('"web, 9000"', ("web", "9000")),
        ("[]", ()),
    ],
)
def test_ports_are_numbers_or_texts_several_or_one(tmp_path: Path, text: str, ports: tuple[str, ...]) -> None:
    assert load_config(file=toml(tmp_path, f"callback_ports = {text}"), environ={}).callback_ports == ports


def test_a_program_gives_lists_as_a_file_does() -> None:
    given: dict[str, Any] = {"callback_ports": ["web", 443], "callback_networks": "public", "callback_hosts": ("h",)}
    config = ServerConfig(**given)
    assert (config.callback_ports, config.callback_networks) == (("web", "443"), ("public",))
    assert config.callback_hosts == ("h",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("callback_ports", "[true]"),
        ("callback_ports", "[80.5]"),
        ("callback_ports", '[["web"]]'),
        ("callback_networks", "[10]"),
        ("callback_hosts", "5"),
        ("nat64_prefixes", "[64]"),
    ],
)
def test_an_entry_of_the_wrong_kind_is_told_in_words(tmp_path: Path, name: str, text: str) -> None:
    told = refusal(file=toml(tmp_path, f"{name} = {text}"))
    assert f"{name} should be a list like [" in told
    assert "tuple" not in told


def test_every_setting_that_is_a_list_may_be_a_single_entry() -> None:
    lists = [name for name, field in ServerConfig.model_fields.items() if field.annotation == tuple[str, ...]]
    assert len(lists) >= 4
    for name in lists:
        given: dict[str, Any] = {name: "one"}
        assert getattr(ServerConfig(**given), name) == ("one",)


def test_an_error_does_not_repeat_other_settings() -> None:
    with pytest.raises(ValueError, match="delivery_lease_seconds") as caught:
        ServerConfig(egress_proxy="http://me:hunter2@proxy:3128", delivery_lease_seconds=1)
    assert "hunter2" not in str(caught.value)


def test_the_password_in_a_database_url_is_not_repeated() -> None:
    assert "hunter2" not in refusal(overrides={"db": ["postgresql://me:hunter2@db/x"]})


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert f"'{missing}' (from --config) cannot be read: No such file" in refusal(file=missing)
    assert "(from HTTPPUBSUB_CONFIG)" in refusal(environ={"HTTPPUBSUB_CONFIG": str(missing)})
    assert "at line 1" in refusal(file=toml(tmp_path, "port 3003"))
    broken = toml(tmp_path, "")
    broken.write_bytes(b'host = "\xff"')
    assert "is not TOML" in refusal(file=broken)


def test_relative_paths_of_a_file_start_at_its_folder(tmp_path: Path) -> None:
    file = toml(tmp_path, 'secrets_file = "s.json"\ncallback_ca_file = "/ca.pem"\ndb = "sqlite:///data/x.db"\n')
    config = load_config(file=file, environ={})
    assert config.secrets_file == tmp_path / "s.json"
    assert config.callback_ca_file == Path("/ca.pem")
    assert config.db == f"sqlite:///{tmp_path}/data/x.db"


@pytest.mark.parametrize("db", ["sqlite:////abs/x.db", "sqlite:///:memory:", "postgresql://db/x", "sqlite:///", "x"])
def test_a_database_that_is_no_relative_path_stays_as_it_is(tmp_path: Path, db: str) -> None:
    assert load_config(file=toml(tmp_path, f'db = "{db}"'), environ={}).db == db


def test_a_folder_with_any_characters_leads_to_the_database_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "50% of #1? ü"
    folder.mkdir()
    config = load_config(environ={}, defaults={"db": "sqlite:///x.db"}, defaults_directory=folder)
    assert sqlite_path(config.db) == str(folder / "x.db")


def test_relative_paths_elsewhere_start_at_the_current_folder() -> None:
    environ = {"HTTPPUBSUB_SECRETS_FILE": "s.json", "HTTPPUBSUB_DB": "sqlite:///x.db"}
    config = load_config(environ=environ)
    assert (config.secrets_file, config.db) == (Path("s.json"), "sqlite:///x.db")


def test_an_empty_text_unsets_what_may_be_unset(tmp_path: Path) -> None:
    file = toml(tmp_path, 'spool_directory = "spool"\nsecrets_file = ""\n')
    config = load_config(file=file, environ={"HTTPPUBSUB_SPOOL_DIRECTORY": ""})
    assert (config.spool_directory, config.secrets_file) == (None, None)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (list[str], "private, 10.0.0.0/8,", ["private", "10.0.0.0/8"]),
        (tuple[str, ...], "", []),
        (list[str] | None, "", None),
        (list[str] | None, "a", ["a"]),
        (str, "a,b", "a,b"),
        (Path | None, "a,b", "a,b"),
    ],
)
def test_the_text_of_a_list_has_commas(annotation: object, text: str, value: object) -> None:
    assert value_of_text(annotation, text) == value


# -- the secrets file -------------------------------------------------------------------------------------------------

SECRETS = {
    "version": 1,
    "broadcasters": ["http://127.0.0.1:3003"],
    "to_broadcasters": {"type": "token", "keys": [{"id": "k", "secret": "a-token-that-is-long-enough"}]},
    "to_subscribers": {"type": "none"},
}


@pytest.fixture
def secrets_file(tmp_path: Path) -> Path:
    path = tmp_path / "broadcaster-secrets.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(SECRETS))
    return path


def secrets_refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_secrets(path)
    assert str(path) in caught.value.detail
    return caught.value.detail


def test_a_secrets_file_gives_both_directions(secrets_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets = load_secrets(secrets_file)
    assert (secrets.to_broadcasters.type, secrets.to_subscribers.type) == ("token", "none")
    assert not caplog.records


def test_a_missing_secrets_file_says_how_to_make_one(tmp_path: Path) -> None:
    assert "httppubsubserver --setup" in secrets_refusal(tmp_path / "missing.json")


def test_a_secrets_file_that_others_may_read_is_a_warning(secrets_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets_file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        load_secrets(secrets_file)
    [record] = caplog.records
    assert "chmod 600" in record.getMessage()
    assert record.name.startswith("httppubsub.")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{\n}, a-token-that-is-long-enough", "not JSON, at line 2"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (json.dumps({**SECRETS, "to_subscribers": SECRETS["to_broadcasters"], "x": 1}).encode(), "'x'"),
    ],
)
def test_a_broken_secrets_file_says_where_and_never_a_secret(secrets_file: Path, content: bytes, text: str) -> None:
    secrets_file.write_bytes(content)
    refused = secrets_refusal(secrets_file)
    assert text in refused
    assert "a-token" not in refused
