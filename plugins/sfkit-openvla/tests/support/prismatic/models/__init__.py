"""What scripts put around a policy."""
