"""Probes: what a policy's visual tokens know about geometry, measured without training anything."""

from __future__ import annotations

from sfkit.probe.capture import capture_tokens
from sfkit.probe.depth import DepthProbe, DepthSamples, DepthScore, token_depth
from sfkit.probe.pca import pca_colors
from sfkit.probe.ridge import ProbeError, ProbeScore, RidgeProbe, probe_error

__all__ = [
    "DepthProbe",
    "DepthSamples",
    "DepthScore",
    "ProbeError",
    "ProbeScore",
    "RidgeProbe",
    "capture_tokens",
    "pca_colors",
    "probe_error",
    "token_depth",
]
