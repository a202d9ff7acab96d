"""Whether everything that was acknowledged has arrived, judged only by what publishers and subscribers wrote down.

    python -m tests.e2e.torture.checker JOURNALS...

prints a report and ends with 0 when nothing is wrong, with 1 otherwise. It imports nothing of the product. What must
hold, for each durable subscription:

| rule        | what breaks it                                                                                      |
|-------------|-----------------------------------------------------------------------------------------------------|
| `lost`      | a message acknowledged, of a topic that it matches, first sent after it was confirmed, and not taken |
| `hole`      | a sequence number below the highest one that came, and nothing with it was taken                     |
| `sequence`  | two messages under one number, or one message under two                                              |
| `chain`     | a delivery names another message as the one before than the number before has                        |
| `accepted`  | a message acknowledged before another one was first sent has the higher number                       |
| `order`     | an ordered one: a delivery that began before the one with the number before was taken               |
| `altered`   | a body, or a topic, that is not the one that was sent under this number                              |
| `identity`  | two messages under one message id                                                                    |
| `key`       | one message under two message ids, though it was sent with an Idempotency-Key                        |
| `never sent`| a delivery of something that nobody had sent when it arrived, or that it does not match              |
| `signature` | a subscriber could not verify it                                                                     |
| `refused`   | a publisher was told that there is something wrong with its request                                  |

A delivery that the broadcaster itself lists as dead (the conductor writes down what it lists) is not lost; it is
counted, and what is ordered goes on behind it. `taken` means: written down by the subscriber as answered with 2xx.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.torture.journals import read_journals

__all__ = ["NOT_TOLD", "Report", "check", "matches"]

NOT_TOLD = "?"
"""Instead of the id of the message before, from a subscriber that is not told it."""

SHOWN = 5
"""Of each rule, so many breaches are printed."""

Number = tuple[str, int]
"""The name of a publisher, and its number of a message."""


class Sent(NamedTuple):
    """A message as its publisher sent it, the first time."""

    at: int
    topic: str
    digest: str
    key: str | None


class Acknowledged(NamedTuple):
    """A message id as a publisher was told it, first."""

    at: int
    number: Number


class Subscription(NamedTuple):
    """A durable subscription as the conductor had it confirmed, first."""

    id: str
    at: int
    kind: str
    pattern: str
    subscriber: str
    ordered: bool


class Arrival(NamedTuple):
    """A delivery as a subscriber wrote it down."""

    began_at: int
    at: int
    message_id: str
    sequence: int | None
    previous: str | None
    number: Number
    topic: str
    digest: str
    taken: bool
    fault: str | None


class Report:
    """What was found."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.breaches: dict[str, list[str]] = defaultdict(list)
        self.worst_delay_seconds = 0.0

    @property
    def right(self) -> bool:
        """Nothing is wrong, and there was something that could have been."""
        return not self.breaches and self.counts["deliveries owed"] > 0

    def breach(self, rule: str, what: str) -> None:
        self.breaches[rule].append(what)

    def to_json(self) -> dict[str, Any]:
        """For whoever started this program."""
        return {
            "right": self.right,
            "counts": dict(self.counts),
            "breaches": {rule: len(found) for rule, found in self.breaches.items()},
            "worst_delay_seconds": round(self.worst_delay_seconds, 3),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for name, count in sorted(self.counts.items()):
            yield f"{count:9d} {name}"
        yield f"{self.worst_delay_seconds:9.3f} s from first sending to first taking, at worst"
        for rule, found in sorted(self.breaches.items()):
            yield f"WRONG: {rule}: {len(found)}"
            yield from (f"    {what}" for what in found[:SHOWN])
        if not self.counts["deliveries owed"]:
            yield "WRONG: nothing was owed to anybody, so nothing is shown"


class Evidence:
    """All that was written down, by what it is about."""

    def __init__(self, events: Iterable[dict[str, Any]], report: Report) -> None:
        self.sent: dict[Number, Sent] = {}
        self.acknowledged: dict[str, Acknowledged] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.arrivals: dict[str, list[Arrival]] = defaultdict(list)
        self.dead: dict[str, dict[int, str]] = defaultdict(dict)
        self._report = report
        for event in events:
            report.counts[f"events {event['event']}"] += 1
            note = getattr(self, f"_note_{event['event']}", None)
            if note is not None:
                note(event)
        for arrivals in self.arrivals.values():
            arrivals.sort(key=lambda arrival: (arrival.began_at, arrival.at))

    def _note_sending(self, event: dict[str, Any]) -> None:
        number = (event["publisher"], event["number"])
        self.sent.setdefault(number, Sent(event["at"], event["topic"], event["digest"], event["key"]))

    def _note_acknowledged(self, event: dict[str, Any]) -> None:
        number = (event["publisher"], event["number"])
        known = self.acknowledged.setdefault(event["message_id"], Acknowledged(event["at"], number))
        if known.number != number:
            self._report.breach("identity", f"{event['message_id']} is the id of {known.number} and of {number}")

    def _note_refused(self, event: dict[str, Any]) -> None:
        self._report.breach("refused", f"{event['publisher']} {event['number']}: {event['why']}")

    def _note_subscribed(self, event: dict[str, Any]) -> None:
        facts = (event["kind"], event["pattern"], event["subscriber"], event["ordered"])
        made = Subscription(event["subscription"], event["at"], *facts)
        self.subscriptions.setdefault(made.id, made)

    def _note_dead(self, event: dict[str, Any]) -> None:
        self.dead[event["subscription"]][event["sequence"]] = event["message_id"]

    def _note_arrived(self, event: dict[str, Any]) -> None:
        self.arrivals[event["subscription"]].append(
            Arrival(
                event["arrived"],
                event["at"],
                event["message_id"],
                event["sequence"],
                event["previous"],
                (event["publisher"], event["number"]),
                event["topic"],
                event["digest"],
                200 <= event["status"] < 300,
                event["fault"],
            )
        )


def check(paths: Sequence[Path]) -> Report:
    """Read these journals and judge."""
    report = Report()
    evidence = Evidence(read_journals(paths), report)
    for subscription_id, arrivals in evidence.arrivals.items():
        subscription = evidence.subscriptions.get(subscription_id)
        if subscription is None:
            report.breach("never sent", f"{len(arrivals)} deliveries for {subscription_id}, which nobody asked for")
    _check_identity(evidence, report)
    for subscription in evidence.subscriptions.values():
        arrivals = evidence.arrivals[subscription.id]
        _check_arrivals(subscription, arrivals, evidence, report)
        _check_owed(subscription, arrivals, evidence, report)
        _check_sequences(subscription, arrivals, evidence, report)
        if subscription.ordered:
            _check_order(subscription, arrivals, evidence, report)
    _check_repetitions(evidence, report)
    return report


def matches(kind: str, pattern: str, topic: str) -> bool:
    """Of the patterns that there are only those that are used here: whole segments `*`, and `**` at the end."""
    if kind == "topic":
        return pattern == topic
    wanted, got = pattern.split("/"), topic.split("/")
    if wanted[-1] == "**":
        wanted = wanted[:-1]
        got = got[: len(wanted)]
    return len(wanted) == len(got) and all(want in ("*", one) for want, one in zip(wanted, got, strict=True))


def _check_identity(evidence: Evidence, report: Report) -> None:
    """One message id is one message, wherever it came."""
    numbers = {message_id: told.number for message_id, told in evidence.acknowledged.items()}
    for arrivals in evidence.arrivals.values():
        for arrival in arrivals:
            known = numbers.setdefault(arrival.message_id, arrival.number)
            if known != arrival.number:
                report.breach("identity", f"{arrival.message_id} is the id of {known} and of {arrival.number}")


def _check_arrivals(
    subscription: Subscription, arrivals: Sequence[Arrival], evidence: Evidence, report: Report
) -> None:
    """Each delivery by itself."""
    for arrival in arrivals:
        where = f"{arrival.number} at {subscription.subscriber} ({subscription.id})"
        sent = evidence.sent.get(arrival.number)
        if sent is None or arrival.began_at < sent.at:
            report.breach("never sent", where)
        elif (sent.digest, sent.topic) != (arrival.digest, arrival.topic):
            report.breach("altered", where)
        if not matches(subscription.kind, subscription.pattern, arrival.topic):
            report.breach("never sent", f"{where}: {arrival.topic} is not what it asked for")
        if arrival.fault is not None:
            report.breach("signature", f"{where}: {arrival.fault}")


def _check_owed(subscription: Subscription, arrivals: Sequence[Arrival], evidence: Evidence, report: Report) -> None:
    """Every acknowledged message that was first sent after the subscription was confirmed."""
    taken_at: dict[str, int] = {}
    for arrival in arrivals:
        if arrival.taken:
            taken_at[arrival.message_id] = min(arrival.at, taken_at.get(arrival.message_id, arrival.at))
    dead = set(evidence.dead[subscription.id].values())
    for message_id, told in evidence.acknowledged.items():
        sent = evidence.sent[told.number]
        if sent.at < subscription.at or not matches(subscription.kind, subscription.pattern, sent.topic):
            continue
        report.counts["deliveries owed"] += 1
        if message_id in taken_at:
            report.worst_delay_seconds = max(report.worst_delay_seconds, (taken_at[message_id] - sent.at) / 1e9)
        elif message_id in dead:
            report.counts["deliveries dead"] += 1
        else:
            report.breach("lost", f"{message_id} {told.number} of {sent.topic} for {subscription.subscriber}")


def _check_sequences(
    subscription: Subscription, arrivals: Sequence[Arrival], evidence: Evidence, report: Report
) -> None:
    """1, 2, 3 ... to the highest that came, each a message of its own, in the order in which they were accepted."""
    dead = evidence.dead[subscription.id]
    by_number = dict(dead)
    by_message = {message_id: sequence for sequence, message_id in dead.items()}
    for arrival in arrivals:
        if arrival.sequence is None:
            report.breach("sequence", f"{arrival.message_id} for {subscription.id} has no number")
            continue
        if by_number.setdefault(arrival.sequence, arrival.message_id) != arrival.message_id:
            report.breach("sequence", f"{subscription.id}: {arrival.sequence} is the number of two messages")
        if by_message.setdefault(arrival.message_id, arrival.sequence) != arrival.sequence:
            report.breach("sequence", f"{subscription.id}: {arrival.message_id} has two numbers")
    for arrival in arrivals:
        before = None if arrival.sequence in (None, 1) else by_number.get((arrival.sequence or 0) - 1, NOT_TOLD)
        if NOT_TOLD not in (before, arrival.previous) and before != arrival.previous:
            report.breach("chain", f"{subscription.id}: {arrival.sequence} names {arrival.previous}, not {before}")
    _check_holes(subscription, arrivals, dead, max(by_number, default=0), report)
    _check_acceptance(subscription, by_number, evidence, report)


def _check_holes(
    subscription: Subscription, arrivals: Sequence[Arrival], dead: Iterable[int], highest: int, report: Report
) -> None:
    known = {arrival.sequence for arrival in arrivals if arrival.taken} | set(dead)
    for sequence in range(1, highest + 1):
        if sequence not in known:
            report.breach("hole", f"{subscription.id}: nothing with the number {sequence} was taken")


def _check_acceptance(
    subscription: Subscription, by_number: dict[int, str], evidence: Evidence, report: Report
) -> None:
    """Whoever was told of an acceptance before sending the next message knows the order of the two."""
    latest_sending = 0
    for _, message_id in sorted(by_number.items()):
        told = evidence.acknowledged.get(message_id)
        if told is None:
            continue
        if told.at < latest_sending:
            report.breach("accepted", f"{subscription.id}: {message_id} was accepted before one with a lower number")
        latest_sending = max(latest_sending, evidence.sent[told.number].at)


def _check_order(subscription: Subscription, arrivals: Sequence[Arrival], evidence: Evidence, report: Report) -> None:
    """One at a time: none begins before the one in front of it was taken, or given up."""
    began: dict[int, int] = {}
    taken: dict[int, int] = {}
    for arrival in arrivals:
        if arrival.sequence is not None:
            began.setdefault(arrival.sequence, arrival.began_at)
            if arrival.taken:
                taken[arrival.sequence] = min(arrival.at, taken.get(arrival.sequence, arrival.at))
    for sequence, began_at in began.items():
        before = sequence - 1
        if before in evidence.dead[subscription.id] or before == 0:
            continue
        if began_at < taken.get(before, sys.maxsize):
            report.breach("order", f"{subscription.subscriber} {subscription.id}: {sequence} came before {before}")


def _check_repetitions(evidence: Evidence, report: Report) -> None:
    """Duplicates are allowed, when they can be told: the same message under the same id."""
    ids_of: dict[Number, set[str]] = defaultdict(set)
    for message_id, told in evidence.acknowledged.items():
        ids_of[told.number].add(message_id)
    for arrivals in evidence.arrivals.values():
        taken = Counter(arrival.message_id for arrival in arrivals if arrival.taken)
        report.counts["deliveries taken"] += len(taken)
        report.counts["deliveries taken again"] += taken.total() - len(taken)
        for arrival in arrivals:
            ids_of[arrival.number].add(arrival.message_id)
    for number, ids in ids_of.items():
        if len(ids) > 1 and number in evidence.sent:
            report.counts["messages accepted more than once"] += 1
            if evidence.sent[number].key is not None:
                report.breach("key", f"{number} is {sorted(ids)}")
    report.counts["messages acknowledged"] = len(evidence.acknowledged)


def main(arguments: Sequence[str]) -> int:
    """The report for people, and its last line as JSON for programs."""
    report = check([Path(argument) for argument in arguments])
    print("\n".join(report.lines()))
    print(json.dumps(report.to_json()))
    return 0 if report.right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
