"""The pieces of a tokenizer as text that a person reads: with spaces and letters where the vocabulary has signs for them.

Byte-level tokenizers (GPT-2, Llama 3, Qwen) write each byte as a letter, so " the" is "Ġthe"; SentencePiece (Llama 2, Mixtral)
writes a space as "▁", and a byte that it has no piece for as "<0x0A>".
"""

import re
from collections.abc import Sequence
from typing import Any

from moe_core.nn.checks import shown

LONGEST = 64  # characters of a piece that are kept
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def letters_of_bytes() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: itself where it is visible, else one from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTES = letters_of_bytes()


def strings_of(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each id; its number where there is no tokenizer. ValueError for one that cannot decode."""
    if tokenizer is None:
        return [str(one) for one in ids]
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        if not hasattr(tokenizer, "decode"):
            raise ValueError(f"tokenizer must be that of your model, which can decode() ids, got {shown(tokenizer)}")
        return [kept(tokenizer.decode([one])) for one in ids]
    pieces = [as_text(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids))]
    # transformers' tokenizers say which kind they are; of others the pieces show it, if the text has a space or a line's end.
    by_bytes = any("Ġ" in piece or "Ċ" in piece for piece in pieces) and not any("▁" in piece for piece in pieces)
    by_bytes |= "ByteLevel" in str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
    return [kept(from_bytes(piece) if by_bytes else from_signs(piece)) for piece in pieces]


def as_text(piece: Any) -> str:
    """Some vocabularies hold bytes, and ids beyond the vocabulary have no piece."""
    return (
        piece.decode("utf-8", "backslashreplace") if isinstance(piece, bytes) else "" if piece is None else str(piece)
    )


def from_bytes(piece: str) -> str:
    """The text of a byte-level piece; bytes that are only a part of a letter are written as \\xe4. Added tokens are text already."""
    if not all(letter in BYTES for letter in piece):
        return piece
    return bytes(BYTES[letter] for letter in piece).decode("utf-8", "backslashreplace")


def from_signs(piece: str) -> str:
    """The text that a piece of SentencePiece stands for."""
    if byte := BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1]).decode("utf-8", "backslashreplace")
    return piece.replace("▁", " ")


def kept(text: str) -> str:
    """What a record can hold of it: not too long, and no halves of surrogate pairs."""
    return (text if len(text) <= LONGEST else text[: LONGEST - 1] + "…").encode("utf-8", "replace").decode()
