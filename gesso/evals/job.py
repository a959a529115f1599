"""`gesso evaluate`: paint, judge, aggregate. Each step continues where it was interrupted.

OUT/pictures/<model>-<hash>/<prompt>_<k>.png    what models painted
OUT/replies/<judge>/*.jsonl                     what judges said, by picture and ask
OUT/<subject>.json                              a result
OUT/report.html                                 all subjects of the last call
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.config import module
from gesso.evals.fingerprint import fingerprint, versions
from gesso.evals.judging import Asker, abilities_of_specs, check_abilities, open_judge
from gesso.evals.painting import Painter, Settings, Wanted, open_painter, paint_missing
from gesso.evals.pictures import find_pictures
from gesso.evals.prompt_files import file_id
from gesso.evals.stats import intervals, point, tabulate
from gesso.evals.types import Benchmark, Grid, Judge, Options, Picture, Prompt, Tile, Verdict
from gesso.types import GessoError

if TYPE_CHECKING:
    from gesso.pipeline import Pipeline

FORMAT = 1  # of result files
FIRST, CHUNK = 16, 64  # pictures judged side by side, at first and at most
DECODERS = min(8, os.cpu_count() or 1)  # threads that decode the next chunk meanwhile
NAMED = 4  # missing prompts that a message names

Show = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Request:
    """What is to be evaluated; travels to the processes that share the work.

    Attributes:
        benchmark: file name in `gesso/evals/benchmarks`.
        models, pictures: the subjects, in this order. No subject: the shipped model. A model is a
            name, or a pipeline in memory (of one process).
        judges: specs; none: the benchmark's own.
        n: pictures a prompt; None: the benchmark's own number, of a folder all.
        grid: every file of a folder is a sheet of (rows, columns) pictures.
        allow_missing: score what is there.
    """

    benchmark: str
    out: Path
    models: tuple[str | Pipeline, ...] = ()
    pictures: tuple[Path, ...] = ()
    judges: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    settings: Settings = field(default_factory=Settings)
    n: int | None = None
    grid: Grid | None = None
    allow_missing: bool = False
    processes: int = 1
    quiet: bool = False


@dataclass
class Subject:
    """What is judged.

    Attributes:
        name: for people.
        kind: "model" or "pictures".
        files: by prompt id.
        about: fingerprint and settings, for the result.
        grid: (rows, columns) of pictures in every file; None: one.
        most: pictures of a prompt that are judged; None: all.
    """

    name: str
    kind: str
    files: dict[str, list[Path]]
    about: dict[str, Any]
    grid: Grid | None = None
    most: int | None = None


@dataclass
class Setting:
    """What is alike for all subjects of a request."""

    benchmark: Benchmark
    options: Options
    everything: list[Prompt]  # all prompts
    prompts: list[Prompt]  # those that are judged
    n: int
    judges: list[Judge]

    def place(self) -> dict[str, int]:
        return {prompt.id: i for i, prompt in enumerate(self.everything)}


def evaluate(request: Request) -> list[dict[str, Any]]:
    """Paint what is missing, judge, and write a result file for each subject.

    Returns:
        the results, as they stand in the files, each with "path".

    Raises:
        GessoError: no such benchmark, model, judge or prompts; pictures that are missing or
            corrupt, unless allowed.
    """
    request.out.mkdir(parents=True, exist_ok=True)
    with _helpers(request) as finish:
        setting, subjects = _prepare(request, 0)
        if request.processes > 1:
            _judge_share(request, setting, subjects, 0)
        finish()
    results: list[dict[str, Any]] = []
    names: set[str] = set()
    for subject in subjects:
        result = _collect(request, setting, subject)
        name = file_id(subject.name.strip("/").replace("/", "-")) or "subject"
        while name in names:
            name += "-2"
        names.add(name)
        path = request.out / f"{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        results.append(result | {"path": str(path)})
    return results


def evaluate_and_report(request: Request) -> dict[str, Any]:
    """`evaluate`, and the page about it.

    Returns:
        benchmark, judge, report, out and results: for each subject its name, file, overall,
        scores, intervals, n, asked, abstained and missing. Of one subject these stand at the top,
        too.

    Raises:
        GessoError: as `evaluate`.
    """
    from gesso.evals import page

    results = evaluate(request)
    benchmark = open_benchmark(request.benchmark)
    file = request.out / "report.html"
    page.write(file, benchmark, results, own=request.judges in ((), benchmark.judges))
    keys = ("overall", "scores", "intervals", "scale", "n", "asked", "abstained", "missing")
    told = [
        {"subject": r["subject"]["name"], "file": r["path"]} | {key: r[key] for key in keys}
        for r in results
    ]
    shared = {key: results[0][key] for key in ("benchmark", "judge")}
    only = told[0] if len(told) == 1 else {}
    return shared | only | {"results": told, "report": str(file), "out": str(request.out)}


# ---------------------------------------------------------------------------- painting, shares


def _prepare(request: Request, rank: int) -> tuple[Setting, list[Subject]]:
    """Open what is asked for and paint this process's share."""
    benchmark = open_benchmark(request.benchmark)
    models: Sequence[str | Pipeline | None] = request.models
    if not request.models and not request.pictures:
        models = [None]
    subjects: list[Subject] = []
    setting: Setting | None = None
    for model in models:
        painter = open_painter(model, _on_device(request.settings, rank))
        if setting is None:
            options = replace(request.options, words=painter.words)
            setting = _setting(request, benchmark, options)
        subjects.append(_paint(request, setting, painter, rank))
        del painter  # before the next is loaded
    setting = setting or _setting(request, benchmark, request.options)
    for folder in request.pictures:
        found = find_pictures(folder, setting.everything)
        files = {prompt.id: found[prompt.id] for prompt in setting.prompts if prompt.id in found}
        about: dict[str, Any] = {"grid": request.grid} if request.grid else {}
        if request.n is not None:
            sheets = -(-request.n // math.prod(request.grid or (1,)))
            files = {key: some[:sheets] for key, some in files.items()}
        subject = Subject(str(folder), "pictures", files, about, request.grid, request.n)
        subjects.append(subject)
    return setting, subjects


def _setting(request: Request, benchmark: Benchmark, options: Options) -> Setting:
    specs = request.judges or benchmark.default_judges(options)
    benchmark.abilities = abilities_of_specs(specs)
    everything = benchmark.prompts(options)
    if not everything:
        raise GessoError(f"{benchmark.title} has no prompts: its prompt file is empty.")
    judges = [open_judge(spec, request.settings.device) for spec in specs]
    check_abilities(judges, benchmark.needs, benchmark.title)
    prompts = spread(everything, options.limit)
    return Setting(benchmark, options, everything, prompts, request.n or benchmark.n, judges)


def open_benchmark(name: str) -> Benchmark:
    """A benchmark by its file name.

    Raises:
        GessoError: no such benchmark, with the nearest.
    """
    try:
        return module("evals.benchmarks", name).BENCHMARK()
    except GessoError as e:
        raise GessoError(str(e).replace("evals.benchmarks", "benchmark")) from None


def spread(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` prompts, evenly from the categories, in their order."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    by_tag: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_tag.setdefault(prompt.tags[0] if prompt.tags else "", []).append(i)
    turns = sorted(
        (turn, group, i)
        for group, places in enumerate(by_tag.values())
        for turn, i in enumerate(places)
    )
    return [prompts[i] for i in sorted(i for _, _, i in turns[:limit])]


def _paint(request: Request, setting: Setting, painter: Painter, rank: int) -> Subject:
    """Paint this process's share of the prompts."""
    about = {
        "fingerprint": painter.fingerprint,
        "settings": painter.settings,
        "seed": setting.options.seed,
    }
    short = file_id(Path(painter.name).name)[:40]
    what = fingerprint(painter.fingerprint, painter.settings, setting.options.seed, setting.n)
    folder = request.out / "pictures" / f"{short}-{what[:8]}"
    place = setting.place()
    files: dict[str, list[Path]] = {}
    wanted: list[Wanted] = []
    for i, prompt in enumerate(setting.prompts):
        for k in range(setting.n):
            # A picture's seed depends on its prompt's place among all, not on --limit.
            seed = setting.options.seed * 1_000_000 + place[prompt.id] * setting.n + k
            file = folder / f"{prompt.id}_{k}.png"
            files.setdefault(prompt.id, []).append(file)
            if i % request.processes == rank:
                wanted.append(Wanted(file, prompt.text, seed))
    with _bar(request, rank, f"painting {painter.name}") as show:
        paint_missing(painter, wanted, show)
    return Subject(painter.name, "model", files, about)


def _bar(request: Request, rank: int, what: str) -> Any:
    from gesso.progress import steps_bar

    return steps_bar(what, request.quiet or rank > 0)


def _on_device(settings: Settings, rank: int) -> Settings:
    """Each process has a GPU of its own, where there are several."""
    import torch

    count = torch.cuda.device_count()
    if settings.device in (None, "cuda") and count > 1:
        return replace(settings, device=f"cuda:{rank % count}")
    return settings


class _helpers:
    """The other processes of a request: they start at once and end with `finish`."""

    def __init__(self, request: Request) -> None:
        context = multiprocessing.get_context("spawn")
        self.failures = context.SimpleQueue()
        self.processes = [
            context.Process(target=_help, args=(request, rank, self.failures), daemon=True)
            for rank in range(1, request.processes)
        ]

    def __enter__(self) -> Callable[[], None]:
        for process in self.processes:
            process.start()
        return self.finish

    def finish(self) -> None:
        for process in self.processes:
            process.join()
        if not self.failures.empty():
            raise GessoError(self.failures.get())
        for process in self.processes:
            if process.exitcode:
                raise GessoError(
                    f"A process of the evaluation ended with code {process.exitcode}: run the "
                    "same command again, it continues; use fewer --processes if memory was short."
                )

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.is_alive():
                process.terminate()
                process.join()


def _help(request: Request, rank: int, failures: Any) -> None:
    """A process's share of painting and judging."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its helpers
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // request.processes))
    try:
        setting, subjects = _prepare(request, rank)
        _judge_share(request, setting, subjects, rank)
    except GessoError as e:
        failures.put(str(e))


# ------------------------------------------------------------------------------------ judging


def _judge_share(request: Request, setting: Setting, subjects: list[Subject], rank: int) -> None:
    """Judge this process's share; what counts is that the replies are on disk afterwards."""
    asker = Asker(setting.judges, request.out / "replies", str(rank))
    share = setting.prompts[rank :: request.processes]
    for subject in subjects:
        with _bar(request, rank, f"judging {subject.name}") as show:
            for _ in _judge(setting.benchmark, share, subject, asker, show):
                pass


def _judge(
    benchmark: Benchmark, prompts: Sequence[Prompt], subject: Subject, asker: Asker, show: Show
) -> Iterator[Judged]:
    return judge_pictures(
        benchmark, prompts, subject.files, asker, show, grid=subject.grid, most=subject.most
    )


@dataclass
class Judged:
    """One prompt's pictures with their verdicts (one for all, where judged together)."""

    prompt: Prompt
    pictures: list[Picture]
    verdicts: list[Verdict]
    corrupt: list[tuple[Path, str]]


def judge_pictures(
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    files: dict[str, list[Path]],
    asker: Asker,
    show: Show = lambda done, total: None,
    *,
    grid: Grid | None = None,
    most: int | None = None,
) -> Iterator[Judged]:
    """Judge the pictures of prompts, in order; prompts without pictures are passed over.

    Args:
        grid: every file is a sheet of (rows, columns) pictures.
        most: pictures of a prompt that are judged; None: all.
    """
    chunks = list(_chunks([p for p in prompts if p.id in files], files))
    total, done = sum(len(files[p.id]) for chunk in chunks for p in chunk), 0
    with ThreadPoolExecutor(DECODERS) as pool:

        def opened(chunk: list[Prompt]) -> list[Future[list[Looked]]]:
            """In as many tasks as threads: to hand over every picture costs more than a small
            one's decoding."""
            wanted = [file for prompt in chunk for file in files[prompt.id]]
            size = -(-len(wanted) // DECODERS)
            return [
                pool.submit(_look, wanted[i : i + size], grid, asker.seen)
                for i in range(0, len(wanted), size)
            ]

        ahead = opened(chunks[0]) if chunks else []
        for i, chunk in enumerate(chunks):
            looked = iter([seen for future in ahead for seen in future.result()])
            ahead = opened(chunks[i + 1]) if i + 1 < len(chunks) else []
            judged = []
            for prompt in chunk:
                entry = Judged(prompt, [], [], [])
                for file in files[prompt.id]:
                    pictures, reason = next(looked)
                    if reason:
                        entry.corrupt.append((file, reason))
                    else:
                        entry.pictures.extend(pictures)
                entry.pictures = entry.pictures[:most]
                judged.append(entry)
            groups = [
                (entry, group)
                for entry in judged
                for group in (
                    [entry.pictures] if benchmark.together else [[p] for p in entry.pictures]
                )
                if group
            ]
            verdicts = asker.run([benchmark.judge(entry.prompt, group) for entry, group in groups])
            for (entry, group), verdict in zip(groups, verdicts, strict=True):
                entry.verdicts.append(verdict)
                for picture in group:
                    picture.forget()
            done += sum(len(files[prompt.id]) for prompt in chunk)
            show(done, total)
            yield from judged


def _chunks(prompts: list[Prompt], files: dict[str, list[Path]]) -> Iterator[list[Prompt]]:
    """Prompts whose pictures are judged side by side. The first are few, as nothing is judged
    while they are decoded."""
    chunk: list[Prompt] = []
    size, most = 0, FIRST
    for prompt in prompts:
        chunk.append(prompt)
        size += len(files[prompt.id])
        if size >= most:
            yield chunk
            chunk, size, most = [], 0, min(2 * most, CHUNK)
    if chunk:
        yield chunk


Looked = tuple[list[Picture], str]
"""The pictures of a file, and what is wrong with it or ""."""


def _look(files: list[Path], grid: Grid | None, seen: set[str]) -> list[Looked]:
    """The pictures in each file, decoded unless their replies are known."""
    looked: list[Looked] = []
    for file in files:
        sheet = Picture(file)
        pictures = sheet.tiles(*grid) if grid else [sheet]
        try:
            for picture in pictures:
                if picture.digest not in seen:
                    _ = picture.pixels
        except (GessoError, OSError) as e:
            looked.append(([], str(e)))
        else:
            looked.append((pictures, ""))
        if grid:
            sheet.forget()  # its tiles are copies
    return looked


def _collect(request: Request, setting: Setting, subject: Subject) -> dict[str, Any]:
    """Judge (or find judged) all pictures of a subject, and aggregate."""
    benchmark, prompts = setting.benchmark, setting.prompts
    asker = Asker(setting.judges, request.out / "replies", "0")
    corrupt: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    with _bar(request, 0, f"judging {subject.name}") as show:
        for entry in _judge(benchmark, prompts, subject, asker, show):
            corrupt += [(str(file), reason) for file, reason in entry.corrupt]
            if entry.pictures:
                rows.append(_row(entry, benchmark.together))
    present = {row["id"] for row in rows}
    missing = [prompt.id for prompt in prompts if prompt.id not in present]
    if (missing or corrupt) and not request.allow_missing:
        raise GessoError(_missing(request, subject, prompts, missing, corrupt))
    if not rows:
        raise GessoError(f"{subject.name} has no picture that can be judged.")
    return result_of(setting, subject, rows, missing, corrupt)


def _row(entry: Judged, together: bool) -> dict[str, Any]:
    """A judged prompt as it stands in a result file."""

    def file(picture: Picture) -> dict[str, Any]:
        told = {"file": str(picture.file), "sha256": picture.digest}
        if isinstance(picture, Tile):
            return told | {"tile": picture.place, "grid": picture.grid}
        return told

    verdicts = []
    for i, verdict in enumerate(entry.verdicts):
        pictures = entry.pictures if together else [entry.pictures[i]]
        verdicts.append(
            {
                "pictures": [file(p) for p in pictures],
                "score": verdict.score,
                "reasons": verdict.reasons,
                "parts": verdict.parts,
                "asked": verdict.asked,
                "abstained": verdict.abstained,
            }
        )
    prompt = entry.prompt
    return {"id": prompt.id, "prompt": prompt.text, "tags": prompt.tags, "verdicts": verdicts}


def result_of(
    setting: Setting,
    subject: Subject,
    rows: list[dict[str, Any]],
    missing: list[str],
    corrupt: list[tuple[str, str]],
) -> dict[str, Any]:
    """A result: scores with intervals, what they depend on, and every verdict."""
    benchmark = setting.benchmark
    table = tabulate(rows, benchmark.weight)
    values = point(benchmark, table)
    ranges = intervals(benchmark, table)
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    prompts = [[p.id, p.text, p.meta] for p in setting.prompts]
    return {
        "format": FORMAT,
        "benchmark": benchmark.name(setting.options),
        "file": type(benchmark).__module__.rpartition(".")[2],
        "title": benchmark.title,
        "revision": benchmark.revision,
        "protocol": benchmark.source,
        "judge": " + ".join(judge.name for judge in setting.judges),
        "judges": [
            {"name": j.name, "fingerprint": j.fingerprint, "versions": j.versions}
            for j in setting.judges
        ],
        "published_judge": benchmark.judge_asked,
        "subject": {"name": subject.name, "kind": subject.kind, **subject.about},
        "prompts": {"count": len(prompts), "fingerprint": fingerprint(json.dumps(prompts))},
        "seed": setting.options.seed,
        "n": sum(len(v["pictures"]) for v in verdicts),
        "overall": _number(values.pop("overall")),
        "scores": {name: _number(value) for name, value in values.items()},
        "intervals": {name: [_number(v) for v in pair] for name, pair in ranges.items()},
        "scale": benchmark.scale,
        "correct": _share([v["score"] == 1 for v in verdicts if v["score"] is not None]),
        "any_correct": _share([any(v["score"] == 1 for v in r["verdicts"]) for r in rows]),
        "asked": sum(v["asked"] for v in verdicts),
        "abstained": sum(v["abstained"] for v in verdicts),
        "missing": missing,
        "corrupt": [{"file": file, "reason": reason} for file, reason in corrupt],
        "versions": versions("gesso", "torch", "numpy", "pillow")
        | {"python": platform.python_version()},
        "rows": rows,
    }


def _number(value: float) -> float | None:
    """JSON has no nan: a category that nothing was counted in."""
    return None if value != value else value


def _share(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _missing(
    request: Request,
    subject: Subject,
    prompts: Sequence[Prompt],
    missing: list[str],
    corrupt: list[tuple[str, str]],
) -> str:
    """One sentence about what cannot be scored; the whole list goes to a file."""
    list_file = request.out / f"missing-{file_id(Path(subject.name).name) or 'pictures'}.txt"
    lines = [f"no picture: {key}" for key in missing]
    lines += [f"cannot be read: {file}: {reason}" for file, reason in corrupt]
    list_file.write_text("\n".join(lines) + "\n")
    parts = []
    if missing:
        some = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        parts.append(f"no readable picture for {len(missing)} of {len(prompts)} prompts ({some})")
    if corrupt:
        file, reason = corrupt[0]
        more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
        parts.append(f"a file that cannot be read, {file}{more} ({reason.rstrip('.')})")
    return (
        f"{subject.name} has {' and '.join(parts)}, all listed in {list_file}: add them, or score "
        "the rest with --allow-missing; what was judged is kept."
    )
