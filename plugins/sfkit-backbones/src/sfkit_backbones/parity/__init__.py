"""Parity of a port: fixtures with inputs and outputs of a reference implementation, and the comparison with ours."""

from sfkit_backbones.parity.base import BackboneParity, Parity
from sfkit_backbones.parity.comparing import Difference, compare
from sfkit_backbones.parity.fixture import Case, Fixture, save_fixture
from sfkit_backbones.parity.recording import record

__all__ = ["BackboneParity", "Case", "Difference", "Fixture", "Parity", "compare", "record", "save_fixture"]
