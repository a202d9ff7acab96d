"""Every setting of the broadcaster, in one frozen model. docs/configuration.md describes them; a test compares.

They come from a TOML file, then `HTTPPUBSUB_<SETTING>` variables, then flags; the later one wins. A setting that
does not exist is an error that names the nearest one that does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ServerConfig"]

MEBIBYTE = 1024 * 1024


class ServerConfig(BaseModel):
    """What a `Broadcaster` is told. Everything but the secrets file has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    db: str = Field("sqlite:///httppubsub.sqlite3", description="Where subscriptions are kept.")
    secrets_file: Path | None = Field(
        None, description="broadcaster-secrets.json, made by `httppubsubserver --setup`. Required."
    )
    host: str = Field("127.0.0.1", description="The address that `serve` listens on.")
    port: int = Field(3003, ge=0, le=65535, description="The port that `serve` listens on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that `serve` starts behind one port.")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="How much `serve` logs."
    )

    max_body_bytes: int = Field(1024 * MEBIBYTE, ge=0, description="The largest message.")
    spool_bytes: int = Field(10 * MEBIBYTE, ge=0, description="Larger bodies lie in a temporary file.")
    bodies_in_memory_bytes: int = Field(
        256 * MEBIBYTE,
        ge=0,
        description="When the bodies in memory add up to this, smaller ones are spooled, too.",
    )
    spool_directory: Path | None = Field(None, description="Where; the system's temporary directory by default.")
    body_idle_timeout_seconds: float = Field(
        30.0, gt=0, description="A publisher that sends nothing for this long is answered 408."
    )

    max_in_flight: int = Field(1000, ge=1, description="Attempts under way at once, in total.")
    max_in_flight_per_host: int = Field(32, ge=1, description="Attempts under way at once to one host and port.")
    max_waiting_per_host: int = Field(
        10_000,
        ge=0,
        description="Deliveries waiting for their turn at one host and port; more are failed at once.",
    )
    max_pending_notifies: int = Field(10_000, ge=1, description="Notifies under way at once; more are answered 503.")
    attempt_timeout_seconds: float = Field(
        10.0,
        gt=0,
        description="The deadline of one attempt, from connecting to the end of the answer's head.",
    )
    min_bytes_per_second: int = Field(
        1_000_000, ge=1, description="A large body extends the deadlines by its size divided by this."
    )
    notify_timeout_seconds: float = Field(
        30.0, gt=0, description="When a notify gives up on what is not confirmed yet, quick retries included."
    )
    max_answer_bytes: int = Field(65_536, ge=0, description="How much of a subscriber's answer is read.")
    callback_ca_file: Path | None = Field(
        None, description="PEM certificates to trust for https callbacks instead of the built-in ones."
    )

    signature_tolerance_seconds: int = Field(
        300,
        ge=1,
        le=86_400,
        description="How far `created` of a signature may lie from the broadcaster's clock.",
    )
    default_lease_seconds: int = Field(86_400, ge=1, description="The lease of a subscription that asks for none.")
    max_lease_seconds: int = Field(864_000, ge=1, description="The longest lease that may be asked for.")
    idempotency_seconds: int = Field(86_400, ge=1, description="How long an Idempotency-Key is remembered.")
    shutdown_timeout_seconds: float = Field(
        30.0,
        ge=0,
        description="How long a stop waits for running attempts; they have their own deadlines, too.",
    )
