"""The Python SDK: `Client` for synchronous code, `AsyncClient` for asyncio, and what they give and raise."""

from primordia.client.aio import AsyncClient, WaitTimeoutError, connect
from primordia.client.answers import Applied, ObjectList, Table, WatchEvent, condition, deleted, phase, ready
from primordia.client.box_results import Chunk, CodeError, CodeResult, FileInfo, Result
from primordia.client.boxes import Box, ForkError
from primordia.client.config import ClientConfig, ConfigError
from primordia.client.errors import (
    BoxGoneError,
    CommandFailedError,
    CommandTimeoutError,
    ConnectError,
    ExpiredError,
    InvalidRequestError,
    MissingPathError,
    NotAllowedError,
    TlsError,
)
from primordia.client.streams import ExecResult, ExecSession
from primordia.client.sync import Client
from primordia.client.sync_boxes import SyncBox
from primordia.kit.errors import CapacityError
from primordia.wire.boxes import ForkRequest

__all__ = [
    "Applied",
    "AsyncClient",
    "Box",
    "BoxGoneError",
    "CapacityError",
    "Chunk",
    "Client",
    "ClientConfig",
    "CodeError",
    "CodeResult",
    "CommandFailedError",
    "CommandTimeoutError",
    "ConfigError",
    "ConnectError",
    "ExecResult",
    "ExecSession",
    "ExpiredError",
    "FileInfo",
    "ForkError",
    "ForkRequest",
    "InvalidRequestError",
    "MissingPathError",
    "NotAllowedError",
    "ObjectList",
    "Result",
    "SyncBox",
    "Table",
    "TlsError",
    "WaitTimeoutError",
    "WatchEvent",
    "condition",
    "connect",
    "deleted",
    "phase",
    "ready",
]
