"""What every part shares: the words of the domain, clocks, codecs, errors, the region model."""
