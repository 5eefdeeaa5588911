"""Policy adapters: where a policy keeps its visual tokens, its pictures and its loss."""
