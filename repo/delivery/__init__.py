"""Delivery: points leave the store in the order of their seqs, and a cursor moves only after a receipt."""
