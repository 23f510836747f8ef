"""browser.py BUILD [PART] - the page that `dictlearn features --out` writes, driven in headless Chromium.

The pages are made of tests/page/make_page.py's data and by the program itself; what they show is compared with their
data, which is decoded here. PART: only the tests with it in their names. After each test the console must be empty and
nothing but the file requested. `make page-test` runs it.

    browser.py BUILD --pictures FOLDER PAGE[#f17]    README's pictures: what this address shows, light and dark

Closes with `N passed, N failed`.
"""
import base64
import collections
import contextlib
import functools
import io
import json
import math
import pathlib
import re
import shutil
import struct
import sys
import time
import unicodedata

sys.path[:0] = [str(pathlib.Path(__file__).parent / folder) for folder in ("python", "page")]

from harness import BUILD, ROOT, TINY, main, program  # noqa: E402
import axe_core_python  # noqa: E402
import PIL.Image  # noqa: E402
from make_page import Maker, damaged, escaped  # noqa: E402

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

TEMPLATE = ROOT / "examples" / "program" / "page.html"
WORK = BUILD / "tmp" / "browser"
MARK = "@DATA@"
SECONDS = 15  # for what the page does at once; the machine may be busy


# ---- the browser
def start():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # --no-sandbox: also as root; colours as they are written
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--force-color-profile=srgb", "--hide-scrollbars", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


DRIVER = start()


def js(script, *arguments):
    return DRIVER.execute_script(script, *arguments)


def cdp(command, **arguments):
    return DRIVER.execute_cdp_cmd(command, arguments)


def until(script, *arguments, what=None):
    """Waits until the script returns something true, and returns that."""
    limit = time.monotonic() + SECONDS
    while not (found := js(script, *arguments)):
        assert time.monotonic() < limit, f"never came: {what or script}"
        time.sleep(0.02)
    return found


def press(*keys):
    ActionChains(DRIVER).send_keys(*keys).perform()


def fill(text, selector="#search"):
    """Types text in place of what a field holds."""
    field = DRIVER.find_element("css selector", selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    if text:
        field.send_keys(text)


def emulate(media="", scheme="light"):
    cdp("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])


@contextlib.contextmanager
def width(pixels, height=800):
    cdp("Emulation.setDeviceMetricsOverride", width=pixels, height=height, deviceScaleFactor=1, mobile=False)
    try:
        yield
    finally:
        cdp("Emulation.clearDeviceMetricsOverride")


def console():
    """What the console got since the last call, but for the driver's own."""
    return [entry["message"] for entry in DRIVER.get_log("browser")]


def requests():
    """The addresses requested since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in DRIVER.get_log("performance"))
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


# ---- pages
Example = collections.namedtuple("Example", "context interval at tokens values peak")


class Page:
    """A page's file with its data, decoded anew here."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        text = self.path.read_text(encoding="utf-8")
        found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
        self.data = json.loads(found[1])
        self.url = self.path.resolve().as_uri()
        self.block = base64.b64decode(self.data["examples"])
        self.features = {feature["i"]: feature for feature in self.data["features"]}
        self.density, self.max = (self.floats(self.data["all"][key]) for key in ("density", "max"))

    @staticmethod
    def floats(text):
        packed = base64.b64decode(text)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))

    def examples(self, i):
        """The examples of feature i, from the packed block."""
        block, wide = self.block, self.data["window"]["ids"]
        at, count = self.features[i]["at"]
        found = []
        for _ in range(count):
            context, interval, firing, tokens = struct.unpack_from("<IbBB", block, at)
            at += 7
            ids = [int.from_bytes(block[at + wide * t:at + wide * (t + 1)], "little") for t in range(tokens)]
            at += wide * tokens
            values = list(block[at:at + tokens])
            at += tokens
            peak, = struct.unpack_from("<f", block, at)
            at += 4
            found.append(Example(context, interval, firing, ids, values, peak))
        return found

    def open(self, fragment=""):
        """A fresh load of the page."""
        DRIVER.get("about:blank")
        DRIVER.get(self.url + fragment)
        return self


def embed(name, data):
    """The template with this data, as the program writes it; a string is put in as it is."""
    WORK.mkdir(parents=True, exist_ok=True)
    path, template = WORK / f"{name}.html", TEMPLATE.read_text(encoding="utf-8")
    assert template.count(MARK) == 1
    path.write_text(template.replace(MARK, data if isinstance(data, str) else escaped(data)), encoding="utf-8")
    return path


@functools.cache
def sample(features=2000, shown=300):
    """A page of invented data; `shown` of the features are on it."""
    return Page(embed(f"sample_{features}", Maker(features, shown, 1).data()))


# The first ten are also put into a model's vocabulary.
HOSTILE = ["<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", "<!--", "]]>", "&lt;b&gt;",
           "javascript:alert(1)", "\u202eabc", "\u2066", "\u2069", "\u202c", "\u200f", "\0", "\a", "\x1b[31m",
           "\x7f", "\x85", "\ufffd", "\ud834", "\udd1e", "\u0301", "z\u0351\u0352\u0353", "\u200b", "\ufeff", "\u2028",
           "", " ", "\t", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "x" * 300, "${alert(1)}",
           "__proto__", "constructor"]


def hostile_model(folder):
    """tiny-neox, with ten of its tokens renamed; a folder and the new names."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TINY, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    for name in HOSTILE[:10]:  # the last tokens are no part of others
        a, b = model["merges"].pop()
        old = model["vocab"].pop(a + b)
        tokenizer["added_tokens"].append({"id": old, "content": name, "special": False, "normalized": False,
                                          "single_word": False, "lstrip": False, "rstrip": False})
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@functools.cache
def real():
    """A page that the program writes, of a model with hostile tokens."""
    folder = WORK / "real"
    model = hostile_model(folder / "model")
    sampled = folder / "plain.jsonl"
    program("generate", "--model", TINY, "--tokens", 96, "--documents", 100, "--seed", 3, "--quiet", "--out", sampled)
    documents = [json.loads(line)["text"] for line in sampled.read_text(encoding="utf-8").splitlines()]
    with open(folder / "text.jsonl", "w", encoding="utf-8") as out:
        for k, text in enumerate(documents):
            cut = len(text) // 3
            name = HOSTILE[k % 10]
            text = text[:cut] + name + text[cut:2 * cut] + " \u00e9\u6f22\U0001f469" + name
            out.write(json.dumps({"text": text}) + "\n")
    source = ("--model", model, "--text", folder / "text.jsonl", "--site", "mlp_out", "--layer", 0, "--quiet")
    program("train", *source, "--expansion", 4, "--batch-size", 256, "--steps", 60, "--lr", 2e-3, "--warmup-steps", 5,
            "--sparsity-penalty", 0.1, "--n-ctxs", 90, "--save-dir", folder / "run")
    program("features", *source, "--dict", folder / "run", "--all", "--out", folder / "page.html")
    return Page(folder / "page.html")


# ---- what is measured in the page
PAINT = """
const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d",
    {willReadFrequently: true});
function paint(...colours) { // one over another, on white: the red, green and blue that are seen
    for (const colour of ["#fff", ...colours]) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function backgrounds(element) { // from the root to the element
    const found = [];
    for (let e = element; e; e = e.parentElement) found.unshift(getComputedStyle(e).backgroundColor);
    return found;
}
function luminance(rgb) {
    const [r, g, b] = rgb.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(a, b) {
    const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (light + 0.05) / (dark + 0.05);
}
"""
# The texts that are seen, as [contrast with what is behind, required contrast, text, colours]; WCAG 2.1, 1.4.3.
TEXTS = PAINT + """
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
function look(element, colour, text) {
    let alpha = 1;
    for (let e = element; e; e = e.parentElement) alpha *= getComputedStyle(e).opacity;
    const behind = paint(...backgrounds(element));
    const front = paint(...backgrounds(element), colour).map((c, i) => alpha * c + (1 - alpha) * behind[i]);
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    found.push([contrast(front, behind), large ? 3 : 4.5, text.slice(0, 40), front + " on " + behind]);
}
while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    if (!text || !element.checkVisibility({visibilityProperty: true}) || box.width < 2 || box.height < 2) continue;
    if (element.closest(":disabled, script, style, option")) continue;
    const style = getComputedStyle(element);
    look(element, element instanceof SVGElement ? style.fill : style.color, text);
}
for (const e of document.querySelectorAll("[placeholder]"))
    if (e.checkVisibility()) look(e, getComputedStyle(e, "::placeholder").color, e.placeholder);
return found;
"""
INTERACTIVE = {"button", "link", "textbox", "searchbox", "combobox", "listbox", "option", "checkbox", "radio", "slider",
               "tab", "menuitem", "switch", "spinbutton", "columnheader", "grid", "img", "image", "region",
               "navigation", "dialog"}


def unreadable():
    """The texts that are seen and have too little contrast with what is behind them."""
    return [text for text in js(TEXTS) if text[0] < text[1] - 0.005]


def nameless():
    """The roles and names of what needs a name in the accessibility tree and has none, or only a sign."""
    nodes = [node for node in cdp("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    return [(role, name) for role, name in names if role in INTERACTIVE
            and not re.search(r"\w" if role == "link" else r"\w\w", name)]


# ---- the list
def rows():
    """The features of the list that are in the document, in order."""
    return js("return [...document.querySelectorAll('#list [role=option]')].map(row => +row.dataset.feature)")


def listed():
    """All features of the list in order, by scrolling through it."""
    return js("""return (async () => {
        const list = document.querySelector("#list"), found = new Map();
        const read = () => list.querySelectorAll("[role=option]").forEach(
            row => found.set(+row.getAttribute("aria-posinset"), +row.dataset.feature));
        list.scrollTop = 0;
        for (let last = -1; list.scrollTop > last;) {
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            read();
            last = list.scrollTop;
            list.scrollTop += list.clientHeight;
        }
        return [...found.keys()].sort((a, b) => a - b).map(at => found.get(at));
    })()""")


def counted():
    """The number that #count begins with."""
    text = js("return document.querySelector('#count').textContent")
    found = re.match(r"[\d,]+", text)
    return int(found[0].replace(",", "")) if found else text


def select(selector, value):
    js("""const e = document.querySelector(arguments[0]);
          e.value = arguments[1];
          for (const kind of ["input", "change"]) e.dispatchEvent(new Event(kind, {bubbles: true}));""",
       selector, value)


def look_for(text):
    """The features that a search finds, once every context has been read."""
    fill(text)
    until("return !document.querySelector('#count').textContent.includes('still')")
    return listed()


# ---- numbers as the page writes them
def number(text):
    """1,234 or 1.2e−4 or 3.4%: the number meant, and half a unit of its last digit."""
    text = text.strip().replace("\u2212", "-").replace(",", "")
    part, size = (text[:-1], 0.01) if text.endswith("%") else (text, 1)
    digits, _, power = part.partition("e")
    size *= 10 ** int(power or 0)
    return float(digits) * size, 0.5 * size * 10 ** -len(digits.partition(".")[2])


def same(text, true, what=""):
    """Does a number of the page say what the data has?"""
    shown, half = number(text)
    assert abs(shown - true) <= half * 1.01 + 1e-6 * abs(true), f"{what}: the page says {text}, the data {true}"


def texts(selector):
    return js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)


# ---- the document and its list
def test_it_opens_from_the_disk_and_requests_nothing():
    page = sample().open()
    for fragment in ("#map", "#about", f"#f{page.data['features'][0]['i']}", "#"):
        js("location.hash = arguments[0]", fragment)
    assert requests() == [page.url], "more than the file was requested"


def test_the_policy_forbids_requests():
    sample().open()
    js("""document.body.append(Object.assign(new Image(), {src: "http://e.invalid/x.png"}));
          fetch("http://e.invalid/x").catch(() => 0);
          document.head.append(Object.assign(document.createElement("script"), {src: "http://e.invalid/x.js"}));
          const look = document.createElement("link");
          document.head.append(Object.assign(look, {rel: "stylesheet", href: "http://e.invalid/x.css"}));""")
    time.sleep(0.3)
    refused = " ".join(console())
    for kind in ("x.png", "x.js", "x.css", "http://e.invalid/x'"):
        assert kind in refused, f"{kind} was not refused: {refused}"
    requests()  # those above


def test_what_is_in_the_document_is_bounded():
    nodes = {}
    for features, shown in ((100, 100), (2000, 300), (40000, 1000)):
        page = sample(features, shown).open()
        nodes[features] = js("return document.getElementsByTagName('*').length")
        took = js("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        print(f"{features} features, {shown} on the page, {page.path.stat().st_size / 1e6:.1f} MB: loaded in "
              f"{took:.0f} ms, {nodes[features]} elements")
        select("#filter", "every")
        js("document.querySelector('#list').scrollTop = 1e9")
        until("return +[...document.querySelectorAll('#list [role=option]')].pop().dataset.feature == arguments[0]",
              features - 1)
        assert js("return document.getElementsByTagName('*').length") < 1.2 * nodes[features] + 100
    assert max(nodes.values()) < 1.2 * min(nodes.values()) + 50, nodes


def test_the_list_has_every_feature_of_the_page():
    page = sample().open()
    assert listed() == sorted(page.features)
    assert counted() == len(page.features)
    dead, alive = [[i for i, d in enumerate(page.density) if (d == 0) == zero] for zero in (True, False)]
    for name, wanted in (("every", range(len(page.density))), ("dead", dead), ("alive", alive),
                         ("dense", [i for i, d in enumerate(page.density) if d > 0.1]), ("all", sorted(page.features))):
        select("#filter", name)
        assert listed() == list(wanted), name
        assert counted() == len(wanted), name


def test_rows_say_what_the_data_says():
    page = sample().open()
    shown = js("""return [...document.querySelectorAll("#list [role=option]")].map(row =>
        [row.dataset.feature, ...[".i", ".d", ".m"].map(c => row.querySelector(c).textContent)]);""")
    assert len(shown) > 10
    for i, name, density, largest in shown:
        assert name == i
        same(density, page.density[int(i)], f"density of {i}")
        same(largest, page.max[int(i)], f"max of {i}")


def top_token(page, i):
    feature = page.features[i]
    tokens = feature["share_tokens"] or feature["mean_tokens"]
    return page.data["tokens"][tokens[0][0]].lower().strip() if tokens else "\uffff"


def test_each_order_both_ways():
    page = sample().open()
    with width(1280, 12000):  # all rows at once
        check_orders(page)


def check_orders(page):
    up = {i: (f["logits"] or {}).get("up") or [] for i, f in page.features.items()}
    keys = {"number": lambda i: i, "density": lambda i: -page.density[i], "max": lambda i: -page.max[i],
            "logit": lambda i: -up[i][0][1] if up[i] else math.inf}
    named = {i: top_token(page, i) for i in page.features}
    names = js("return arguments[0].sort(new Intl.Collator('en').compare)", sorted(set(named.values())))
    keys["token"] = lambda i: names.index(named[i])
    assert set(js("return [...document.querySelector('#sort').options].map(o => o.value)")) == set(keys)
    for order, key in keys.items():
        select("#sort", order)
        for way in (1, -1):
            found = listed()
            assert sorted(found) == sorted(page.features), order
            wrong = [(a, b) for a, b in zip(found, found[1:]) if way * key(a) > way * key(b)]
            assert not wrong, f"{order}, {'down' if way < 0 else 'up'}: {wrong[0]} in the wrong order"
            DRIVER.find_element("id", "order").click()


def test_each_form_of_search():
    page = sample().open()
    tokens = [text.lower() for text in page.data["tokens"]]

    def holds(i, text, where="any", whole=False):
        feature, found = page.features[i], []
        logits = feature["logits"] or {"up": [], "down": []}
        if where != "logit":
            found += feature["mean_tokens"] + feature["share_tokens"]
        if where != "token":
            found += logits["up"] + logits["down"]
        ids = {row[0] for row in found}
        if where == "any":
            ids |= {e.tokens[e.at] for e in page.examples(i) if e.at < len(e.tokens)}
        return any(tokens[t] in (text, " " + text) if whole else text in tokens[t] for t in ids)

    some = sorted(page.features)[17]
    searches = {
        "King": lambda i: holds(i, "king"), '"run"': lambda i: holds(i, "run", whole=True),
        "run": lambda i: holds(i, "run"), "token:water": lambda i: holds(i, "water", "token"),
        "logit:water": lambda i: holds(i, "water", "logit"), "<script>": lambda i: holds(i, "<script>"),
        "density:0.001-0.01": lambda i: 0.001 <= page.density[i] <= 0.01,
        "density:0.1%-1%": lambda i: 0.001 <= page.density[i] <= 0.01, "max:>3": lambda i: page.max[i] > 3,
        "max:<3": lambda i: page.max[i] < 3, "court max:>5": lambda i: holds(i, "court") and page.max[i] > 5,
        str(some): lambda i: i == some or holds(i, str(some)), "": lambda i: True}
    with width(1280, 12000):  # all rows at once
        for text, wanted in searches.items():
            found = look_for(text)
            assert sorted(found) == [i for i in sorted(page.features) if wanted(i)], text
            assert 0 < counted() == len(found), text
    assert look_for(str(some))[0] == some
    assert look_for("nothing-holds-this") == [] and "No feature" in texts("#count")[0]
    look_for("density:often")
    assert "expected" in texts("#count")[0]


# ---- a feature
def opened():
    """The feature that is open, once it is drawn; None in another view."""
    found = js("const h = document.querySelector('#feature'); return h.hidden ? '' : h.querySelector('h2').textContent")
    return int(found.split()[1]) if found else None


def reach(i):
    limit = time.monotonic() + SECONDS
    while opened() != i:
        assert time.monotonic() < limit, f"feature {opened()} is open, not {i}"
        time.sleep(0.02)


def test_a_feature_opens_by_click_key_and_address():
    page = sample().open()
    first, second, third = rows()[:3]
    DRIVER.find_elements("css selector", "#list [role=option]")[1].click()
    reach(second)
    assert js("return location.hash").startswith(f"#f{second}")
    DRIVER.back()
    until("return document.querySelector('#feature').hidden", what="the list after the back button")
    DRIVER.find_element("id", "list").click()
    js("document.querySelector('#list').focus()")
    page.open(f"#f{third}")
    reach(third)
    js("location.hash = arguments[0]", f"#f{first}")
    reach(first)
    DRIVER.back()
    reach(third)
    DRIVER.forward()
    reach(first)
    DRIVER.refresh()
    reach(first)


def test_contexts_are_those_of_the_data():
    check_contexts(sample(), sorted(sample().features)[:12])


def check_contexts(page, features):
    for i in features:
        page.open(f"#f{i}")
        reach(i)
        found = js(PAINT + """
            const under = e => paint(...backgrounds(e.parentElement));
            return [...document.querySelectorAll("#f-examples .ctx")].map(c => [c.querySelector(".peak").textContent,
                [...c.querySelectorAll(".t")].map(t => [t.title, t.dataset.v, t.classList.contains("hit"),
                    t.textContent, contrast(paint(...backgrounds(t)), under(t)),
                    getComputedStyle(t).textDecorationLine])]);""")
        examples = sorted(page.examples(i), key=lambda e: e.interval)
        assert len(found) == len(examples) == page.features[i]["at"][1]
        shades = []
        for (peak, tokens), example in zip(found, examples):
            same(peak, example.peak, "a context's peak")
            assert len(tokens) == len(example.tokens)
            for at, ((title, value, hit, text, shade, line), quantum) in enumerate(zip(tokens, example.values)):
                assert title == value and hit == (at == example.at) == (line == "underline")
                true = example.peak if hit else quantum / 255 * page.max[i]
                if title.startswith("\u2265"):  # the last of the 256 steps, in a row that does not count
                    assert quantum == 255
                same(title.lstrip("\u2265 "), true, f"token {at}")
                plain = page.data["tokens"][example.tokens[at]]
                if plain.isascii() and plain.isprintable():
                    assert text == (plain or "\u2039empty\u203a"), (text, plain)
                shades.append((quantum, shade))
        shades.sort()
        assert shades[0] == (0, 1), "a token without activation has a shade"
        assert all(a[1] <= b[1] + 1e-3 for a, b in zip(shades, shades[1:])), "a larger activation has a lighter shade"
        assert shades[-1][1] > 1.5 and all(s > 1 for q, s in shades if q), "a shade is not seen"


def bars(section):
    """The heights of a histogram's bars, in the counts that its axis tells; and one pixel in those."""
    heights, label, lines, names = js("""const picture = document.querySelector(arguments[0] + " svg");
        const all = selector => [...picture.querySelectorAll(selector)];
        return [all(".bar").map(bar => +bar.getAttribute("height")), picture.getAttribute("aria-label"),
                all(".axis").map(line => +line.getAttribute("y1")),
                all("text[text-anchor=end]").map(text => text.textContent)]""", section)
    ticks = [number(name.rstrip("k"))[0] * (1000 if name.endswith("k") else 1) for name in names]
    assert label and len(lines) == len(ticks) > 1 and ticks[0] == 0
    pixel = ticks[-1] / (lines[0] - lines[-1])
    return [height * pixel for height in heights], pixel


def test_histograms_have_the_counts():
    check_histograms(sample(), next(i for i, f in sorted(sample().features.items()) if f["fired"] > 1000))


def check_histograms(page, i):
    feature = page.open(f"#f{i}").features[i]
    reach(i)
    for section, counts, low, high in (("#f-hist", feature["hist"], feature["min"], feature["max"]),
                                       ("#f-logits", feature["logits"]["hist"], feature["logits"]["low"],
                                        feature["logits"]["high"])):
        heights, pixel = bars(section)
        assert len(heights) == len(counts) == 50
        for height, n in zip(heights, counts):  # what is there is seen: a pixel at least
            assert abs(height - (n and max(n, pixel))) < 0.1 * pixel, (height, n)
        js("document.querySelector(arguments[0] + ' svg').focus()", section)
        press(Keys.HOME)
        for at in range(3):
            said = re.match(r"(\S+) to (\S+): (\S+) ", texts(f"{section} figcaption")[0])
            for text, true in zip(said.groups(), (low + at * (high - low) / 50, low + (at + 1) * (high - low) / 50,
                                                  counts[at])):
                same(text, true, f"bar {at} of {section}")
            press(Keys.ARROW_RIGHT)


def table(section, at=0):
    """The cells of a table's rows as texts."""
    return js("""return [...document.querySelectorAll(arguments[0] + " table")[arguments[1]].tBodies[0].rows].map(
        row => [...row.cells].map(cell => (cell.querySelector(".tok, .to") || cell).textContent))""", section, at)


def test_tables_are_those_of_the_data():
    check_tables(sample(), next(i for i, f in sorted(sample().features.items())[5:] if f["fired"] > 1000))


def check_tables(page, i):
    f = page.open(f"#f{i}").features[i]
    reach(i)
    tables = {("#f-logits", 0): f["logits"]["up"], ("#f-logits", 1): f["logits"]["down"],
              ("#f-tokens", 0): f["share_tokens"], ("#f-tokens", 1): f["mean_tokens"], ("#f-near", 0): f["near"],
              ("#f-with", 0): f["with"], ("#f-neurons", 0): f["align"], ("#f-neurons", 1): f["neurons"]}
    for (section, at), rows in tables.items():
        found = table(section, at)
        assert len(found) == len(rows) > 0, section
        for cells, row in zip(found, rows):
            token = section in ("#f-logits", "#f-tokens")
            name = page.data["tokens"][row[0]] if token else str(row[0])
            if name.isascii() and name.isprintable() and name:  # blanks at its ends are dots
                dots = re.sub("^ +| +$| {2,}", lambda blanks: "\u00b7" * len(blanks[0]), name)
                assert cells[0] == dots, (section, cells, row)
            assert len(cells) > 1
            for text, true in zip(cells[1:], row[1:]):
                if text.endswith("k"):
                    shown, half = number(text[:-1])
                    assert abs(1000 * shown - true) <= 1000 * half, (text, true)
                else:
                    same(text, true, f"{section} of {name}")
    for name, true in (("Density", f["density"]), ("Max", f["max"]), ("Min where it fires", f["min"]),
                       ("Mean where it fires", f["mean"] / f["density"]), ("Decoder norm", f["norm"])):
        found = js("return [...document.querySelectorAll('#f-summary dt')].find(e => e.textContent == arguments[0])"
                   ".nextSibling.textContent", name)
        same(found, true, name)


def test_links_lead_from_feature_to_feature():
    page = sample()
    i = sorted(page.features)[5]
    page.open(f"#f{i}")
    reach(i)
    for section, rows in (("#f-near", page.features[i]["near"]), ("#f-with", page.features[i]["with"])):
        links = js("return [...document.querySelectorAll(arguments[0] + ' a')].map(a => a.getAttribute('href'))",
                   section)
        assert links == [f"#f{row[0]}" for row in rows if row[0] in page.features], section
    DRIVER.find_element("css selector", "#f-near a, #f-with a").click()
    reach(int(links[0][2:]) if not js("return document.querySelector('#f-near a')") else opened())
    assert opened() != i
    DRIVER.back()
    reach(i)


def test_a_feature_that_is_not_on_the_page():
    page = sample()
    for i in (next(i for i in range(2000) if i not in page.features), 2000, 10 ** 12):
        page.open(f"#f{i}")
        reach(i)
        assert not texts(".ctx") and ("features --features" if i < 2000 else "2,000 features") in texts("#feature")[0]
    dead = next(i for i, f in page.features.items() if f["fired"] == 0)
    page.open(f"#f{dead}")
    reach(dead)
    assert "fires on no row" in texts("#f-summary")[0] and not texts(".ctx")


# ---- keys
def focused():
    return js("const e = document.activeElement; return e.id || e.className || e.tagName")


def place():
    """What the address says is open."""
    return js("return location.hash").lstrip("#").partition("?")[0]


def test_the_keys():
    page = sample().open()
    order = sorted(page.features)
    press("/")
    assert focused() == "search"
    press("jm?a")
    assert js("return document.querySelector('#search').value") == "jm?a" and not place(), "keys in the search act"
    press(Keys.ESCAPE)
    assert js("return document.querySelector('#search').value") == "" and counted() == len(order)
    press(Keys.ESCAPE)
    assert focused() == "list"
    press("j", "j", "j", "k")
    assert js("return +document.querySelector('#list .cursor').dataset.feature") == order[1]
    press(Keys.ENTER)
    reach(order[1])
    press("j", "j")
    reach(order[3])
    press("k")
    reach(order[2])
    press("m")
    until("return !document.querySelector('#map').hidden && location.hash.startsWith('#map')")
    press("a")
    until("return !document.querySelector('#about').hidden")
    press("?")
    assert js("return document.querySelector('#help').open")
    press(Keys.ESCAPE)
    assert not js("return document.querySelector('#help').open") and place() == "about"
    press(Keys.ESCAPE)
    until("return document.querySelector('#about').hidden")
    assert not place() and focused() == "list"
    for key, wanted in ((Keys.END, order[-1]), (Keys.HOME, order[0]), (Keys.ARROW_DOWN, order[1]),
                        (Keys.ARROW_UP, order[0])):
        press(key)
        assert js("return +document.querySelector('#list .cursor').dataset.feature") == wanted
        assert js("""const list = document.querySelector("#list").getBoundingClientRect(),
            row = document.querySelector("#list .cursor").getBoundingClientRect();
            return row.top >= list.top - 1 && row.bottom <= list.bottom + 1"""), "the cursor is out of sight"
        assert js("""const at = document.querySelector("#list").getAttribute("aria-activedescendant");
            return +document.getElementById(at).dataset.feature""") == wanted
    press(Keys.PAGE_DOWN, Keys.ENTER)
    until("return !document.querySelector('#feature').hidden")
    assert opened() > order[4]


def test_search_and_enter_open_the_first():
    page = sample().open()
    press("/", str(sorted(page.features)[40]), Keys.ENTER)
    reach(sorted(page.features)[40])
    assert "q=" in js("return location.hash"), "the search is not in the address"
    DRIVER.refresh()
    reach(sorted(page.features)[40])
    assert js("return document.querySelector('#search').value") == str(sorted(page.features)[40])


def test_keys_within_contexts():
    page = sample()
    i = sorted(page.features)[3]
    page.open(f"#f{i}")
    reach(i)
    examples = sorted(page.examples(i), key=lambda e: e.interval)
    js("document.querySelector('.ctx').focus()")
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert js("return [...document.querySelectorAll('.ctx')].indexOf(document.activeElement)") == 2
    press(Keys.ARROW_RIGHT)
    tip = texts("#tip")[0]
    same(tip.split()[-1], examples[2].peak, "the tip of the firing token")
    press(Keys.ARROW_LEFT)
    assert focused().startswith("t") and texts("#tip")[0] != tip
    quantum = examples[2].values[examples[2].at - 1]
    same(texts("#tip")[0].split()[-1], quantum / 255 * page.max[i], "the token before it")
    assert opened() == i


def test_hovering_gives_the_number():
    page = sample()
    i = sorted(page.features)[3]
    page.open(f"#f{i}")
    reach(i)
    for token in DRIVER.find_elements("css selector", ".ctx .t.hit")[:3]:
        value = token.get_attribute("data-v")
        ActionChains(DRIVER).move_to_element(token).perform()
        until("const e = document.querySelector('#tip'); return !e.hidden && e.textContent.endsWith(arguments[0])",
              value)
        box = js("return document.querySelector('#tip').getBoundingClientRect().toJSON()")
        assert 0 <= box["left"] and box["right"] <= js("return innerWidth") and box["top"] >= 0


def test_the_focus_reaches_all_and_is_seen():
    page = sample()
    for fragment in ("", f"#f{sorted(page.features)[3]}", "#map", "#about"):
        page.open(fragment)
        js("document.activeElement.blur()")
        wanted = set(js("""
            return [...document.querySelectorAll("a[href], button, input, select, [tabindex='0']")].filter(
                e => e.checkVisibility({visibilityProperty: true}) && e.tabIndex >= 0).map(
                    (e, k) => e.dataset.stop = k)"""))
        seen = set()
        for _ in range(len(wanted) + 3):
            press(Keys.TAB)
            at, outlined, name = js("""const e = document.activeElement, s = getComputedStyle(e);
                return [e.dataset.stop, s.outlineStyle != "none" && parseFloat(s.outlineWidth) >= 1, e.outerHTML]""")
            if at is not None:
                seen.add(int(at))
                assert outlined or js("return !!document.querySelector('.cursor')"), f"focus is not seen on {name[:80]}"
        assert seen == wanted, js("""return arguments[0].map(
            at => document.querySelector(`[data-stop="${at}"]`).outerHTML.slice(0, 80))""", sorted(wanted - seen))


# ---- the map
def test_the_map():
    page = sample().open("#map")
    canvas = DRIVER.find_element("css selector", "#map canvas")
    size, found = canvas.size, {}
    pointer = ActionChains(DRIVER, duration=0)
    for x in range(-size["width"] // 2 + 60, size["width"] // 2 - 20, size["width"] // 14):
        for y in range(-size["height"] // 2 + 30, size["height"] // 2 - 40, size["height"] // 9):
            pointer.move_to_element_with_offset(canvas, x, y).perform()
            text = js("const tip = document.querySelector('#tip'); return tip.hidden ? '' : tip.textContent")
            if text:
                i, density, largest = re.match(r"Feature (\d+): density (\S+), max (\S+)", text).groups()
                same(density, page.density[int(i)], f"density of {i}")
                same(largest, page.max[int(i)], f"max of {i}")
                found[int(i)] = x, y
    assert len(found) > 20, "hovering over the map finds few features"

    def straight(pairs):  # the share of the variance that a line explains
        n = len(pairs)
        mx, my = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
        sxy = sum((x - mx) * (y - my) for x, y in pairs)
        return sxy * abs(sxy) / sum((x - mx) ** 2 for x, _ in pairs) / sum((y - my) ** 2 for _, y in pairs)

    assert straight([(x, math.log10(page.density[i])) for i, (x, _) in found.items()]) > 0.99
    assert straight([(-y, math.log10(page.max[i])) for i, (_, y) in found.items()]) > 0.97
    i = next(i for i in found if i in page.features)
    pointer.move_to_element_with_offset(canvas, *found[i]).click().perform()
    reach(i)


def test_the_map_by_keys():
    page = sample().open("#map")
    js("document.querySelector('#map canvas').focus()")
    alive = sorted((i for i in page.features if page.density[i] > 0), key=lambda i: page.density[i])
    press(Keys.HOME)
    assert texts("#tip")[0].startswith(f"Feature {alive[0]}:")
    press(Keys.ARROW_RIGHT)
    assert texts("#tip")[0].startswith(f"Feature {alive[1]}:")
    before = js("return document.querySelector('#map canvas').toDataURL()")
    press("+")
    assert js("return document.querySelector('#map canvas').toDataURL()") != before
    press("0")
    assert js("return document.querySelector('#map canvas').toDataURL()") == before
    press(Keys.ENTER)
    reach(alive[1])


def test_the_maps_table_counts_the_features():
    page = sample().open("#map")
    counts = [[number(cell)[0] for cell in row[1:]] for row in table("#map")]
    assert sum(row[0] for row in counts) == len(page.density)
    assert sum(row[1] for row in counts) == len(page.features)
    assert counts[0][0] == sum(d == 0 for d in page.density)
    assert counts[-1][0] == sum(d > 0.1 for d in page.density)


# ---- how it looks
def views(page):
    """Opens each view in turn; the last with the keys' window over it."""
    some = sorted(page.features)
    for fragment in ("", f"#f{some[0]}", f"#f{some[3]}", "#map", "#about"):
        page.open(fragment)
        yield fragment or "the list"
    press("?")
    yield "the keys"


def dark():
    return js(PAINT + "return luminance(paint(...backgrounds(document.body))) < 0.2")


def test_light_and_dark():
    page = sample().open()
    try:
        assert not dark()
        emulate(scheme="dark")
        assert dark(), "the system's dark is not obeyed"
        page.open()
        assert dark()
        DRIVER.find_element("id", "theme").click()
        assert not dark(), "the button does not change dark to light"
        page.open("#about")
        assert not dark(), "the choice is not kept"
        emulate()
        assert not dark()
        DRIVER.find_element("id", "theme").click()
        assert dark()
    finally:
        js("localStorage.clear()")


def test_texts_can_be_read_in_light_and_dark():
    for scheme in ("light", "dark"):
        emulate(scheme=scheme)
        for name in views(sample()):
            bad = unreadable()
            assert not bad, f"{name}, {scheme}: {len(bad)} texts, such as {bad[:2]}"
            if name.startswith("#f"):
                for button in DRIVER.find_elements("css selector", "#f-examples .tools button"):
                    button.click()
                bad = unreadable()
                assert not bad, f"{name}, {scheme}, numbers: {len(bad)} texts, such as {bad[:2]}"
                assert len(js(TEXTS)) > 500


def test_it_fits_narrow_windows():
    page = sample()
    for pixels in (400, 320):
        with width(pixels):
            for name in views(page):
                assert js("""const d = document.documentElement;
                    return innerWidth == arguments[0] && d.scrollWidth <= d.clientWidth""", pixels), (name, pixels)
                wide = js("""const inner = document.querySelector("main");
                    return inner.scrollWidth > inner.clientWidth || [...document.querySelectorAll(
                        "h2, h3, p, button, input, select, a, figure, table, .ctx, .stats > div, dd")].filter(e => {
                        const box = e.getBoundingClientRect();
                        return e.checkVisibility() && e.className != "skip" && box.width &&
                            (box.left < -1 || box.right > innerWidth + 1);
                    }).map(e => e.outerHTML.slice(0, 60))""")
                assert not wide, f"{name} at {pixels}: {wide}"


def test_all_is_reached_in_a_narrow_window():
    page = sample()
    with width(400):
        page.open()
        i = rows()[2]
        DRIVER.find_elements("css selector", "#list [role=option]")[2].click()
        reach(i)
        sections = js("""return [...document.querySelectorAll("#feature > section")].filter(
            e => {
                e.scrollIntoView();
                const box = e.getBoundingClientRect();
                return box.height > 20 && box.top < innerHeight;
            })
            .map(e => e.id.slice(2))""")
        assert sections == ["summary", "examples", "logits", "hist", "tokens", "near", "with", "neurons"]
        js("document.querySelector('main').scrollTop = 0")
        DRIVER.find_element("css selector", ".back").click()
        until("return document.querySelector('#list').checkVisibility()", what="the list again")
        for link in ("map", "about"):
            DRIVER.find_element("css selector", f"header a[href='#{link}']").click()
            until("return document.getElementById(arguments[0]).checkVisibility()", link)
        DRIVER.find_element("css selector", "#title").click()
        until("return document.querySelector('#list').checkVisibility()", what="the list by the title")
        assert DRIVER.find_element("id", "theme").is_displayed()


def test_it_can_be_printed():
    page = sample()
    i = sorted(page.features)[3]
    emulate("print", "dark")
    page.open(f"#f{i}")
    reach(i)
    for gone in ("nav", "header", ".tools"):
        assert not js("return document.querySelector(arguments[0]).checkVisibility()", gone), f"{gone} is printed"
    assert not dark() and not unreadable()
    assert not js("""return [...document.querySelectorAll(".ctx .text")].filter(
        e => e.scrollWidth > e.clientWidth + 1).length"""), "contexts are cut"
    emulate()
    paper = base64.b64decode(cdp("Page.printToPDF", printBackground=True)["data"])
    pages = len(re.findall(rb"/Type\s*/Page\b", paper))
    assert paper.startswith(b"%PDF") and len(paper) > 20000 and 2 <= pages <= 20, (len(paper), pages)


# ---- for everyone
def test_everything_has_a_name():
    for name in views(sample()):
        assert not nameless(), f"{name}: without a name: {nameless()}"


def test_axe_finds_nothing():
    script = pathlib.Path(axe_core_python.__file__).parent / "axe.min.js"
    for name in views(sample()):
        js(script.read_text(encoding="utf-8"))
        found = DRIVER.execute_async_script("""const done = arguments[0];
            axe.run(document, {resultTypes: ["violations"]}).then(r => done(r.violations.map(
                v => [v.id, v.impact, v.help, v.nodes.length, v.nodes[0].html.slice(0, 100)])))""")
        assert not found, f"{name}: {found}"


def test_titles_follow_the_view():
    page = sample()
    some = sorted(page.features)[3]
    page.open(f"#f{some}")
    reach(some)
    assert str(some) in DRIVER.title
    js("location.hash = '#about'")
    until("return !document.querySelector('#about').hidden")
    assert str(some) not in DRIVER.title


# ---- what others wrote
def hostile():
    data = Maker(300, 60, 2).data()
    data["tokens"] = [HOSTILE[k % len(HOSTILE)] for k in range(len(data["tokens"]))]
    data["title"] = "".join(HOSTILE)
    data["about"] += [[text, text] for text in HOSTILE]
    data["notes"] += HOSTILE
    return Page(embed("hostile", data))


def unseen(text):
    """The characters that show nothing, or turn their neighbours around."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def tags():
    return collections.Counter(js("return [...document.querySelectorAll('*')].map(e => e.tagName)"))


def test_a_hostile_vocabulary_is_only_text():
    page = hostile()
    check_hostile(page)
    for text in ("<img", "</script>", "${alert(1)}", '"', '"<', "\\", "logit:<script>", "token:", "density:",
                 "__proto__"):
        assert isinstance(look_for(text), list)


def check_hostile(page):
    plain = collections.Counter()
    for _ in views(sample()):
        plain |= tags()
    for name in views(page):
        found = tags()
        assert set(found) <= set(plain) and found["SCRIPT"] == plain["SCRIPT"], set(found) - set(plain)
        assert js("return getComputedStyle(document.body).direction") == "ltr"
        tokens = js("""return [...document.querySelectorAll(".t, .tok")].map(
            e => [e.textContent, getComputedStyle(e).unicodeBidi])""")
        for text, isolated in tokens:
            assert not unseen(text) and text, f"{name}: a token shows {text!r}"
            assert isolated == "isolate", text
    shown = ""
    for i in sorted(page.features, key=lambda i: -page.density[i])[:8]:
        page.open(f"#f{i}")
        reach(i)
        shown += "".join(texts(".t"))
        assert backwards() == 0, f"{backwards()} tokens of feature {i} stand left of those before them"
    for text in HOSTILE[:7]:
        assert text in shown, f"{text} is not shown"


def backwards():
    """How many tokens of lines from left to right stand left of those before them."""
    return js("""return [...document.querySelectorAll(".text[dir=ltr]")].flatMap(line => {
        const tokens = [...line.querySelectorAll(".t")].map(e => e.getBoundingClientRect()).filter(b => b.width);
        return tokens.filter((b, k) => k && Math.abs(b.top - tokens[k - 1].top) < 2 && b.left < tokens[k - 1].left - 1);
    }).length""")


def test_the_programs_own_page():
    page = real()
    page.open()
    assert listed() == sorted(page.features) == list(range(512)) and len(page.density) == 512
    alive = sorted((i for i in page.features if page.density[i] > 0), key=lambda i: -page.density[i])
    some = alive[:3] + alive[len(alive) // 2:][:3]
    check_contexts(page, some)
    for i in some[2:4]:
        check_histograms(page, i)
        check_tables(page, i)
    check_hostile(page)
    for scheme in ("light", "dark"):
        emulate(scheme=scheme)
        for name in views(page):
            assert not unreadable(), f"{name}, {scheme}: {unreadable()[:2]}"
            assert not nameless(), f"{name}: without a name: {nameless()}"
    with width(400):
        for name in views(page):
            assert js("return document.documentElement.scrollWidth <= innerWidth"), name


def test_damaged_data_gets_a_sentence():
    cases = {how: damaged(Maker(100, 20, 3).data(), how) for how in ("json", "version", "field")}
    for key in ("version", "tokens", "all", "window", "features", "examples", "about", "notes"):
        for value in (None, 7, "x", [], {}):
            data = Maker(100, 20, 3).data()
            data[key] = value
            if (key, value) not in (("features", []), ("about", []), ("notes", []), ("tokens", []), ("examples", "x")):
                cases[f"{key} {value}"] = data
    cases.update({"nothing": "", "null": "null", "a number": "3", "a list": "[]"})
    data = cases["half of base64"] = Maker(100, 20, 3).data()
    data["all"]["max"] = data["all"]["max"][:-3]
    for name, data in cases.items():
        DRIVER.get(embed("damaged", data).resolve().as_uri())
        text = js("const e = document.querySelector('#fault'); return e.hidden ? '' : e.textContent")
        assert re.fullmatch(r"(The data of this page|This page|This is) .{10,100}\.", text), f"{name}: {text!r}"
        assert not console(), name


def test_damaged_examples_leave_the_rest():
    data = Maker(100, 20, 3).data()
    data["examples"] = data["examples"][:1000]
    page = Page(embed("damaged", data)).open()
    last = max(i for i, f in page.features.items() if f["fired"])
    js("location.hash = arguments[0]", f"#f{last}")
    reach(last)
    assert "damaged" in texts("#f-examples")[0] and len(table("#f-logits")) == 10
    assert look_for("king")


def test_a_page_without_features_says_so():
    data = Maker(100, 20, 3).data()
    data["features"] = []
    page = Page(embed("empty", data))
    for fragment in ("", "#f0", "#map", "#about"):
        page.open(fragment)
        assert js("return document.querySelector('#fault').hidden") and len(texts("main")[0]) > 50, fragment
    page.open()
    select("#filter", "every")
    assert listed() == list(range(100))


# ---- running
def guarded(test):
    """The test, after which the console must be empty and only files of ours requested."""
    def run():
        emulate()
        DRIVER.get("about:blank")
        console(), requests()
        test()
        said, asked = console(), requests()
        assert not said, f"the console says {said[0]}"
        other = [url for url in asked if not url.startswith((WORK.resolve().as_uri() + "/", "data:", "about:"))]
        assert not other, f"requested {other}"
    return run


def pictures(folder, page):
    """page_light.png and page_dark.png, of few colours: they are to be small."""
    path, _, fragment = page.partition("#")
    for scheme in ("light", "dark"):
        emulate(scheme=scheme)
        with width(1280, 820):
            Page(path).open(f"#{fragment}")
            until("return !document.querySelector('#count').textContent.includes('still')")
            picture = base64.b64decode(cdp("Page.captureScreenshot")["data"])
        small = PIL.Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        small.save(pathlib.Path(folder) / f"page_{scheme}.png", optimize=True)


if __name__ == "__main__":
    try:
        if "--pictures" in sys.argv:
            pictures(*sys.argv[3:])
            sys.exit()
        main({name: guarded(test) for name, test in list(globals().items()) if name.startswith("test_")})
    finally:
        DRIVER.quit()
