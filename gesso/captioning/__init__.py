"""Captions for training: writing dense ones, and how much a set of captions says."""
