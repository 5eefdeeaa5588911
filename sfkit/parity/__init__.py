"""Proving a port: fixtures with inputs and outputs of a reference implementation, and the comparison with ours."""

from sfkit.parity.base import BackboneParity, Parity
from sfkit.parity.comparing import Difference, compare
from sfkit.parity.fixture import Case, Fixture, save_fixture
from sfkit.parity.recording import record

__all__ = ["BackboneParity", "Case", "Difference", "Fixture", "Parity", "compare", "record", "save_fixture"]
