"""A plan as a person reads it."""

from __future__ import annotations

from typing import Any

UNITS = [(1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")]


def tell(result: dict[str, Any]) -> str:
    """The whole plan as text: a paragraph for every stage, and a sum where there are several."""
    said: set[str] = set()  # notes are told once
    parts = [_stage(plan, said) for plan in result["stages"]]
    if len(parts) > 1:
        parts.append(_sum(result))
    if result["plan"] is not None:
        parts.append(f"In {result['plan']}: `gesso train` compares itself with it after 20 steps.")
    return "\n\n".join(parts)


def _stage(plan: dict[str, Any], said: set[str]) -> str:
    many = plan["devices"] > 1
    where = f"{plan['devices']} x {plan['device']}" if many else plan["device"]
    if plan["device"] == "cpu":
        where = f"this machine, {plan['devices']} process{'es' if many else ''}"
    title = plan["stage"] or plan["recipe"]
    frozen = plan["parameters"] - plan["trained"]
    parameters = (
        f"{_count(plan['parameters'])}{f', {_count(frozen)} of them frozen' * bool(frozen)}"
    )
    parts, seconds = plan["memory"], plan["seconds"]
    rows = [
        ("parameters", parameters),
        (
            "computing",
            f"{flops(plan['flops_per_picture'])} a picture, {flops(plan['flops'])} in all",
        ),
        (
            "memory",
            f"{memory(parts['peak'])} of {memory(plan['memory_of_device'])}: "
            + ", ".join(f"{k} {memory(v)}" for k, v in parts.items() if k != "peak" and v),
        ),
        (
            "a step",
            f"{duration(plan['seconds_per_step'])}: "
            + ", ".join(
                f"{k} {100 * v / plan['seconds_per_step']:.0f} %" for k, v in seconds.items() if v
            ),
        ),
        (
            "speed",
            f"{plan['pictures_per_second']:.3g} pictures/s, {flops(plan['rate'])}/s",
        ),
        (
            "training",
            f"{plan['steps']} steps, {_count(plan['pictures'])} pictures, {_cost(plan)}",
        ),
    ]
    if plan["cache"]:
        rows.append(("cache", _cache(plan["cache"])))
    lines = [f"{title} on {where}", *(f"  {name:<11} {text}" for name, text in rows)]
    if plan["table"]:
        lines += [
            "  what fits   size  batch     memory     a step  pictures/s",
            *map(_row, plan["table"]),
        ]
    lines += [f"  note: {note}" for note in plan["notes"] if note not in said]
    said.update(plan["notes"])
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    return (
        f"  {row['size']:>16} {row['batch']:>6} {memory(row['memory']):>10} "
        f"{duration(row['seconds_per_step']):>10} {row['pictures_per_second']:>11.3g}"
    )


def _sum(result: dict[str, Any]) -> str:
    lines = [f"{'stage':<24} {'steps':>9} {'pictures':>10} {'FLOPs':>12} {'time':>10}  device-days"]
    for plan in [*result["stages"], {"stage": "all", **result["total"]}]:
        lines.append(
            f"{plan['stage']:<24} {plan['steps']:>9} {_count(plan['pictures']):>10} "
            f"{flops(plan['flops']):>12} {duration(86400 * plan['days']):>10} "
            f"{plan['device_days']:>12.4g}"
            + ("" if plan["dollars"] is None else f"  ${plan['dollars']:,.0f}")
        )
    return "\n".join(lines)


def _cost(plan: dict[str, Any]) -> str:
    days = duration(86400 * plan["days"])
    many = plan["device"] != "cpu" and plan["devices"] > 1
    said = f"{days}, {plan['device_days']:.4g} device-days" if many else days
    return said if plan["dollars"] is None else f"{said}, ${plan['dollars']:,.2f}"


def _cache(cache: dict[str, Any]) -> str:
    each = f"{cache['bytes_per_picture'] / 1024:.1f} KiB, {flops(cache['flops_per_picture'])} each"
    if cache["pictures"] is None:
        return f"{each}; how many there are is not known"
    return (
        f"{memory(cache['bytes'])} for {cache['pictures']} pictures, made in "
        f"{duration(cache['seconds'])}; {each}"
    )


def flops(n: float) -> str:
    """A number of floating-point operations, such as "1.2 TFLOP"."""
    scale, unit = next(((s, u) for s, u in UNITS if n >= s), (1e6, "MFLOP"))
    return f"{n / scale:.3g} {unit}"


def memory(size: float) -> str:
    """Bytes as "1.5 GiB" or "320 MiB"."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def duration(seconds: float) -> str:
    """From "12 ms" to "3.5 days"."""
    for limit, unit, scale in (
        (1, "ms", 1e-3),
        (100, "s", 1),
        (6000, "min", 60),
        (172800, "h", 3600),
    ):
        if seconds < limit:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"


def _count(n: float) -> str:
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= scale:
            return f"{n / scale:.4g}{unit}"
    return f"{n:g}"
