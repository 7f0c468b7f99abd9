"""The core of an open store: journal, columns, flush, and who may use them when."""
