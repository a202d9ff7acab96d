"""New keys for old ones: which there are, until when the old ones count, and who is given the new ones.

    now ............... now + grace/2 ............... now + grace
    signed with the old key | signed with the new key  |
    old and new keys are taken ........................| only the new one

The keys of one owner follow each other: the new one has the owner and the permissions of his last one, and ends when
that one was to end by its own `valid_until`, so that nobody is given more, or longer, than he had. Who has no key that
is still valid gets none. The subscribers' file gets successors of the keys that it holds, and nobody else's.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.keys import MAX_KEYS, Credentials, Key, Secrets
from httppubsubclient.protocol.permissions import Permissions

__all__ = ["MAX_LIVE_KEYS", "Rotated", "new_key", "rotated_secrets", "shown_moment"]

MAX_LIVE_KEYS: Final = 8
"""Live keys of one owner; rotating faster than the old ones end is refused."""

_SECRET_BYTES: Final = 32
_EVERYTHING: Final = Permissions()


@dataclass(frozen=True, slots=True)
class Rotated:
    """The two secrets files after a rotation."""

    broadcaster: Secrets
    subscriber: Secrets
    added: tuple[Key, ...]
    """All new keys, those of the direction to the broadcasters first."""
    handed_out: tuple[Key, ...]
    """Those of them that are not in the subscribers' file: each is for its owner alone."""


def new_key(kind: Literal["hmac", "token"], direction: str, *, use_after: float = 0) -> Key:
    """A key of random bytes for `to-broadcasters` or `to-subscribers`, whose id begins with that."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    if kind == "token":
        secret = base64.urlsafe_b64encode(secret).rstrip(b"=")
    return Key(f"{direction}-{secrets.token_hex(4)}", secret, use_after=use_after)


def rotated_secrets(present: Secrets, subscriber: Secrets | None, *, now: int, grace_seconds: int) -> Rotated:
    """Both files after the rotation. `present` is the broadcaster's, `subscriber` None when that file is not there:
    then it is made of the keys without restrictions. `now` is in Unix seconds.

    Raises `ConfigurationError`, also when there is nothing to rotate.
    """
    to_broadcasters = _Direction(present.to_broadcasters, "to-broadcasters", now, grace_seconds)
    to_subscribers = _Direction(present.to_subscribers, "to-subscribers", now, grace_seconds)
    ours = replace(
        present,
        to_broadcasters=to_broadcasters.rotated(_by_owner(present.to_broadcasters.keys)),
        # Everybody verifies with all of these: they are nobody's own.
        to_subscribers=to_subscribers.rotated([present.to_subscribers.keys]),
    )
    owners = _owners_of(present if subscriber is None else subscriber, everybody=subscriber is not None)
    theirs = replace(
        ours,
        # Where the broadcasters are may be said differently to the two sides.
        broadcasters=present.broadcasters if subscriber is None else subscriber.broadcasters,
        to_broadcasters=replace(
            ours.to_broadcasters, keys=tuple(key for key in ours.to_broadcasters.keys if key.owner in owners)
        ),
    )
    if ours.to_broadcasters.keys and not theirs.to_broadcasters.keys:
        raise ConfigurationError(
            "the file for subscribers would have no key to broadcasters: there is none without permissions of its own, "
            "and none that it has now is still in the broadcasters' file; write it by hand with a key that is meant "
            "for it, then rotate"
        )
    added = (*to_broadcasters.added, *to_subscribers.added)
    kept_back = tuple(key for key in to_broadcasters.added if key not in theirs.to_broadcasters.keys)
    return Rotated(ours, theirs, added, kept_back)


def shown_moment(unix_seconds: float) -> str:
    """For people: `2027-01-16 08:00:00 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_seconds))


def _by_owner(keys: Sequence[Key]) -> list[tuple[Key, ...]]:
    """The keys of each owner, in the order of the owners' last keys: the last key of a file is the one to sign with,
    and so is the successor of the last."""
    owners: dict[str, list[Key]] = {}
    for key in keys:
        # Taken out and put behind the others.
        owners[key.owner] = [*owners.pop(key.owner, ()), key]
    return [tuple(of_owner) for of_owner in owners.values()]


def _owners_of(file: Secrets, *, everybody: bool) -> set[str]:
    return {key.owner for key in file.to_broadcasters.keys if everybody or key.permissions == _EVERYTHING}


class _Direction:
    """The rotation of one direction; `added` are the new keys."""

    def __init__(self, present: Credentials, name: str, now: int, grace_seconds: int) -> None:
        self._present = present
        self._name = name
        self._now = now
        self._end = now + grace_seconds
        self._switch = now + grace_seconds // 2
        self.added: list[Key] = []

    def rotated(self, groups: Sequence[Sequence[Key]]) -> Credentials:
        """The keys that still count, each with its end, then the successors of each group."""
        if self._present.type == "none":
            return self._present
        followed = [group for group in groups if any(self._is_live(key) for key in group)]
        if not followed:
            # Nobody could sign anything any more; whoever was to be locked out had restrictions or was not the last.
            followed = [group for group in groups if group[-1].permissions == _EVERYTHING][-1:]
        if not followed:
            raise ConfigurationError(
                f"every key of {self._name} has ended, and they were for permissions of their own: "
                "give one of them another valid_until, or add a key by hand"
            )
        kept = [self._ending(key) for key in self._present.keys if self._is_live(key)]
        if self._end == self._now:
            kept = []
        self.added = [self._successor(group, kept) for group in followed]
        self._leave_no_end(followed[-1][-1])
        if len(kept) + len(self.added) > MAX_KEYS:
            raise ConfigurationError(f"{self._name} would have more than {MAX_KEYS} keys: rotate again when some ended")
        return replace(self._present, keys=(*kept, *self.added))

    def _is_live(self, key: Key) -> bool:
        return key.valid_until is None or key.valid_until > self._now

    def _ending(self, key: Key) -> Key:
        return replace(key, valid_until=self._end if key.valid_until is None else min(key.valid_until, self._end))

    def _successor(self, group: Sequence[Key], kept: Sequence[Key]) -> Key:
        last = ([key for key in group if self._is_live(key)] or [group[-1]])[-1]
        ids = {key.id for key in group}
        of_group = [key for key in kept if key.id in ids]
        if len(of_group) >= MAX_LIVE_KEYS:
            first_end = min(key.valid_until or self._end for key in of_group)
            raise ConfigurationError(
                f"{self._name} has {len(of_group)} live keys already, and {MAX_LIVE_KEYS} is the most: the first ends "
                f"at {shown_moment(first_end)}; rotate again after that, or with --grace-seconds 0, which ends them "
                "all at once"
            )
        # No later than the present keys last: there is a key to sign with at every moment.
        last_end = max((key.valid_until or self._end for key in of_group), default=self._now)
        assert self._present.type != "none"
        made = new_key(self._present.type, self._name, use_after=min(self._switch, last_end) if of_group else 0)
        if self._name == "to-subscribers":
            return made
        return replace(
            made,
            owner=last.owner,
            permissions=last.permissions,
            valid_until=last.valid_until if self._is_live(last) else None,
        )

    def _leave_no_end(self, last: Key) -> None:
        """A file whose keys were all made to end by hand is one of somebody who wants to go on, unless they were
        somebody's permissions."""
        if last.permissions == _EVERYTHING and all(key.valid_until is not None for key in self.added):
            self.added[-1] = replace(self.added[-1], valid_until=None)
