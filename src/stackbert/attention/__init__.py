"""Where attention looks, how alike layers are, and what growing does to both."""
