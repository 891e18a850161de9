"""A message of a page is taken whole; anything else is refused in one line, and nothing behind the edge meets it."""

import json
import random
from typing import Any

import pytest

from moe_core.dashboard.messages import LONGEST, Deed, Look, Refused, parsed

LOOK: dict[str, Any] = {
    "theme": "dark", "page": "live", "layer": 0, "step": 40, "sizes": {"loss": [640, 300.4]}, "span": [0.5, 20], "wide": True,
    "drawn": 3, "took": 12.5, "options": {"expert": 3, "with": ["a", "b"], "align": "fork", "again": 1, "busiest": [1, 3, 40, 1]},
}  # fmt: skip


def test_a_page_s_messages_are_taken_whole() -> None:
    assert parsed(json.dumps(LOOK)) == Look(
        "dark", "live", 0, 40, {"loss": (640, 300)}, (0.5, 20), True, LOOK["options"], 3, 12.5
    )
    told = {"theme": "light", "page": "", "layer": 7, "step": None, "sizes": {"loss": [1, 99999]}, "span": None}
    assert parsed(json.dumps(told)) == Look("light", "", 7, None, {"loss": (40, 8000)}, None, False, {}, 0, 0)
    assert parsed('{"turn": {"noise": 0.5, "k": 1, "strategy": "paper"}, "gesture": "ab1", "nth": 2}') == Deed(
        2, {"noise": 0.5, "k": 1, "strategy": "paper"}, "ab1"
    )
    assert parsed('{"command": "pause", "nth": 1}') == Deed(1, command="pause")
    assert parsed('{"fork": 40}') == Deed(0, fork=40)
    assert parsed('{"fork": 40, "turn": {"k": 1}, "steps": 90}') == Deed(0, fork=40, turn={"k": 1}, steps=90)
    assert parsed('{"go_on": true, "steps": 90, "nth": 2}') == Deed(2, go_on=True, steps=90)


DEEP, LONG = "[" * 20_000 + "]" * 20_000, "9" * 400
BAD = [
    "", "{", "[]", "null", "1", '"x"', "\0", "{}", DEEP, f'{{"turn": {DEEP}}}', f'{{"sizes": {"[" * 5000}', "x" * (LONGEST + 1),
    f'{{"theme": "{"é" * LONGEST}"}}', '{"turn": {"noise": NaN}}', '{"turn": {"noise": Infinity}}', '{"turn": {"noise": 1e310}}',
    f'{{"turn": {{"noise": {LONG}}}}}', f'{{"turn": {{"noise": -{"9" * 5000}}}}}', '{"turn": {"noise": true}}', '{"turn": {"noise": null}}',
    '{"turn": {"noise": [1]}}', '{"turn": {"a b": 1}}', '{"turn": {"": 1}}', '{"turn": {"1": 1}}', '{"turn": {}}', '{"turn": []}', '{"turn": "noise"}',
    '{"turn": {"noise": 1}, "gesture": 1}', '{"turn": {"noise": 1}, "gesture": "a b"}', '{"turn": {"noise": 1}, "nth": {}}',
    '{"turn": {"noise": 1}, "nth": 1.5}', '{"command": "rm"}', '{"command": []}', '{"command": null}', '{"fork": "40"}', '{"fork": 0}',
    '{"go_on": false}', '{"go_on": 1}', '{"go_on": true, "steps": -1}', '{"go_on": true, "steps": 1.5}', '{"fork": 3, "turn": []}',
    '{"fork": 3, "turn": {"a b": 1}}', '{"fork": 3, "steps": null}', '{"fork": 1e400}', f'{{"fork": {LONG}}}', '{"fork": 1.5}',
]  # fmt: skip
CHANGED: list[dict[str, Any]] = [
    {"theme": "pink"}, {"theme": []}, {"page": "../x"}, {"page": None}, {"page": "x" * 41}, {"layer": "one"}, {"layer": None}, {"layer": 1.5},
    {"layer": 10**400}, {"layer": True}, {"step": 0}, {"step": 1.5}, {"step": "9"}, {"step": 2**53 + 1}, {"sizes": [1]}, {"sizes": None},
    {"sizes": {"loss": 1}}, {"sizes": {"loss": [1]}}, {"sizes": {"loss": [1, "2"]}}, {"sizes": {"loss": [1, None]}}, {"sizes": {"a/b": [1, 2]}},
    {"sizes": {str(i): [1, 2] for i in range(65)}}, {"span": [3, 2]}, {"span": [1, "inf"]}, {"span": 3}, {"span": [1, 10**400]}, {"span": [1, 1]},
    {"drawn": "3"}, {"drawn": -1}, {"took": -1}, {"took": "3"}, {"took": None}, {"drawn": []}, {"options": []}, {"options": {"what": 1}}, {"options": {"expert": "x"}},
    {"options": {"expert": 0}}, {"options": {"expert": [[1]]}}, {"options": {"expert": {}}}, {"options": {"with": ["../a"]}},
    {"options": {"busiest": 3}},
    {"options": {"busiest": [1, 2, 3]}},
    {"options": {"busiest": [1, 2, 3, None]}},
    {"options": {"again": "1"}},
    {"options": {"with": [1]}}, {"options": {"align": "end"}}, {"options": {"tokens": 10**400}}, {"options": {"k": True}},
]  # fmt: skip


@pytest.mark.parametrize("text", BAD + [json.dumps(LOOK | change) for change in CHANGED], ids=lambda text: text[:40])
def test_anything_else_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)
    assert 0 < len(str(caught.value)) < 300


def garbled(draw: random.Random) -> str:
    """A message of a page with a part of it replaced, dropped or repeated."""
    text = draw.choice(
        [json.dumps(LOOK), '{"turn": {"noise": 0.5}, "gesture": "ab", "nth": 2}', '{"command": "pause"}', '{"fork": 3}']
    )
    parts = [
        "Infinity",
        "1e999",
        "-1",
        "null",
        "{}",
        "[[",
        "\\ud800",
        "\0",
        '"',
        "9" * 400,
        "true",
        DEEP[:3000],
        "é",
        "",
    ]
    for _ in range(draw.randrange(1, 4)):
        start = draw.randrange(len(text) + 1)
        text = text[:start] + draw.choice(parts) + text[start + draw.randrange(12) :]
    return text


def test_garbled_messages_are_taken_or_refused_and_nothing_else() -> None:
    draw, refused = random.Random(1), 0
    for _ in range(3000):
        try:
            said = parsed(garbled(draw))
        except Refused:
            refused += 1
        else:
            json.dumps(said)  # plain values, whatever they are
    assert 2000 < refused < 3000
