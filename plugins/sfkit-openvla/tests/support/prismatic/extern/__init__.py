"""What transformers loads."""
