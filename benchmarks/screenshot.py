"""A picture of the viewer with a real model in it, for the README.

    python serve.py configs/serve/smollm2-viewer.yaml &
    python -m benchmarks.screenshot http://127.0.0.1:8000 docs/viewer.png [--prompt TEXT]

Needs Playwright and a Chromium (docs/viewer.md).
"""

import argparse
from pathlib import Path

from sla_jax.errors import UserError, front_door

PATIENCE = 300_000  # ms, for an answer on a slow machine


def main(argv: list[str]) -> None:
    """Ask, wait for search and greedy decoding, take the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshot", description=__doc__)
    parser.add_argument("server")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--prompt", default="Suggest a simple dinner for tonight.")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args(argv)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("this needs Playwright: pip install playwright, and a Chromium.") from None

    from tests.viewer.browser import executable

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 820}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(f"{options.server}/ui/#playground")
        page.locator("#status", has_text="ready").wait_for()
        page.get_by_label("most tokens").fill(str(options.max_tokens))
        page.get_by_label("greedy beside it").check()
        page.get_by_label("message").fill(options.prompt)
        page.get_by_role("button", name="Send").click()
        for profile in ("sla", "greedy"):
            page.locator(f"article[data-profile={profile}][aria-busy=false]").wait_for()
        page.screenshot(path=options.picture, full_page=True)
        browser.close()
    print(f"wrote {options.picture}")


if __name__ == "__main__":
    front_door(main)
