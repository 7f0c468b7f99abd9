"""The schema: which version a database has, and how it is brought to the present one."""
