"""Delivery: sends points in order of their seqs; a cursor advances only after a receipt."""
