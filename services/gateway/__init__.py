"""Holds connections and nothing else: frames, idle time-outs, write coalescing, back-pressure."""
