"""Encodings: the bytes in which sinks send points. They never connect to anything."""
