"""When a call counts: once a forward in training, whatever repeats, compiles or masks it. A layer of our own stands in."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_core.nn import MoELayer
from moe_core.watching import taps as taps_module
from moe_core.watching.readers import find_taps
from moe_core.watching.taps import Taps
from tests.watching.sums import counts_of

E, K, D = 6, 2, 8


class Experts(nn.Module):
    """As transformers calls them: what comes back is each token weighed by its ids, so that gradients reach the router."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = E
        self.scale_E = nn.Parameter(torch.ones(E))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return hidden_states * (self.scale_E[top_k_index] * top_k_weights).sum(1, keepdim=True)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(D, E, bias=False), Experts()

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.gate(x).softmax(1).topk(K, dim=1)
        return x + self.experts(x, ids, weights)


class Model(nn.Module):
    def __init__(self, repeat: bool | None = None) -> None:
        """repeat: use_reentrant of gradient checkpointing; None: without."""
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.repeat = nn.ModuleList([Block(), Block()]), repeat

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.repeat is None else checkpoint(block, x, use_reentrant=self.repeat)
        return x


def batch(tokens: int = 20) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(1)).requires_grad_()


def reference(model: Model, x: Tensor) -> list[list[int]]:
    """The counts of each block, by the gate's own logits."""
    counts = []
    with torch.no_grad():
        for block in model.blocks:
            counts.append(torch.bincount(block.gate(x).topk(K, dim=1).indices.flatten(), minlength=E).tolist())
            x = block(x)
    return counts


def counted(taps: Taps) -> list[list[int]]:
    """The counts of each block since the last take."""
    return [row[:-1] for row in counts_of(taps).values()]


@pytest.mark.parametrize("repeat", [None, False, True])
def test_a_forward_that_the_backward_repeats_counts_once(repeat: bool | None) -> None:
    model = Model(repeat)
    taps = Taps(model, find_taps(model))
    model(batch()).sum().backward()
    taps.close()
    assert counted(taps) == reference(model, batch())


def test_several_forwards_add_up_and_a_step_begins_anew() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    for _ in range(3):
        model(batch()).sum().backward()
    taps.close()
    assert counted(taps) == [[3 * n for n in counts] for counts in reference(model, batch())]
    assert counted(taps) == []


def test_an_evaluation_does_not_count_and_a_frozen_router_does() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    model.eval()(batch())
    assert counted(taps) == []
    with torch.no_grad():  # training without gradients is training
        model.train().requires_grad_(False)(batch())
    taps.close()
    assert counted(taps) == reference(model, batch())


@pytest.mark.parametrize("left", [True, False])
def test_padding_does_not_count(left: bool) -> None:
    model, kept = Model(), torch.ones(20, dtype=torch.bool)
    kept[: 7 if left else None][0 if left else 13 :] = False
    taps = Taps(model, find_taps(model))
    taps.mask(kept.view(4, 5).long())
    model(batch())
    taps.close()
    assert counted(taps) == reference(model, batch()[kept])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_counts_the_same(backend: str) -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        compiled(batch()).sum().backward()
    taps.close()
    assert counted(taps) == [[2 * n for n in counts] for counts in reference(model, batch())]


def test_places_of_no_expert_and_of_weight_0_are_of_none() -> None:
    experts = nn.ModuleDict({"experts": Experts()})
    taps = Taps(experts, find_taps(experts))
    ids = torch.tensor([[0, 1], [E, 2], [-1, 3], [0, 4]])
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
    for hook in taps.taps[0].module._forward_pre_hooks.values():
        hook(taps.taps[0].module, (torch.ones(4, D), ids, weights), {})
    (sums,) = taps.take()
    assert sums.counts_CE1.tolist() == [[1, 1, 1, 1, 1, 0, 3]]
    assert sums.importance_CE1[0, :E].tolist() == [0.5, 0.5, 0.5, 0.5, 1.0, 0.0]


def test_our_own_layer_is_tapped_with_what_it_decided_before_a_drop() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(MoELayer(D, 16, E, k=K))
    taps = Taps(layer, find_taps(layer))
    _, routing = layer[0](torch.randn(32, D), noise=1.0, capacity_factor=0.5)
    taps.close()
    assert counted(taps) == [routing.counts_E.tolist()]


def test_any_other_layer_is_watched_by_a_reader() -> None:
    model = nn.Sequential(nn.Linear(D, E), nn.Identity())
    taps = Taps(
        model, find_taps(model, {"0": lambda module, args, kwargs, out: (out.topk(K, dim=1).indices, None)}, {"0": E})
    )
    logits = model(batch())
    taps.close()
    assert counted(taps) == [torch.bincount(logits.topk(K, dim=1).indices.flatten(), minlength=E).tolist()]


@pytest.mark.parametrize(
    ("routers", "experts", "words"),
    [
        ({}, {}, "Sequential has no experts that can be watched; looked for modules whose class ends in Experts"),
        ({"gate": lambda *_: None}, {"gate": 4}, "routers must name modules of the model, got 'gate'"),
        ({"0": lambda *_: None}, {}, "experts must say how many experts '0' has"),
    ],
)
def test_a_model_without_experts_is_an_error_that_says_what_was_looked_for(routers, experts, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_taps(nn.Sequential(nn.Linear(D, D)), routers, experts)


def test_what_generates_does_not_count(tmp_path: Path) -> None:
    """generate() leaves the model in training if that is what it was."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")
    from tests.watching.families import build

    model = build("mixtral")
    taps = Taps(model, find_taps(model))
    ids = torch.randint(3, 60, (2, 12))
    model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=True)
    assert counted(taps) == []
    assert not taps.take_held_out()
    model(input_ids=ids)
    taps.close()
    assert [sum(row) for row in counted(taps)] == [2 * 12 * 2] * 3


def test_under_autocast_weights_add_up_in_float32() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    with torch.autocast("cpu", torch.bfloat16):
        model(batch(512))
        expected = model.blocks[0].gate(batch(512)).softmax(1).topk(K, dim=1).values.double().sum()
    taps.close()
    (sums,) = taps.take()
    assert sums.importance_CE1.dtype == torch.float32
    assert sums.importance_CE1[0].double().sum().item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_frozen_part_that_stays_in_evaluation_is_held_out() -> None:
    """What counts is whether the layer trains, not whether gradients are recorded."""
    model = Model()
    model.blocks[0].eval()
    taps = Taps(model, find_taps(model))
    model(batch())
    taps.close()
    (training,), (held_out,) = taps.take(), taps.take_held_out()
    assert (training.taps, held_out.taps) == ([1], [0])


def test_many_forwards_of_a_step_hold_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    monkeypatch.setattr(taps_module, "MOST", 500)
    for _ in range(100):
        model(batch())
        assert sum(call.ids_NK.numel() for call in taps.calls) <= 500
    assert counted(taps) == [[100 * n for n in counts] for counts in reference(model.eval(), batch())]
    taps.close()


def test_a_mask_of_another_length_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    taps.mask(torch.ones(7))
    for _ in range(2):
        model(batch())
    taps.close()
    assert [sum(row) for row in counted(taps)] == [2 * 20 * K] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "the mask is of 7 tokens and blocks.0.experts was called with 20: there all of them count, padding too"
    ]
