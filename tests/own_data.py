"""Small files of the kinds that people have: a table, pixels with the label first, an array of images, texts of one name."""

import csv
from pathlib import Path

import numpy as np

KINDS = ("table", "pixels", "images", "texts")
# A model that trains and draws in no time.
SMALL = ["--d-model", "8", "--d-hidden", "8", "--num-experts", "4", "--tokens", "64", "--threads", "1"]
SPECIES = ("setosa", "versicolor", "virginica")


def write(kind: str, folder: Path) -> list[str]:
    """The paths of what was written into a folder."""
    rng = np.random.default_rng(0)
    if kind == "texts":
        for name in "ab":
            (folder / name).mkdir()
            (folder / name / "notes").write_text(f"Notes of {name}, line by line.\n" * 400)
        return [str(folder / name / "notes") for name in "ab"]
    path = folder / {"table": "iris.csv", "pixels": "train.csv", "images": "images.npz"}[kind]
    if kind == "table":
        rows = [["Id", "sepal length", "sepal width", "petal length", "petal width", "Species"]]
        for n in range(150):
            of = n // 50
            values = rng.normal((5 + of, 3.4 - of / 4, 1.5 + 2 * of, 0.2 + of), 0.3).round(1).tolist()
            rows.append([n + 1, *values, SPECIES[of]])
    if kind == "pixels":
        labels = rng.integers(0, 10, 300)
        rows = [["label", *(f"pixel{i}" for i in range(784))]]
        rows += [[label, *strokes(label, rng).ravel()] for label in labels.tolist()]
    if kind == "images":
        labels = np.arange(60) % 3
        np.savez(path, x=np.stack([strokes(3 * label, rng) for label in labels.tolist()]), y=labels)
        return [str(path)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return [str(path)]


def strokes(label: int, rng: np.random.Generator) -> np.ndarray:
    """(28, 28) a bar that leans by its label, somewhere near the middle."""
    down, across = np.mgrid[:28, :28]
    away = np.abs((across - 14 - rng.normal()) - (down - 14) * np.tan(np.pi * (label - 4.5) / 12))
    return np.where((away < 2.5) & (abs(down - 14) < 9), 255 - rng.integers(0, 90), 0).astype(np.uint8)


def task_of(kind: str, paths: list[str]) -> list[str]:
    """The flags that train on it."""
    return ["--task", "text", "--context", "32", "--text", *paths] if kind == "texts" else ["--task", "digits", "--data", *paths]  # fmt: skip
