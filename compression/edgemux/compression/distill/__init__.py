"""Small models that learn from a large one."""
