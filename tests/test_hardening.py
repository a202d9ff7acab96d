"""Bad inputs and what they get: every line of the list, found by its number.

    pytest tests/test_hardening.py -k test_44

The tests stand by section in tests/hardening/. A number that is missing between two others was given up.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.hardening import (
    a_urls,
    b_addresses,
    c_receivers,
    d_consent,
    d_patterns,
    d_subscriptions,
    e_publishing,
    f_receiving,
    g_state,
    h_owners,
)
from tests.hardening.a_urls import *  # noqa: F403
from tests.hardening.b_addresses import *  # noqa: F403
from tests.hardening.c_receivers import *  # noqa: F403
from tests.hardening.d_consent import *  # noqa: F403
from tests.hardening.d_patterns import *  # noqa: F403
from tests.hardening.d_subscriptions import *  # noqa: F403
from tests.hardening.e_publishing import *  # noqa: F403
from tests.hardening.f_receiving import *  # noqa: F403
from tests.hardening.g_state import *  # noqa: F403
from tests.hardening.h_owners import *  # noqa: F403
from tests.hardening.support import *  # noqa: F403

SECTIONS = (
    a_urls,
    b_addresses,
    c_receivers,
    d_consent,
    d_patterns,
    d_subscriptions,
    e_publishing,
    f_receiving,
    g_state,
    h_owners,
)

LINES = {
    # A. Callback URLs
    1: "only http and https",
    2: "no http while https_only is set",
    3: "no credentials in a URL",
    4: "no backslash, no user info, nothing that is read in two ways",
    5: "a host, and a port from 1 to 65535",
    6: "no control characters, no spaces, well-formed labels",
    7: "bounds of a URL; a fragment is part of it",
    9: "IPv4 addresses in one spelling",
    10: "names of the own machine and network only when allowed by name",
    11: "spellings of one URL are one subscription",
    12: "no callback to a broadcaster, no messages that go round",
    13: "ports by policy",
    # B. Addresses
    14: "loopback",
    15: "metadata services",
    16: "private networks",
    18: "everything else that is not the internet",
    19: "a name with one forbidden address is forbidden",
    21: "connections that are kept when the policy changes",
    22: "names that say an address",
    24: "the environment plays no part",
    25: "a proxy for the way out",
    # C. What receivers do
    26: "redirects are not followed",
    27: "dripping ends at the deadline",
    28: "endless and exploding answers",
    30: "resets at each point",
    31: "410",
    33: "bodies that would do something where they are shown",
    34: "TLS is what it should be, or nothing is sent",
    35: "cookies and challenges are passed over",
    37: "an endpoint that flaps",
    # D. Subscribing
    38: "the callback of somebody else",
    39: "answers to a challenge",
    40: "unsubscribing somebody else",
    41: "leases",
    42: "a million subscriptions; the same one at once",
    43: "secrets that are none",
    44: "patterns that explode",
    # E. Publishing
    46: "no proof, an old one, one of somebody else, one in the query",
    47: "idempotency keys",
    48: "bodies beyond the limit, with odd lengths, compressed",
    49: "headers that are not for others",
    51: "ids are ours",
    52: "a message for very many",
    # F. Receiving
    53: "headers of a webhook that are missing, doubled, empty",
    54: "signatures that are none",
    55: "timestamps that are none",
    56: "signatures of something else",
    58: "the same delivery again",
    59: "a delivery at another endpoint",
    61: "bodies that are slow, large, compressed",
    62: "messages that ask for something to be fetched",
    63: "a consumer that stands still",
    # G. What is kept
    65: "kill -9",
    68: "two broadcasters and one delivery",
    70: "rotating secrets",
    72: "nobody chooses what is signed",
}


def test_every_line_of_the_list_has_its_test() -> None:
    numbers = {
        int(match[1]) for section in SECTIONS for name in vars(section) if (match := re.match(r"test_(\d\d)_", name))
    }
    assert numbers == set(LINES)
    for number in numbers:
        assert any(name.startswith(f"test_{number:02}_") for name in globals())


def test_what_is_promised_names_tests_that_are_there() -> None:
    text = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    named: set[int] = set()
    for numbers in re.findall(r"\((\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)\)", text):
        for first, _, last in (part.partition("-") for part in numbers.split(", ")):
            named |= set(range(int(first), int(last or first) + 1))
    assert named >= {1, 19, 26, 39, 46, 70}
    # A range may go over numbers that were given up.
    assert max(named) <= max(LINES)
    assert len(named - set(LINES)) <= 5
    for name in re.findall(r"`(?:pytest )?((?:tests|scripts)/[a-z_/.-]+)", text):
        assert (Path(__file__).parent.parent / name).exists(), name
