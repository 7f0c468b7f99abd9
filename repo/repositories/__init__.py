"""Repositories: one family of tables each, on a connection that the caller provides. They never commit."""
