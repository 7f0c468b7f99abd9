"""Repositories: one table family each, on a connection that the caller gives; they never commit."""
