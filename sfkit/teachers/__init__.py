"""Teachers: frozen sources of 3D-aware features."""
