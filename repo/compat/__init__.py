"""Code that the two documented classes share: one store per path, capacity, arguments from the environment."""
