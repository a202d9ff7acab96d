"""The documents are true: settings, routes, error codes, commands, and the code in the README."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from httppubsubclient.config import HttpPubSubConfig
from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.errors import WIRE, ConfigurationError
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.callback_ports import OTHER_SERVICES
from httppubsubserver.config import ServerConfig

ROOT = Path(__file__).parent.parent
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
README = (ROOT / "README.md").read_text()


def table(text: str, heading: str) -> dict[str, tuple[str, ...]]:
    """The rows of the first table below a heading, by their first cell without its backticks."""
    lines = text.split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return {row[0].strip("`"): tuple(row[1:]) for row in rows}


def shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`" if value else "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_setting_of_the_broadcaster_is_documented_with_its_default() -> None:
    rows = table(CONFIGURATION, "## The broadcaster")
    assert list(rows) == list(ServerConfig.model_fields)
    for name, field in ServerConfig.model_fields.items():
        default, meaning = rows[name]
        assert meaning == field.description
        if name != "secrets_file":
            assert default == shown(field.default), name


def test_every_parameter_of_the_client_is_documented_with_its_default() -> None:
    rows = table(CONFIGURATION, "## The client")
    fields = {field.name: field for field in dataclasses.fields(HttpPubSubConfig)}
    assert list(rows) == list(fields)
    for name, field in fields.items():
        expected = "required" if field.default is dataclasses.MISSING else shown(field.default)
        assert rows[name][0] == expected, name


def test_the_ports_that_are_not_usual_are_documented() -> None:
    def shown_ports(ports: int | range) -> str:
        return str(ports) if isinstance(ports, int) else f"{ports[0]}-{ports[-1]}"

    listed = "; ".join(f"{name} {', '.join(map(shown_ports, ports))}" for name, ports in OTHER_SERVICES.items())
    assert f"`usual` leaves out, from 1024 on: {listed}." in " ".join(CONFIGURATION.split())


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = table(PROTOCOL, "### Errors")
    wire = {cls.code: row.status for cls, row in WIRE.items() if cls is not ConfigurationError}
    assert {code: int(cells[0]) for code, cells in rows.items()} == wire


def test_every_route_is_documented() -> None:
    secrets = Secrets(Credentials.none(), Credentials.none(), ())
    app = FastAPI()
    app.include_router(Broadcaster(ServerConfig(), secrets=secrets).router)
    for path, operations in app.openapi()["paths"].items():
        written = path.replace("{subscription_id}", "{id}").replace("{message_id}", "{id}")
        for method in operations:
            assert re.search(rf"`{method.upper()} {re.escape(written)}[?`]", PROTOCOL), (method, path)


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in ("httppubsubclient", "httppubsubserver"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.stem
            if name not in ("__init__", "__main__"):
                assert re.search(rf"\b{name}\b", text), path.relative_to(ROOT)


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "scripts").iterdir()))
def test_scripts_are_short_and_executable(path: str) -> None:
    script = ROOT / "scripts" / path
    assert script.stat().st_mode & 0o111
    assert len(script.read_text().splitlines()) <= 25


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("block", python_blocks(README))
def test_the_code_of_the_readme_compiles(block: str) -> None:
    if not block.startswith("result = await"):
        compile(block, "README.md", "exec")


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)
