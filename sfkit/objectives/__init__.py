"""Alignment objectives: how far projected student tokens are from the teacher's."""
