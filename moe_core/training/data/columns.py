"""Which column of a table is the class, which columns only number the rows, and how missing values are treated.

An ambiguous table is refused, and the message names the flag that decides. Rows.taken says in sentences how a
table was read.

Shapes: N rows, C columns, F features.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_core.runs.cells import is_missing
from moe_core.training.data.tables import Arrays, Table

MAX_LABELS = 256
FEWEST = 10  # rows
LABELS = {"label", "labels", "class", "classes", "target", "targets", "species", "category", "variety", "outcome", "diagnosis", "y"}  # fmt: skip
NUMBERING = {"", "index", "id", "unnamed: 0", "row", "rownames", "rowname", "row_id"}
LISTED = 6  # the most names or rows in a message
LONGEST = 40  # letters of a name in a list


class Rows(NamedTuple):
    """x_NF (N, F), NaN where a value is missing; class_N (N,) indices into classes; names_F: the features' names;
    taken: how the table was read, in sentences."""

    x_NF: np.ndarray
    class_N: np.ndarray
    classes: list[str]
    names_F: list[str]
    taken: list[str]


def rows_of(given: str, table: Table, label: str, drop: Sequence[str], missing: str) -> Rows:
    """The features and classes of a table. label, drop: names of columns or their numbers from 1. ValueError, one line."""
    dropped = {find_column(given, table.names, word, "--drop") for word in drop}
    chosen = find_column(given, table.names, label, "--label") if label else None
    if chosen in dropped:
        raise ValueError(f"{given}: --label and --drop both name {label!r}; leave one out")
    left = [c for c in range(len(table.names)) if c not in dropped]
    numbering = {c: why for c in left if c != chosen and (why := why_row_numbers(table, c))}
    left = [c for c in left if c not in numbering]
    if len(left) < 2:
        why = "".join(f"; column {column_text(table.names, c)} is left out: {why}" for c, why in numbering.items())
        raise ValueError(
            f"{given}: at least two columns are wanted, a class and a feature, and {len(left)} can be used{why}"
        )
    at = label_column(given, table, left) if chosen is None else chosen
    features = [c for c in left if c != at]
    x_NF = numbers_in(given, table, features)
    words_N = [word_at(table, n, at) for n in range(len(x_NF))]
    names = [table.names[c] or f"column {c + 1}" for c in features]
    rows = whole_rows(given, x_NF, words_N, names, missing)
    taken = [f"left out: column {column_text(table.names, c)}, named by --drop" for c in sorted(dropped)]
    taken += [f"left out: column {column_text(table.names, c)}, {why}" for c, why in numbering.items()]
    where = f"class: column {column_text(table.names, at)}, " + (
        "named by --label" if chosen is not None else "recognised"
    )
    heading = "" if table.named else ", without a line of names, so columns go by number"
    return rows._replace(
        taken=[rows.taken[0], f"features: {list_text([*map(named, names)])}{heading}", where, *taken, *rows.taken[1:]]
    )


def rows_of_arrays(given: str, arrays: Arrays, missing: str) -> Rows:
    """The features and classes of an .npz: each place of x is a feature, and columns that number the rows are left out of a
    matrix."""
    x_NF = arrays.x.astype(np.float64).reshape(len(arrays.x), int(np.prod(arrays.x.shape[1:])))
    names = [str(i + 1) for i in range(x_NF.shape[1])]
    table = Table(names, x_NF, {}, named=False)
    numbering = {} if arrays.x.ndim > 2 else {c: why for c in range(len(names)) if (why := why_row_numbers(table, c))}
    kept = [c for c in range(len(names)) if c not in numbering]
    if not kept:
        raise ValueError(f"{given}: every column of x only numbers the rows; give features too")
    words_N = [
        class_of_number(value) if isinstance(value, float) else class_of_word(str(value)) for value in arrays.y.tolist()
    ]
    rows = whole_rows(given, x_NF[:, kept], words_N, [names[c] for c in kept], missing)
    places = "places" if arrays.x.ndim > 2 else "columns"
    taken = [rows.taken[0], f"features: the {len(kept)} {places} of x", "class: y"]
    taken += [f"left out: column {c + 1} of x, {why}" for c, why in numbering.items()]
    return rows._replace(taken=taken + rows.taken[1:])


def find_column(given: str, names: list[str], word: str, flag: str) -> int:
    """The column that a person named: by its name, else by its number from 1."""
    lower = [name.lower() for name in names]
    if word in names:
        return names.index(word)
    if lower.count(word.lower()) == 1:
        return lower.index(word.lower())
    if word.isascii() and word.isdigit() and 1 <= int(word) <= len(names):
        return int(word) - 1
    raise ValueError(f"{given} has no column {word[:80]!r} for {flag}; there are {list_text([*map(named, names)])}")


def why_row_numbers(table: Table, c: int) -> str:
    """Why a column is taken for row numbers, or "" if it is not. In rows sorted by class, row numbers would give the class
    away."""
    values, texts = table.values_NC[:, c], table.texts.get(c, {})
    if len(values) < FEWEST:
        return ""
    if table.named and table.names[c].lower() in NUMBERING and count_different(values, texts) == len(values):
        return "another value in each row under such a name; rename it if it is a feature"
    steps = np.diff(values)
    if texts or not ((steps > 0).all() or (steps < 0).all()) or (values % 1 != 0).any():
        return ""
    way = "rise" if steps[0] > 0 else "fall"
    return f"whole numbers that {way} from row to row, as row numbers do; shuffle the rows if it is a feature"


def count_different(values: np.ndarray, texts: dict[int, str]) -> int:
    """How many different values a column has, not counting empty cells."""
    return len(set(texts.values())) + len(np.unique(values[np.isfinite(values)]))


def label_column(given: str, table: Table, left: list[int]) -> int:
    """The column of the class: the one with such a name, else the only one of words, else the first or the last."""
    named = [c for c in left if table.named and table.names[c].lower() in LABELS]
    if len(named) > 1 or not all(could_be_class(table, c) for c in named):  # y is a coordinate as often as a class
        named = [c for c in named if table.names[c].lower() != "y"]
    words = [c for c in left if c in table.texts and could_be_class(table, c)]
    ends = [c for c in dict.fromkeys((left[0], left[-1])) if could_be_class(table, c)]
    for candidates in (named, words, ends):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = " and ".join(column_text(table.names, c) for c in candidates[:LISTED])
            raise ValueError(
                f"{given}: columns {names} could each be the class; say which with --label NAME or its number"
            )
    return left[-1]  # it is refused later, with a message


def could_be_class(table: Table, c: int) -> bool:
    """Whether a column has words or whole numbers, few enough to be classes; not if there are a few words among numbers."""
    values, texts = table.values_NC[:, c], table.texts.get(c, {})
    whole = not (values[np.isfinite(values)] % 1).any() if not texts else 2 * len(texts) > len(values)
    return whole and 2 <= count_different(values, texts) <= most_classes(len(values))


def most_classes(rows: int) -> int:
    return min(MAX_LABELS, rows // 2)


def numbers_in(given: str, table: Table, features: list[int]) -> np.ndarray:
    """The features' values; ValueError for words among them and for infinity."""
    words = {
        c: of for c in features if (of := {n: w for n, w in table.texts.get(c, {}).items() if w.lower() != "none"})
    }
    if words:
        c, (row, word) = next((c, next(iter(of.items()))) for c, of in words.items())
        raise ValueError(
            f"{given}: row {row + 1} has {word[:40]!r} in column {column_text(table.names, c)} where a number is wanted; columns "
            f"of words can be left out with --drop {' '.join(repr(table.names[c]) for c in [*words][:LISTED])}"
            + (f" and {len(words) - LISTED} more" if len(words) > LISTED else "")
            + ", or be the class with --label"
        )
    x_NF = table.values_NC[:, features]
    rows, columns = np.nonzero(np.isinf(x_NF))
    if len(rows):
        name = column_text(table.names, features[columns[0]])
        raise ValueError(f"{given}: row {rows[0] + 1} has infinity in column {name}; correct it or remove the row")
    return np.asarray(x_NF)


def word_at(table: Table, n: int, c: int) -> str | None:
    return table.texts[c][n] if n in table.texts.get(c, {}) else class_of_number(float(table.values_NC[n, c]))


def class_of_number(value: float) -> str | None:
    """A class that is a number, always written the same way: 1, 1.0 and 01 are one class. None for NaN."""
    if np.isnan(value):
        return None
    return str(int(value)) if np.isfinite(value) and value % 1 == 0 else repr(value)


def class_of_word(word: str) -> str | None:
    """A class that is a text: None if it marks a missing value; a number is written as class_of_number() does."""
    try:
        return class_of_number(float(word))
    except ValueError:
        return None if is_missing(word) else word.strip()


def whole_rows(given: str, x_NF: np.ndarray, words_N: list[str | None], names: list[str], missing: str) -> Rows:
    """The rows that have a class, missing values treated as --missing says; ValueError for missing values where it says
    refuse."""
    taken = []
    unlabelled = np.array([word is None for word in words_N], bool)
    if unlabelled.any() and missing != "drop":
        raise ValueError(
            f"{given} has {unlabelled.sum()} of {len(x_NF)} rows without a class ({rows_text(unlabelled)}); "
            f"correct them, or leave them out with --missing drop"
        )
    gaps_NF = np.isnan(x_NF)
    if gaps_NF.any() and missing == "refuse":
        places = np.flatnonzero(gaps_NF.any(axis=0))
        gaps = ", ".join(f"{names[f]} {gaps_NF[:, f].sum()}" for f in places[:LISTED]) + ", …" * (len(places) > LISTED)
        raise ValueError(
            f"{given} lacks values in {len(places)} columns ({gaps}; first in {rows_text(gaps_NF.any(axis=1), 1)}); "
            f"fill them with --missing mean, or leave their rows out with --missing drop"
        )
    if len(empty := np.flatnonzero(gaps_NF.all(axis=0))) and len(x_NF):
        raise ValueError(f"{given} has no value in column {names[empty[0]]}; leave it out with --drop")
    if missing == "mean" and gaps_NF.any():
        taken.append(f"filled with their column's mean: {gaps_NF.sum()} missing values in {gaps_NF.any(axis=0).sum()} columns")  # fmt: skip
    out = unlabelled | (gaps_NF.any(axis=1) & (missing == "drop"))
    if out.any():
        taken.append(f"left out: {out.sum()} of {len(out)} rows, for want of a class or a value ({rows_text(out)})")
    words = [word for word, gone in zip(words_N, out.tolist(), strict=True) if word is not None and not gone]
    if len(words) < FEWEST:
        raise ValueError(f"{given} has {len(words)} rows; give at least {FEWEST}, a fifth is held out")
    classes = sorted(Counter(words), key=in_order)
    if not 2 <= len(classes) <= most_classes(len(words)):
        raise ValueError(
            f"{given}: the class must have from 2 to {most_classes(len(words))} different values in {len(words)} rows, "
            f"got {len(classes)}; give classes, not measurements, or name their column with --label"
        )
    place = {word: i for i, word in enumerate(classes)}
    counts = Counter(words)
    sizes = list_text([f"{named(word)} {counts[word]}" for word in classes], 12)
    taken = [f"{len(words)} rows in {len(classes)} classes: {sizes}", *taken]
    return Rows(x_NF[~out], np.array([place[word] for word in words]), classes, names, taken)


def in_order(word: str) -> tuple[int, float, str]:
    """The key that sorts numbers by value, and after them words by letter."""
    try:
        return 0, float(word), ""
    except ValueError:
        return 1, 0.0, word


def column_text(names: Sequence[str], c: int) -> str:
    """The name of a column for a message."""
    return repr(names[c]) if names[c] else f"{c + 1}, which has no name"


def rows_text(some: np.ndarray, most: int = LISTED) -> str:
    """ "rows 3, 9 and 20 more", counted from 1 without the line of names."""
    rows = (np.flatnonzero(some) + 1).tolist()
    text = f"row{'s' * (len(rows[:most]) > 1)} {', '.join(map(str, rows[:most]))}"
    return text + (f" and {len(rows) - most} more" if len(rows) > most > 1 else "")


def named(word: str) -> str:
    """The name of a column or a class in a list."""
    return (word if len(word) <= LONGEST else word[: LONGEST - 1] + "…") or "(no name)"


def list_text(words: Sequence[str], most: int = LISTED) -> str:
    """The first words and, if there are more, how many."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
