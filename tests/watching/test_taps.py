"""Taps count what the model's own routers chose, for every transformers family that can be built small, and change no bit."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core.watching.readers import find_taps
from moe_core.watching.taps import Taps
from moe_core.watching.turning import experts_per_token
from tests.watching.families import build, families
from tests.watching.sums import counts_of

# Families that cannot be built from a tiny random config, or whose experts are not called with ids, each with the reason.
NOT_YET = {
    "deepseek_ocr2": "its text model wants masks that only the whole model makes",
    "doge": "its experts are rows of an embedding, chosen by product keys",
    "ernie4_5_vl_moe": "a tiny config of it has no rotary frequencies",
    "glm5_next": "a tiny config of it has dense layers only",
    "mimo_v2_flash": "a tiny config of it has no rotary frequencies",
    "nllb_moe": "its router returns masks, and weights in place of logits",
}
# Families without the knob k, each with the reason.
K_FIXED = {
    "deepseek_v4": "its routers keep a number of their own",
    "longcat_flash": "its code does not take k = 1",
    "phimoe": "its routing is written for two experts",
    "switch_transformers": "its routing is written for one expert",
}
FAMILIES = [family for family in families() if family not in NOT_YET]


def batch(seed: int = 0) -> Tensor:
    return torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    torch.manual_seed(1)  # some routers sample
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    output = model(input_ids=ids, **more)
    shown = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return shown.float().square().mean()


def chosen_by_routers(model: nn.Module) -> tuple[dict[str, list[Tensor]], list]:
    """The ids that each router gives, by the path of its parent: the whole-number tensor in what it returns."""
    said: dict[str, list[Tensor]] = {}
    of_output = {
        "DbrxRouter": lambda module, output: (
            output.softmax(-1).topk(2, dim=-1).indices
        ),  # by definition, where a router returns no ids
        "JetMoeTopKGating": lambda module, output: output[4].topk(module.top_k, dim=1).indices,
        "Llama4Router": lambda module, output: output[1].topk(module.top_k, dim=1).indices,
        "SwitchTransformersTop1Router": lambda module, output: output[2].argmax(-1),
    }

    def hear(name: str):
        def hook(module, args, output):
            if (own := of_output.get(type(module).__name__)) is not None:
                for place in (name, name.rpartition(".")[0]):
                    said.setdefault(place, []).append(own(module, output))
                return
            for part in output if isinstance(output, tuple) else (output,):
                if torch.is_tensor(part) and part.dtype in (torch.int64, torch.int32):
                    said.setdefault(name.rpartition(".")[0], []).append(part.detach().clone())

        return hook

    routers = [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith(("Router", "Gate", "Gating"))]
    return said, [module.register_forward_hook(hear(name)) for name, module in routers]


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_models_own_routers(family: str) -> None:
    model = build(family)
    plain = loss_of(model, batch())
    plain.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    said, hooks = chosen_by_routers(model)
    taps = Taps(model, find_taps(model))
    watched = loss_of(model, batch())
    watched.backward()
    assert torch.equal(watched, plain)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (name not in gradients)
        assert p.grad is None or torch.equal(p.grad, gradients[name]), name
    for hook in hooks:
        hook.remove()
    taps.close()
    assert taps.taps
    counts = counts_of(taps)
    for number, tap in enumerate(taps.taps):
        (ids_NK,) = said[tap.name if tap.name in said else tap.name.rpartition(".")[0]]
        reference = torch.bincount(ids_NK.flatten(), minlength=tap.experts)[: tap.experts]
        assert counts[number][:-1] == reference.tolist(), tap.name
        assert sum(counts[number]) == ids_NK.numel()
    turns = experts_per_token(model, taps)
    assert ("k" in turns) == (family not in K_FIXED)
    if turns:
        for k in (1, 3):
            turns["k"].follow(k)
            taps = Taps(model, find_taps(model))
            loss_of(model, batch()).backward()
            assert {call.ids_NK.shape[1] for call in taps.calls} == {k}
            taps.close()
