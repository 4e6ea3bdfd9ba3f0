"""The page of serve.py in a real browser, with a real server and the tests' tiny model. Needs
`pip install playwright` and `apt-get install chromium`; no browser is downloaded."""

import json
import math
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium: apt-get install chromium")

KEY = "a key"


@pytest.fixture(scope="module")
def server(trained):
    """The address of a server that wants an API key."""
    command = [sys.executable, ROOT / "serve.py", f"--ckpt={trained}", "--port=0"]
    process = subprocess.Popen(
        [*command, f"--api_key={KEY}", "--device=cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
        else:
            pytest.fail(said)
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # No name but this machine's is found, so that nothing can come from a network.
        only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = started.chromium.launch(executable_path=BROWSER, args=[only_here])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, server):
    """A function that opens the page, with the key in place, and waits for its first suggestion.
    In the end there must have been no error in the console and no request to another host."""
    contexts, wrong = [], []

    def open_page(key=KEY, expected=None, **how):
        """expected: a pattern of the console's messages that are no mistake here."""
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.asked = []  # the bodies of the requests for completions

        def hear(message):
            if not expected or not re.search(expected, message.text):
                wrong.append(message.text)

        page.on("console", hear)
        page.on("pageerror", lambda error: wrong.append(str(error)))

        def note(request):
            if request.url.endswith("/v1/completions"):
                page.asked.append(request.post_data_json)
            if not request.url.startswith((server, "data:")):
                wrong.append(request.url)

        page.on("request", note)
        if key:
            page.add_init_script(f"sessionStorage.setItem('key', {json.dumps(key)})")
            with answer(page):
                page.goto(server)
        else:
            page.goto(server)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def answer(page):
    """Within it a request for completions must be made and answered to its end."""
    return page.expect_request_finished(lambda request: request.url.endswith("/v1/completions"))


def write(page, text):
    """Replace all text, and wait for the suggestion that follows it."""
    page.focus("#area")
    page.keyboard.press("Control+A")
    with answer(page):
        page.keyboard.insert_text(text)
    expect(page.locator("#accept")).to_be_enabled()


def ghost(page):
    return page.locator("#ghost").text_content()


def text(page):
    return page.input_value("#area")


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.ariaLabel")


def test_a_suggestion_is_accepted_typed_dismissed_and_undone(opened):
    page = opened()
    write(page, "import os\n\n\nclass ")
    before, whole = text(page), ghost(page)
    assert whole and page.asked[-1]["prompt"] == before

    # Typing what the ghost has, and deleting it again, needs no request.
    asked = len(page.asked)
    page.keyboard.insert_text(whole[0])
    assert ghost(page) == whole[1:]
    page.keyboard.press("Backspace")
    assert ghost(page) == whole
    page.keyboard.press("Control+ArrowRight")
    word = text(page).removeprefix(before)
    assert 0 < len(word) and word + ghost(page) == whole and len(page.asked) == asked
    if ghost(page):
        with answer(page):  # what follows is asked for when the ghost is used up
            page.keyboard.press("Tab")
    assert text(page) == before + whole
    while text(page) != before:  # the word, then the rest
        page.keyboard.press("Control+Z")
        assert len(text(page)) < len(before + whole)

    with answer(page):
        page.keyboard.insert_text("Stack")
    expect(page.locator("#dismiss")).to_be_enabled()
    page.keyboard.press("Escape")
    assert ghost(page) == "" and text(page) == before + "Stack"
    with page.expect_event("requestfailed"):  # what is no longer wanted is given up at once
        page.keyboard.press("Control+Space")
        page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert focused(page) == "samples" and text(page) == before + "Stack"


def test_in_the_middle_of_a_text_the_gap_is_filled(opened):
    page = opened()
    write(page, "def f(numbers):\n    total = \n    return total\n")
    for key in ("ArrowUp", "ArrowUp", "End"):
        page.keyboard.press(key)
    expect(page.locator("#ghost")).to_be_empty()  # the cursor has left it
    with answer(page):
        page.keyboard.press("Control+Space")
    assert page.asked[-1]["prompt"].endswith("total = ")
    assert page.asked[-1]["suffix"] == "\n    return total\n"
    page.keyboard.press("Tab")
    assert text(page).startswith("def f(numbers):\n    total = ")
    assert text(page).endswith("\n    return total\n") and len(text(page)) > 46


def test_settings_reach_the_server_and_samples_stand_side_by_side(opened, tmp_path):
    page = opened(viewport={"width": 1280, "height": 800}, color_scheme="light")
    write(page, "def mean(numbers):\n    ")
    with answer(page):
        page.locator("#length").fill("12")
        page.locator("#temperature").fill("1.5")
    assert (page.asked[-1]["max_tokens"], page.asked[-1]["temperature"]) == (12, 1.5)

    before = text(page)
    page.focus("#area")
    with answer(page):
        page.keyboard.press("Control+Enter")
    assert page.asked[-1]["n"] == 3 and focused(page) == "Insert suggestion 1"
    cards = page.locator(".card .tokens").all_text_contents()
    texts = [shown.replace("↵", "") for shown in cards]
    assert len(set(texts)) > 1, "at this temperature samples differ"
    page.keyboard.press("ArrowDown")
    assert focused(page) == "Insert suggestion 2" and ghost(page) == texts[1]
    page.screenshot(path=tmp_path / "samples.png")
    with answer(page):
        page.keyboard.press("Enter")
    assert text(page) == before + texts[1] and focused(page) == "area"


def test_a_token_shows_how_likely_it_was_and_what_else_could_have_stood_there(opened):
    page = opened()
    with page.expect_response("**/v1/completions") as answered:
        write(page, "import os\nimport sys\n\ndef main():\n    ")
    chunks = re.findall(r"^data: (\{.*)", answered.value.text(), re.M)
    logprobs = [json.loads(chunk)["choices"][0]["logprobs"] for chunk in chunks]
    tops = [top for one in logprobs if one for top in one["top_logprobs"]]
    token = page.locator(".card .token").nth(1)
    token.hover()
    shares = [float(row[:-2]) for row in page.locator("#tip button span").all_text_contents()]
    wanted = sorted((100 * math.exp(value) for value in tops[1].values()), reverse=True)
    assert shares[: len(wanted)] == pytest.approx(wanted, abs=0.06)

    # The same by keyboard: to a token with the arrows, then an alternative by its number.
    page.mouse.move(1, 1)
    expect(page.locator("#tip")).to_be_hidden()
    page.locator(".card .token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_be_visible()
    other = page.locator("#tip button:enabled").first
    number = 1 + page.locator("#tip button").all_text_contents().index(other.text_content())
    with answer(page):
        page.keyboard.press(str(number))
    assert page.asked[-1]["prompt"].startswith(text(page)) and focused(page) == "area"
    assert len(page.asked[-1]["prompt"]) > len(text(page))


def test_a_key_is_asked_for_once_and_a_lost_server_is_told(opened):
    page = opened(key=None, expected="status of 401|ERR_INTERNET_DISCONNECTED")
    page.fill("#key", "not it")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_class("wrong")
    page.fill("#key", KEY)
    with answer(page):
        page.keyboard.press("Enter")
    expect(page.locator("#door")).to_be_hidden()
    page.focus("#area")
    page.keyboard.insert_text("# a note\n")
    with answer(page):
        page.reload()
    assert "# a note\n" in text(page), "a reload costs nothing that was typed"
    page.context.set_offline(True)
    page.keyboard.insert_text("x")
    expect(page.locator("#status")).to_contain_text("Is serve.py still running?")


def test_what_a_model_writes_is_only_ever_text(opened):
    page = opened()
    nasty = "<img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script>"
    logprobs = {
        "tokens": [nasty],
        "token_logprobs": [-0.1],
        "top_logprobs": [{nasty: -0.1, "<b>": -3}],
    }
    choice = {"index": 0, "text": nasty, "logprobs": logprobs, "finish_reason": "stop"}
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            body=f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n",
            content_type="text/event-stream",
        ),
    )
    write(page, "x = ")
    page.locator(".card .token").hover()
    expect(page.locator("#tip button")).to_have_count(2)
    assert ghost(page) == nasty
    page.keyboard.press("Tab")
    assert text(page) == "x = " + nasty and page.title() == "nanoNeoX"
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1


def test_the_mirror_lies_exactly_below_the_text(opened):
    """The characters that are seen are the mirror's; the cursor is the textarea's."""
    page = opened(viewport={"width": 900, "height": 700})
    lines = ["def f():", "\treturn '日本語', \"é\" != 3 -> 4", "x" * 300, *map(str, range(200))]
    write(page, "\n".join(lines))
    page.keyboard.press("Escape")
    for key in ("Control+Home", "Control+End", "Home"):
        page.keyboard.press(key)
        page.add_style_tag(content="#area { caret-color: transparent !important }")
        seen = page.locator("#editor").screenshot()
        swapped = page.add_style_tag(
            content="#mirror { color: transparent } #area { color: var(--text) !important }"
        )
        assert page.locator("#editor").screenshot() == seen
        swapped.evaluate("tag => tag.remove()")
    assert len(seen) > 3000, "there is something to see"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_fits_and_can_be_touched(opened, scheme, tmp_path):
    page = opened(
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        color_scheme=scheme,
    )
    expect(page.locator("#accept")).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for target in page.locator("button:visible, input:visible").all():
        assert target.bounding_box()["height"] >= 44
    page.locator(".card .token").first.tap()
    expect(page.locator("#tip")).to_be_visible()
    page.screenshot(path=tmp_path / f"phone_{scheme}.png")

    def dark():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) < 384

    assert dark() == (scheme == "dark")
    page.tap("#theme")
    assert dark() != (scheme == "dark")
    before = text(page)
    page.tap("#accept")
    assert len(text(page)) > len(before)
