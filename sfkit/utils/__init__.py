"""How the alignment loss gets into what a training loop differentiates."""
