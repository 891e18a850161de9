"""Three real tasks that need no download, or the person's own files in their place.

A batch is a function of seed and step alone, so where the data stands is the step itself. Every token knows its labels
(its domain and byte, or its class), which is what specialisation is counted over. Whatever is wrong with a person's
file is a ValueError of one line, raised before a run is made.

Shapes: B sequences, S bytes each, N points or images, F features.
"""

import csv
import gzip
import hashlib
import io
import pydoc_data.topics
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from moe_core.schema import PROBE_TOKENS, Config

HELD_OUT = 0.1  # of a text, its end; of points and images, a seeded choice of twice that
DOMAIN_BYTES = 1 << 20  # of the standard library's source: reading all of it would delay the start
OWN_BYTES = 1 << 28
EVAL_TOKENS = 4096
PLANE_POINTS = 5000
MAX_LABELS = 256


class Batch(NamedTuple):
    """inputs (B, S) bytes or (N, F) floats; targets (B, S) or (N,); labels: name -> one number a token, flat."""

    inputs: Tensor
    targets: Tensor
    labels: dict[str, Tensor]

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.inputs.to(device), self.targets.to(device), {name: x.to(device) for name, x in self.labels.items()}
        )


@dataclass(frozen=True)
class Text:
    """Domains of bytes; the end of each is held out."""

    config: Config
    names: list[str]
    train: list[Tensor]
    held: list[Tensor]
    task = "text"
    features = 256
    classes = 256

    @property
    def labels(self) -> dict[str, list[str]]:
        """The names of each label's values."""
        return {"domain": self.names, "byte": [repr(chr(i)) if 32 <= i < 127 else f"\\x{i:02x}" for i in range(256)]}

    def batch(self, step: int) -> Batch:
        """Sequences of the step, dealt to the domains as evenly as they go, each from a random place in its domain.

        Which domains get one more is drawn each time. Were each sequence's domain drawn by itself, a batch of few
        sequences would shake the load of experts that know a domain."""
        rows, context = self.config.tokens // self.config.context, self.config.context
        generator = generator_for(self.config.seed, "batch", step)
        domains = torch.randperm(len(self.train), generator=generator)[torch.arange(rows) % len(self.train)]
        places = torch.rand(rows, generator=generator, dtype=torch.float64)
        return _sequences(self.train, domains.tolist(), places.tolist(), context)

    def held_out(self) -> list[Batch]:
        """The same evenly spread sequences at every evaluation, in batches of the training size."""
        rows, context = max(len(self.held), EVAL_TOKENS // self.config.context), self.config.context
        domains = [row % len(self.held) for row in range(rows)]
        turns = -(-rows // len(self.held))
        places = [(row // len(self.held)) / turns for row in range(rows)]
        size = max(1, self.config.tokens // context)
        return [
            _sequences(self.held, domains[i : i + size], places[i : i + size], context) for i in range(0, rows, size)
        ]

    def probe(self) -> tuple[Batch, dict[str, np.ndarray]]:
        """Up to 256 held-out bytes, each domain's share one sequence or more, and the same as plain arrays."""
        length = min(self.config.context, PROBE_TOKENS // len(self.held))
        rows = PROBE_TOKENS // length
        domains = sorted(row % len(self.held) for row in range(rows))
        batch = _sequences(self.held, domains, [(row + 0.5) / (rows + 1) for row in range(rows)], length)
        tokens = batch.inputs.flatten().numpy().astype(np.uint8)
        domain = batch.labels["domain"].numpy().astype(np.uint8)
        return batch, {
            "tokens": tokens,
            "domain": domain,
            "sequence": np.repeat(np.arange(rows, dtype=np.uint8), length),
        }


@dataclass(frozen=True)
class Points:
    """Rows of features with a class: the digits, a person's own table, or points of the plane."""

    config: Config
    names: list[str]
    train_NF: Tensor
    train_N: Tensor
    held_NF: Tensor
    held_N: Tensor
    shown: dict[str, np.ndarray]  # the probe as a person sees it, beside its class

    @property
    def task(self) -> str:
        return self.config.task

    @property
    def features(self) -> int:
        return self.train_NF.shape[1]

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> dict[str, list[str]]:
        return {"class": self.names}

    def batch(self, step: int) -> Batch:
        """config.tokens rows, drawn with replacement."""
        generator = generator_for(self.config.seed, "batch", step)
        chosen = torch.randint(len(self.train_N), (self.config.tokens,), generator=generator)
        return _rows(self.train_NF[chosen], self.train_N[chosen])

    def held_out(self) -> list[Batch]:
        size = EVAL_TOKENS
        return [_rows(self.held_NF[i : i + size], self.held_N[i : i + size]) for i in range(0, len(self.held_N), size)]

    def probe(self) -> tuple[Batch, dict[str, np.ndarray]]:
        batch = _rows(self.held_NF[:PROBE_TOKENS], self.held_N[:PROBE_TOKENS])
        return batch, {**self.shown, "class": batch.targets.numpy().astype(np.uint8)}


Data = Text | Points


def load(config: Config) -> Data:
    """The data that a run of this config learns from; ValueError if its files cannot be used."""
    if config.task == "text":
        return _text(config)
    if config.task == "digits":
        return _digits(config)
    return _plane(config)


def generator_for(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A stream of its own for each seed, purpose and step. Hashed: near seeds must not give near streams."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


# Text


def _text(config: Config) -> Text:
    domains = [_own_domain(Path(path)) for path in config.text] or [_prose(), _code(), _tables()]
    if len(domains) > 64:
        raise ValueError(f"--text takes up to 64 files or folders, one domain each, got {len(domains)}")
    names, train, held = [], [], []
    for name, content in domains:
        cut = len(content) - int(len(content) * HELD_OUT)
        if len(content) - cut < config.context + 1:
            wanted = int((config.context + 2) / HELD_OUT)
            raise ValueError(
                f"text {name!r} has {len(content)} bytes; context {config.context} needs at least {wanted} so that "
                f"a tenth can be held out; give a longer text or a smaller --context"
            )
        numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        names.append(name)
        train.append(numbers[:cut])
        held.append(numbers[cut:])
    return Text(config, names, train, held)


def _prose() -> tuple[str, bytes]:
    """The language reference that ships with every Python."""
    topics = pydoc_data.topics.topics
    return "prose", "\n".join(topics[name] for name in sorted(topics)).encode()


def _code() -> tuple[str, bytes]:
    """The standard library's source, files in order of name until there is enough."""
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_bytes())
        size += len(parts[-1])
        if size > DOMAIN_BYTES:
            break
    return "code", b"\n".join(parts)


def _tables() -> tuple[str, bytes]:
    """The small tables that scikit-learn ships as CSV, without the digits, which are a task of their own."""
    parts = []
    for path in sorted(_sklearn_data().iterdir()):
        if path.name.endswith((".csv", ".csv.gz")) and not path.name.startswith("digits"):
            content = path.read_bytes()
            parts.append(gzip.decompress(content) if path.suffix == ".gz" else content)
    if not parts:
        raise ValueError(f"no CSV tables in {_sklearn_data()}; reinstall scikit-learn, or give your own --text PATH")
    # Interleaved in pieces: the end is held out, and it must not be one table that training never saw.
    pieces = [part[i : i + 4096] for part in parts for i in range(0, len(part), 4096)]
    order = np.random.default_rng(0).permutation(len(pieces))
    return "table", b"\n".join(pieces[i] for i in order)


def _sklearn_data() -> Path:
    """Where scikit-learn keeps its data. Found, not imported: importing it costs a second."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("scikit-learn is wanted for its data and is not installed; pip install scikit-learn")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def _own_domain(path: Path) -> tuple[str, bytes]:
    """A file's bytes, or those of a folder's files in order of name, hidden ones left out."""
    if not path.exists():
        raise ValueError(f"--text {str(path)!r} is not there; give a file or a folder of text")
    files = [path]
    if path.is_dir():
        found = (f for f in sorted(path.rglob("*")) if f.is_file())
        files = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    elif not path.is_file():
        raise ValueError(f"--text {str(path)!r} is neither a file nor a folder; give a file or a folder of text")
    try:
        size = sum(f.stat().st_size for f in files)
        if size > OWN_BYTES:
            raise ValueError(f"--text {str(path)!r} has {size >> 20} MB; give at most {OWN_BYTES >> 20} MB a domain")
        content = b"\n".join(f.read_bytes() for f in files)
    except OSError as error:
        raise ValueError(f"--text {str(path)!r} cannot be read: {error.strerror}") from None
    if not content:
        raise ValueError(f"--text {str(path)!r} has 0 bytes; give a file or a folder with text in it")
    return path.name or path.resolve().name, content


def _sequences(texts: Sequence[Tensor], domains: list[int], places: list[float], length: int) -> Batch:
    """One row for each (domain, place in [0, 1)); the target of a byte is the byte after it."""
    rows = []
    for domain, place in zip(domains, places, strict=True):
        text = texts[domain]
        start = int(place * (len(text) - length))
        rows.append(text[start : start + length + 1])
    bytes_BS = torch.stack(rows).long()
    inputs_BS = bytes_BS[:, :-1].contiguous()
    domain_T = torch.tensor(domains).repeat_interleave(length)
    return Batch(inputs_BS, bytes_BS[:, 1:].contiguous(), {"domain": domain_T, "byte": inputs_BS.flatten()})


# Rows of features


def _rows(x_NF: Tensor, y_N: Tensor) -> Batch:
    return Batch(x_NF, y_N, {"class": y_N})


def _digits(config: Config) -> Points:
    x_NF, y_N = _own_table(Path(config.data)) if config.data else _sklearn_digits()
    names, y_N = np.unique(y_N, return_inverse=True)
    if len(names) > MAX_LABELS:
        raise ValueError(
            f"y must have at most {MAX_LABELS} different values, got {len(names)}; give classes, not measurements"
        )
    order = torch.randperm(len(x_NF), generator=generator_for(config.seed, "split")).numpy()
    held, train = np.split(order, [max(1, int(2 * HELD_OUT * len(order)))])
    mean_F, std_F = x_NF[train].mean(0), x_NF[train].std(0)
    scaled_NF = ((x_NF - mean_F) / np.where(std_F > 1e-12, std_F, 1.0)).astype(np.float32)
    if not np.isfinite(scaled_NF).all():
        raise ValueError("x has values too large for float32; scale it first")
    return _points(
        config, [str(name) for name in names], scaled_NF, y_N, train, held, _as_images(x_NF[held[:PROBE_TOKENS]])
    )


def _points(config: Config, names: list[str], x_NF, y_N, train, held, shown: dict[str, np.ndarray]) -> Points:
    x, y = torch.from_numpy(np.ascontiguousarray(x_NF, np.float32)), torch.from_numpy(np.asarray(y_N, np.int64))
    train, held = torch.from_numpy(train), torch.from_numpy(held)
    return Points(config, names, x[train], y[train], x[held], y[held], shown)


def _as_images(x_NF: np.ndarray) -> dict[str, np.ndarray]:
    """64 features are an 8 x 8 image of 16 greys; anything else is shown as the numbers it is."""
    if x_NF.shape[1] != 64:
        return {"features": x_NF.astype(np.float32)}
    low, high = x_NF.min(), x_NF.max()
    return {"images": np.round((x_NF - low) / ((high - low) or 1.0) * 16).astype(np.uint8)}


def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(_sklearn_data() / "digits.csv.gz", "rt") as file:
        table = np.array([line.split(",") for line in file], dtype=np.float64)
    return table[:, :-1], table[:, -1].astype(np.int64)


def _own_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """x (N, F) float64 and y (N,) of a person's .npz or CSV, checked."""
    if not path.is_file():
        raise ValueError(
            f"--data {str(path)!r} is not a file; give an .npz with x and y, or a CSV whose last column is y"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--data {str(path)!r} cannot be read: {error.strerror}") from None
    if not content:
        raise ValueError(
            f"--data {str(path)!r} has 0 bytes; give an .npz with x and y, or a CSV whose last column is y"
        )
    x, y = _from_npz(path, content) if path.suffix == ".npz" else _from_csv(path, content)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or x[0].size == 0:
        raise ValueError(f"--data {str(path)!r}: x must be (n, features) and y (n,), got x {x.shape} and y {y.shape}")
    if len(x) < 10:
        raise ValueError(f"--data {str(path)!r} has {len(x)} rows; give at least 10, a fifth is held out")
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if len(bad) or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        row = bad[0] if len(bad) else np.flatnonzero(~np.isfinite(y))[0]
        raise ValueError(f"--data {str(path)!r} has NaN or infinity (first in row {row + 1}); remove or fill such rows")
    return x.reshape(len(x), -1), y


def _from_npz(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if not {"x", "y"} <= set(arrays.files):
                raise ValueError(
                    f"--data {str(path)!r} must hold arrays x and y, it has {', '.join(arrays.files) or 'none'}"
                )
            x, y = arrays["x"], arrays["y"]
    except ValueError as error:
        if "--data" in str(error):
            raise
        # numpy says "Object arrays cannot be loaded when allow_pickle=False", and of a bad file that it may be a pickle.
        raise ValueError(
            f"--data {str(path)!r} holds pickled objects, which are never read; save plain number arrays x and y with numpy.savez"
        ) from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged file
        raise ValueError(
            f"--data {str(path)!r} is not a readable .npz ({type(error).__name__}); save it again with numpy.savez"
        ) from None
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiubUS":
        raise ValueError(f"--data {str(path)!r}: x must be numbers and y numbers or text, got {x.dtype} and {y.dtype}")
    return x.astype(np.float64), y.astype(str) if y.dtype.kind in "US" else y


def _from_csv(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--data {str(path)!r} is not a CSV in UTF-8 ({error}); export it as one") from None
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]  # a line of column names
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {1}:
        raise ValueError(
            f"--data {str(path)!r}: every row must have the same two or more columns, the last one y, got {sorted(widths)[:4]}"
        )
    for number, row in enumerate(rows, 1):
        for cell in row[:-1]:
            if not _is_number(cell):
                raise ValueError(
                    f"--data {str(path)!r}: row {number} has {cell[:40]!r} where a number is wanted; only the last column may be text"
                )
    return np.array([row[:-1] for row in rows], dtype=np.float64), np.array([row[-1].strip() for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# The plane


def _plane(config: Config) -> Points:
    rng = np.random.default_rng([config.seed, 2])
    point_N2, class_N = {"spirals": _spirals, "rings": _rings, "checkerboard": _checkerboard, "gaussians": _gaussians}[
        config.plane
    ](rng, PLANE_POINTS)
    point_N2 = (point_N2 + config.plane_noise * rng.standard_normal(point_N2.shape)).astype(np.float32)
    held, train = np.split(rng.permutation(PLANE_POINTS), [int(2 * HELD_OUT * PLANE_POINTS)])
    half = float(np.ceil(10 * np.quantile(np.abs(point_N2), 0.999)) / 10)
    shown = {"points": point_N2[held[:PROBE_TOKENS]], "extent": np.array([-half, half, -half, half], np.float32)}
    names = [chr(ord("A") + i) for i in range(class_N.max() + 1)]
    return _points(config, names, point_N2, class_N, train, held, shown)


def _spirals(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arms, one and a half turns each."""
    class_N, radius_N = rng.integers(0, 2, n), np.sqrt(rng.uniform(0.01, 1, n))
    angle_N = 3 * np.pi * radius_N + np.pi * class_N
    return np.stack([radius_N * np.cos(angle_N), radius_N * np.sin(angle_N)], 1), class_N


def _rings(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    class_N, angle_N = rng.integers(0, 3, n), rng.uniform(0, 2 * np.pi, n)
    radius_N = (class_N + 1) / 3
    return np.stack([radius_N * np.cos(angle_N), radius_N * np.sin(angle_N)], 1), class_N


def _checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Four by four squares of two classes."""
    point_N2 = rng.uniform(-1, 1, (n, 2))
    return point_N2, (np.floor(2 * (point_N2 + 1)).clip(0, 3).astype(int).sum(1)) % 2


def _gaussians(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Six clouds on a circle, each a class."""
    class_N = rng.integers(0, 6, n)
    angle_N = class_N * np.pi / 3
    centre_N2 = 0.7 * np.stack([np.cos(angle_N), np.sin(angle_N)], 1)
    return centre_N2 + 0.1 * rng.standard_normal((n, 2)), class_N
