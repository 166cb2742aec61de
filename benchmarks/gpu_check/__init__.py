"""What the engine does on a GPU, measured: right, how fast, and how far from the card's limits. See `__main__`."""
