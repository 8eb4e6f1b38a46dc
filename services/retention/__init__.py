"""When op logs may be cut, and from what an IDC starts whose records are cut away (rule 8)."""
