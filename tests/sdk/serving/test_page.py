"""The page, used as a person would, in a real browser."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.sdk.serving import browser, two_towers
from tests.sdk.serving.conftest import SETTINGS, Running, serving

from saccade.bundle import Bundle

READY = "document.querySelector('#model').options.length"
ANSWERED = "document.querySelector('#status').textContent.startsWith('Answered')"


def test_the_page_may_load_nothing_from_elsewhere(running: Running) -> None:
    for path in ("/", "/page.css", "/page.js"):
        answer = httpx.get(f"http://{running.http}{path}")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "//" not in answer.text.replace("// ", "")


@pytest.mark.slow
@pytest.mark.skipif(browser.find() is None, reason="no browser here: apt-get install chromium")
def test_a_person_drops_a_picture_and_sees_the_answer(tiny_bundle: Bundle, tmp_path: Path) -> None:
    picture = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(picture)
    towers = two_towers.write(tmp_path / "towers")
    settings = SETTINGS.replace(grpc_port=None, token="open sesame")

    async def visit(url: str) -> None:
        async with browser.opened(str(browser.find()), url, tmp_path / "profile") as page:
            await page.until("!document.querySelector('#access').hidden")
            page.complaints.clear()  # the refusal without the token
            await page.run(
                "document.querySelector('#token').value = 'open sesame';"
                "document.querySelector('#token').dispatchEvent(new Event('change'))"
            )
            await page.until(f"{READY} === 2")
            assert await page.run("document.querySelector('#ask').disabled")
            await page.choose_file("#file", picture)
            await page.until(ANSWERED)
            assert await page.run("document.querySelectorAll('#bars li').length") == 5
            assert await page.run("document.querySelector('#image').naturalWidth") == 64
            best = await page.run("document.querySelector('#bars li span').textContent")
            assert best in await page.run("document.querySelector('#image').alt")
            await page.run(
                "const list = document.querySelector('#model'); list.value = 'towers';"
                "list.dispatchEvent(new Event('change'))"
            )
            await page.run("document.querySelector('#option-prompts').value = 'one\\n\\n two \\nthree'")
            await page.run("document.querySelector('#status').textContent = ''")
            await page.run("document.querySelector('#ask').click()")
            await page.until(ANSWERED)
            assert await page.run("document.querySelectorAll('#bars li').length") == 3
            await page.run(
                "const data = new DataTransfer();"
                "data.items.add(new File(['no picture'], 'notes.txt'));"
                "document.querySelector('#drop').dispatchEvent("
                "new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data}))"
            )
            await page.until("document.querySelector('#status').classList.contains('error')")
            assert "not a picture" in await page.run("document.querySelector('#status').textContent")
            assert all(each.startswith((url, "blob:", "data:")) for each in page.requests)
            assert [each for each in page.complaints if "422" not in each] == []
            for name, width, dark in (("wide", 1200, False), ("narrow", 400, True)):
                await page.look(tmp_path / f"{name}.png", width=width, dark=dark)
                over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert await page.run(over) == 0
            light, dark_pixels = (
                np.asarray(Image.open(tmp_path / f"{n}.png").convert("L")).mean() for n in ("wide", "narrow")
            )
            assert light > 150 > 100 > dark_pixels

    with serving(settings, tiny=tiny_bundle.path, towers=towers) as running:
        asyncio.run(visit(f"http://{running.http}/"))
