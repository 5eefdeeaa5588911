"""From the arguments of ``wrap`` to components."""
