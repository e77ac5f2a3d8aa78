"""The state of a sampler on disk, so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from traceest import _array_api as aa
from traceest import _files
from traceest.uncertainty.estimate import _to_host

EXPECTED = "a checkpoint that {}(checkpoint=) wrote; give it a path of its own, or delete the file"


class Layout(Protocol):
    """What the state of a sampler consists of."""

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of its whole numbers."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its arrays, of which some may be missing."""

    def fits(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether the array of this name may have this shape and dtype."""

    def sound(self, name: str, x: np.ndarray) -> bool:
        """Whether it may hold these numbers."""


class Checkpoint:
    """An ``.npz`` file that a sampler's state is written to after each growth, and taken up from.

    Parameters
    ----------
    path : Path
        The file; it need not exist yet, its folder has to.
    run : dict
        What must be the same for the state to fit: method, shape, dtype and law of the probes.
    caller : str
        The call that it belongs to, for messages.
    """

    def __init__(self, path: Path, run: dict[str, Any], caller: str) -> None:
        self.path, self.run, self.caller = path, run, caller

    def load(self, layout: Layout, like: Any) -> dict[str, Any] | None:
        """The state, on the device of `like`, or None if there is no file yet.

        Members are read by name, and each is looked at before it is: what a file says of itself is not believed.

        Raises
        ------
        ValueError
            If the file is no checkpoint, is broken, or is one of another run.
        """
        if not self.path.exists():
            return None
        with _files.archive(self.path, self.caller, EXPECTED.format(self.caller)) as file:
            if "run" not in file:
                raise _files.Refused(
                    f"{self.caller}: {self.path} is not a checkpoint; give checkpoint= a path of its own."
                )
            self._check(file.text("run"))
            state: dict[str, Any] = {name: file.number(name) for name in layout.counts}
            arrays = {name: file.array(name, partial(layout.fits, name)) for name in layout.arrays if name in file}
            for name, x in arrays.items():
                if not layout.sound(name, x):
                    raise ValueError(f"its {name!r} holds numbers that no run has written, NaN or infinity perhaps")
        xp, device = aa.namespace(like), aa.device(like)
        return state | {name: xp.asarray(x, device=device) for name, x in arrays.items()}

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` in one step: a run killed meanwhile leaves the file as it was."""
        arrays = {name: _to_host(x) for name, x in state.items()}
        _files.write_archive(self.path, self.caller, {"run": self.run}, arrays)

    def _check(self, run: Any) -> None:
        """Raise unless `run` is this one."""
        if not isinstance(run, dict):
            raise ValueError("it does not say of which run it is")
        for name, ours in self.run.items():
            if run.get(name) != ours:
                raise _files.Refused(
                    f"{self.caller}: the checkpoint {self.path} is of another run: its {name} is {run.get(name)!r}, "
                    f"this one's {ours!r}; give checkpoint= another path, or delete the file."
                )


class Resumes(Layout, Protocol):
    """What can go on from a checkpoint."""

    @property
    def stream(self) -> Any:
        """Its probes, which are of the namespace and device of all arrays."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""

    def verify(self) -> None:
        """Multiply the first probe once more, and compare."""


def taken_up(sampler: Resumes, saved: Checkpoint, say: Callable[[str], Any]) -> bool:
    """Give the sampler what an earlier run has paid for, once a product of it has been made anew and compared.

    Raises
    ------
    ValueError
        If the file is broken, or of another run or operator.
    """
    state = saved.load(sampler, sampler.stream)
    if state is None:
        return False
    try:
        sampler.restore(state)
    except ValueError as error:
        raise ValueError(
            f"{saved.caller}: the checkpoint {saved.path} is broken ({error}); delete the file, or give checkpoint= "
            "another."
        ) from error
    sampler.verify()
    say(f"goes on from {saved.path}, whose first probe gives the same product")
    return True
