"""Figures without a screen, and putting them into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def subplots(rows: int, columns: int, **how: Any) -> tuple[Any, Any]:
    """A figure with its axes in an array."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, squeeze=False, **how)


def save(figure: Any, folder: Path, name: str, dpi: int) -> None:
    """As `name`.png and .svg."""
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg"):
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(folder / f"{name}.{ending}", dpi=dpi, metadata=metadata)
    plt.close(figure)
