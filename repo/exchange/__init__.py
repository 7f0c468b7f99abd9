"""Exchange: readings in and out as files of other formats."""
