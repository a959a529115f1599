"""peft's `adapter_config.json` for adapters: ranks and alphas a layer, and the shapes it builds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gesso.nn.low_rank import Layer
from gesso.types import GessoError

KINDS = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR"}


def peft_config(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """The configuration with which peft builds and scales these adapters.

    Args:
        layers: by their path in diffusers' transformer.

    Raises:
        GessoError: what one peft adapter cannot hold: several kinds, a DoRA on some layers only, a
            LoKr of shapes that peft does not build.
    """
    kinds = {layer.kind for layer in layers.values()}
    if len(kinds) > 1:
        raise GessoError(
            f"A peft adapter is of one kind, and this one is {' and '.join(sorted(kinds))}: "
            "choose another format."
        )
    kind = kinds.pop()
    decomposed = {layer.magnitude is not None for layer in layers.values()}
    if len(decomposed) > 1:
        raise GessoError(
            "A peft adapter is a DoRA on all of its layers or on none, and this one is on some: "
            "choose another format."
        )
    config: dict[str, Any] = {
        "peft_type": KINDS[kind],
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": sorted(layers),
    }
    alpha_name = "alpha"
    if kind == "lora":
        alpha_name = "lora_alpha"
        config |= {
            "use_dora": decomposed == {True},
            "use_rslora": all(layer.rank_stabilised for layer in layers.values()),
            "bias": "none",
            "fan_in_fan_out": False,
            "lora_dropout": 0.0,
        }
    elif decomposed == {True}:
        raise GessoError(f"peft has no DoRA on a {kind}: choose another format.")
    elif kind == "lokr":
        layers, factorisation = _lokr(layers)
        config |= factorisation
    else:
        config["use_effective_conv2d"] = any("t1" in la.factors for la in layers.values())
    stabilised = config.get("use_rslora", False)
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {path: _alpha(layer, stabilised) for path, layer in layers.items()}
    rank, alpha = _usual(ranks), _usual(alphas)
    return config | {
        "r": rank,
        alpha_name: alpha,
        "rank_pattern": {p: r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {p: a for p, a in alphas.items() if a != alpha},
    }


def _alpha(layer: Layer, stabilised: bool) -> float:
    if layer.alpha is not None and layer.rank_stabilised == stabilised:
        return layer.alpha
    return layer.scale * layer.rank


def _usual(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _lokr(layers: Mapping[str, Layer]) -> tuple[dict[str, Layer], dict[str, Any]]:
    """Ranks with which peft makes the same factors whole, and the `decompose_factor` of all layers.

    peft derives every shape from that one number.
    """
    sizes = {path: _sizes(layer) for path, layer in layers.items()}
    fitting = [-1, *sorted({n for (o1, _, i1, _) in sizes.values() for n in (o1, i1)})]
    factor = next(
        (
            f
            for f in fitting
            if all(
                (_factorise(o1 * o2, f), _factorise(i1 * i2, f)) == ((o1, o2), (i1, i2))
                for o1, o2, i1, i2 in sizes.values()
            )
        ),
        None,
    )
    both = any("w1_a" in layer.factors for layer in layers.values())
    ranked = {}
    for path, layer in layers.items():
        o1, o2, i1, i2 = sizes[path]
        rank = -(-max(o2, i2) // 2) if layer.whole else layer.rank
        # peft's own rule for which factors are whole.
        first = not (both and rank < max(o1, i1) / 2)
        second = not rank < max(o2, i2) / 2
        if factor is None or (first, second) != ("w1" in layer.factors, "w2" in layer.factors):
            raise GessoError(
                f"peft builds no LoKr of the shapes that {path} has ({o1}x{i1} times {o2}x{i2}): "
                "choose another format."
            )
        ranked[path] = replace(layer, rank=rank, alpha=layer.scale * rank) if layer.whole else layer
    conv = any("t2" in layer.factors for layer in layers.values())
    return ranked, {
        "decompose_factor": factor,
        "decompose_both": both,
        "use_effective_conv2d": conv,
    }


def _sizes(layer: Layer) -> tuple[int, int, int, int]:
    """(o1, o2, i1, i2) of o = o1 o2, i = i1 i2; i2 holds the kernel where a file flattens it."""
    f = layer.factors
    o1, i1 = f["w1"].shape if "w1" in f else (f["w1_a"].shape[0], f["w1_b"].shape[1])
    if "w2" in f:
        o2, i2 = f["w2"].shape[:2]
    else:
        o2 = f["w2_a"].shape[1 if "t2" in f else 0]
        i2 = f["w2_b"].shape[1]
    return o1, o2, i1, i2


def _factorise(size: int, factor: int) -> tuple[int, int]:
    """peft's rule: `factor` and its complement if it divides `size`, else the most even pair, the
    smaller first, whose smaller number is at most `factor` (-1: no limit)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor < 0 else min(math.isqrt(size), factor)
    small = next(n for n in range(limit, 0, -1) if size % n == 0)
    return small, size // small
