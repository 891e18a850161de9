"""Checks and measures MoEscope on a GPU, in one command: `python benchmarks/gpu.py` (about five minutes on an H100).

Each part is a process of its own, so that the failure of one hides nothing of the others:
  tests   the tests of nn and training that are marked `cuda`
  TASK    train, replay, fork and resume on the device: what comes out bit for bit, and what comes near
  waits   where the host waits for the device in one training step
  layer   one MoE layer's forward and backward beside dense products, sort + grouped_mm and transformers
  speed   steps a second of the three tasks beside two CPU threads
The trainer's side is all that it needs: torch, numpy, scikit-learn and pytest; neither streamlit nor plotly. Parts that are
timed run alone, after the others. `--device cpu --quick` is the short form that a test runs.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # parts run as scripts, from any folder
TASKS = ("text", "digits", "plane")
SIZE = (16384, 1024, 4096, 64, 2)  # tokens, model width, expert width, experts, k
QUICK_SIZE = (256, 64, 64, 8, 2)
SMALL = ["--d-model", 16, "--d-hidden", 16, "--tokens", 128]  # of a task in the short form


# Tests


def tests(options: argparse.Namespace) -> dict[str, Any]:
    """How many pass, and the names of those that do not."""
    folders = ["tests/nn/test_devices.py", "tests/training/test_devices.py"]
    chosen = ["-m", "cuda"] if options.device != "cpu" else ["-k", "cpu and paper"]
    # Whatever pytest the machine has: its own warnings are not what is tested here.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "default", *chosen, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if not counts or (done.returncode and not failed):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return {"passed": 0, "failed": 0} | counts | {"names": failed, "log": done.stdout[-6000:] if failed else ""}


# Training, and training again


def task(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a run, trained twice, stopped halfway and resumed, forked as it is, and replayed, has in common with itself."""
    steps = 20 if options.quick else 200
    if options.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    train = ["train", "--task", name, "--device", options.device, "--seed", 3, "--threads", 1]
    train += ["--eval-every", max(5, steps // 4), *(SMALL if options.quick else ())]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        call(runs, *train, "--steps", steps, "--run-id", "one")
        call(runs, *train, "--steps", steps, "--run-id", "two")
        call(runs, *train, "--steps", steps // 2, "--run-id", "half")
        call(runs, "train", "--resume", "half", "--steps", steps)
        call(runs, "fork", "one", "--at", steps // 2, "--run-id", "fork", "--steps", steps)
        pairs = {"trained twice": "two", "resumed": "half", "forked": "fork"}
        apart = {name: unlike(runs / "one", runs / other) for name, other in pairs.items()}
        end = json.loads(call(runs, "replay", "one", "--json", wanted=(0, 1)).splitlines()[-1])
    return apart | {"replayed": {"same": end["same"], "first difference": end["difference"]}}


def call(runs: Path, *words: object, wanted: tuple[int, ...] = (0,)) -> str:
    """What a command of MoEscope prints, run in this process: starting one costs more than its training."""
    from moe_core.__main__ import main

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main([*map(str, words), "--runs", str(runs)])
    if status not in wanted:
        raise RuntimeError(f"{' '.join(map(str, words))}: {error.getvalue()[-1500:]}")
    return out.getvalue()


def unlike(one: Path, other: Path) -> dict[str, Any]:
    """Whether all losses of two runs are the same bits; else the first step that is not, and the largest difference."""
    import numpy as np

    from moe_core.runs import Run

    a, b = (Run(path).history("task_loss")[1] for path in (one, other))
    same = len(a) == len(b) and np.array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    if same:
        return {"same": True, "first": None, "largest": 0.0}
    n = min(len(a), len(b))
    apart = np.abs(a[:n] - b[:n]) / np.abs(b[:n])
    return {"same": False, "first": int(np.argmax(apart > 0)) + 1, "largest": float(apart.max()), "lengths": [len(a), len(b)]}  # fmt: skip


# Waits


def waits(options: argparse.Namespace) -> dict[str, Any]:
    """By strategy: how often the host waits for the device in one step with all its statistics, and where."""
    from moe_core.schema import STRATEGIES

    waits_by_strategy = {}
    for strategy in list(STRATEGIES)[1:2] if options.quick else STRATEGIES:
        step = training_step(strategy, torch.device(options.device))
        step(1)
        step(2)
        waits_by_strategy[strategy] = places_of_waits(lambda step=step: step(3), torch.device(options.device))
    return waits_by_strategy


def training_step(strategy: str, device: torch.device) -> Callable[[int], None]:
    """Trains one batch of the text task and takes its statistics, as the loop does."""
    from moe_core.nn.models import build
    from moe_core.schema import Config, Knobs
    from moe_core.training.data import load
    from moe_core.training.step import update
    from moe_core.training.telemetry import Telemetry
    from moe_core.training.window import Window

    config, knobs = Config.for_task("text"), Knobs(strategy=strategy)
    torch.manual_seed(0)
    data = load(config)
    model = build(config, data.features, data.classes, knobs.k, knobs.noise, strategy).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=knobs.lr)
    telemetry = Telemetry(config, device)
    window = Window(config, {name: len(values) for name, values in data.labels.items()})

    def step(at: int) -> None:
        batch = data.batch(at).to(device)
        done = update(model, optimizer, batch, config, knobs)
        window.add(done.routings, batch.labels)
        telemetry.record(at, done.loss, done.task_loss, done.grad_norm, 0.1, done.routings)

    return step


def places_of_waits(step: Callable[[], None], device: torch.device) -> dict[str, int]:
    """Each place in the project that waited for the device, and how often. Empty on a CPU."""
    places: Counter[str] = Counter()

    def seen(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" not in str(message):
            return  # that the mode is a prototype
        frames = [f for f in traceback.extract_stack() if "moe_core" in f.filename]
        places[
            f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}" if frames else "elsewhere"
        ] += 1

    if device.type != "cuda":
        step()
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(places)


# The layer


def layer(options: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds and TFLOP/s of forward, and of forward and backward, in bfloat16, of each rival in turn."""
    size = QUICK_SIZE if options.quick else SIZE
    device = torch.device(options.device)
    results, rivals = {"size": dict(zip(("tokens", "d", "h", "E", "k"), size, strict=True))}, rivals_of(size, device)
    for kind in ("forward", "forward and backward"):
        taken = time_in_turn({name: steps[kind] for name, (steps, _) in rivals.items()}, device, options.quick)
        for name, seconds in taken.items():
            flops = rivals[name][1] * (3 if "backward" in kind else 1)
            results.setdefault(name, {})[kind] = {"ms": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12}
    results["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return results


def rivals_of(size: tuple[int, ...], device: torch.device) -> dict[str, tuple[dict[str, Callable[[], None]], float]]:
    """By name: its steps, and the floating-point operations of its forward products."""
    from moe_core.benchmarks.layer import grouped_mm_layer
    from moe_core.nn.balance import importance_loss, load_loss
    from moe_core.nn.layer import MoELayer

    T, d, h, E, k = size
    torch.manual_seed(0)
    kinds = {"device": device, "dtype": torch.bfloat16}
    x_TD, grad_TD = torch.randn(T, d, **kinds).requires_grad_(), torch.randn(T, d, **kinds)
    ours = MoELayer(d, h, E, k).to(device)
    with torch.no_grad():
        ours.w1.data, ours.w2.data = ours.w1.data.bfloat16(), ours.w2.data.bfloat16()
    wide = MoELayer(d, h, E, k).to(device)  # weights in float32, cast at each step as under the trainer's autocast
    rows_ND, rows_grad_ND = torch.randn(T * k, d, **kinds).requires_grad_(), torch.randn(T * k, d, **kinds)
    a_DH, b_HD = (torch.randn(s, **kinds).mul_(0.02).requires_grad_() for s in ((d, h), (h, d)))

    def of(forward: Callable[[], Any], parameters: Any, grad: torch.Tensor) -> dict[str, Callable[[], None]]:
        def both() -> None:
            for p in parameters:
                p.grad = None
            y, routing = forward()
            balance = 0 * y.sum() if routing is None else importance_loss(routing.importance_E) + load_loss(routing.load_E)  # fmt: skip
            torch.autograd.backward([y, balance], [grad, None])

        def alone() -> None:
            with torch.no_grad():
                forward()

        return {"forward": alone, "forward and backward": both}

    def cast() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return wide(x_TD)

    flops = 4.0 * T * k * d * h
    results = {
        "ours": (of(lambda: ours(x_TD), [x_TD, *ours.parameters()], grad_TD), flops),
        "ours, weights float32": (of(cast, [x_TD, *wide.parameters()], grad_TD), flops),
        "sort + grouped_mm": (
            of(lambda: grouped_mm_layer(ours, x_TD), [x_TD, *ours.parameters()], grad_TD),
            flops,
        ),
        "dense products": (
            of(lambda: ((rows_ND @ a_DH).relu() @ b_HD, None), [rows_ND, a_DH, b_HD], rows_grad_ND),
            flops,
        ),
    }
    if (block := transformers_block(size, kinds)) is not None:
        x_1TD = x_TD.detach()[None].requires_grad_()
        steps = of(lambda: (block(x_1TD), None), [x_1TD, *block.parameters()], grad_TD[None])
        results["transformers, gated"] = (steps, 1.5 * flops)  # a third product for its gate
    return results


def transformers_block(size: tuple[int, ...], kinds: dict[str, Any]) -> torch.nn.Module | None:
    """Mixtral's block on transformers' grouped path; None where transformers is not installed."""
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    except ImportError:
        return None
    _, d, h, E, k = size
    config = MixtralConfig(hidden_size=d, intermediate_size=h, num_local_experts=E, num_experts_per_tok=k)
    config._experts_implementation = "grouped_mm"
    block = MixtralSparseMoeBlock(config).to(**kinds)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return block


def time_in_turn(steps: dict[str, Callable[[], None]], device: torch.device, quick: bool) -> dict[str, float]:
    """Median seconds of each, by the device's own clock where it has one, all taking turns in each round."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for at in range(-1 if quick else -3, 3 if quick else 30):
        for name, step in steps.items():
            seconds = timed(step, device)
            if at >= 0:
                taken[name].append(seconds)
    return {name: statistics.median(times) for name, times in taken.items()}


def timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


# Speed


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Steps a second of the three tasks: the median step, and all in all with looks, evaluations and record."""
    from moe_core.runs import Run

    results: dict[str, Any] = {}
    devices = [(options.device, "float32"), (options.device, "bfloat16"), ("cpu", "float32")]
    for name in TASKS:
        for device, precision in devices[:1] if options.quick else devices:
            steps = 20 if options.quick else 300
            with tempfile.TemporaryDirectory() as runs:
                words = ["train", "--task", name, "--device", device, "--precision", precision, "--threads", 2]
                words += [
                    "--steps",
                    steps,
                    "--run-id",
                    "timed",
                    "--runs",
                    runs,
                    "--json",
                    *(SMALL if options.quick else ()),
                ]
                done = subprocess.run([sys.executable, "-m", "moe_core", *map(str, words)], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
                if done.returncode:
                    raise RuntimeError(done.stderr[-1500:])
                run = Run(Path(runs) / "timed")
                seconds = run.history("seconds")[1][steps // 3 :]
                evals = [json.loads(line) for line in done.stdout.splitlines() if '"eval"' in line]
                where = "cpu, 2 threads" if device == "cpu" else f"{device}, {precision}"
                results[f"{name}: {where}"] = {
                    "steps/s": float(1 / statistics.median(seconds.tolist())),
                    "held-out loss": next((e["loss"] for e in reversed(evals) if "loss" in e), math.nan),
                }
    return results


# All of it

TIMED = {"waits": waits, "layer": layer, "speed": speed}
PARTS = {"tests": tests} | {name: (lambda options, name=name: task(name, options)) for name in TASKS} | TIMED


def machine(device: str) -> dict[str, Any]:
    cuda = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "capability": list(torch.cuda.get_device_capability(device)) if cuda else None,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def begin(part: str, options: argparse.Namespace) -> subprocess.Popen:
    """A part in its own process; one named "…, deterministic" with torch's deterministic algorithms."""
    name, _, deterministic = part.partition(", ")
    words = [sys.executable, __file__, "--part", name, "--device", options.device]
    words += ["--quick"] * options.quick + ["--deterministic"] * bool(deterministic)
    environment = os.environ | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if deterministic else {})
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen, limit: float) -> dict[str, Any]:
    """The results of a part, or why it failed."""
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"ok": False, "error": f"not done in {limit:.0f} s"}
    if process.returncode:
        return {"ok": False, "error": error[-3000:]}
    return {"ok": True, "results": json.loads(out.splitlines()[-1])}


def table(nested: Any, indent: int = 2) -> str:
    """Nested names and values, a line each; a dictionary without nested ones takes one line."""
    lines = []
    for name, value in nested.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            lines += [" " * indent + name, table(value, indent + 2)]
        else:
            text = "  ".join(f"{n} {shown(v)}" for n, v in value.items()) if isinstance(value, dict) else shown(value)
            lines.append(f"{' ' * indent}{name:26} {text or '–'}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--quick", action="store_true", help="the same parts at toy sizes, to see that they run")
    parser.add_argument("--part", choices=PARTS, help="this part only, in this process, its findings as JSON")
    parser.add_argument(
        "--deterministic", action="store_true", help="of a task's part: torch's deterministic algorithms"
    )
    parser.add_argument("--limit", type=float, default=150, help="seconds for each part (default 150)")
    parser.add_argument("--out", type=Path, help="write all findings here as JSON")
    options = parser.parse_args(argv)
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return 0
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU that torch can use; give --device cpu --quick to see the parts run")
    results: dict[str, Any] = {"machine": machine(options.device), "quick": options.quick, "parts": {}}
    # What is not timed may run side by side.
    untimed = ["tests", *TASKS, *(f"{name}, deterministic" for name in TASKS if options.device != "cpu")]
    for together in (untimed, *([name] for name in TIMED)):
        processes = {name: begin(name, options) for name in together}
        for name, process in processes.items():
            result = results["parts"][name] = ended(process, options.limit)
            print(f"{name}\n{table(result['results']) if result['ok'] else result['error']}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))
    return 0 if all(part["ok"] for part in results["parts"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
