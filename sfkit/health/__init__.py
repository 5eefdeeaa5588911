"""The health monitor: figures that tell whether alignment helps or hurts, and warnings in plain words."""
