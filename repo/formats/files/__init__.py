"""Files of points: Parquet, NDJSON, bundles."""
