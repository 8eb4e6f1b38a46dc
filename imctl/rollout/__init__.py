"""A changed region file, brought to the IDCs one after the other: what is next (pure), the record
that outlives `imctl`, and the driver."""
