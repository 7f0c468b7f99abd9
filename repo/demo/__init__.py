"""The demo: a simulated site, with writer, sender and receiver as separate processes that are killed on the way."""
