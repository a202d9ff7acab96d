"""What a key may do: publish where, subscribe to what, how much, until when.

The members of a key in a secrets file, beside its `id` and `secret`; all of them may be left out:

| member        | form                                      | left out             |
|---------------|-------------------------------------------|----------------------|
| `publish`     | globs, at most 64; `[]` is nothing at all | every topic          |
| `subscribe`   | globs, at most 64; `[]` is nothing at all | every topic          |
| `admin`       | true or false                             | false                |
| `quotas`      | an object, see below                      | no limit of its own  |
| `valid_until` | Unix seconds                              | for ever             |

| quota                 | form                                                  |
|-----------------------|-------------------------------------------------------|
| `subscriptions`       | how many it may have at a time, 0 or more             |
| `messages_per_second` | at least 0.001; two seconds of it may come at once  |
| `bytes_per_second`    | at least 0.001; two seconds of it may come at once  |

    {"id": "partner", "secret": "...", "publish": ["orders/eu/**"], "subscribe": ["orders/*", "status"],
     "quotas": {"subscriptions": 20, "messages_per_second": 50}}

A topic may be published to when a glob matches it. A pattern may be subscribed to when the globs contain it: when every
topic that it matches, now or ever, is matched by one of them (containment.py). A topic that is not UTF-8 is matched by
no glob, `**` included, so that only a key without the member may use it. `admin` means to see and remove what other
keys made; it widens neither list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from httppubsubclient.protocol.containment import containment
from httppubsubclient.protocol.errors import ConfigurationError, Forbidden, InvalidGlob
from httppubsubclient.protocol.globs import Glob, parse_glob
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.token_bucket import MAX_PER_SECOND, Rate
from httppubsubclient.protocol.topics import MAX_TOPIC_BYTES, shown_topic

__all__ = [
    "BURST_SECONDS",
    "MAX_PERMITTED_GLOBS",
    "MAX_SUBSCRIPTIONS",
    "MIN_PER_SECOND",
    "PERMISSION_MEMBERS",
    "Permissions",
    "Quotas",
    "permissions_from_json",
    "permissions_to_json",
]

MAX_PERMITTED_GLOBS: Final = 64
"""Of one list of a key."""
MAX_SUBSCRIPTIONS: Final = 10**9
MIN_PER_SECOND: Final = 0.001
"""Of a quota: one in 1000 seconds."""
BURST_SECONDS: Final = 2
"""So much of a quota may come at once."""
PERMISSION_MEMBERS: Final = frozenset({"publish", "subscribe", "admin", "quotas", "valid_until"})
"""Members of a key that are read here."""

_OTHER_MEMBERS: Final = frozenset({"id", "secret", "use_after"})
_QUOTAS: Final = ("subscriptions", "messages_per_second", "bytes_per_second")
_SHOWN_GLOBS: Final = 5


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much a key may have and do; None is no limit of its own."""

    subscriptions: int | None = None
    messages_per_second: float | None = None
    bytes_per_second: float | None = None

    @property
    def message_rate(self) -> Rate | None:
        """The bucket of messages; it holds at least one."""
        return _rate(self.messages_per_second)

    @property
    def byte_rate(self) -> Rate | None:
        """The bucket of bytes."""
        return _rate(self.bytes_per_second)

    def allows_subscriptions(self, count: int) -> bool:
        """Whether so many subscriptions may exist at a time."""
        return self.subscriptions is None or count <= self.subscriptions


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a key may do. Without arguments: everything but to meddle with what others made."""

    publish: tuple[str, ...] | None = None
    """Globs; None is every topic."""
    subscribe: tuple[str, ...] | None = None
    """Globs; None is every topic."""
    admin: bool = False
    quotas: Quotas = Quotas()
    valid_until: float | None = None
    """Unix seconds; None is for ever."""
    whose: str = field(default="this key", compare=False)
    """What they are of, in the texts of refusals."""
    _publish: tuple[Glob, ...] = field(init=False, repr=False, compare=False)
    _subscribe: tuple[Pattern, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `InvalidGlob`."""
        object.__setattr__(self, "_publish", tuple(parse_glob(text) for text in self.publish or ()))
        object.__setattr__(self, "_subscribe", tuple(Pattern.glob(text) for text in self.subscribe or ()))

    def is_valid(self, now: float) -> bool:
        """Whether the key still counts at this moment, in Unix seconds."""
        return self.valid_until is None or now < self.valid_until

    def may_publish(self, topic: bytes) -> bool:
        """Whether a message with this topic may be published."""
        return self.publish is None or any(glob.matches(topic) for glob in self._publish)

    def may_subscribe(self, pattern: Pattern) -> bool:
        """Whether every topic that this pattern matches may be subscribed to."""
        return self.subscribe is None or containment(self._subscribe, pattern).holds

    def check_publish(self, topic: bytes) -> None:
        """Raises `Forbidden`, which names the topic and what is permitted."""
        if not self.may_publish(topic):
            raise Forbidden(
                f"{self.whose} may not publish to the topic {shown_topic(topic)}; "
                f"it may publish to {_shown(self.publish)}"
            )

    def check_subscribe(self, pattern: Pattern) -> None:
        """Raises `Forbidden`, which names the pattern, a topic that is too much, and what is permitted."""
        if self.subscribe is None:
            return
        holds, counterexample = containment(self._subscribe, pattern)
        if holds:
            return
        if pattern.kind == "exact":
            why = ""
        elif counterexample is None:
            why = " (it is too intricate to tell that nothing else is matched: ask for simpler ones)"
        else:
            why = f", which matches {shown_topic(self._readable(counterexample, pattern))}, for example"
        asked = f"topic {shown_topic(pattern.value)}"
        if pattern.kind != "exact":
            asked = f"{'glob' if pattern.kind == 'glob' else 'MQTT filter'} {_quoted(pattern.value.decode('utf-8'))}"
        raise Forbidden(
            f"{self.whose} may not subscribe to the {asked}{why}; it may subscribe to {_shown(self.subscribe)}"
        )

    def _readable(self, counterexample: bytes, pattern: Pattern) -> bytes:
        """The same with something in its empty segments, if that is one, too: `foo/` looks like a mistake."""
        filled = b"/".join(segment or b"x" for segment in counterexample.split(b"/"))
        matcher = pattern.matcher()
        if filled == counterexample or len(filled) > MAX_TOPIC_BYTES or matcher is None:
            return counterexample
        shows_it = matcher.matches(filled) and not self.may_subscribe(Pattern.exact(filled))
        return filled if shows_it else counterexample


def permissions_from_json(obj: object, place: str) -> Permissions:
    """What a key of a secrets file may do. Raises `ConfigurationError` that names the place of a fault.

    `id`, `secret` and `use_after` are read elsewhere (keys.py), and passed over here; any other member is refused: a
    restriction that is misspelled would not be there.
    """
    fields = _object(obj, place, PERMISSION_MEMBERS | _OTHER_MEMBERS)
    admin = fields.get("admin", False)
    if not isinstance(admin, bool):
        raise ConfigurationError(f"{place}.admin is true or false")
    return Permissions(
        publish=_globs(fields, "publish", place),
        subscribe=_globs(fields, "subscribe", place),
        admin=admin,
        quotas=_quotas(fields.get("quotas", {}), f"{place}.quotas"),
        valid_until=_valid_until(fields, place),
    )


def permissions_to_json(permissions: Permissions) -> dict[str, Any]:
    """The inverse of `permissions_from_json`: only what differs from the permissions of a key without any of them."""
    quotas = {name: value for name in _QUOTAS if (value := getattr(permissions.quotas, name)) is not None}
    fields: dict[str, Any] = {}
    if permissions.publish is not None:
        fields["publish"] = list(permissions.publish)
    if permissions.subscribe is not None:
        fields["subscribe"] = list(permissions.subscribe)
    if permissions.admin:
        fields["admin"] = True
    if quotas:
        fields["quotas"] = quotas
    if permissions.valid_until is not None:
        fields["valid_until"] = permissions.valid_until
    return fields


def _globs(fields: Mapping[str, Any], name: str, place: str) -> tuple[str, ...] | None:
    if name not in fields:
        return None
    entries = fields[name]
    if not isinstance(entries, list) or len(entries) > MAX_PERMITTED_GLOBS:
        raise ConfigurationError(
            f"{place}.{name} is a list of at most {MAX_PERMITTED_GLOBS} globs; leave it out for every topic"
        )
    for number, entry in enumerate(entries):
        try:
            parse_glob(entry)
        except InvalidGlob as error:
            raise ConfigurationError(f"{place}.{name}[{number}]: {error.detail}") from None
    return tuple(entries)


def _quotas(obj: object, place: str) -> Quotas:
    fields = _object(obj, place, frozenset(_QUOTAS))
    subscriptions = None
    if "subscriptions" in fields:
        subscriptions = fields["subscriptions"]
        if not _is_number(subscriptions, 0, MAX_SUBSCRIPTIONS) or not isinstance(subscriptions, int):
            raise ConfigurationError(f"{place}.subscriptions is a whole number from 0 to {MAX_SUBSCRIPTIONS}")
    for name in _QUOTAS[1:]:
        if name in fields and not _is_number(fields[name], MIN_PER_SECOND, MAX_PER_SECOND / BURST_SECONDS):
            raise ConfigurationError(
                f"{place}.{name} is a number from {MIN_PER_SECOND} to {MAX_PER_SECOND // BURST_SECONDS}"
            )
    return Quotas(subscriptions, fields.get("messages_per_second"), fields.get("bytes_per_second"))


def _valid_until(fields: Mapping[str, Any], place: str) -> float | None:
    value = fields.get("valid_until")
    if "valid_until" in fields and not _is_number(value, 0, 2**53):
        raise ConfigurationError(f"{place}.valid_until is a moment in Unix seconds")
    return value


def _is_number(value: object, least: float, most: float) -> bool:
    # The comparison refuses NaN and infinities.
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _rate(per_second: float | None) -> Rate | None:
    return None if per_second is None else Rate(per_second, max(1, per_second * BURST_SECONDS))


def _object(obj: object, place: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(obj, dict):
        raise ConfigurationError(f"{place} is not a JSON object")
    for name in obj:
        if name not in known:
            raise ConfigurationError(f"{place} has the member {repr(name)[:42]}, which this release does not know")
    return obj


def _shown(globs: Sequence[str] | None) -> str:
    if not globs:
        return "nothing"
    shown = ", ".join(_quoted(glob) for glob in globs[:_SHOWN_GLOBS])
    return f"{shown} and {len(globs) - _SHOWN_GLOBS} more" if len(globs) > _SHOWN_GLOBS else shown


def _quoted(glob: str) -> str:
    shown = ascii(glob)
    return shown if len(shown) <= 100 else shown[:97] + "..."
