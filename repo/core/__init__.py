"""The core of an open store: the journal, the columns, flush, and the rules for using them concurrently."""
