"""The configuration of the stand-in; without arguments a tiny one."""

from __future__ import annotations

from tiny_prismatic import TinyConfig as OpenVLAConfig

__all__ = ["OpenVLAConfig"]
