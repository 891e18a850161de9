"""Live of a run of many layers: what a frame holds and resends, the chooser's names, and the Export page's chooser."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.panel import layer_names
from moe_core.dashboard.viewer import Viewer
from moe_core.runs import Batch, open_run
from moe_core.schema import Config, Knobs, describe
from tests.dashboard.test_live import unpack
from tests.figures.many_layers import described, name_of, record_layers, rows_of, start_layers

ROOT = Path(__file__).parents[2]
SIZES = {"layers": [608, 404], "layers_spread": [328, 404], "selection_share": [608, 300]}


def viewer_of(feed: Feed, **said: Any) -> Viewer:
    viewer = Viewer()
    viewer.feed = feed
    viewer.hear(json.dumps({"theme": "light", "page": "live", "layer": 0, "sizes": SIZES} | said))
    return viewer


def test_a_frame_has_every_layer_and_sends_them_again_only_when_they_changed(tmp_path: Path) -> None:
    experts_L = [256] * 61
    writer, rows = start_layers(tmp_path / "run", experts_L), rows_of(experts_L, 30)
    writer.commit(Batch(1, rows[:20], state="training"))
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed)
    frame = viewer.frame()
    assert frame
    assert len(frame) < 400_000  # 61 x 256 x 4 bytes, for the colour, the expert and its ratio
    spec = unpack(frame)["figures"]["layers"]
    assert np.shape(spec["data"][0]["z"]) == (61, 256)
    assert spec["layout"]["meta"] == {"figure": "layers", "step": 20, "pick": "layer", "from": "y"}
    said = {"theme": "light", "page": "live", "layer": 0, "sizes": SIZES}
    viewer.hear(json.dumps(said | {"wide": True}))  # something else is asked, and the layers are as they were
    viewer.hear(json.dumps(said))
    frame = viewer.frame()
    assert frame is not None or viewer.state
    assert frame is None or not unpack(frame)["figures"]
    viewer.hear(json.dumps(said | {"layer": 40}))
    again = unpack(viewer.frame() or b"")["figures"]["layers"]
    assert again["layout"]["shapes"][0]["y0"] == 40.5
    writer.commit(Batch(21, rows[20:]))
    feed.looked = 0.0
    assert unpack(viewer.frame() or b"")["figures"]["layers"]["layout"]["meta"]["step"] == 30
    writer.finish("stopped")


def test_a_run_without_a_metric_ends_with_words(tmp_path: Path) -> None:
    feed = Feed(record_layers(tmp_path / "run", [8] * 5, k=2))
    banner = unpack(viewer_of(feed).frame() or b"")
    assert banner["problem"] == ""
    assert banner["banner"]["text"].startswith("Finished: 60 steps in ")


def test_the_chooser_begins_with_what_sets_a_long_name_apart() -> None:
    assert layer_names(described([8] * 12))[11] == f"11 · {name_of(11)}"
    assert layer_names(describe(Config(layers=2), Knobs())) == ["layer 1", "layer 2"]
    assert layer_names(described([8] * 2, names=["a.long.name.of.a.module", "another"]))[0] == "a.long.name.of.a.module"


def page(**query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    app.switch_page(str(ROOT / "pages" / "export.py"))
    return app.run()


def test_the_export_page_lists_61_layers_by_name(runs: Path) -> None:
    record_layers(runs / "many", [8] * 61, k=2)
    app = page(run="many", layer="32")
    assert not app.exception
    (chooser,) = [one for one in app.selectbox if one.label == "Layer"]
    assert (len(chooser.options), chooser.value, chooser.options[31]) == (61, 32, name_of(31))
    chooser.set_value(5).run()
    assert app.query_params["layer"] in ("5", ["5"])
    assert not [one for one in app.get("button_group") if one.proto.label == "Layer"]


def test_the_export_page_has_a_button_for_each_of_four_layers(runs: Path) -> None:
    record_layers(runs / "few", [8] * 4, k=2)
    app = page(run="few")
    assert not [one for one in app.selectbox if one.label == "Layer"]
    assert "Layer" in [one.proto.label for one in app.get("button_group")]
