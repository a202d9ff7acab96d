"""The checker of the torture finds what it is there to find: each rule is broken in a story that was right."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.torture import checker, journals
from tests.e2e.torture.checker import Report, check, matches

Story = list[dict[str, Any]]
PUBLISHED = 4
S1, S2 = "sub_1", "sub_2"


def message_id(number: int) -> str:
    return f"msg_{number}"


def sending(number: int, at: int) -> dict[str, Any]:
    message = {"publisher": "p", "number": number, "topic": "a/1", "digest": f"d{number}", "key": f"k{number}"}
    return {"event": "sending", "at": at, **message}


def acknowledged(number: int, at: int) -> dict[str, Any]:
    return {"event": "acknowledged", "at": at, "publisher": "p", "number": number, "message_id": message_id(number)}


def arrived(number: int, at: int, subscription: str = S1, status: int = 204) -> dict[str, Any]:
    return {
        "event": "arrived",
        "arrived": at,
        "at": at + 1,
        "subscription": subscription,
        "status": status,
        "message_id": message_id(number),
        "publisher": "p",
        "number": number,
        "topic": "a/1",
        "sequence": number,
        "previous": message_id(number - 1) if number > 1 else None,
        "digest": f"d{number}",
        "fault": None,
    }


def subscribed(subscription: str, *, ordered: bool) -> dict[str, Any]:
    return {
        "event": "subscribed",
        "at": 1,
        "subscription": subscription,
        "subscriber": "s",
        "kind": "glob",
        "pattern": "a/*",
        "ordered": ordered,
    }


def right_story() -> Story:
    """Four messages one after the other, each taken by both subscriptions; S1 is ordered."""
    story = [subscribed(S1, ordered=True), subscribed(S2, ordered=False)]
    for number in range(1, PUBLISHED + 1):
        at = number * 100
        story += [sending(number, at), acknowledged(number, at + 50)]
        story += [arrived(number, at + 10, S1), arrived(number, at + 10, S2)]
    return story


def find(story: Story, event: str, number: int, subscription: str = S1) -> dict[str, Any]:
    return next(
        each
        for each in story
        if each["event"] == event
        and each["number"] == number
        and each.get("subscription", subscription) == subscription
    )


def judged(story: Story, folder: Path) -> Report:
    file = folder / "all.jsonl"
    file.write_text("".join(f"{json.dumps(event)}\n" for event in story))
    return check([file])


def lose(story: Story) -> None:
    """The last one: no hole tells of it."""
    story.remove(find(story, "arrived", PUBLISHED))


def refuse_only(story: Story) -> None:
    find(story, "arrived", PUBLISHED)["status"] = 500


def leave_a_hole_that_nobody_was_promised(story: Story) -> None:
    story.remove(find(story, "acknowledged", 2))
    story.remove(find(story, "arrived", 2))


def overtake(story: Story) -> None:
    find(story, "arrived", 3).update(arrived=205, at=206)
    find(story, "sending", 3).update(at=201)
    find(story, "acknowledged", 3).update(at=207)


def begin_before_the_answer(story: Story) -> None:
    find(story, "arrived", 2)["at"] = 311


def count_wrongly(story: Story) -> None:
    for subscription in (S1, S2):
        first, second = (find(story, "arrived", number, subscription) for number in (3, 4))
        first["sequence"], second["sequence"] = 4, 3
        second["previous"], first["previous"] = message_id(2), message_id(4)


def use_an_id_twice(story: Story) -> None:
    find(story, "acknowledged", 2)["message_id"] = message_id(1)


def accept_a_key_twice(story: Story) -> None:
    story.append({**acknowledged(2, 270), "message_id": message_id(99)})


def deliver_to(subscription: str) -> Callable[[Story], None]:
    return lambda story: story.append(arrived(1, 900, subscription))


def change(what: str, **facts: Any) -> Callable[[Story], None]:
    return lambda story: find(story, what, 3).update(facts)


BREACHES: list[tuple[Callable[[Story], None], str]] = [
    (lose, "lost"),
    (refuse_only, "lost"),
    (leave_a_hole_that_nobody_was_promised, "hole"),
    (overtake, "order"),
    (begin_before_the_answer, "order"),
    (count_wrongly, "accepted"),
    (use_an_id_twice, "identity"),
    (accept_a_key_twice, "key"),
    (deliver_to("sub_unknown"), "never sent"),
    (change("arrived", number=99), "never sent"),
    (change("sending", at=320), "never sent"),
    (change("arrived", topic="b/1"), "altered"),
    (change("arrived", digest="other"), "altered"),
    (change("arrived", sequence=None), "sequence"),
    (change("arrived", sequence=2), "sequence"),
    (change("arrived", previous="msg_other"), "chain"),
    (change("arrived", fault="bad signature"), "signature"),
    (change("acknowledged", event="refused", why="no"), "refused"),
]


def test_a_story_in_which_everything_arrives_is_right(tmp_path: Path) -> None:
    report = judged(right_story(), tmp_path)
    assert report.right, list(report.lines())
    assert report.counts["deliveries owed"] == 2 * PUBLISHED


@pytest.mark.parametrize(("spoil", "rule"), BREACHES)
def test_each_rule_is_found_broken(spoil: Callable[[Story], None], rule: str, tmp_path: Path) -> None:
    story = copy.deepcopy(right_story())
    spoil(story)
    report = judged(story, tmp_path)
    assert not report.right
    assert rule in report.breaches, list(report.lines())


def test_a_duplicate_is_counted_and_not_wrong(tmp_path: Path) -> None:
    report = judged([*right_story(), arrived(1, 900)], tmp_path)
    assert report.right
    assert report.counts["deliveries taken again"] == 1


def test_what_was_sent_before_the_subscription_was_confirmed_is_not_owed(tmp_path: Path) -> None:
    story = [*right_story(), {**subscribed("sub_3", ordered=False), "at": 350}]
    report = judged(story, tmp_path)
    assert list(report.breaches) == ["lost"]
    assert len(report.breaches["lost"]) == 1  # the fourth


def test_what_the_broadcaster_lists_as_dead_is_not_lost_and_frees_the_next(tmp_path: Path) -> None:
    story = right_story()
    story.remove(find(story, "arrived", 2))
    story.append({"event": "dead", "at": 900, "subscription": S1, "sequence": 2, "message_id": message_id(2)})
    report = judged(story, tmp_path)
    assert report.right, list(report.lines())
    assert report.counts["deliveries dead"] == 1


def test_nothing_is_shown_by_nothing(tmp_path: Path) -> None:
    assert not judged([], tmp_path).right


def test_a_line_that_a_death_has_cut_short_did_not_happen(tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl"
    file.write_text(json.dumps(sending(1, 1)) + '\n{"event": "ackno')
    assert [event["event"] for event in journals.read_journals([file])] == ["sending"]


@pytest.mark.parametrize(
    ("kind", "pattern", "topic", "expected"),
    [
        ("topic", "a/1", "a/1", True),
        ("topic", "a/*", "a/1", False),
        ("glob", "a/*", "a/1", True),
        ("glob", "a/*", "a/1/2", False),
        ("glob", "a/*", "b/1", False),
        ("glob", "**", "b/1", True),
        ("glob", "a/**", "a/1/2", True),
        ("glob", "a/**", "b", False),
    ],
)
def test_its_patterns(kind: str, pattern: str, topic: str, expected: bool) -> None:
    assert matches(kind, pattern, topic) == expected


@pytest.mark.parametrize("module", [checker, journals])
def test_it_knows_nothing_of_the_product(module: Any) -> None:
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not any(name.startswith("httppubsub") for name in names), names
