"""SQLite: its driver, its connection pool, copies of its files, and the functions that it lacks."""
