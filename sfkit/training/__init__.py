"""A policy in training: taps, teachers, pairs, the step, the way of its loss into backward, and self-checks."""
