"""Any endpoint that speaks OpenAI's chat completions: local servers (vLLM, llama.cpp) and services.

Never taken unless its address is named. Pictures go out as PNG data URLs. Timeouts, rate limits and
server errors are tried again with growing pauses (the openai package does it and heeds
Retry-After); replies up to a failure are kept, and the same command goes on from there.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from gesso.config import Config as _Config
from gesso.evals.fingerprint import fingerprint, source_digest, versions
from gesso.evals.replies import READING, ask, ask_rating, parse_answer, parse_rating, parse_reading
from gesso.evals.types import Answer, Image, Judge, Rating
from gesso.types import GessoError

ABILITIES = ("answer", "rate", "read")


class Config(_Config):
    """Options of the judge `openai-compatible`."""

    path: str  # the address, such as http://localhost:8000/v1
    model: str  # as the endpoint calls it
    key: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    timeout: float = Field(default=120.0, gt=0)  # seconds for one reply
    retries: int = Field(default=6, ge=0)
    parallel: int = Field(default=8, ge=1)  # requests at a time
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = 0.0
    seed: int = 0


class OpenAICompatible(Judge):
    """See the module."""

    def __init__(self, options: Config) -> None:
        try:
            from openai import OpenAI
        except ImportError:
            raise GessoError(
                "The judge openai-compatible needs the openai package: pip install 'gesso[judge]'."
            ) from None
        if not options.path.startswith(("http://", "https://")):
            raise GessoError(
                f"{options.path!r} is no address of an endpoint: give one such as "
                "--judge openai-compatible:path=http://localhost:8000/v1,model=NAME."
            )
        self.options = options
        self.client = OpenAI(
            base_url=options.path,
            api_key=os.environ.get(options.key) or "none",
            timeout=options.timeout,
            max_retries=options.retries,
        )
        self.batch_size = options.parallel
        self.abilities = ABILITIES
        self.name = f"openai-compatible:{options.model}"
        self.versions = versions("openai")
        asked = options.model_dump(include={"path", "model", "max_tokens", "temperature", "seed"})
        self.fingerprint = fingerprint(asked, source_digest(__name__, "gesso.evals.replies"))

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], choices: Sequence[tuple[str, ...]]
    ) -> list[Answer]:
        """Replies; one that is none of the choices, or empty, is an abstention."""
        asked = [ask(q, c) for q, c in zip(questions, choices, strict=True)]
        replies = self._chat(images, asked)
        return [parse_answer(text, some) for text, some in zip(replies, choices, strict=True)]

    def rate(
        self, images: Sequence[Image], criteria: Sequence[str], low: float, high: float
    ) -> list[Rating]:
        """Grades; a reply without one number of the scale is an abstention."""
        asked = [ask_rating(criterion, low, high) for criterion in criteria]
        return [parse_rating(text, low, high) for text in self._chat(images, asked)]

    def read(self, images: Sequence[Image]) -> list[str]:
        """The words in each picture."""
        return [parse_reading(text) for text in self._chat(images, [READING] * len(images))]

    def _chat(self, images: Sequence[Image], texts: Sequence[str]) -> list[str]:
        """One reply for each picture and text, `parallel` at a time."""
        with ThreadPoolExecutor(self.options.parallel) as pool:
            waiting = [pool.submit(self._one, i, t) for i, t in zip(images, texts, strict=True)]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise

    def _one(self, image: Image, text: str) -> str:
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": data_url(image)}},
            {"type": "text", "text": text},
        ]
        done = self._reached(
            lambda: self.client.chat.completions.create(
                model=self.options.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=self.options.max_tokens,
                temperature=self.options.temperature,
                seed=self.options.seed,
            )
        )
        choices = getattr(done, "choices", None)
        message = choices[0].message if choices else None
        said = getattr(message, "content", None)
        return said if isinstance(said, str) else ""

    def _reached(self, call: Callable[[], Any]) -> Any:
        """The endpoint's reply.

        Raises:
            GessoError: it cannot be reached, refuses, or limits the rate beyond all retries.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        where, again = self.options.path, "the same command goes on from here"
        try:
            return call()
        except APITimeoutError:
            tries = f"{self.options.retries + 1} times within {self.options.timeout:g} s"
            problem = f"did not reply, {tries}: check it or raise timeout; {again}"
        except APIConnectionError as e:
            problem = f"cannot be reached ({e.__cause__ or e}): check the address; {again}"
        except APIStatusError as e:
            problem = f"replied {e.status_code} ({_first_line(e.message)}): "
            if e.status_code == 429:
                problem += f"it limits the rate; wait, or lower parallel; {again}"
            elif e.status_code in (401, 403):
                problem += f"put its key into the environment variable {self.options.key}"
            else:
                problem += f"check model and address; {again}"
        except (OpenAIError, ValueError) as e:
            problem = f"replied something that is no chat completion ({_first_line(str(e))})"
        raise GessoError(f"The endpoint {where} {problem}.") from None


def data_url(image: Image) -> str:
    """A picture as a PNG data URL."""
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:120].rstrip(".")


def build(options: Config, device: str | None) -> OpenAICompatible:
    """The judge; it runs where its endpoint runs.

    Raises:
        GessoError: no address, or the openai package is not installed.
    """
    return OpenAICompatible(options)
