"""A person turns somebody's own fine-tune, which runs in another process, from the page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from moe_core.runs import list_runs, open_run
from tests.browser.conftest import Server, until
from tests.browser.test_pages import Tab, step_of, wait_for_step
from tests.server import ROOT

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")
pytestmark = pytest.mark.browser

# A script as a user writes one. It prints with which coefficient the model trains in each step.
SCRIPT = """
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from moe_core import watch

torch.manual_seed(0)
torch.set_num_threads(1)
config = MixtralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32, output_router_logits=True,
)
model = MixtralForCausalLM(config).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
with watch(model, run="mixtral", optimizer=optimizer) as live:
    while True:
        ids = torch.randint(0, 64, (4, 16))
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(live.number + 1, model.router_aux_loss_coef, flush=True)
        live.step(loss=output.loss)
print("the loop has ended", flush=True)
"""


def test_somebodys_fine_tune_is_seen_turned_and_stopped(server: Server, tab: Tab, tmp_path: Path) -> None:
    script, printed = tmp_path / "fine_tune.py", tmp_path / "printed"
    script.write_text(SCRIPT)
    environment = os.environ | {"MOE_RUNS": str(server.runs), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with printed.open("w") as out:
        process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=environment, stdout=out)
    try:
        page = tab(f"{server.url}/?run=new")
        until(lambda: any(run.id == "mixtral" for run in list_runs(server.runs)), page)
        page.get_by_role("button", name="Run: New run").click()
        page.get_by_role("button", name="mixtral", exact=True).click()
        wait_for_step(page, 2)
        wait_for_step(page, step_of(page) + 1)  # the charts move
        assert step_of(page, "loss") > 0  # it records the whole loss only
        run = open_run("mixtral", server.runs)

        coefficient = page.get_by_role("textbox", name="router_aux_loss_coef, value")
        coefficient.fill("0.05")
        coefficient.press("Enter")
        until(lambda: any(change.step for change in run.knob_changes()), page)
        page.get_by_text("More knobs").click()
        off = page.get_by_role("textbox", name="off", exact=True)
        off.fill("2:3")
        off.press("Enter")
        until(lambda: len([change for change in run.knob_changes() if change.step]) == 2, page)
        turned, switched = run.knob_changes()
        assert [(one.name, one.value) for one in (turned, switched)] == [("router_aux_loss_coef", 0.05), ("off", "2:3")]
        wait_for_step(page, switched.step + 5)

        page.get_by_role("button", name="Stop").click()
        assert process.wait(20) == 0
        expect(page.get_by_text("Stopped", exact=True)).to_be_visible()
    finally:
        process.kill()
        process.wait()
    *lines, last = printed.read_text().splitlines()
    assert last == "the loop has ended"
    had = {int(step): float(value) for step, value in map(str.split, lines)}
    assert {step for step, value in had.items() if value == 0.05} == {step for step in had if step >= turned.step}
    assert (run.state, run.steps()[1]) == ("stopped", len(had))
    counts = run.history("counts", 1)[1]
    assert (counts[: switched.step - 1, 2] > 0).any()
    assert (counts[switched.step - 1 :, 2] == 0).all()
    assert (run.history("counts", 0)[1][switched.step - 1 :, 2] > 0).any()  # of the other layer it takes part
