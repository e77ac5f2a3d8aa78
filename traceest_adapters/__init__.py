"""Operators out of JAX and PyTorch models."""
