"""Upkeep: jobs that drop, rewrite or measure what a store holds."""
