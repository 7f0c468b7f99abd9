"""The schema: the version of a database, and the upgrade to the current one."""
