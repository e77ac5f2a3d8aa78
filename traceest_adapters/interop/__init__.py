"""Operators of other libraries as operators of traceest, and the other way."""
