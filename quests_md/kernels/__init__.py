"""Compiled loops: arrays in, arrays out, no validation. Callers check; see `descriptors` and `information`."""
