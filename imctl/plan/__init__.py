"""What a changed region file means for a deployment that runs: pure, no I/O and no clock."""
