"""Where attention looks: measures, likeness between layers and models, and growth's effect.

    text ─► sentences ─► maps ─► measures ─► AttentionResult ─► statements, table
                              └► rows ────► likeness

`result` is what comes out, `maps` runs the model, `measures` and `likeness` are arithmetic on maps,
`growth` follows a run, `measure` is the door.
"""
