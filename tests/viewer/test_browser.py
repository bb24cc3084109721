"""The viewer in a real headless Chromium: what issue 6 says that a person can see and do there."""

import json
import math

import pytest

from tests.serving.fake import ANSWER
from tests.viewer.browser import Watched, chromium, violations
from tests.viewer.recorded import CHUNK, TEXTS, entropies
from tests.viewer.scene import PATIENCE, Stage, folder_with_files, reward, served, viewer_app

SEEN = """all => all.map(one => [Number(one.dataset.reward), Number(one.dataset.level),
    getComputedStyle(one).backgroundColor, one.className])"""
VIEWS = ("playground", "trace", "entropy", "beside")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def service():
    return Stage()


@pytest.fixture
def stage(service):
    """The service, holding every tree before its first round; what is left of a test ends with it."""
    service.hold()
    yield service
    service.go_on()
    for thread in service.threads:
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def address(browser, service, tmp_path_factory):
    folder = folder_with_files(tmp_path_factory.mktemp("viewer") / "runs")
    with served(viewer_app(folder, service=service)) as found:
        yield found


@pytest.fixture
def view(browser, address):
    """`view(name, **options)`: a page at one of the views; asserts at the end that it never complained."""
    opened = []

    def go(name, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        watched = Watched(context.new_page())
        opened.append((context, watched))
        watched.page.goto(f"{address}/ui/#{name}")
        status(watched.page, "ready")
        return watched

    yield go
    complaints = [said for _, watched in opened for said in watched.complaints]
    for context, _ in opened:
        context.close()
    assert complaints == []


def status(page, words):
    """Wait until the page says this. (The policy forbids what Playwright's wait_for_function does.)"""
    page.locator("#status", has_text=words).wait_for()


def level(value):
    """What colour.js does."""
    return math.floor(5 + 5 * math.tanh(value / 2) + 0.5)


def ask(page, profile, beside=False):
    page.get_by_label("method").select_option(
        "sla" if profile in ("sla", "wide") else {"best": "best_of_n"}.get(profile, profile)
    )
    page.get_by_label("settings").select_option(f"tiny:{profile}")
    if beside:
        page.get_by_label("greedy beside it").check()
    page.get_by_label("message").fill("What is the capital of France?")
    page.get_by_role("button", name="Send").click()


def text_of(page, profile):
    return page.locator(f"article[data-profile={profile}] .answer-text").text_content()


def nodes(page, state=None):
    chosen = "" if state is None else f"[data-state={json.dumps(state)}]"
    return page.locator(f"article[data-profile=sla] .tree .node{chosen}")


# ---- the playground ----


def test_a_chat_streams_and_its_tree_grows_while_it_does(view, stage):
    page = (watched := view("playground")).page
    ask(page, "sla")
    sizes, lengths = [], []
    for count in (1, 3, 5):  # nodes after one, two and three rounds: the one that is taken, and then another one each
        stage.step()
        nodes(page).nth(count - 1).wait_for()
        sizes.append(nodes(page).count())
        lengths.append(len(text_of(page, "sla")))
        assert page.locator("article[data-profile=sla]").get_attribute("aria-busy") == "true"
    assert sizes == [1, 3, 5] and lengths == sorted(set(lengths))
    assert nodes(page, "dropped").count() == 2 and nodes(page, "committed").count() == 3
    stage.go_on()
    page.locator("article[data-profile=sla][aria-busy=false]").wait_for()
    assert text_of(page, "sla") == ANSWER
    assert page.locator(".node.winner").count() == 1
    watched.shot("playground")
    assert violations(page) == []


def test_colours_are_those_of_the_rewards_that_were_sent(view, stage):
    page = view("playground").page
    stage.go_on()
    ask(page, "sla")
    page.locator("article[data-profile=sla][aria-busy=false]").wait_for()
    tokens = page.locator("article[data-profile=sla] .answer-text .token").evaluate_all(SEEN)
    sent = {reward(place) for place in range(200)}
    assert {value for value, *_ in tokens} <= sent and len({value for value, *_ in tokens}) > 5
    assert all(shown == level(value) and f"reward-{shown}" in name.split() for value, shown, _, name in tokens)
    colours = {}
    for _, shown, colour, _ in tokens:
        colours.setdefault(shown, set()).add(colour)
    assert all(len(found) == 1 for found in colours.values())
    assert len({found.pop() for found in colours.values()}) == len(colours)


def test_greedy_stands_beside_the_search(view, stage):
    page = (watched := view("playground")).page
    stage.go_on()
    ask(page, "sla", beside=True)
    page.locator("article[data-profile=greedy][aria-busy=false]").wait_for()
    page.locator("article[data-profile=sla][aria-busy=false]").wait_for()
    assert text_of(page, "greedy") == text_of(page, "sla") == ANSWER
    boxes = [page.locator(f"article[data-profile={name}]").bounding_box() for name in ("sla", "greedy")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    watched.shot("beside-greedy")


def test_whole_answers_show_their_progress_and_candidates(view):
    page = (watched := view("playground")).page
    ask(page, "best")
    page.locator("article[data-profile=best][aria-busy=false]").wait_for()
    assert page.locator(".progress li").count() == 2
    rows = page.locator(".candidates tbody tr").evaluate_all("all => all.map(one => one.dataset.candidate)")
    assert rows == ["1", "0", "2"]  # by score
    assert "★" in page.locator(".candidates tbody tr").first.text_content()
    assert text_of(page, "best") == ANSWER
    watched.shot("candidates")
    assert violations(page) == []


def test_an_answer_can_be_stopped_and_the_chat_goes_on(view, stage):
    page = view("playground").page
    ask(page, "sla")
    stage.step()
    nodes(page).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("article[data-profile=sla][aria-busy=false]").wait_for()
    assert page.locator(".answer-state").last.text_content() == "stopped"
    stage.go_on()
    ask(page, "greedy")
    page.locator("article[data-profile=greedy][aria-busy=false]").wait_for()


# ---- traces ----


def test_the_slider_replays_a_trace_to_the_same_text(view):
    page = (watched := view("trace")).page
    page.locator("#trace select").select_option("trace.jsonl")
    slider = page.get_by_role("slider")
    slider.focus()
    seen = [page.locator("#trace .answer-text").text_content()]
    for _ in range(-(-len(ANSWER) // CHUNK)):
        page.keyboard.press("ArrowRight")
        seen.append(page.locator("#trace .answer-text").text_content())
    assert seen == [ANSWER[: CHUNK * count] for count in range(len(seen))]
    assert seen[-1] == ANSWER
    assert page.locator("#trace .node").count() == 2 * (len(seen) - 1) - 1
    page.keyboard.press("Home")
    assert page.locator("#trace .node").count() == 0
    page.keyboard.press("End")
    watched.shot("trace")
    assert violations(page) == []


def test_a_tree_can_be_walked_with_keys(view):
    page = view("trace").page
    page.locator("#trace select").select_option("trace.jsonl")
    page.get_by_role("slider").press("End")
    page.locator("#trace .node[tabindex='0']").focus()
    page.keyboard.press("Home")
    here = "document.activeElement.dataset.id"
    assert page.evaluate(here) == "1"
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.state")
    page.keyboard.press("ArrowDown")
    assert (second, page.evaluate("document.activeElement.dataset.state")) == ("committed", "dropped")
    assert "discarded" in page.locator("#trace .details").text_content()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(here) == "1"


def test_a_trace_plays_by_itself(view):
    page = view("trace").page
    page.clock.install()
    page.locator("#trace select").select_option("trace.jsonl")
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(60_000)
    assert page.locator("#trace .answer-text").text_content() == ANSWER
    assert page.get_by_role("button", name="Play").is_visible()


def test_a_file_of_this_computer_can_be_opened_and_a_bad_one_is_named(view, tmp_path):
    page = view("trace").page
    (tmp_path / "bad.jsonl").write_text('{"kind": "round"}\n', encoding="utf-8")
    page.locator("#trace input[type=file]").set_input_files(tmp_path / "bad.jsonl")
    status(page, "bad.jsonl is no trace")


# ---- entropies ----


def test_the_heat_map_is_darker_where_less_is_certain_and_says_more_when_pointed_at(view):
    page = (watched := view("entropy")).page
    page.locator("#entropy select").select_option("eval/first.jsonl")
    tokens = page.locator("#entropy .heat-text .token")
    tokens.first.wait_for()  # the file has come
    row = entropies(3)[0]
    assert "".join(tokens.all_text_contents()) == TEXTS[0]
    shown = tokens.evaluate_all(
        "all => all.map(one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).textDecorationLine])"
    )
    shades = [sum(map(int, colour[4:-1].split(","))) for colour, _ in shown]
    assert shades == sorted(shades, reverse=True) and shades[0] > shades[-1]
    assert [line == "underline" for _, line in shown] == [not right for right in row["correct"][1:]]
    tokens.nth(1).hover()
    tip = page.get_by_role("tooltip")
    tip.wait_for()
    assert tip.locator("tbody tr").count() == 5
    assert all(said in tip.text_content() for said in ("entropy (nats)1.000", "reward-0.500", "0.250"))
    watched.shot("entropy")
    assert violations(page) == []
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_heat_map_can_be_walked_with_keys(view):
    page = view("entropy").page
    page.locator("#entropy select").select_option("eval/first.jsonl")
    page.locator("#entropy .token[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    assert page.get_by_role("tooltip").is_visible()
    page.keyboard.press("End")
    assert int(page.evaluate("document.activeElement.dataset.place")) == page.locator("#entropy .token").count() - 1
    page.keyboard.press("]")
    assert "".join(page.locator("#entropy .heat-text .token").all_text_contents()) == TEXTS[1]


def test_two_models_stand_side_by_side_aligned_by_characters(view):
    page = (watched := view("beside")).page
    for at, name in enumerate(("eval/first.jsonl", "eval/second.jsonl")):
        page.locator("#beside select").nth(at).select_option(name)
    sides = page.locator("#beside .heat-text")
    sides.nth(1).locator(".token").first.wait_for()
    sides.nth(0).locator(".token").first.focus()
    page.keyboard.press("ArrowRight")  # characters 3 to 6: of the other side's tokens 2 to 4 and 4 to 6
    marked = [
        side.locator(".aligned-here").evaluate_all(
            "all => all.map(one => [Number(one.dataset.begin), Number(one.dataset.end)])"
        )
        for side in sides.all()
    ]
    assert marked == [[[3, 6]], [[2, 4], [4, 6]]]
    assert "second − first" in page.locator("#beside p.aligned").text_content()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("[document.activeElement.dataset.begin, document.activeElement.dataset.end]") == ["2", "4"]
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.begin") == "0"
    page.keyboard.press("]")
    assert "".join(sides.nth(0).locator(".token").all_text_contents()) == TEXTS[1]
    watched.shot("side-by-side")
    assert violations(page) == []


# ---- everywhere ----


def test_tabs_work_with_keys(view):
    page = view("trace").page
    page.get_by_role("tab", name="Trace").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Entropy").get_attribute("aria-selected") == "true"
    assert page.locator("#entropy").is_visible() and not page.locator("#trace").is_visible()
    page.keyboard.press("Home")
    assert page.locator("#playground").is_visible()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible_in_light_and_dark_on_a_phone(view, name, scheme):
    watched = view(name, color_scheme=scheme, reduced_motion="reduce", viewport={"width": 360, "height": 740})
    page = watched.page
    if name in ("entropy", "trace"):
        page.locator(f"#{name} select").first.select_option("eval/first.jsonl" if name == "entropy" else "trace.jsonl")
        page.locator(f"#{name} h2, #{name} .token").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    watched.shot(f"{name}-{scheme}-phone")
    assert violations(page) == []


def test_a_key_is_asked_for_and_kept_in_the_tab(browser, tmp_path):
    folder = folder_with_files(tmp_path / "runs")
    with served(viewer_app(folder, key="secret")) as address:
        page = browser.new_page()
        page.goto(f"{address}/ui/")
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use it").click()
        status(page, "ready")
        assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
        page.close()
