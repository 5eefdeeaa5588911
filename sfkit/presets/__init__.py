"""Presets: published methods as data, by name."""
