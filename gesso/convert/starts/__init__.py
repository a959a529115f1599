"""Weights of one architecture as the start of another. One file each, found by name.

A module has `Config`, and `start(options, origin, backbone)`, which fills the backbone's weights in
place from an `Origin` (`gesso.convert.origin`).
"""
