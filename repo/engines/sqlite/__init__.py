"""SQLite: its driver, and the functions that it lacks."""
