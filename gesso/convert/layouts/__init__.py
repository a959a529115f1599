"""What `gesso convert` asks of a family of networks. One file each, named as its backbone.

A module has

    MAY_LACK        names of tensors that a format may lose
    notes           (network, to) -> one sentence each on what the result is without
    tensors         (network, to) -> the tensors of format "original" or "diffusers"
    saved           (network) -> its options as text, which are written into files
    diffusers_config (config) -> `config.json` of diffusers' class
    read            (files, where, config.json or None) -> the network in files
    of_gesso        (tensors, description, where) -> the network in a gesso model
    inputs          (config) -> x, t and a condition, the same in every call
    run_diffusers   (config, tensors, config.json or None) -> diffusers' output for the same
"""
