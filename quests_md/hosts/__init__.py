"""The programs that move the atoms: thin adapters from each to `Frame` and back."""
