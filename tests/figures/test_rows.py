"""A table's rows as figures: ordered by expert, features by name, values on hover; and images of any height and width."""

import numpy as np
import pytest

from moe_core.figures import favourites, matrices, routing, rows
from moe_core.figures.called import beginnings
from moe_core.figures.probe import as_images, mark_groups
from moe_core.figures.routing import digit_images

E = 4
VALUES = np.array([[5.0, 100.0], [6.0, np.nan], [7.0, 300.0]], np.float32)
NAMES = ["petal <b>", "weight"]
EXPERTS = np.array([[3, 0], [1, 0], [E, E]], np.uint8)
GATES = np.array([[0.7, 0.3], [0.6, 0.4], [0, 0]], np.float16)


def trace(spec, name):
    return next(t for t in spec["data"] if t["name"] == name)


def test_rows_stand_by_their_first_expert_with_features_by_name_and_values_on_hover() -> None:
    spec = rows.probe_rows.spec(
        VALUES, NAMES, EXPERTS, GATES, E, labels_N=np.array([1, 0, 1]), label_names=["no", "yes"]
    )
    heat, strip = trace(spec, "features"), trace(spec, "first expert")
    assert spec["layout"]["yaxis"]["ticktext"] == ["petal &lt;b&gt;", "weight"]
    assert strip["z"][0, :2].tolist() == [1, 3]
    assert np.isnan(strip["z"][0, 2])
    assert heat["customdata"][0, :, 0].tolist() == [1, 0, 2]  # which row
    assert heat["customdata"][0, :, 1].tolist() == [6, 5, 7]  # its value
    np.testing.assert_allclose(heat["z"][0], [0, -1.2247, 1.2247], atol=1e-3)
    np.testing.assert_allclose(heat["z"][1], [np.nan, -1, 1])  # a missing value is a gap, not a number
    assert strip["text"][0][1].startswith("Row 0, of class yes, goes to expert 4 (0.70) and expert 1 (0.30): petal")
    assert "weight missing" in strip["text"][0][0]
    assert "Row 2, of class yes, went nowhere" in trace(spec, "no expert")["hovertext"][0]


def test_of_many_features_those_stand_there_by_which_the_classes_differ() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    values = rng.normal(size=(60, 300))
    values[:, 250] += 4 * labels
    names = [f"f{i}" for i in range(300)]
    spec = rows.probe_rows.spec(
        values, names, np.zeros((60, 1), int), np.ones((60, 1)), E, labels_N=labels, size=(900, 200)
    )
    shown = spec["layout"]["yaxis"]["ticktext"]
    assert "f250" in shown
    assert 3 < len(shown) < 10
    assert f"the {len(shown)} of 300 features" in spec["layout"]["title"]["text"]


def test_favourite_rows_say_what_is_far_from_the_mean() -> None:
    values = np.array([[1, 0], [1, 0], [1, 10], [9, 0]], float)
    spec = rows.favourite_rows.spec(values, ["a", "b"], np.array([0, 0.2, 0.9, 0.5]), 1, labels_N=np.array([0, 0, 1, 0]), label_names=["no", "<i>"])  # fmt: skip
    bars, words = spec["data"]
    assert bars["x"].tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert words["text"][0].startswith("&lt;i&gt;: b 10 ↑")
    assert words["text"][1].startswith("no: a 9 ↑")
    assert bars["hovertext"][0].startswith("Row 2, of class &lt;i&gt;, gives expert 2 a gate of 0.90: b 10")


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 28, 28), (3, 5, 20), (3, 20, 5), (3, 64)])
def test_images_of_any_height_and_width_stand_whole_in_their_expert_s_row(shape: tuple[int, ...]) -> None:
    images = np.ones(shape, np.uint8) * np.array([4, 8, 16], np.uint8).reshape(-1, *[1] * (len(shape) - 1))
    H, W = shape[1:] if len(shape) == 3 else (8, 8)
    spec = digit_images.spec(
        images, np.array([[1], [1], [0]]), 2, labels_N=np.array([0, 1, 1]), label_names=["cat", "dog"], size=(1900, 387)
    )
    grey, marks = spec["data"]
    assert grey["z"][:H, :W].tolist() == [[16] * W] * H
    assert grey["z"][H + 1 : 2 * H + 1, :W].max() == grey["z"][H + 1 : 2 * H + 1, :W].min() == 4
    assert (grey["z"][H + 1 : 2 * H + 1, W + 1 : 2 * W + 1] == 8).all()
    assert not grey["z"][H].any()
    assert marks["hovertext"] == [
        "Image 2, of class dog, goes to expert 1",
        "Image 0, of class cat, goes to expert 2",
        "Image 1, of class dog, goes to expert 2",
    ]
    best = favourites.favourite_images.spec(images, np.array([0.1, 0.9, 0.5]), 0)["data"][0]["z"]
    assert (best[:H, :W] == 8).all()
    assert (best[:H, W + 1 : 2 * W + 1] == 16).all()


def test_images_larger_than_the_screen_are_drawn_in_fewer_pixels() -> None:
    image = np.zeros((1, 30, 60), np.uint8)
    image[0, :, 30:] = 16
    small = as_images(image, 20)
    assert small.shape == (1, 10, 20)
    assert small[0, 0].tolist() == [0] * 10 + [16] * 10


def test_groups_are_named_in_their_middle_where_there_is_room_and_parted_by_rules() -> None:
    layout = {"width": 208, "height": 100, "margin": {"l": 0, "r": 8, "t": 0, "b": 0}, "xaxis": {}, "shapes": []}
    groups = np.array([5, 5, 5, 5, 5, 5, 7, 9, 9, 9])  # 20 px a column: 120, 20 and 60 px
    mark_groups(layout, groups, lambda start, room: f"group {groups[start]}" if room >= 30 else "", "#123456")
    assert layout["xaxis"] == {"tickvals": [3.0, 8.5], "ticktext": ["group 5", "group 9"]}
    assert [(rule["x0"], rule["line"]["color"]) for rule in layout["shapes"]] == [(6, "#123456"), (7, "#123456")]


LONG_NAMES = ["Chrysanthemum (early)", "Chrysanthemum (late)", "Bellis perennis, a daisy"]


def test_names_that_find_no_room_are_cut_with_a_mark_and_stay_apart() -> None:
    share = np.full((3, 4), 0.25, np.float32)
    spec = matrices.specialisation.spec(share, LONG_NAMES)
    shown = list(spec["layout"]["yaxis"]["ticktext"])
    assert len(set(shown)) == 3
    assert shown[2] == "Bellis perenn…"
    assert all("…" in name and len(name) <= 14 for name in shown)
    assert [row[0] for row in spec["data"][0]["text"]] == LONG_NAMES  # the hover has all of it
    assert beginnings(["short", "shorter"], 7) == ["short", "shorter"]

    labels = np.repeat(np.arange(3), [20, 8, 1])
    gates = routing.probe_gates.spec(
        np.zeros((29, 1), int), np.ones((29, 1)), 4, size=(460, 300), labels_N=labels, label_names=LONG_NAMES
    )
    under = gates["layout"]["xaxis"]["ticktext"]
    assert len(under) == 2  # the last one has no room at all
    assert all("…" in name for name in under)

    many = [f"Chrysanthemum {n:04} of the alps" for n in range(256)]
    assert beginnings(many[::-1], 12) == [f"… {n:04} of t…" for n in range(256)][::-1]

    row = rows.in_short(0, np.ones((2, 1)), np.ones((2, 1)), ["leaf"], np.array([2, 0]), beginnings(LONG_NAMES, 12), 40)
    assert row == "Bellis pere…: leaf 1 ↑"
