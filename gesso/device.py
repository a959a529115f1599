"""Which device a name means."""

from __future__ import annotations

import torch

from gesso.types import GessoError


def pick_device(name: str | torch.device | None, option: str = "device") -> torch.device:
    """The device of a name; without one, or by "auto", CUDA where there is one, else the CPU.

    Args:
        name: such as "cpu" or "cuda:1".
        option: what named it, for the message.

    Raises:
        GessoError: no such device here.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0].rstrip(".")
        raise GessoError(
            f"The {option} {str(name)!r} cannot be used ({reason}): use cpu or cuda, or leave it"
            " out."
        ) from None
    return device
