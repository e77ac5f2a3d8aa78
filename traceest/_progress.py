"""A progress bar where one was asked for; tqdm is an extra, imported only then."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any


class _Silent:
    n = 0

    def update(self, k: int) -> None:
        self.n += k


@contextmanager
def bar(show: bool, *, total: int | None, unit: str) -> Any:
    """A tqdm bar, or an object that takes its calls in silence.

    Raises
    ------
    ImportError
        If a bar is asked for and tqdm is not installed; the message says how to install it.
    """
    if not show:
        yield _Silent()
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'traceest[progress]'.") from error
    with tqdm(total=total, unit=unit) as shown:
        yield shown
