"""Schedules: how the weight of the alignment loss changes over a run."""
