"""The palette, measured: every pair of experts apart in every vision, everything readable on its ground."""

from itertools import combinations, pairwise

import pytest

from moe_core.figures.theme import DARK, DIVERGING_STOPS, LIGHT, SEQUENTIAL_STOPS, letter_colour, luminance
from tests.figures.colour_vision import VISIONS, ciede2000, distance, lab

BOTH = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)

# (L, a, b), (L, a, b), difference: from table 1 of Sharma, Wu and Dalal 2005.
PUBLISHED = (
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.4900, -0.0010), (50, -2.4900, 0.0009), 7.1792),
    ((50, 2.4900, -0.0010), (50, -2.4900, 0.0011), 7.2195),
    ((50, -0.0010, 2.4900), (50, 0.0009, -2.4900), 4.8045),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((50, 2.5, 0), (58, 24, 15), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
)


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("one", "two", "difference"), PUBLISHED)
def test_the_measure_gives_the_published_differences(one, two, difference):
    assert ciede2000(one, two) == pytest.approx(difference, abs=5e-5)
    assert ciede2000(two, one) == pytest.approx(difference, abs=5e-5)


def test_each_vision_keeps_white_and_black_and_loses_what_it_cannot_tell_apart():
    for vision in VISIONS:
        assert lab("#FFFFFF", vision) == pytest.approx((100, 0, 0), abs=0.05)
        assert lab("#000000", vision) == pytest.approx((0, 0, 0), abs=0.05)
    red_green = {vision: distance("#C00000", "#6B6B00", vision) for vision in VISIONS}
    assert red_green["deutan"] < red_green["normal"] / 2
    blue_green = {vision: distance("#00A0A0", "#0090C8", vision) for vision in VISIONS}
    assert blue_green["tritan"] < blue_green["normal"] / 2


@pytest.mark.parametrize("vision", VISIONS)
@BOTH
def test_runs_side_by_side_are_told_apart_and_none_is_dim(theme, vision):
    assert min(distance(*pair, vision) for pair in combinations(theme.runs, 2)) >= 15
    assert min(contrast(colour, theme.ground) for colour in theme.runs) >= (3.4 if theme is LIGHT else 4.5)


# Least CIEDE2000 between any two of the first 16, 8 and 4 experts over both themes, as docs/decisions.md has them.
LEAST = {"normal": (14.4, 17.6, 30.3), "protan": (10.1, 13.1, 20.9), "deutan": (11.1, 13.9, 21.0), "tritan": (11.2, 14.4, 27.4)}  # fmt: skip


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_experts_differ_in_every_vision(vision):
    for count, written in zip((16, 8, 4), LEAST[vision], strict=True):
        pairs = [pair for theme in (LIGHT, DARK) for pair in combinations(theme.experts[:count], 2)]
        least = min(distance(*pair, vision) for pair in pairs)
        assert least >= 10
        assert least == pytest.approx(written, abs=0.06)


@BOTH
def test_everything_reads_on_its_ground(theme):
    for colour in theme.experts:
        assert contrast(colour, theme.ground) >= 3
        assert contrast(colour, letter_colour(colour)) >= 4.5
    for ground in (theme.ground, theme.side):
        assert contrast(theme.ink, ground) >= 12
        for colour in (theme.ink2, theme.hand, theme.running, theme.paused, theme.failed):
            assert contrast(colour, ground) >= 4.5
    assert contrast(theme.ink, theme.banner) >= 12
    assert contrast(theme.hand, theme.tint) >= 4.5


@BOTH
def test_a_letter_reads_on_every_cell_of_a_scale(theme):
    for colour in (*theme.sequential, *theme.diverging):
        assert contrast(colour, letter_colour(colour)) >= 4.5


@BOTH
@pytest.mark.parametrize("vision", VISIONS)
def test_scales_rise_evenly_and_their_stops_are_apart(theme, vision):
    sequential = [lab(colour, vision)[0] for colour in theme.sequential]
    rising = sequential if theme.name == "dark" else sequential[::-1]
    assert all(a < b for a, b in pairwise(rising))
    assert min(distance(*pair, vision) for pair in pairwise(theme.sequential)) >= 11.8
    diverging = [lab(colour, vision)[0] for colour in theme.diverging]
    to_middle = diverging if theme.name == "light" else [-value for value in diverging]
    assert all(a < b for a, b in pairwise(to_middle[:4]))
    assert all(a > b for a, b in pairwise(to_middle[3:]))
    assert min(distance(*pair, vision) for pair in pairwise(theme.diverging)) >= 12.6
    for low, high in zip(theme.diverging[:3], theme.diverging[:3:-1], strict=True):
        assert distance(low, high, vision) >= 34


def test_scales_have_a_stop_for_each_colour():
    for theme in (LIGHT, DARK):
        assert len(theme.diverging) == len(DIVERGING_STOPS)
        assert len(theme.sequential) == len(SEQUENTIAL_STOPS)


@BOTH
def test_ink_and_hand_are_no_expert(theme):
    for vision in VISIONS:
        for colour in (theme.ink2, theme.hand):
            assert min(distance(colour, expert, vision) for expert in theme.experts) >= 6.8
