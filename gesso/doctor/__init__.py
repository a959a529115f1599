"""`gesso doctor`: what is wrong with a set of captioned pictures, before a training finds out.

Each file of `checks/` looks for a few kinds of fault; all are fed from one pass over the source.
"""
