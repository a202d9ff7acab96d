"""The commands in a shell: pipes that end, and the lines of the README that people copy."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import open_client
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site, until

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


async def test_listen_ends_well_when_its_reader_does(site: Site, broadcaster: Process) -> None:
    """As in `listen 'foo/*' | head -1`, and before another message comes."""
    url = await broadcaster.url()
    reader, writer = os.pipe()
    secrets = site.directory / "subscriber-secrets.json"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "httppubsubclient", "listen", "--secrets", secrets, "--broadcaster", url, "foo/*"),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    async with open_client(site, url) as client:
        assert child.stderr is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await child.stderr.readline()).startswith(b"subscribed")
            assert (await client.notify(topic=b"foo/bar", data=b"1")).notified == 1
            with open(reader, "rb") as lines:
                assert await asyncio.to_thread(lines.readline) == b"foo/bar: 1\n"
            assert await child.stderr.read() == b""
            assert await child.wait() == 0

        async def nobody_is_subscribed() -> bool:
            return (await client.notify(topic=b"foo/bar", data=b"2")).matched == 0

        await until(nobody_is_subscribed)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
async def test_the_curl_lines_of_the_readme_work(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "curl -H" in block]
    assert len(blocks) == 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block, expected in zip(blocks, ('"secret":"whsec_', '"matched":0', '"glob":"foo/*"'), strict=True):
        script = f"set -eu\n{block}".replace("http://127.0.0.1:3003", url)
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=site.directory,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert expected in done.stdout.replace(" ", ""), done.stdout + done.stderr
