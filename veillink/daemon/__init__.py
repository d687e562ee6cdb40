"""One process's life, from its start to its exit."""
