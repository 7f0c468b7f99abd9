"""Formats: points as tables, files and text."""
