"""The referee: ways of training one model, on one budget, on one text, with the noise measured."""
