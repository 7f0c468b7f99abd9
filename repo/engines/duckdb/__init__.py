"""DuckDB: its driver, its dialect, its checkpoints."""
