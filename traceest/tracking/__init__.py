"""Statistics of a kernel along training: values, and changes far more precise than values."""

from traceest.tracking.tracker import Checkpoint, Tracker

__all__ = ["Checkpoint", "Tracker"]
