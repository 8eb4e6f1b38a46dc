"""Cold segments: messages as Parquet files, written from what the IDCs hold (docs/archive.md)."""
