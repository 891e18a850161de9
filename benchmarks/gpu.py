"""Checks and measures MoEscope on a GPU, in one command: `python benchmarks/gpu.py` (about five minutes on an H100).

Each part is a process of its own, so that the failure of one hides nothing of the others:
  tests   the tests of nn and training that are marked `cuda`
  TASK    train, replay, fork and resume on the device: what comes out bit for bit, and what comes near
  waits   where the host waits for the device in one training step, and in a flush
  graph   the default step eager, and captured in a CUDA graph
  layer   one MoE layer's forward and backward beside dense products, sort + grouped_mm and transformers
  seeing  what all that is recorded adds to a step
  ranks   a training as the one rank of torchrun, over nccl (on a CPU gloo), beside one process; and what its exchange takes
  speed   steps a second of the three tasks beside two CPU threads
The trainer's side is all that it needs: torch, numpy, scikit-learn and pytest; neither streamlit nor plotly. Parts that are
timed run alone, after the others. `--device cpu --quick` is the short form that a test runs.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # parts run as scripts, from any folder
TASKS = ("text", "digits", "plane")
SIZE = (16384, 1024, 4096, 64, 2)  # tokens, model width, expert width, experts, k
QUICK_SIZE = (256, 64, 64, 8, 2)
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["torch"])
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
    """By strategy and precision: what torch says of a step in which every wait is an error, each place of a step that waits, and each
    of a flush after ten steps. On a CPU what would wait (moe_core/benchmarks/waits.py)."""
    from moe_core.benchmarks.waits import Steps, unvalued, waits_of
    from moe_core.schema import STRATEGIES, Config, Knobs

    device, found = torch.device(options.device), {}
    cuda = device.type == "cuda"
    sizes = {"d_model": 16, "d_hidden": 16, "tokens": 128, "context": 16} if options.quick else {}
    for strategy in list(STRATEGIES)[1:2] if options.quick else STRATEGIES:
        for precision in ("float32", "bfloat16") if cuda else ("float32",):
            config, knobs = Config.for_task("text", precision=precision, **sizes), Knobs(strategy=strategy)
            steps = Steps(config, knobs, device)
            steps.flush_after(2)
            forbidden = first_wait(steps) if cuda else unvalued(config, knobs)
            batch = steps.batch()
            found[f"{strategy}, {precision}"] = {
                "every wait an error": forbidden or "passes",
                "a step": waits_of(lambda steps=steps, batch=batch: steps.update(batch), device),
                "ten steps and a flush": waits_of(lambda steps=steps: steps.flush_after(10), device),
            }
    return found


def first_wait(steps: Any) -> str:
    """Where forward, backward and update first wait for the GPU; "" if they do not."""
    from moe_core.benchmarks.waits import place, waits_are

    batch = steps.batch()
    try:
        with waits_are("error"):
            steps.update(batch)
    except RuntimeError as error:
        return f"{place(traceback.extract_tb(error.__traceback__))}: {str(error).splitlines()[0]}"
    return ""


# A captured step


def graph(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the default step of the text task in bfloat16, eager and captured, in turn: wanted is a third. On a CPU, where
    nothing is captured, both run the same functions."""
    from moe_core.benchmarks.waits import Steps
    from moe_core.schema import Config, Knobs
    from moe_core.training.graph import WARM_UP, Graphed

    device = torch.device(options.device)
    small = {"d_model": 16, "d_hidden": 16, "tokens": 128, "context": 16} if options.quick else {}
    precision = "bfloat16" if device.type == "cuda" else "float32"
    config, knobs = (
        Config.for_task("text", launch="graph", precision=precision, **small),
        Knobs(lr=2**-8),
    )  # whole in 32 bits
    eager, captured = Steps(config, knobs, device), Steps(config, knobs, device)
    graphed = Graphed(captured.model, captured.optimizer, config)
    for seed in range(WARM_UP + 1):  # in the last it is captured, and replayed
        torch.manual_seed(seed)
        one = eager.update(eager.batch(), False).loss.item()
        torch.manual_seed(seed)
        other = graphed(captured.batch(), knobs).loss.item()
    steps = 2 if options.quick else 50  # at a time, since the host of a captured step is done long before the device

    def several(train: Callable[[Any], object], of: Steps) -> Callable[[], None]:
        return lambda: [train(of.batch()) for _ in range(steps)] and None

    ways = {
        "eager": several(lambda batch: eager.update(batch, False), eager),
        "captured": several(lambda batch: graphed(batch, knobs), captured),
    }
    taken = time_in_turn(ways, device, options.quick)
    eager_ms, captured_ms = (1e3 * taken[name] / steps for name in ways)
    return {
        "ms a step": {"eager": eager_ms, "captured": captured_ms, "times as quick": eager_ms / captured_ms},
        "loss after the first replay": {"eager": one, "captured": other, "same bits": one == other},
    }


# What seeing costs


def seeing(options: argparse.Namespace) -> dict[str, Any]:
    """What a step of the text task takes unrecorded, and by how much more per cent it takes with all that is recorded; the short
    form takes the points of the plane."""
    from moe_core.benchmarks.seeing import measure

    results = {}
    for precision in ("float32",) if options.device == "cpu" else ("float32", "bfloat16"):
        for watched in (False, True):
            name = precision + (", watched" if watched else "")
            blocks, steps = (2, 2) if options.quick else (20, 50)
            results[name] = measure(
                "plane" if options.quick else "text", blocks, steps, watched, options.device, precision
            )
    return results


# The layer


def layer(options: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds and TFLOP/s of forward, and of forward and backward, in bfloat16, of each rival in turn."""
    size = QUICK_SIZE if options.quick else SIZE
    device = torch.device(options.device)
    results, rivals = {"size": dict(zip(("tokens", "d", "h", "E", "k"), size, strict=True))}, rivals_of(size, device)
    kinds = ("forward", "forward and backward")
    for kind in kinds:
        taken = time_in_turn({name: steps[kind] for name, (steps, _) in rivals.items()}, device, options.quick)
        for name, seconds in taken.items():
            flops = rivals[name][1] * (3 if "backward" in kind else 1)
            results.setdefault(name, {})[kind] = {"ms": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12}
    for name in rivals:  # wanted: 0.6 of dense with the backward pass, and less time than transformers
        results[name]["of dense"] = {
            kind: results["dense products"][kind]["ms"] / results[name][kind]["ms"] for kind in kinds
        }
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


# One rank


def ranks(options: argparse.Namespace) -> dict[str, Any]:
    """The one rank of a torchrun, which has all experts and sends its tokens to itself: all that several ranks do is done, by nccl, on
    one GPU. Two ranks need two of them."""
    if "RANK" in os.environ:
        from moe_core.parallel.parent import watch_parent
        from moe_core.parallel.session import joined

        watch_parent(os.getppid())
        with joined(1, options.device.partition(":")[0]) as here:
            return {"training": as_one_rank(here, options), "ms forward and backward": exchange(here, options)}
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", __file__, "--part", "ranks"]
    words += ["--device", options.device, *["--quick"] * options.quick]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def as_one_rank(here: Any, options: argparse.Namespace) -> dict[str, Any]:
    """By precision: how far the losses of the rank's training are from those of one process, and the median ms of a step of each."""
    from functools import partial

    from moe_core.parallel.trainer import Member
    from moe_core.schema import Config, Knobs, layout, stats_of_ranks
    from moe_core.training.again import Nowhere
    from moe_core.training.data import load
    from moe_core.training.loop import Trainer

    small = {"d_model": 16, "d_hidden": 16, "tokens": 128, "context": 16} if options.quick else {}
    steps, found = 6 if options.quick else 200, {}
    for precision in ("float32", "bfloat16") if here.device.type == "cuda" else ("float32",):
        config, losses, ms = Config.for_task("text", precision=precision, **small), {}, {}
        columns = layout(config.layers, config.num_experts, stats_of_ranks(2))  # with what ranks measure
        place = next(c.start for c in columns if c.stat == "loss")
        for name, make in (("process", Trainer), ("rank", partial(Member, here.ranks))):
            trainer = make(
                config, Knobs(), load(config), here.device, Nowhere(Path()), lambda event: None, columns=columns
            )
            trainer.replaying, times = True, []
            for _ in range(steps):
                times.append(timed(lambda trainer=trainer: trainer.train_step(time.perf_counter()), here.device))
            losses[name], ms[name] = trainer.telemetry.take()[1][:, place], 1e3 * statistics.median(times)
            trainer.committer.close()
        apart = abs(losses["rank"] / losses["process"] - 1)
        found[precision] = {"largest difference of a loss": float(apart.max()), "ms of a process": ms["process"], "ms of a rank": ms["rank"]}  # fmt: skip
    return found


def exchange(here: Any, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a layer's experts, forward and backward, called at once and through the exchange."""
    from moe_core.nn.experts import mixture
    from moe_core.parallel.exchange import exchanged

    T, d, h, E, k = QUICK_SIZE if options.quick else SIZE
    torch.manual_seed(0)
    kinds = {"device": here.device, "dtype": torch.bfloat16}
    inputs = [
        torch.randn(*shape, **kinds).mul_(0.1).requires_grad_() for shape in ((T, d), (T, k), (E, d, h), (E, d, h))
    ]
    x_TD, weights_TK, w1_EDH, w2_EDH = inputs
    experts_TK = torch.rand(T, E, device=here.device).topk(k).indices
    given = weights_TK, experts_TK, experts_TK.flatten().bincount(minlength=E), w1_EDH, w2_EDH

    def both(forward: Callable[..., torch.Tensor]) -> None:
        for one in inputs:
            one.grad = None
        forward(x_TD, *given).sum().backward()

    ways = {"at once": lambda: both(mixture), "exchanged": lambda: both(lambda *of: exchanged(here.ranks, *of))}
    return {name: 1e3 * seconds for name, seconds in time_in_turn(ways, here.device, options.quick).items()}


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
                words += ["--steps", steps, "--run-id", "timed", "--json", *(SMALL if options.quick else ())]
                said = call(Path(runs), *words)
                run = Run(Path(runs) / "timed")
                seconds = run.history("seconds")[1][steps // 3 :]
                evals = [json.loads(line) for line in said.splitlines() if '"eval"' in line]
                where = "cpu, 2 threads" if device == "cpu" else f"{device}, {precision}"
                results[f"{name}: {where}"] = {
                    "steps/s": float(1 / statistics.median(seconds.tolist())),
                    "held-out loss": next((e["loss"] for e in reversed(evals) if "loss" in e), math.nan),
                }
    return results


# All of it

TIMED = {"waits": waits, "graph": graph, "layer": layer, "seeing": seeing, "ranks": ranks, "speed": speed}
PARTS = {"tests": tests} | {name: (lambda options, name=name: task(name, options)) for name in TASKS} | TIMED


def described(device: torch.device) -> dict[str, Any]:
    """The machine, and its GPU."""
    from moe_core.benchmarks.results import machine
    from moe_core.recording.facts import device_name

    capability = list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None
    return machine() | {"device": device_name(device), "capability": capability}


def begin(part: str, options: argparse.Namespace) -> tuple[BaseProcess, Connection]:
    """A part in its own process, and where its findings come; one named "…, deterministic" with torch's deterministic algorithms.

    Each is forked from a process that has loaded torch and not touched a GPU: to load it takes longer than most parts on a CPU.
    """
    findings, sender = START.Pipe(duplex=False)
    process = START.Process(target=work, args=(part, options, sender))
    process.start()
    sender.close()
    return process, findings


def work(part: str, options: argparse.Namespace, sender: Connection) -> None:
    """In a part's process: send what it finds as JSON, or why it failed."""
    name, _, options.deterministic = part.partition(", ")
    if options.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    try:
        sender.send((json.dumps(PARTS[name](options)), ""))
    except BaseException:
        sender.send(("", traceback.format_exc()[-3000:]))


def ended(process: BaseProcess, findings: Connection, limit: float) -> dict[str, Any]:
    """The results of a part, or why it failed."""
    if not findings.poll(limit):
        process.kill()
        process.join()
        return {"ok": False, "error": f"not done in {limit:.0f} s"}
    try:
        found, error = findings.recv()
    except EOFError:
        found = error = ""
    process.join(limit)
    process.kill()  # in case it does not end
    process.join()
    if not (found or error):
        return {"ok": False, "error": f"its process ended without a word (exit status {process.exitcode})"}
    return {"ok": False, "error": error} if error else {"ok": True, "results": json.loads(found)}


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
    results: dict[str, Any] = {"machine": described(torch.device(options.device)), "quick": options.quick, "parts": {}}
    # What is not timed may run side by side.
    untimed = ["tests", *TASKS, *(f"{name}, deterministic" for name in TASKS if options.device != "cpu")]
    for together in (untimed, *([name] for name in TIMED)):
        begun = {name: begin(name, options) for name in together}
        for name, (process, findings) in begun.items():
            result = results["parts"][name] = ended(process, findings, options.limit)
            print(f"{name}\n{table(result['results']) if result['ok'] else result['error']}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))
    return 0 if all(part["ok"] for part in results["parts"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
