"""Looking into a policy that nobody has written an adapter for: what must a GenericAdapter be told?"""

from __future__ import annotations

from sfkit.inspection.findings import Inspection
from sfkit.inspection.inspecting import inspect_policy
from sfkit.inspection.target import load_target

__all__ = ["Inspection", "inspect_policy", "load_target"]
