"""ControlNet-Transformer: a picture steers a backbone through copies of its first blocks.

Chen et al. 2024, PixArt-delta, https://arxiv.org/abs/2401.05252, section 3.2; Zhang et al. 2023,
ControlNet, https://arxiv.org/abs/2302.05543. With h_i the tokens after block i, c_i those after its
copy and z the control picture's latent under the backbone's own patch embedder and positions:

    c_0     = copy_0(s + before(z))         s = h_0: the wiring of the released weights;
                                            s = what block 0 read: the ordinary ControlNet
    c_i     = copy_i(c_{i-1})
    h_{i+1} = block_{i+1}(h_i + w after_i(c_i))

`before` and `after_i` are zero at the start, so the backbone then paints as without. A copy is
called with whatever else its block is called with (text, time, ...). w is `Cond.control_scale`.

The branch is a submodule of the backbone and takes hold by hooks: a condition without `control`
runs the backbone as it was. Dims: B batch, N image tokens, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.config import Spec
from gesso.nn.hooks import Hooked, image_tokens, with_image_tokens
from gesso.nn.init import zero_
from gesso.nn.linear import Linear
from gesso.types import GessoError

STAYS = True  # part of the model that is saved, see `gesso.adapters`
Wiring = Literal["released", "ordinary"]


class Config(config.Config):
    """Options of a control branch.

    Attributes:
        condition: how a picture's control picture is made, see `gesso.controls`; None: the branch
            was trained elsewhere, and is only painted with.
        blocks: how many of the backbone's first blocks are copied; of the released weights 13.
        wiring: what the first copy reads, see above.
    """

    condition: Spec | None = None
    blocks: int = Field(default=3, ge=1)
    wiring: Wiring = "released"


class ControlBlock(nn.Module):
    """A copy of one of the backbone's blocks.

    Args:
        block: of the backbone.
        dim: D.
        first: with a projection of the control picture's tokens.
    """

    def __init__(self, block: nn.Module, dim: int, first: bool) -> None:
        super().__init__()
        self.copied_block = copy.deepcopy(block)
        self.before_proj = zero_(Linear(dim, dim)) if first else None
        self.after_proj = zero_(Linear(dim, dim))

    def forward(self, c: Tensor, control: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        """c [B, N, D], control [B, N, D] in the first -> its tokens, and what the trunk is given.

        Args:
            rest: what the block in the trunk is called with besides its tokens.
        """
        if self.before_proj is not None:
            c = c + self.before_proj(control)
        c = image_tokens(self.copied_block(c, *rest))
        return c, self.after_proj(c)


@dataclass
class _Call:
    """What one forward pass of the backbone remembers from block to block."""

    backbone: Hooked
    control: Tensor  # [B, C, h, w]
    scale: Tensor | None  # [B, 1, 1]
    c: Tensor | None = None  # [B, N, D]


class ControlNet(nn.ModuleList):
    """The branch. Made by `attach`.

    Args:
        backbone: whose blocks are copied.
        blocks: how many, from the first.
        dim: D.
        wiring: what the first copy reads.
    """

    def __init__(self, backbone: Hooked, blocks: int, dim: int, wiring: Wiring) -> None:
        copied = list(backbone.trunk)[:blocks]
        super().__init__(ControlBlock(block, dim, i == 0) for i, block in enumerate(copied))
        self.wiring = wiring
        self._call: _Call | None = None

    def begin(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the backbone's forward pass (x, t, cond)."""
        x = args[0] if args else kwargs["x"]
        cond = args[2] if len(args) > 2 else kwargs["cond"]
        self._call = None
        if cond.control is None:
            return
        if cond.control.shape != x.shape:
            raise GessoError(
                f"The control latent is {_shown(cond.control)} where the picture's is {_shown(x)}:"
                " give a control picture of the size that is painted."
            )
        scale = None if cond.control_scale is None else cond.control_scale[..., None]
        self._call = _Call(cast(Hooked, backbone), cond.control, scale)

    def end(self, *_: Any) -> None:
        """After the backbone's forward pass, or its failure."""
        self._call = None

    def after(self, index: int, block: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        """After block `index` of the trunk: run its copy and add what that gives."""
        call = self._call
        if call is None:
            return out
        h, control = image_tokens(out), None
        if index == 0:
            backbone = call.backbone  # its hook point, as patches may be dropped there
            control = backbone.tokens_in(backbone.embed(call.control))  # [B, N, D]
            call.c = h if self.wiring == "released" else args[0]
        call.c, skip = self[index](call.c, control, *args[1:])
        return with_image_tokens(out, h + (skip if call.scale is None else call.scale * skip))


def attach(options: Config, backbone: nn.Module) -> ControlNet:
    """Give a backbone a control branch, as its submodule `controlnet`.

    Args:
        options: of the branch.
        backbone: with what `gesso.nn.hooks.Hooked` declares, and a `config.hidden_size`. Its
            blocks are copied with the weights that they have now.

    Raises:
        GessoError: it declares no trunk, or has fewer blocks.
    """
    name = type(backbone).__name__.lower()
    if not isinstance(backbone, Hooked):
        raise GessoError(f"{name} has no hook points for a control branch: take another backbone.")
    trunk = backbone.trunk
    if options.blocks > len(trunk):
        raise GessoError(
            f"controlnet: blocks is {options.blocks}, but this {name} has {len(trunk)}: set 1 to "
            f"{len(trunk)}."
        )
    dim = backbone.config.hidden_size  # type: ignore[union-attr]
    branch = ControlNet(backbone, options.blocks, dim, options.wiring)  # type: ignore[arg-type]
    backbone.add_module("controlnet", branch)
    # Bound methods and partials of them: a deep copy of the backbone binds them to its own branch.
    backbone.register_forward_pre_hook(branch.begin, with_kwargs=True)
    backbone.register_forward_hook(branch.end, always_call=True)
    for i in range(options.blocks):
        trunk[i].register_forward_hook(partial(branch.after, i))
    return branch


def _shown(x: Tensor) -> str:
    return "x".join(map(str, x.shape[1:]))
