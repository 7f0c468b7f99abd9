"""Sinks: one module per kind of destination. `registry` says which; `repo.delivery.protocol` has their interface."""
