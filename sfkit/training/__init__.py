"""One aligned training step: tap, teacher, resampling, loss and the checks that it really trains."""
