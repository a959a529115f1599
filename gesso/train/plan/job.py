"""The job behind `gesso plan`: every stage, their sum, and the file that training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gesso.train.plan.compare import PLAN
from gesso.train.plan.estimate import plan_recipe
from gesso.train.plan.probe import SECONDS
from gesso.train.stages import Stage, default_run
from gesso.train.stages_run import folders


def plan_stages(
    stages: list[Stage],
    run: Path | None = None,
    *,
    gpus: int | None = None,
    gpu: str | None = None,
    price: float | None = None,
    seconds: float = SECONDS,
    quiet: bool = False,
) -> dict[str, Any]:
    """Plan a recipe, and keep the plan in its run's folder for the training to compare itself with.

    Args:
        stages: as `load_stages` gives them; a recipe without stages is one.
        run: the run's folder; None: runs/NAME.
        gpus, gpu, price, seconds: see `plan_recipe`.
        quiet: show no progress.

    Returns:
        stages: what `plan_recipe` returns of each, with its `stage` name; total: flops, steps,
        pictures, days, device_days, dollars; plan: the file of the first stage, None where the
        folder cannot be written.

    Raises:
        GessoError: see `plan_recipe`; names the stage.
    """
    from gesso.progress import steps_bar

    run = run or default_run(stages)
    plans: list[dict[str, Any]] = []
    with steps_bar("planning", quiet) as show:
        for i, stage in enumerate(stages):
            show(i, len(stages))
            found = plan_recipe(stage.recipe, gpus=gpus, gpu=gpu, price=price, seconds=seconds)
            plans.append({"stage": stage.name, **found})
        show(len(stages), len(stages))
    total = {key: sum(p[key] for p in plans) for key in ("flops", "steps", "pictures", "days")}
    total["device_days"] = sum(p["device_days"] for p in plans)
    total["dollars"] = None if price is None else sum(p["dollars"] for p in plans)
    files = [folder / PLAN for folder in folders(stages, run)]
    try:
        for file, stage, found in zip(files, stages, plans, strict=True):
            _write(file, found | {"made_for": stage.recipe.model_dump(mode="json")})
    except OSError:
        return {"stages": plans, "total": total, "plan": None}
    return {"stages": plans, "total": total, "plan": str(files[0])}


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".tmp")
    part.write_text(json.dumps(values, indent=1) + "\n")
    part.replace(file)
