"""One file for each check, found by file name; each has `build(plan)`, see `gesso.doctor.types`."""
