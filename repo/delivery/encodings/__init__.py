"""Encodings: the texts in which sinks send points and records. Pure: they connect to nothing."""
