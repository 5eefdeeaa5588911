"""From a batch to what the student saw: views, cameras, grids of tokens and geometry."""
