"""Formats: points in and out as tables, as files and as text."""
