"""Tools around an alignment: inspect a policy, probe its visual tokens, rank its layers.

Importing this package imports neither torch nor scikit-learn: it is the plugin module that sfkit's registry loads, and
its public names are imported on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

_EXPORTS = {
    "DepthProbe": "depth_probe",
    "LayerRank": "layer_ranking",
    "DepthSamples": "depth_probe",
    "DepthScore": "depth_probe",
    "Inspection": "report",
    "Measure": "layer_ranking",
    "ProbeError": "ridge",
    "ProbeScore": "ridge",
    "Ranking": "layer_ranking",
    "RidgeProbe": "ridge",
    "capture_tokens": "capture",
    "chart": "layer_ranking",
    "end_anchored": "layer_ranking",
    "inspect_policy": "inspection",
    "linear_cka": "cka",
    "load_target": "loading",
    "pca_colors": "pca",
    "probe_error": "ridge",
    "rank_layers": "layer_ranking",
    "token_depth": "depth_probe",
    "uniform": "layer_ranking",
}

__all__ = [
    "SFKIT_API",
    "DepthProbe",
    "DepthSamples",
    "DepthScore",
    "Inspection",
    "LayerRank",
    "Measure",
    "ProbeError",
    "ProbeScore",
    "Ranking",
    "RidgeProbe",
    "capture_tokens",
    "chart",
    "end_anchored",
    "inspect_policy",
    "linear_cka",
    "load_target",
    "pca_colors",
    "probe_error",
    "rank_layers",
    "token_depth",
    "uniform",
]

if TYPE_CHECKING:
    from sfkit_tools.capture import capture_tokens as capture_tokens
    from sfkit_tools.cka import linear_cka as linear_cka
    from sfkit_tools.depth_probe import DepthProbe as DepthProbe
    from sfkit_tools.depth_probe import DepthSamples as DepthSamples
    from sfkit_tools.depth_probe import DepthScore as DepthScore
    from sfkit_tools.depth_probe import token_depth as token_depth
    from sfkit_tools.inspection import inspect_policy as inspect_policy
    from sfkit_tools.layer_ranking import LayerRank as LayerRank
    from sfkit_tools.layer_ranking import Measure as Measure
    from sfkit_tools.layer_ranking import Ranking as Ranking
    from sfkit_tools.layer_ranking import chart as chart
    from sfkit_tools.layer_ranking import end_anchored as end_anchored
    from sfkit_tools.layer_ranking import rank_layers as rank_layers
    from sfkit_tools.layer_ranking import uniform as uniform
    from sfkit_tools.loading import load_target as load_target
    from sfkit_tools.pca import pca_colors as pca_colors
    from sfkit_tools.report import Inspection as Inspection
    from sfkit_tools.ridge import ProbeError as ProbeError
    from sfkit_tools.ridge import ProbeScore as ProbeScore
    from sfkit_tools.ridge import RidgeProbe as RidgeProbe
    from sfkit_tools.ridge import probe_error as probe_error


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "sfkit_tools.inspect_command:inspect",
        name="inspect",
        summary="find blocks, visual tokens and images of any policy, and print the GenericAdapter that aligns it",
    )
    register(
        "sfkit_tools.rank_layers_command:rank_layers",
        name="rank-layers",
        summary="rank the layers of a policy by similarity to the teacher (CKA) and by a depth probe",
    )


# Without a __dir__: pluggy before 1.6 gets every name of dir(), which would load torch for `sfkit --help`.
def __getattr__(name: str) -> object:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'sfkit_tools' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"sfkit_tools.{module}"), name)
    globals()[name] = value
    return value
