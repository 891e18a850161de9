"""The probe: where each token goes, how that moves, and that being shown it changes nothing."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_core.runs import Run, open_run, verify
from moe_core.watching import Live, watch
from tests.watching.test_counting import Block, D, E, K

V = 40  # ids of the vocabulary


class Words:
    """A tokenizer with transformers' interface: a piece a word, by a vocabulary of its own; 0 is padding, 1 the beginning."""

    all_special_ids = (0, 1)

    def __init__(self, left: bool = False) -> None:
        self.pieces, self.left = ["<pad>", "<s>"], left

    def __call__(self, texts: list[str], **asked: Any) -> dict[str, Tensor]:
        assert asked == {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": 128}
        rows = [[1, *(self.number("▁" + word) for word in text.split())][:128] for text in texts]
        width = max(map(len, rows))
        pads = [[0] * (width - len(row)) for row in rows]
        both = [(pad + row, pad + [1] * len(row)) if self.left else (row + pad, [1] * len(row) + pad) for row, pad in zip(rows, pads, strict=True)]  # fmt: skip
        return {
            "input_ids": torch.tensor([ids for ids, _ in both]),
            "attention_mask": torch.tensor([m for _, m in both]),
        }

    def number(self, piece: str) -> int:
        if piece not in self.pieces:
            self.pieces.append(piece)
        return self.pieces.index(piece)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[one] for one in ids]


class Talker(nn.Module):
    """A language model with dropout before its routers."""

    def __init__(self, layers: int = 2, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.dropout = nn.Embedding(V, D), nn.Dropout(dropout)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(layers)), nn.Linear(D, V)
        self.asked: list[Any] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = True) -> Tensor:
        self.asked.append((self.training, torch.is_grad_enabled(), use_cache, attention_mask))
        x = self.dropout(self.embed(input_ids)).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x).view(*input_ids.shape, V)


def train(live: Live | None, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    losses = []
    for step in range(steps):
        ids = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if live is not None:
            live.step(loss=loss)
        losses.append(loss.detach())
    return losses


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def watched(model: nn.Module, runs: Path, steps: int = 12, **given: Any) -> Run:
    """A run of `steps` steps with a probe, looked at every fourth step."""
    optimizer = sgd(model)
    given = {"probe": TEXTS, "tokenizer": Words(), "probe_every": 4} | given
    live = watch(model, "a", optimizer=optimizer, runs=runs, **given)
    train(live, model, optimizer, steps)
    live.close()
    return open_run(live.path)


TEXTS = ["the cat sat on the mat", "the dog ran"]
IDS = [2, 3, 4, 5, 2, 6, 2, 7, 8]  # of their words, by Words
ROWS = torch.tensor([[1, 2, 3, 4, 5, 2, 6], [1, 2, 7, 8, 0, 0, 0]])


@torch.no_grad()
def reference(model: Talker, ids: Tensor, kept: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The experts and gates (L, N, K) of the tokens that count, by the model's own parameters."""
    x = model.embed(ids).flatten(0, 1)
    experts, gates = [], []
    for block in model.blocks:
        weights, chosen = block.gate(x).softmax(1).topk(K, dim=1)
        experts.append(chosen[kept.flatten()])
        gates.append(weights[kept.flatten()])
        x = x + x * (block.experts.scale_E[chosen] * weights).sum(1, keepdim=True)
    return torch.stack(experts).numpy(), torch.stack(gates).numpy()


def test_the_record_says_where_each_token_goes(tmp_path: Path) -> None:
    model, expected = Talker(), {}
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path, probe=TEXTS, tokenizer=Words(), probe_every=4)
    for step in range(1, 13):
        train_one(live, model, optimizer, step, expected)
    live.close()
    run = open_run(live.path)
    assert verify(run) == []
    assert (run.description.probe, run.description.churn_every) == ("tokens", 4)
    assert (run.snapshots("probe").tolist(), run.snapshots("choices").tolist()) == ([1, 4, 8, 12], [4, 8, 12])
    words = [run.labels["token"][n] for n in run.probe()["tokens"]]
    assert "".join(words) == " the cat sat on the mat the dog ran"  # neither <s> nor <pad>
    assert run.probe()["sequence"].tolist() == [0] * 6 + [1] * 3
    for step, (experts, gates) in expected.items():
        _, arrays = run.snapshot(step, "probe") or (0, {})
        assert arrays["experts"].tolist() == experts.tolist(), step
        assert arrays["gates"].tolist() == gates.astype(np.float16).tolist(), step
    for layer in range(2):
        first = {step: experts[layer, :, 0] for step, (experts, _) in expected.items()}
        moved = [np.nan] * 7 + [(first[8] != first[4]).mean()] * 4 + [(first[12] != first[8]).mean()]
        np.testing.assert_allclose(run.history("churn", layer)[1], moved)
        both = [np.mean([len({*a} & {*b}) / K for a, b in zip(expected[s][0][layer], expected[s - 4][0][layer], strict=True)]) for s in (8, 12)]  # fmt: skip
        np.testing.assert_allclose(run.history("saturation", layer)[1], [np.nan] * 7 + [both[0]] * 4 + [both[1]])
    assert run.history("churn", 0)[1][7:].max() > 0  # or nothing was tested


def train_one(live: Live, model: Talker, optimizer: torch.optim.Optimizer, step: int, expected: dict[int, Any]) -> None:
    ids = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():  # so that the routers move more than they learn in few steps
        for block in model.blocks:
            block.gate.weight += 0.3 * torch.randn(E, D, generator=torch.Generator().manual_seed(step))
    if step == 1 or step % 4 == 0:
        expected[step] = reference(model, ROWS, ROWS > 1)
    live.step()


def test_training_computes_the_same_bits_with_and_without_a_probe(tmp_path: Path) -> None:
    def run(probed: bool) -> tuple[list[Tensor], list[Tensor], list[Any]]:
        model = Talker()
        model.dropout.eval()  # a module whose mode is its own stays in it
        model.blocks[0].add_module("noise", nn.Dropout(0.5))
        optimizer = sgd(model)
        given = {"probe": TEXTS, "tokenizer": Words(), "probe_every": 2} if probed else {}
        live = watch(model, f"{probed}", optimizer=optimizer, runs=tmp_path, **given)
        model.blocks[0].register_forward_hook(lambda module, args, output: module.noise(output))
        losses = train(live, model, optimizer, 20)
        live.close()
        assert not model.dropout.training
        assert model.blocks[0].noise.training
        counts = open_run(live.path).history("counts", 0)[1]
        return losses, [p.detach().clone() for p in model.parameters()], [torch.tensor(counts)]

    for plain, probed in zip(run(False), run(True), strict=True):
        assert all(one.isfinite().all() and torch.equal(one, other) for one, other in zip(plain, probed, strict=True))


class Noisy(Talker):
    """Draws a random number in every forward, in evaluation too."""

    def forward(self, input_ids: Tensor, **given: Any) -> Tensor:
        return super().forward(input_ids, **given) + torch.rand(1)


def test_a_model_that_draws_random_numbers_goes_on_with_its_own(tmp_path: Path) -> None:
    with_probe, without = Noisy(), Noisy()
    optimizer = sgd(with_probe)
    live = watch(with_probe, "a", optimizer=optimizer, runs=tmp_path, probe=ROWS, probe_every=1)
    torch.manual_seed(3)
    expected = train(None, without, sgd(without), 5)
    torch.manual_seed(3)
    assert [x.item() for x in train(live, with_probe, optimizer, 5)] == [x.item() for x in expected]
    live.close()


def test_how_the_model_is_shown_its_probe(tmp_path: Path) -> None:
    model = Talker()
    watched(model, tmp_path, steps=4)
    looks = [asked for asked in model.asked if asked[3] is not None]
    assert [asked[:3] for asked in looks] == [(False, False, False)] * 2  # evaluation, no gradients, no cache
    assert all(asked[0] for asked in model.asked if asked[3] is None)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_look_counts_nowhere(tmp_path: Path) -> None:
    model = Talker()
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path, probe=ROWS, probe_every=1)
    train(live, model, optimizer, 3)
    live.eval(loss=1.0)
    live.close()
    run = open_run(live.path)
    assert run.history("counts", 0)[1].sum(1).tolist() == [4 * 12 * K] * 3
    assert run.evals()[0].counts is None


@pytest.mark.parametrize("left", [True, False])
def test_padding_and_special_tokens_are_left_out(left: bool, tmp_path: Path) -> None:
    run = watched(Talker(), tmp_path, tokenizer=Words(left))
    assert "".join(run.labels["token"][n] for n in run.probe()["tokens"]) == " the cat sat on the mat the dog ran"
    assert (run.snapshot(kind="probe") or (0, {}))[1]["experts"].shape == (2, len(IDS), K)


@pytest.mark.parametrize(
    "probe", [ROWS[0], ROWS, {"input_ids": ROWS, "attention_mask": (ROWS > 0).long()}, {"input_ids": ROWS[0], "attention_mask": torch.ones(7)}],
)  # fmt: skip
def test_a_batch_without_a_tokenizer_shows_numbers(probe: Any, tmp_path: Path) -> None:
    run = watched(Talker(), tmp_path, probe=probe, tokenizer=None)
    rows = ROWS[:1] if (not isinstance(probe, dict) and probe.dim() == 1) or (isinstance(probe, dict) and probe["input_ids"].dim() == 1) else ROWS  # fmt: skip
    kept = rows[rows > 0] if isinstance(probe, dict) else rows.flatten()
    assert [run.labels["token"][n] for n in run.probe()["tokens"]] == [str(n) for n in kept.tolist()]
    assert run.probe()["sequence"].max() == len(rows) - 1


class Plain(Talker):
    """Takes its ids by another name."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)


def test_a_model_of_ones_own_is_called_with_the_ids_alone(tmp_path: Path) -> None:
    run = watched(Plain(), tmp_path)
    assert run.snapshots("choices").tolist() == [4, 8, 12]


class Uneven(Talker):
    """Layers of 6 and of 4 experts, with 2 and 1 a token; the second is read by a reader of its own."""

    def __init__(self) -> None:
        super().__init__(layers=1)
        self.second = nn.Linear(D, 4, bias=False)

    def forward(self, input_ids: Tensor, **given: Any) -> Tensor:
        x = self.embed(input_ids).flatten(0, 1)
        self.second(x)
        return super().forward(input_ids, **given)


def read_one(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> tuple[Tensor, None]:
    return output.argmax(1, keepdim=True), None


def test_layers_of_different_widths_are_filled_up_with_empty_places(tmp_path: Path) -> None:
    run = watched(Uneven(), tmp_path, routers={"second": read_one}, experts={"second": 4})
    arrays = (run.snapshot(kind="probe") or (0, {}))[1]
    assert arrays["experts"].shape == (2, len(IDS), K)
    assert set(arrays["experts"][1, :, 1]) == {4}
    assert (set(arrays["gates"][1, :, 0]), set(arrays["gates"][1, :, 1])) == ({1.0}, {0.0})


def test_an_expert_that_is_off_takes_no_token_of_the_probe_and_k_is_that_in_force(tmp_path: Path) -> None:
    model = Talker()
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path, probe=ROWS, probe_every=1)
    train(live, model, optimizer, 1)
    live.turn(off="1,2")
    train(live, model, optimizer, 1)
    live.close()
    before, after = ((open_run(live.path).snapshot(step, "probe") or (0, {}))[1]["experts"] for step in (1, 2))
    assert {0, 1} & set(before.flatten())
    assert not {0, 1} & set(after.flatten())
    places = after != E
    assert (places[..., 0] | ~places[..., 1]).all()  # an empty place comes after the others


class Fragile(Talker):
    def forward(self, input_ids: Tensor, **given: Any) -> Tensor:
        if not self.training and self.broken:
            raise IndexError("no such position")
        return super().forward(input_ids, **given)

    broken = True


@pytest.mark.parametrize("later", [False, True])
def test_a_probe_that_fails_is_said_once_and_watching_goes_on(
    later: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Fragile()
    model.broken = not later
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path, probe=ROWS, probe_every=2)
    with caplog.at_level(logging.WARNING, "moescope"):
        train(live, model, optimizer, 5)
        model.broken = True
        train(live, model, optimizer, 5)
    live.close()
    assert [r.message for r in caplog.records] == [
        f"the probe could not be shown to Fragile at step {6 if later else 1}: no such position. Watching goes on without it."
    ]
    assert model.training
    run = open_run(live.path)
    assert (run.steps(), run.description.probe) == ((1, 10), "tokens" if later else "none")
    assert run.snapshots("choices").tolist() == ([2, 4] if later else [])
    assert ("churn" in run.description.measures) == later


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"probe": ["a text"]}, "needs watch\\(tokenizer"),
        ({"probe": 7}, "must be a list of texts, a tensor of token ids, or a batch with input_ids, got int"),
        ({"probe": []}, "got list"),
        ({"probe": {"input_ids": [[1, 2]]}}, "got dict"),
        ({"probe": torch.rand(2, 3)}, "whole numbers"),
        ({"probe": torch.ones(2, 2, 2, dtype=torch.long)}, "whole numbers"),
        ({"probe": torch.ones(3, 1000, dtype=torch.long)}, "from 1 to 2,048 tokens.*got 3,000"),
        ({"probe": {"input_ids": ROWS, "attention_mask": torch.zeros_like(ROWS)}}, "got 0"),
        ({"probe": ROWS, "probe_every": 0}, "probe_every must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_is_no_probe_is_refused_at_once(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        watch(Talker(), "a", runs=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_2048_tokens_are_taken_and_padding_is_not_one_of_them(tmp_path: Path) -> None:
    ids = torch.randint(1, V, (16, 150))
    mask = torch.ones_like(ids)
    mask[:, 128:] = 0
    run = watched(Talker(), tmp_path, probe={"input_ids": ids, "attention_mask": mask}, tokenizer=None)
    assert len(run.probe()["tokens"]) == 2048


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_shown_its_probe_too(backend: str, tmp_path: Path) -> None:
    model = Talker(dropout=0.0)
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path, probe=ROWS, probe_every=2)
    model.asked = None  # type: ignore[assignment]
    model.__class__ = Quiet
    model.compile(backend=backend)
    train(live, model, optimizer, 4)
    expected = reference(model, ROWS, ROWS >= 0)
    live.close()
    run = open_run(live.path)
    assert (run.snapshot(4, "probe") or (0, {}))[1]["experts"].tolist() == expected[0].tolist()
    assert run.history("counts", 0)[1].sum(1).tolist() == [4 * 12 * K] * 4


class Quiet(Talker):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = True) -> Tensor:
        x = self.embed(input_ids).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x).view(*input_ids.shape, V)
