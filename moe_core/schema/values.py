"""Values of a record that another program may have written, each checked."""

from typing import Any

LONGEST = 400  # the most characters of a text in a description


def word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"texts in a description must have at most {LONGEST} characters, got {str(value)[:40]!r}")
    return value


def whole_of(value: Any, low: int, high: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:40]}")
    return value


def one_of(choices: tuple[str, ...], value: Any, name: str) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {str(value)[:40]!r}")
    return str(value)


def count_of(value: Any) -> int:
    """A whole number above 0; 0 for anything else."""
    return value if type(value) is int and value > 0 else 0
