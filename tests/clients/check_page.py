#!/usr/bin/env python3
"""The chat page and the dashboard in a real Chromium: check_page.py BASE_URL SCREENSHOT_FOLDER [CHROMIUM]."""
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

BASE, SHOTS = sys.argv[1].rstrip("/"), Path(sys.argv[2])
CHROMIUM = sys.argv[3] if len(sys.argv) > 3 else "/usr/bin/chromium"
SHOTS.mkdir(parents=True, exist_ok=True)
problems, outside = [], []
kPatience = 300_000  # ms: a busy machine is slow, not broken


def watch(page):
    page.set_default_timeout(kPatience)
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith((BASE, "blob:", "data:")) else None)


def settle(page, shot):
    """Answers that are short and the same every time: drawn freely, one may fill the context."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("80")
    page.get_by_label("Seed").fill("1")
    page.screenshot(path=shot)
    page.get_by_role("button", name="Settings").click()


def ask(page, text):
    answers = page.locator("article.assistant .speed").count()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .speed")).to_have_count(answers + 1)


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    expect.set_options(timeout=kPatience)
    page = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
    watch(page)
    page.goto(BASE + "/")
    settle(page, SHOTS / "settings.png")
    ask(page, "Once upon a time there was a little dog named Max.")
    first = page.locator("article.assistant .text").first.inner_text()
    assert first.strip(), "the answer is empty"
    assert "tokens/s" in page.locator("article.assistant .speed").first.inner_text()
    page.screenshot(path=SHOTS / "chat-light.png")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("article.assistant .speed")).to_have_count(1)
    assert page.locator("article.assistant .text").first.inner_text() == first, "the same seed gives the same text"
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit message").fill("Lily had a red ball.")
    page.keyboard.press("Enter")
    expect(page.locator("article.user .text")).to_have_text("Lily had a red ball.")
    expect(page.locator("article.assistant .speed")).to_have_count(1)
    page.get_by_role("button", name="Dark or light").click()
    page.screenshot(path=SHOTS / "chat-dark.png")
    page.evaluate("""async () => {
        const { markdown } = await import(new URL('web/markdown.js', document.baseURI));
        const turn = document.createElement('article');
        turn.className = 'assistant';
        const text = document.createElement('div');
        text.className = 'text';
        text.append(...markdown(String.raw`## A list\n- **bold**, *em*, \`code\`\n- math: \\(e^{i\\pi}+1=0\\)\n\n$$\\sum_{i=1}^{n} \\frac{1}{i^2} \\le \\sqrt{x}$$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<img src=x onerror=alert(1)>`));
        turn.append(text);
        document.getElementById('log').append(turn);
        turn.scrollIntoView();
    }""")
    assert page.locator("article img").count() == 0, "text must not become HTML"
    assert page.locator("article math").count() == 2
    page.screenshot(path=SHOTS / "markdown.png")

    phone = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark")
    watch(phone)
    phone.goto(BASE + "/ui/")  # under a prefix
    settle(phone, SHOTS / "phone-settings.png")
    ask(phone, "The cat")
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, f"the page is {width} px wide on a phone"
    phone.screenshot(path=SHOTS / "phone.png")

    dash = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
    watch(dash)
    dash.goto(BASE + "/dash")
    expect(dash.locator("#requests")).not_to_have_text("–")
    expect(dash.locator("#experts .heat").first).to_be_visible()
    dash.wait_for_timeout(1500)
    dash.screenshot(path=SHOTS / "dash.png")
    browser.close()

assert not problems, problems
assert not outside, f"requests to the outside: {outside}"
print("page: all checks passed")
