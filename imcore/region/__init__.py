"""The region file: ``model`` (typed, later the CRD schemas) and ``load`` (YAML with line marks)."""
