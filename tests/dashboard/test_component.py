"""What a page sends back is checked as its link is: it may come from somebody else than the page."""

from types import SimpleNamespace
from typing import Any

import pytest

from moe_core.dashboard import component


@pytest.mark.parametrize(
    ("sent", "goes", "link"),
    [
        ({"run": "a-1"}, ["a-1"], {}),
        ({"run": "new"}, ["new"], {}),
        ({"run": "/etc"}, [], {}),
        ({"run": "../a"}, [], {}),
        ({"run": {"x": 1}}, [], {}),
        ({"run": None}, [], {}),
        ({"picked": {"expert": 3}}, [], {"expert": "3"}),
        ({"picked": {"expert": "x" * 400, "layer": 0, "what": "1", "run": "../a"}}, [], {}),
        ({"picked": ["expert"]}, [], {}),
        ({"picked": None}, [], {}),
    ],
)
def test_what_cannot_be_meant_is_not_done(
    sent: dict[str, Any], goes: list[str], link: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    asked: dict[str, str] = {}

    def render(on_run_change: Any, on_picked_change: Any, **_: Any) -> None:
        (on_run_change if "run" in sent else on_picked_change)()

    state = {"key": SimpleNamespace(**{"run": None, "picked": None} | sent)}
    monkeypatch.setattr(component, "_render", render)
    monkeypatch.setattr(component, "st", SimpleNamespace(session_state=state, query_params=asked))
    component.mount("key", gone.append)
    assert (gone, asked) == (goes, link)
