"""What the two documented classes stand on: shared stores, room, and arguments from the environment."""
