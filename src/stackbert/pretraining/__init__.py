"""Pre-training in stages: the loop, what it trains with, what it writes down."""
