"""What the two documented classes share: one store a path, capacity, arguments from the environment."""
