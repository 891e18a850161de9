"""The text task: domains of bytes that ship with Python and scikit-learn, or the person's own files, one domain each.

Shapes: B sequences, S bytes each.
"""

import codecs
import gzip
import os
import pydoc_data.topics
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_core.runs import limits
from moe_core.runs.room import bytes_text
from moe_core.schema import PROBE_TOKENS, Config
from moe_core.training.data.batch import EVAL_TOKENS, HELD_OUT, Batch, generator_for, sklearn_data
from moe_core.training.data.opening import content_of

DOMAIN_BYTES = 1 << 20  # of the standard library's source: reading all of it would delay the start
MAX_DOMAINS = 64


@dataclass(frozen=True)
class Text:
    """Domains of bytes; the end of each is held out."""

    config: Config
    names: list[str]
    train: list[Tensor]
    held: list[Tensor]
    taken: tuple[str, ...] = ()  # how a person's own files were read, in sentences
    task = "text"
    features_named: tuple[str, ...] = ()
    features = 256
    classes = 256

    @property
    def labels(self) -> dict[str, list[str]]:
        """The names of each label's values."""
        return {"domain": self.names, "byte": [repr(chr(i)) if 32 <= i < 127 else f"\\x{i:02x}" for i in range(256)]}

    def batch(self, step: int) -> Batch:
        """Sequences of the step, dealt to the domains as evenly as possible, each from a random place in its domain.

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


def text(config: Config) -> Text:
    """The three domains, or one for each of config.text."""
    if len(config.text) > MAX_DOMAINS:
        raise ValueError(f"--text takes up to {MAX_DOMAINS} files or folders, one domain each, got {len(config.text)}")
    domains = _own_domains([Path(path) for path in config.text]) or [_prose(), _code(), _tables()]
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
    sizes = [f"domain {name}: {len(content):,} bytes, of which {len(end):,} are held out" for (name, content), end in zip(domains, held, strict=True)]  # fmt: skip
    return Text(config, names, train, held, tuple(sizes if config.text else ()))


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
    for path in sorted(sklearn_data().iterdir()):
        if path.name.endswith((".csv", ".csv.gz")) and not path.name.startswith("digits"):
            content = path.read_bytes()
            parts.append(gzip.decompress(content) if path.suffix == ".gz" else content)
    if not parts:
        raise ValueError(f"no CSV tables in {sklearn_data()}; reinstall scikit-learn, or give your own --text PATH")
    # Interleaved in pieces: the end is held out, and it must not be one table that training never saw.
    pieces = [part[i : i + 4096] for part in parts for i in range(0, len(part), 4096)]
    order = np.random.default_rng(0).permutation(len(pieces))
    return "table", b"\n".join(pieces[i] for i in order)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its last part, with as many folders before it as it takes for the names to differ."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    if twice := next((paths[i] for i, part in enumerate(parts) if part in parts[:i]), None):
        raise ValueError(f"--text {str(twice)!r} is given twice; give each file or folder once")

    def name(part: tuple[str, ...]) -> str:
        others = [other for other in parts if other != part]
        least = next(n for n in range(1, len(part) + 1) if all(part[-n:] != other[-n:] for other in others))
        return "/".join(part[-least:]).replace("//", "/")

    return [name(part) for part in parts]


def _own_domains(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Name and bytes for each path. ValueError if together they are too large for the memory."""
    domains, size = [], 0
    for name, path in zip(distinct_names(paths), paths, strict=True):
        domains.append((name, _own_bytes(path)))
        size += len(domains[-1][1])
        if size > limits.TEXT:
            raise ValueError(
                f"the texts up to --text {str(path)!r} have more than {bytes_text(limits.TEXT)} together; leave some out"
            )
    return domains


def _own_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if they are gzip, or those of a folder's files in order of name, hidden ones left out."""
    if not path.exists():
        raise ValueError(f"--text {str(path)!r} is not there; give a file or a folder of text")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"--text {str(path)!r} is neither a file nor a folder; give a file or a folder of text")
    try:
        content = b"\n".join(_read_files(_files(path) if path.is_dir() else [path]))
    except OSError as error:
        raise ValueError(f"--text {str(path)!r} cannot be read: {error.strerror}") from None
    if not content:
        raise ValueError(f"--text {str(path)!r} has 0 bytes; give a file or a folder with text in it")
    return content


def _files(folder: Path) -> list[Path]:
    """A folder's files in order of name, hidden ones left out. ValueError, before all are listed, if they are too many."""
    files, size = [], 0
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            files.append(path)
            size += path.stat().st_size
            if size > limits.DOMAIN or len(files) > limits.FILES:
                much = bytes_text(limits.DOMAIN) if size > limits.DOMAIN else f"{limits.FILES:,} files"
                raise ValueError(
                    f"--text {str(folder)!r} has more than {much}; give a part of it, or several as domains"
                )
    return sorted(files)


def _read_files(files: Sequence[Path]) -> list[bytes]:
    """The bytes of each file, without a byte order mark. ValueError for more than a domain may have."""
    parts, size = [], 0
    for path in files:
        parts.append(content_of(path, "--text", limits.DOMAIN).removeprefix(codecs.BOM_UTF8))
        size += len(parts[-1])
        if size > limits.DOMAIN:
            raise ValueError(
                f"the texts up to --text {str(path)!r} have more than {bytes_text(limits.DOMAIN)}; leave some out"
            )
    return parts


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
