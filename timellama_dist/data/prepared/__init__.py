"""Clean series become partitioned Parquet with a manifest and scalers."""
