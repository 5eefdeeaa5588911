"""The generic adapter and its options."""

from __future__ import annotations

from sfkit.policies.generic.adapter import GenericAdapter
from sfkit.policies.generic.options import GenericOptions, ImageTokens, MeanStd, Span

__all__ = ["GenericAdapter", "GenericOptions", "ImageTokens", "MeanStd", "Span"]
