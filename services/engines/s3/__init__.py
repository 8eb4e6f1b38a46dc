"""Blobs on a store that speaks S3."""
