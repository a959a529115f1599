"""The small experiments behind published claims, run by `gesso reproduce`.

`design` says what an experiment is, `verdict` how its result is judged, `measure` trains and
scores; every other file is one experiment, with a function `experiment()`.
"""
