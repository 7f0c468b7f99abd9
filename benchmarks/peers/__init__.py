"""Peers: other ways to do the same job, each configured as its experts would."""
