"""SQLite: its driver, and functions that it lacks."""
