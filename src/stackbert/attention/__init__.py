"""Where attention looks: measures of every head, how alike layers are, what growing does to them.

text ─► sample ─► maps ─► measures ─► result ─► statements
                    └───► likeness ──┘
"""
