"""Queries: the SQL that reads points, the same for every engine."""
