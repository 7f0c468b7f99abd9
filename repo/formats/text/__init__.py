"""Text that other programs wrote: CSV and JSON lines."""
