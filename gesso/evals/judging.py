"""Asking judges: finding them by name, batching asks over pictures, keeping every reply on disk."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from gesso.config import module, modules, resolve
from gesso.evals.types import (
    ABILITIES,
    Answer,
    Ask,
    Depth,
    Detect,
    Detection,
    Embed,
    Judge,
    Judging,
    Match,
    MatchText,
    Question,
    Rate,
    Rating,
    Read,
    Reply,
    Style,
    Verdict,
)
from gesso.types import GessoError

KIND = "evals.judges"
DETECTED = tuple(f.name for f in fields(Detection))


def parse_spec(text: str) -> dict[str, Any]:
    """ "NAME", "NAME:PATH" or "NAME:key=value,key=value" -> {"name", and options}.

    Values are read as YAML scalars ("0.3" is a number, "true" a truth value).
    """
    import yaml

    name, _, rest = text.partition(":")
    spec: dict[str, Any] = {"name": name}
    if not rest:
        return spec
    if "=" not in rest.split(",")[0]:
        return spec | {"path": rest}
    for item in rest.split(","):
        key, eq, value = item.partition("=")
        if not eq:
            raise GessoError(
                f"The judge {text!r} has an option {item!r} without a value: write key=value."
            )
        spec[key.strip()] = yaml.safe_load(value)
    return spec


def open_judge(spec: str | dict[str, Any], device: str | None = None) -> Judge:
    """A judge by its spec, see `parse_spec`.

    Raises:
        GessoError: no such judge, an unknown option, or its files are not there.
    """
    found, options = resolve(KIND, parse_spec(spec) if isinstance(spec, str) else spec)
    return found.build(options, device)


def abilities_of(name: str) -> tuple[str, ...]:
    """The abilities of a judge's file, read from its source: a judge whose libraries are not
    installed can be listed, too."""
    file = Path(str(module("evals", "judges").__path__[0])) / f"{name}.py"
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ABILITIES":
            return tuple(ast.literal_eval(node.value))
    return ()


def judges_with(ability: str) -> list[str]:
    """Names of the judges that have an ability."""
    return [n.replace("_", "-") for n in modules(KIND) if ability in abilities_of(n)]


def abilities_of_specs(specs: Iterable[str]) -> frozenset[str]:
    """What judges can do between them, before any is loaded; an unknown one can do nothing."""
    names = {str(parse_spec(spec)["name"]).replace("-", "_") for spec in specs}
    return frozenset(a for name in names & set(modules(KIND)) for a in abilities_of(name))


def check_abilities(judges: Sequence[Judge], needs: Iterable[str], benchmark: str) -> None:
    """Whether judges can do between them what a benchmark needs.

    Raises:
        GessoError: an ability that none has, with the judges that have it.
    """
    for need in needs:
        either = need.split("|")
        if not any(ability in judge.abilities for judge in judges for ability in either):
            names = " and ".join(judge.name for judge in judges) or "no judge"
            able = dict.fromkeys(name for ability in either for name in judges_with(ability))
            raise GessoError(
                f"{benchmark} needs a judge with the ability {need.replace('|', ' or ')}, which "
                f"{names} has not: add --judge with one of {', '.join(able) or 'none yet'}."
            )


class Asker:
    """Drives judgings and answers their asks, each from disk where it was answered before.

    Args:
        judges: an ask goes to the first that has the ability.
        folder: replies are kept in FOLDER/<judge fingerprint>/<shard>.jsonl; None: in memory only.
        shard: a name of this process's own.
    """

    def __init__(
        self, judges: Sequence[Judge], folder: Path | None = None, shard: str = "0"
    ) -> None:
        self.judges = list(judges)
        self.known: dict[str, dict[tuple[str, str], Reply]] = {}
        self.seen: set[str] = set()  # digests of pictures that something is known of
        self.asked = self.answered = 0  # asks in all, and those that went to a judge
        self._files: dict[str, Path] = {}
        for judge in self.judges:
            self.known[judge.fingerprint] = {}
            if folder is not None:
                place = folder / judge.fingerprint
                place.mkdir(parents=True, exist_ok=True)
                self._files[judge.fingerprint] = place / f"{shard}.jsonl"
                for file in sorted(place.glob("*.jsonl")):
                    self._load(judge.fingerprint, file)

    def run(self, judgings: Sequence[Judging]) -> list[Verdict]:
        """Drive judgings to their verdicts, side by side.

        Raises:
            GessoError: from a judge; replies up to then are kept.
        """
        verdicts: dict[int, Verdict] = {}
        replies: dict[int, Sequence[Reply] | None] = dict.fromkeys(range(len(judgings)))
        while replies:
            waiting: dict[int, Sequence[Ask]] = {}
            for i, given in replies.items():
                try:
                    waiting[i] = judgings[i].send(given)  # type: ignore[arg-type]
                except StopIteration as end:
                    verdicts[i] = end.value
            answers = iter(self.replies([ask for asks in waiting.values() for ask in asks]))
            replies = {i: [next(answers) for _ in asks] for i, asks in waiting.items()}
        return [verdicts[i] for i in range(len(judgings))]

    def replies(self, asks: Sequence[Ask]) -> list[Reply]:
        """Replies in the order of the asks; equal asks are asked once."""
        places = [(self._judge(ask), _key(ask)) for ask in asks]
        todo: dict[tuple[str, object], dict[tuple[str, str], Ask]] = {}
        for ask, (judge, key) in zip(asks, places, strict=True):
            if key not in self.known[judge.fingerprint]:
                scale = (ask.low, ask.high) if isinstance(ask, Rate) else type(ask).__name__
                todo.setdefault((judge.fingerprint, scale), {}).setdefault(key, ask)
        for (fingerprint, _), group in todo.items():
            judge = next(j for j in self.judges if j.fingerprint == fingerprint)
            # In slices, so that an interruption loses little.
            keys, slice_size = list(group), max(64, 4 * judge.batch_size)
            for i in range(0, len(keys), slice_size):
                some = keys[i : i + slice_size]
                given = _call(judge, [group[key] for key in some])
                if len(given) != len(some):
                    raise GessoError(
                        f"The judge {judge.name} gave {len(given)} replies to {len(some)} asks: "
                        "its file in gesso/evals/judges is at fault."
                    )
                self._keep(fingerprint, dict(zip(some, given, strict=True)))
        self.asked += len(asks)
        self.answered += sum(map(len, todo.values()))
        return [self.known[judge.fingerprint][key] for judge, key in places]

    def _judge(self, ask: Ask) -> Judge:
        ability = ABILITIES[type(ask)]
        for judge in self.judges:
            if ability in judge.abilities:
                return judge
        check_abilities(self.judges, [ability], "The benchmark")
        raise AssertionError

    def _keep(self, fingerprint: str, replies: dict[tuple[str, str], Reply]) -> None:
        self.known[fingerprint] |= replies
        self.seen.update(digest for digest, _ in replies)
        if fingerprint in self._files:
            lines = [
                json.dumps({"picture": digest, "ask": ask, "reply": encode(reply)}) + "\n"
                for (digest, ask), reply in replies.items()
            ]
            with self._files[fingerprint].open("a") as file:
                file.writelines(lines)

    def _load(self, fingerprint: str, file: Path) -> None:
        text = file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text) and file == self._files[fingerprint]:
            file.write_bytes(whole)  # without the line that a kill cut short
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                key, reply = (row["picture"], row["ask"]), decode(row["reply"])
            except (ValueError, KeyError, TypeError):
                continue  # asked again
            self.known[fingerprint][key] = reply
            self.seen.add(key[0])


def _key(ask: Ask) -> tuple[str, str]:
    """(digest of the picture or "", digest of what is asked)."""
    digest = "" if isinstance(ask, MatchText) else ask.picture.digest
    what = [type(ask).__name__]
    what += [getattr(ask, f.name) for f in fields(ask) if f.name != "picture"]
    return digest, hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


def _call(judge: Judge, asks: list[Any]) -> Sequence[Reply]:
    """One call of the judge's method for asks of one kind."""
    first = asks[0]
    if isinstance(first, MatchText):
        return judge.text_similarity([a.text for a in asks], [a.candidates for a in asks])
    images = [a.picture.pixels for a in asks]
    if isinstance(first, Detect):
        return judge.detect(images, [a.classes for a in asks])
    if isinstance(first, Question):
        return judge.answer(images, [a.text for a in asks], [a.choices for a in asks])
    if isinstance(first, Match):
        return judge.similarity(images, [a.texts for a in asks])
    if isinstance(first, Rate):
        return judge.rate(images, [a.criterion for a in asks], first.low, first.high)
    if isinstance(first, Style):
        return judge.style(images)
    if isinstance(first, Depth):
        return judge.depth(images, [a.boxes for a in asks])
    if isinstance(first, Embed):
        return list(judge.embed(images))
    assert isinstance(first, Read)
    return judge.read(images)


def encode(reply: Reply) -> Any:
    """A reply as JSON; floats keep every bit, masks are packed."""
    if isinstance(reply, Answer):
        return {"type": "answer", **asdict(reply)}
    if isinstance(reply, Rating):
        return {"type": "rating", **asdict(reply)}
    if isinstance(reply, str):
        return {"type": "text", "text": reply}
    if isinstance(reply, np.ndarray):
        return {"type": "features", "values": reply.astype(np.float32).tolist()}
    if reply and isinstance(reply[0], Detection):
        return {"type": "objects", "objects": [_encode_detection(d) for d in reply]}  # type: ignore[arg-type]
    return {"type": "list", "values": [float(v) for v in reply]}  # type: ignore[arg-type]


def decode(value: Any) -> Reply:
    """The inverse of `encode`."""
    kind = value.pop("type")
    if kind == "answer":
        return Answer(**value)
    if kind == "rating":
        return Rating(**value)
    if kind == "text":
        return value["text"]
    if kind == "features":
        return np.array(value["values"], np.float32)
    if kind == "objects":
        return [_decode_detection(d) for d in value["objects"]]
    return list(value["values"])


def _encode_detection(found: Detection) -> dict[str, Any]:
    values = {name: getattr(found, name) for name in DETECTED}
    values["box"] = [float(v) for v in found.box]
    values["confidence"] = float(found.confidence)
    if found.mask is not None:
        packed = zlib.compress(np.packbits(found.mask).tobytes(), 1)
        values["mask"] = [*found.mask.shape, base64.b64encode(packed).decode()]
    return values


def _decode_detection(values: dict[str, Any]) -> Detection:
    values["box"] = tuple(values["box"])
    if values["mask"] is not None:
        height, width, packed = values["mask"]
        bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
        values["mask"] = np.unpackbits(bits, count=height * width).reshape(height, width) > 0
    return Detection(**values)
