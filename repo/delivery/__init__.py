"""Delivery: sends the points and records of a store to its sinks; a cursor moves only after the sink's answer."""
