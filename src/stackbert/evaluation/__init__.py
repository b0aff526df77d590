"""What a model has learned: frozen probes, minimal pairs, held-out loss; nothing is trained but a
linear classifier.

data ─► models ─► probes, pairs, loss ─► scores with errors and paired tests ─► result
"""
