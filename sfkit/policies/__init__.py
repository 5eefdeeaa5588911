"""Policy adapters: where a policy keeps its visual tokens, its images and its loss."""
