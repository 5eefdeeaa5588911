"""Checkpoints, and what may be read from them."""
