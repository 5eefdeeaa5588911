"""Projectors: trainable maps from the student's width to the teacher's, used in training only."""
