"""Peers: other ways to do the same job, each set up as those who know it best would set it up."""
