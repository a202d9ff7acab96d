"""Every parser takes any bytes: it reads them, or refuses them as it says. `scripts/soak fuzz` looks for longer."""

from __future__ import annotations

import pytest

from tests.fuzz.run import main, search
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_known_to_be_read_and_what_is_bent_a_little(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds:
        target(data)
        for at in range(min(len(data), 200)):
            target(data[:at])
            target(data[:at] + b"\xff" + data[at + 1 :])
    search(target, examples=60)


def test_a_finding_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "callback_url", "--replay", 'b"http://a/\\x00"']) == 0
    with pytest.raises(SyntaxError):
        main(["--target", "callback_url", "--replay", "no bytes"])


def test_what_fails_in_any_other_way_is_found() -> None:
    def fails(data: bytes) -> None:
        if data.startswith(b"http://") and len(data) > 10:
            raise KeyError(data)
        raise ValueError(data)

    with pytest.raises(KeyError):
        search(Target(fails, (ValueError,), (b"http://a/",)), examples=500)
