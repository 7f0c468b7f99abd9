"""Which process uses the files of a store: the lease, forks, and files that are in use."""
