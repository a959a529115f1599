"""`gesso reproduce`: run a system's experiments, judge their claims, write what came out.

`run` is the whole, `jobs` runs arms times seeds in processes, `worker` is such a process, `results`
summarises, `figure` draws.
"""
