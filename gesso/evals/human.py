"""`gesso evaluate human --pictures A --pictures B`: people vote on a local web page, blind.

Two pictures of the same name (or prompt) from two folders stand side by side, which folder left and
right drawn anew each time; the vote is "left", "right", "tie" or "skip". Votes are appended to
OUT/votes.jsonl, so an interrupted session goes on, and several people may vote at once. From them
come Elo ratings with bootstrap intervals and the rates at which one folder was preferred.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from gesso.evals.measure import prompts_of
from gesso.evals.pictures import all_pictures
from gesso.types import GessoError

HOST = "127.0.0.1"  # of this machine only
VOTES = ("left", "right", "tie", "skip")
RESAMPLES = 1000
ELO, BASE = 400.0, 1000.0
TEMPLATE = Path(__file__).parent.parent / "templates" / "vote.html"

Pair = tuple[str, int, int]  # picture's name, and two folders
Vote = dict[str, Any]


class Election:
    """Pairs to vote on, and the votes so far.

    Args:
        folders: two or more; pictures belong together by their path within the folder.
        votes: the file that votes are kept in.
        seed: decides the order of pairs and who stands left.

    Raises:
        GessoError: fewer than two folders, or no picture that two of them have.
    """

    def __init__(self, folders: Sequence[Path], votes: Path, seed: int = 0) -> None:
        if len(folders) < 2:
            raise GessoError("Votes need two folders or more: add --pictures DIR twice.")
        self.folders = list(folders)
        self.files = [{str(f.relative_to(d)): f for f in all_pictures(d)} for d in folders]
        pairs = [
            (name, a, b)
            for a, b in combinations(range(len(folders)), 2)
            for name in sorted(self.files[a].keys() & self.files[b].keys())
        ]
        if not pairs:
            raise GessoError(
                f"{folders[0]} and {folders[1]} have no picture of the same name: name pictures of "
                "one prompt alike, as gesso evaluate does."
            )
        rng = np.random.default_rng(seed)
        swapped = rng.random(len(pairs)) < 0.5
        mixed: list[Pair] = [
            (name, b, a) if swap else (name, a, b)
            for (name, a, b), swap in zip(pairs, swapped, strict=True)
        ]
        self.pairs = [mixed[i] for i in rng.permutation(len(mixed))]
        self.lock = threading.Lock()
        self.file = votes
        self.votes = read_votes(votes)

    def next(self, voter: str) -> int | None:
        """Number of the first pair that a voter has not seen; None: all are done."""
        names = [str(folder) for folder in self.folders]
        seen = {(v["picture"], v["left"], v["right"]) for v in self.votes if v["voter"] == voter}
        for i, (name, left, right) in enumerate(self.pairs):
            if (name, names[left], names[right]) not in seen:
                return i
        return None

    def picture(self, pair: int, side: str) -> Path:
        """The file on one side of a pair."""
        name, left, right = self.pairs[pair]
        return self.files[left if side == "left" else right][name]

    def prompt(self, pair: int) -> str:
        """The pictures' prompt, "" if it is not known."""
        name, left, _ = self.pairs[pair]
        try:
            return prompts_of(self.folders[left], [self.files[left][name]])[0]
        except GessoError:
            return ""

    def vote(self, pair: int, choice: str, voter: str) -> None:
        """Keep a vote.

        Raises:
            GessoError: no such pair or choice.
        """
        if not 0 <= pair < len(self.pairs) or choice not in VOTES:
            raise GessoError(f"There is no pair {pair} with a vote {choice!r}: reload the page.")
        name, left, right = self.pairs[pair]
        vote = {
            "picture": name,
            "left": str(self.folders[left]),
            "right": str(self.folders[right]),
            "vote": choice,
            "voter": voter,
            "time": round(time.time(), 3),
        }
        with self.lock:
            self.votes.append(vote)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as f:
                f.write(json.dumps(vote) + "\n")


def read_votes(file: Path) -> list[Vote]:
    """Votes of a file; a line cut short by a kill is left out."""
    votes = []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            vote = json.loads(line)
            if {"picture", "left", "right", "vote", "voter"} <= vote.keys():
                votes.append(vote)
        except (ValueError, AttributeError):
            continue
    return votes


# ---------------------------------------------------------------------------------- the ratings


def standings(votes: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Elo ratings and preference rates.

    Ratings are the maximum of the Bradley-Terry likelihood on Elo's scale (a tie is half a win for
    each), with mean 1000; they do not depend on the order of votes. Intervals (95 %) are over
    resampled votes.

    Returns:
        n, ratings (folder -> elo, low, high, wins, ties, losses).
    """
    counted = [v for v in votes if v["vote"] != "skip"]
    names = sorted({v[side] for v in counted for side in ("left", "right")})
    place = {name: i for i, name in enumerate(names)}
    games = np.array(
        [
            (
                place[v["left"]],
                place[v["right"]],
                {"left": 1.0, "tie": 0.5, "right": 0.0}[v["vote"]],
            )
            for v in counted
        ]
    ).reshape(-1, 3)
    ratings: dict[str, Any] = {}
    if len(games):
        best = elo(games, len(names))
        rng = np.random.default_rng(seed)
        drawn = np.array(
            [
                elo(games[rng.integers(0, len(games), len(games))], len(names))
                for _ in range(RESAMPLES)
            ]
        )
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        for name, i in place.items():
            outcome = Counter[str]()
            for v in counted:
                if name in (v["left"], v["right"]):
                    won = v["vote"] == ("left" if v["left"] == name else "right")
                    outcome["ties" if v["vote"] == "tie" else "wins" if won else "losses"] += 1
            ratings[name] = {
                "elo": float(best[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                **{key: outcome[key] for key in ("wins", "ties", "losses")},
            }
    return {"n": len(counted), "ratings": ratings}


def elo(games: np.ndarray, players: int) -> np.ndarray:
    """Ratings [players] from games [n, 3] of (player, player, score of the first).

    Minorisation-maximisation of Bradley-Terry (Hunter 2004, eq. 3), with half a tie between every
    two players, so that one who always won has a finite rating.
    """
    wins = np.full((players, players), 0.25)  # half a tie: a quarter win for each
    np.fill_diagonal(wins, 0)
    for a, b, score in games:
        wins[int(a), int(b)] += score
        wins[int(b), int(a)] += 1 - score
    total = wins + wins.T
    strength = np.ones(players)
    for _ in range(200):
        pairwise = total / (strength[:, None] + strength[None])
        fresh = wins.sum(1) / pairwise.sum(1)
        fresh /= np.exp(np.log(fresh).mean())
        if np.allclose(fresh, strength, rtol=1e-8):
            break
        strength = fresh
    return BASE + ELO * np.log10(strength)


# ------------------------------------------------------------------------------------- the page


def server(election: Election, port: int = 0) -> ThreadingHTTPServer:
    """A server on this machine only, not started yet; port 0: any that is free.

    Raises:
        GessoError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            asked = {key: values[0] for key, values in parse_qs(address.query).items()}
            if address.path == "/":
                self._send(TEMPLATE.read_bytes(), "text/html; charset=utf-8")
            elif address.path == "/next":
                pair = election.next(asked.get("voter", ""))
                done = sum(v["voter"] == asked.get("voter", "") for v in election.votes)
                prompt = "" if pair is None else election.prompt(pair)
                told = {"pair": pair, "prompt": prompt, "done": done, "of": len(election.pairs)}
                self._send(json.dumps(told).encode(), "application/json")
            elif address.path == "/picture" and asked.get("side") in ("left", "right"):
                try:
                    file = election.picture(int(asked["pair"]), asked["side"])
                except (KeyError, ValueError, IndexError):
                    self.send_error(404)
                    return
                self._send(as_png(file), "image/png")
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            try:
                body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 10_000))
                told = json.loads(body)
                voter = str(told["voter"])[:100]
                election.vote(int(told["pair"]), str(told["vote"]), voter)
            except (ValueError, KeyError, TypeError, GessoError) as e:
                self.send_error(400, str(e)[:200])
                return
            self._send(b"{}", "application/json")

        def _send(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as e:
        raise GessoError(f"Port {port} cannot be used ({e.strerror}): take another.") from None


def as_png(file: Path) -> bytes:
    """A picture's pixels alone: a file's name, size and metadata would tell who painted it."""
    import io

    from PIL import Image

    from gesso.data.images import load_rgb

    buffer = io.BytesIO()
    Image.fromarray(load_rgb(file)).save(buffer, "PNG")
    return buffer.getvalue()


def ask_people(
    pictures: Sequence[Path], *, out: Path | None = None, quiet: bool = False, port: int = 0
) -> dict[str, Any]:
    """Serve the page until Ctrl-C, then tell the standings.

    Returns:
        benchmark, judge, n, ratings, votes (file), out, say.

    Raises:
        GessoError: see `Election` and `server`.
    """
    import sys

    place = out or Path("evaluations/human")
    election = Election(pictures, place / "votes.jsonl")
    running = server(election, port)
    print(
        f"Vote at http://{HOST}:{running.server_port} ; Ctrl-C ends and counts.",
        file=sys.stderr,
        flush=True,
    )
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        running.server_close()
    result = {"benchmark": "human", "judge": "human", **standings(election.votes)}
    place.mkdir(parents=True, exist_ok=True)
    (place / "standings.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [f"{result['n']} votes"]
    for name, r in sorted(result["ratings"].items(), key=lambda item: -item[1]["elo"]):
        lines.append(
            f"{r['elo']:7.0f}  ({r['low']:.0f} to {r['high']:.0f})  {name}: {r['wins']} won, "
            f"{r['ties']} tied, {r['losses']} lost"
        )
    return {**result, "votes": str(election.file), "out": str(place), "say": "\n".join(lines)}
