"""The wheel works without the checkout: migrations, commands and both packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of the checkout's state gets in or is changed."""
    source = tmp_path_factory.mktemp("source") / "httppubsub"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "dist", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    target = tmp_path_factory.mktemp("wheel")
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source]
    subprocess.run(command, check=True, capture_output=True)
    [built] = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_migrations_and_the_markers_for_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(
        name.startswith("httppubsubserver/") and name.endswith("sqlite/0001_subscriptions.sql") for name in names
    )
    assert {"httppubsubclient/py.typed", "httppubsubserver/py.typed"} <= set(names)
    assert not any(name.startswith(("tests", "migrations")) for name in names)


def test_an_installed_wheel_sets_up_and_keeps_subscriptions_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    [site_packages] = environment.glob("lib/python*/site-packages")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel], check=True
    )
    # The dependencies of this environment, but not this checkout: a path in a .pth file is added as it is, the
    # .pth files inside of it (that of the editable install, too) are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"

    def run(*command: str | Path) -> str:
        clean = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=clean, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(python, "-c", "import httppubsubserver, httppubsubclient; print(httppubsubserver.__file__)")
    assert where.startswith(str(environment))
    assert "httppubsub" in run(environment / "bin" / "httppubsubserver", "--version")
    assert "httppubsub" in run(environment / "bin" / "httppubsubclient", "--version")
    run(environment / "bin" / "httppubsubserver", "--setup", "--directory", tmp_path / "site")
    program = """
import asyncio, pathlib
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig

async def main():
    config = ServerConfig(db="sqlite:///site/db.sqlite3", secrets_file=pathlib.Path("site/broadcaster-secrets.json"))
    async with Broadcaster(config) as b:
        await b.subscribe(SubscribeRequest("http://127.0.0.1:1/x", Pattern.glob("a/*"), 60))
    async with Broadcaster(config) as b:
        print(len((await b.subscriptions()).subscriptions))

asyncio.run(main())
"""
    assert run(python, "-c", program).strip() == "1"
