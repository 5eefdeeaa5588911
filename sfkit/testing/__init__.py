"""For authors of plugins: small stand-ins, and the checks that every adapter and teacher should pass."""
