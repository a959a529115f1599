"""Adapters: what is attached to a network. One file each; those that train are found by name.

`Recipe.adapter: {name: lora, ...}` names a module with a `Config` and
`attach(options, backbone)`, which adds modules to a backbone in place; they alone train. With
`STAYS = True` they are part of the model from then on: `Description.adapter` names them, and
loading attaches them again. Otherwise they go into the backbone's weights when it is saved, as a
LoRA does.
"""
