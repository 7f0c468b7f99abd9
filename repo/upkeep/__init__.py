"""Upkeep: jobs that delete, rewrite or measure the data of a store."""
