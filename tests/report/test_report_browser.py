"""The report in a real browser: nothing that a model wrote runs, loads or breaks the page."""

from __future__ import annotations

import http.server
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

import fake_runs
from tokendeep import plain
from tokendeep.report import page, render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
RAN = "document.documentElement.setAttribute('data-ran-{0}','1')"
FRAMED = "parent.document.documentElement.setAttribute('data-ran-{0}','1')"
ATTACKS = {  # each leaves a mark on the page when it runs
    "script": f"<script>{RAN}</script>",
    "upper": f"<ScRiPt >{RAN}</sCrIpT>",
    "onerror": f'<img src="data:image/png;base64,xx" onerror="{RAN}">',
    "svg": f'<svg onload="{RAN}"><circle r="1"/></svg>',
    "toggle": f'<details open ontoggle="{RAN}"><summary>x</summary></details>',
    "focus": f'<a href="#" autofocus tabindex="1" onfocus="{RAN}">x</a><input autofocus onfocus="{RAN}">',
    "srcdoc": f'<iframe srcdoc="&lt;script&gt;{FRAMED}&lt;/script&gt;"></iframe>',
    "javascript": f'<iframe src="javascript:{FRAMED}"></iframe>',
    "closing": f"</pre></article></details></section></main><script>{RAN}</script>",
    "raw": f"</style></title></textarea></noscript></script>--><script>{RAN}</script>",
    "attribute": f"\"'><script>{RAN}</script>",
    "svgscript": f"<svg><script>{RAN}</script></svg>",
    "animation": f'<style>@keyframes k{{}}</style><b style="animation: k 1ms" onanimationend="{RAN}">x</b>',
}
ATTACKS = {name: text.replace("{0}", name) for name, text in ATTACKS.items()}
INERT = {  # nothing to run by itself, or it would swallow the rest of the control page
    "data": "<object data=\"data:text/html,<script>parent.document.title='x'</script>\"></object>",
    "link": '<a href="javascript:document.title=1">click</a> [click](javascript:document.title=1)',
    "refresh": '<meta http-equiv="refresh" content="0;url=data:text/html,gone">',
    "base": '<base href="https://example.invalid/"><form action="javascript:1"><button>x</button></form>',
    "template": "{{ 7 * 7 }}{% raw %}{# gone #}",
    "comment": "<!-- swallowed",
    "plaintext": "<plaintext>",
    "bidi": "abc\u202etxet nedih\u202c \u2066x\u2069 \x1b[31m\x00\x07 zero\u200bwidth",
    "long": "W" * 3000,
}
EXPECTED_TAGS = (
    "html head meta title style body header main footer section nav h1 h2 h3 p ul li a div figure img figcaption table "
    "caption thead tbody tr th td details summary article pre strong span"
)


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its <pre> blocks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pre: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self.pre.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.pre[-1] += data


class Beacon(http.server.BaseHTTPRequestHandler):
    hits: list[str]

    def do_GET(self) -> None:
        self.hits.append(self.path)
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def beacon() -> Iterator[tuple[str, list[str]]]:
    """A local server and what was asked of it."""
    handler = type("Handler", (Beacon,), {"hits": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.hits
        server.shutdown()


def dump(path: Path, *flags: str) -> str:
    """The page's DOM after it has loaded and its scripts, if any, have run."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--dump-dom"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8")


def payloads(url: str) -> dict[str, str]:
    loads = {
        "image": f'<img src="{url}/image">',
        "sheet": f'<link rel="stylesheet" href="{url}/sheet"><style>@import "{url}/import";</style>',
        "background": f'<b style="background: url({url}/background)">x</b>',
    }
    return ATTACKS | INERT | loads


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, beacon: tuple[str, list[str]]) -> tuple[str, dict[str, str]]:
    """The report with --show-text of a model that writes nothing but attacks, under a name that is one."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = payloads(beacon[0])
    names = list(texts)
    for start in range(0, len(names), 2):  # two answers of an outcome are shown for each run
        model = ATTACKS["svg"] if start == 0 else f"model-{start}"
        samples = [
            fake_runs.sample(i, "none", {}, model, "complied", prefix=texts[name], text=texts[name])
            for i, name in enumerate(names[start : start + 2])
        ]
        fake_runs.write_attack(folder / f"run-{start:02}", model, samples)
    draw = random.Random(0)
    fake_runs.write_measure(folder / "measure", ATTACKS["script"], fake_runs.profile(draw, ATTACKS["svg"], deep=False))
    context = page.build([folder], show_text=True, read_logs=fake_runs.read_fake)
    return render.to_html(context), texts


def test_a_hostile_completion_runs_nothing(
    hostile: tuple[str, dict[str, str]], beacon: tuple[str, list[str]], tmp_path: Path
) -> None:
    html, texts = hostile
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    beacon[1].clear()
    dom = dump(path)
    seen = Page(dom)
    assert "data-ran-" not in next(iter(dom.split("<head>"))), "a payload ran"
    assert beacon[1] == []
    assert {tag for tag, _ in seen.tags} <= set(EXPECTED_TAGS.split())
    for tag, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("src") or "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
        assert (attributes.get("href") or "#").startswith("#")
    for name, text in texts.items():
        assert plain.neutralise(text) in seen.pre, f"{name} is not shown as it was written"


@pytest.mark.slow
def test_the_same_completions_run_where_they_are_not_escaped(
    hostile: tuple[str, dict[str, str]], beacon: tuple[str, list[str]], tmp_path: Path
) -> None:
    """So that the test above can fail; and the page's policy alone stops them even then."""
    html, texts = hostile
    loads = ("image", "sheet", "background")
    for name in [*ATTACKS, *loads]:
        assert str(escape(texts[name])) in html
        html = html.replace(f">{escape(texts[name])}<", f">{texts[name]}<")
    guarded, bare = tmp_path / "guarded.html", tmp_path / "bare.html"
    guarded.write_text(html, encoding="utf-8")
    bare.write_text(html.replace('http-equiv="Content-Security-Policy"', 'name="was-policy"'), encoding="utf-8")

    beacon[1].clear()
    ran = dump(bare).split("<head>")[0]
    assert [name for name in ATTACKS if f"data-ran-{name}" not in ran] == []
    assert {"/image", "/sheet", "/import", "/background"} <= set(beacon[1])

    beacon[1].clear()
    assert "data-ran-" not in dump(guarded).split("<head>")[0]
    assert beacon[1] == []


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(hostile: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    fake_runs.write_demo(tmp_path / "demo")
    demo = render.to_html(page.build([tmp_path / "demo"], read_logs=fake_runs.read_fake))
    for name, html in (("hostile", hostile[0]), ("demo", demo)):
        (tmp_path / f"{name}.html").write_text(html, encoding="utf-8")
    frames = "".join(f'<iframe id="{n}" src="{n}.html" width="360" height="600"></iframe>' for n in ("hostile", "demo"))
    frames += '<iframe id="desk" src="demo.html" width="1280" height="600"></iframe>'
    (tmp_path / "phone.html").write_text(
        f"""<body>{frames}<script>onload = () => document.querySelectorAll("iframe").forEach(frame => {{
        const root = frame.contentDocument.documentElement;
        const runs = root.querySelector(".runs .scroll");
        document.body.setAttribute("runs-" + frame.id, `${{runs.scrollWidth}} of ${{runs.clientWidth}}`);
        document.body.setAttribute(frame.id, `${{root.scrollWidth}} of ${{root.clientWidth}}`); }});</script>""",
        encoding="utf-8",
    )
    seen = Page(dump(tmp_path / "phone.html", "--allow-file-access-from-files"))
    body = next(attributes for tag, attributes in seen.tags if tag == "body")
    for name in ("hostile", "demo"):
        width, room = (body[name] or "").split(" of ")
        assert int(width) <= int(room) <= 360, name
    width, room = (body["runs-desk"] or "").split(" of ")
    assert int(width) <= int(room), "the last column of the runs is cut on a desktop"
