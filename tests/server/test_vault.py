"""vault.py: what is sealed is opened with its key and for its context alone, and keys never show."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.config import STORAGE_KEY_VARIABLE
from httppubsubserver.vault import MAX_STORAGE_KEYS, Unopenable, Vault, open_vault, parse_storage_keys

KEY = bytes(range(32))
OTHER = bytes(range(32, 64))


def text(*keys: bytes) -> str:
    return "".join(base64.b64encode(key).decode() + "\n" for key in keys)


def key_file(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "storage-key"
    path.write_text(content)
    path.chmod(mode)
    return path


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_what_was_sealed_is_opened(plaintext: bytes, context: bytes) -> None:
    vault = Vault([KEY])
    assert vault.open(vault.seal(plaintext, context=context), context=context) == plaintext


def test_nothing_of_the_plaintext_shows_and_no_two_are_the_same() -> None:
    vault = Vault([KEY])
    plaintext = b"whsec_secret" * 4
    sealed = [vault.seal(plaintext, context=b"c") for _ in range(50)]
    assert len(set(sealed)) == 50
    assert not any(b"whsec" in one or b"secret" in one for one in sealed)


def test_any_changed_bit_and_any_cut_is_noticed() -> None:
    vault = Vault([KEY])
    sealed = vault.seal(b"plaintext", context=b"c")
    for position in range(len(sealed)):
        for bit in (1, 128):
            changed = sealed[:position] + bytes([sealed[position] ^ bit]) + sealed[position + 1 :]
            with pytest.raises(Unopenable):
                vault.open(changed, context=b"c")
        with pytest.raises(Unopenable):
            vault.open(sealed[:position], context=b"c")
    with pytest.raises(Unopenable):
        vault.open(sealed + b"\0", context=b"c")


@given(st.binary(max_size=100))
def test_garbage_is_unopenable(sealed: bytes) -> None:
    with pytest.raises(Unopenable):
        Vault([KEY]).open(sealed, context=b"c")


def test_what_is_sealed_for_one_row_is_good_for_no_other() -> None:
    vault = Vault([KEY])
    sealed = vault.seal(b"plaintext", context=b"sub_a")
    with pytest.raises(Unopenable, match="for something else"):
        vault.open(sealed, context=b"sub_b")


def test_a_new_key_on_top_seals_and_the_old_one_still_opens() -> None:
    old, both, new = Vault([KEY]), Vault([OTHER, KEY]), Vault([OTHER])
    before = old.seal(b"plaintext", context=b"c")
    after = both.seal(b"plaintext", context=b"c")
    assert both.open(before, context=b"c") == both.open(after, context=b"c") == b"plaintext"
    assert [both.is_current(sealed) for sealed in (before, after)] == [False, True]
    assert new.open(after, context=b"c") == b"plaintext"
    with pytest.raises(Unopenable, match="is not here"):
        new.open(before, context=b"c")


def test_keys_with_the_same_id_are_both_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httppubsubserver.vault._key_id", lambda key: b"same")
    sealed = Vault([KEY]).seal(b"plaintext", context=b"c")
    assert Vault([OTHER, KEY]).open(sealed, context=b"c") == b"plaintext"


# -- where keys come from ---------------------------------------------------------------------------------------------


def test_keys_come_from_a_file_and_from_the_environment_which_is_first(tmp_path: Path) -> None:
    path = key_file(tmp_path, "# made in November\n\n" + text(KEY))
    assert open_vault(None, environ={}) is None
    assert open_vault(None, environ={STORAGE_KEY_VARIABLE: " "}) is None
    of_file = open_vault(path, environ={})
    of_both = open_vault(path, environ={STORAGE_KEY_VARIABLE: text(OTHER).strip()})
    assert of_file is not None
    assert of_both is not None
    assert of_both.open(of_file.seal(b"x", context=b""), context=b"") == b"x"
    sealed = of_both.seal(b"x", context=b"")
    assert Vault([OTHER]).open(sealed, context=b"") == b"x"
    with pytest.raises(Unopenable):
        of_file.open(sealed, context=b"")


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\n"])
def test_the_variable_may_hold_several(separator: str) -> None:
    vault = open_vault(None, environ={STORAGE_KEY_VARIABLE: separator.join(text(OTHER, KEY).split())})
    assert vault is not None
    assert vault.open(Vault([KEY]).seal(b"x", context=b""), context=b"") == b"x"


UNPADDED = base64.b64encode(KEY).decode().rstrip("=")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "has 0 keys"),
        ("# nothing\n", "has 0 keys"),
        (text(*[KEY] * (MAX_STORAGE_KEYS + 1)), "has 17 keys"),
        (text(KEY[:31]), "key 1, is not the padded base64 of 32 bytes"),
        (text(KEY + b"x"), "key 1, is not the padded base64"),
        (text(KEY) + UNPADDED, "key 2, is not the padded base64"),
        (text(KEY).replace("A", "!", 1), "is not the padded base64"),
        (text(bytes(32)), "is not random"),
        (text(b"\1\2" * 16), "is not random"),
    ],
)
def test_what_are_no_keys_is_told_without_showing_them(tmp_path: Path, content: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as caught:
        open_vault(key_file(tmp_path, content), environ={})
    assert not any(line in str(caught.value) for line in content.split() if len(line) > 10)
    with pytest.raises(ConfigurationError, match=fault):
        parse_storage_keys(content, "here")


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no storage key file"):
        open_vault(tmp_path / "missing", environ={})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_vault(tmp_path, environ={})
    (tmp_path / "large").write_bytes(b"A" * 100_000)
    (tmp_path / "binary").write_bytes(os.urandom(32) + b"\xff")
    for name in ("large", "binary"):
        with pytest.raises(ConfigurationError, match="is not lines of base64"):
            open_vault(tmp_path / name, environ={})


def test_a_file_that_others_may_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_vault(key_file(tmp_path, text(KEY)), environ={})
    assert not caplog.records
    open_vault(key_file(tmp_path, text(KEY), 0o644), environ={})
    assert "is open to other users (mode 644)" in caplog.text


def test_a_vault_does_not_show_its_keys() -> None:
    assert repr(Vault([KEY, OTHER])) == "<Vault with 2 keys>"
    assert not hasattr(Vault([KEY]), "__dict__")
