"""Transfer: jobs that move points between a store and files."""
