"""The engines' own programs: what of them is on this machine, and how the rest gets here."""
