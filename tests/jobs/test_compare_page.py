"""The report in a real browser: what it shows, what it never runs, and links that lead anywhere."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.common.files import read_jsonl, write_jsonl
from jobs.compare.page import SCRIPTS, STYLE, TEMPLATE
from tests.evaluations import HOSTILE, evaluation, lay_out, run, tasks_file


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out()
    return tmp_path


def test_the_page_builds_no_html_from_data():
    template = "".join(path.read_text() for path in [TEMPLATE, STYLE, *SCRIPTS])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", template)
    assert set(re.findall(r"https?://[^\"]+", template)) == {"http://www.w3.org/2000/svg"}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(*options, fragment=""):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    url = Path("reports/compare.html").resolve().as_uri() + fragment
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,5600",
        "--force-device-scale-factor=0.5",
        "--user-data-dir=" + str(Path("chromium").resolve()),
        "--virtual-time-budget=4000",
        *options,
        url,
    ]
    return subprocess.run(command, capture_output=True, timeout=180, check=True)


def test_in_a_browser_the_report_shows_everything_and_runs_nothing_of_a_models(here):
    run(["plots/sft.csv"])
    done = browse("--dump-dom", "--enable-logging=stderr", fragment="#toy/Toy/2")
    page, errors = done.stdout.decode(), done.stderr.decode()
    assert "CONSOLE" not in errors, errors
    shown = page.split('id="data"')[0] + page.split("</script>")[-1]  # without the data and the program
    assert "<title>Comparison of models</title>" in page
    assert "<img" not in shown
    assert "owned" in html.unescape(shown), "the hostile answer is shown as text"
    assert page.count("<script") == 2
    assert shown.count('class="bar"') == 3
    assert shown.count('class="interval"') == 3
    assert shown.count('class="curve"') == 2
    assert "sft: grad_norm" in shown
    assert '<span class="think">I think</span>' in shown
    assert "60 of 60 tasks" in shown
    assert shown.count('class="card"') == 3


def test_a_screenshot_has_the_colours_of_bars_and_grid(here):
    from struct import unpack
    from zlib import decompress

    run(["plots/sft.csv"])
    results = read_jsonl(Path("evaluations/sft-cot/results-toy.jsonl"))
    failed = next(row for row in results if not (row["passed"] or row["sample"]))
    browse("--screenshot=" + str(Path("shot.png").resolve()), fragment=f"#toy/{failed['task_id']}")
    data = Path("shot.png").read_bytes()
    width, height, depth, colour = unpack(">IIBB", data[16:26])
    assert (width, height, depth) == (700, 2800, 8)
    channels = {2: 3, 6: 4}[colour]
    position, pixels = 8, b""
    while position < len(data):
        size, kind = unpack(">I4s", data[position : position + 8])
        pixels += data[position + 8 : position + 8 + size] if kind == b"IDAT" else b""
        position += 12 + size
    lines = unfiltered(decompress(pixels), width * channels, channels)
    seen = {bytes(pixel[:3]) for line in lines for pixel in set(map(bytes, line.reshape(-1, channels)))}
    assert {bytes.fromhex(c) for c in ("92c5de", "1b7837", "b2182b", "fff8e1", "2166ac")} <= seen


def unfiltered(raw, stride, channels):
    """The rows of a PNG of 8-bit samples, its line filters undone: left, up, their mean, Paeth's guess."""
    import numpy as np

    before = np.zeros(stride, dtype=np.uint8)
    for start in range(0, len(raw), stride + 1):
        kind, line = raw[start], np.frombuffer(raw, np.uint8, stride, start + 1)
        if kind == 1:
            line = line.reshape(-1, channels).cumsum(axis=0, dtype=np.uint8).reshape(-1)
        elif kind == 2:
            line = line + before
        elif kind:
            row, above = [0] * channels + line.tolist(), [0] * channels + before.tolist()
            for i in range(channels, len(row)):
                left, up, corner = row[i - channels], above[i], above[i - channels]
                guess = left + up - corner
                paeth = min((left, up, corner), key=lambda value, guess=guess: abs(guess - value))
                row[i] = row[i] + (paeth if kind == 4 else (left + up) // 2) & 255
            line = np.array(row[channels:], dtype=np.uint8)
        yield line
        before = line


def dom(fragment=""):
    """What the page shows, without its data and program, and what the browser had to say of it."""
    done = browse("--dump-dom", "--enable-logging=stderr", fragment=fragment)
    page = done.stdout.decode()
    return page.split('id="data"')[0] + page.split("</script>")[-1], done.stderr.decode()


def driven(script):
    """What the page shows after `script`, which the page's own policy would not let run."""
    path = Path("reports/compare.html")
    page, count = re.subn(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", path.read_text())
    assert count == 1
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    return dom()[0]


def odd(names):
    """Evaluations of six tasks whose ids are in `names`, in the place of those of `lay_out`."""
    shutil.rmtree("evaluations")
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks, 6, task_id=lambda i: names[i] if i < len(names) else f"Toy/{i}")
    evaluation(Path("evaluations/sft-cot"), tasks, lambda t, i: t % 2, text=HOSTILE)
    evaluation(Path("evaluations/grpo-cot"), tasks, lambda t, i: True)
    run()


ODD = ["T/100%", "a b#c?d=e", "T/\u00e9\u4e16", "__proto__", "<img src=x onerror=alert(1)>", "../..//T&amp;'\""]
LINKS = {
    "%": None, "%E0%A4%A": None, "toy/%FF": None, "toString/x": None, "__proto__/x": None, "toy/constructor": None,
    "toy/T/100%": "T/100%", "toy/T/100%25": "T/100%", "toy/a%20b%23c?d=e": "a b#c?d=e", "toy/a b#c?d=e": "a b#c?d=e",
    "toy/T/%C3%A9%E4%B8%96": "T/\u00e9\u4e16", "toy/__proto__": "__proto__", "toy": None, "/": None, "toy/<script>": None,
}  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_whatever_a_link_says_the_tasks_are_shown(here, link):
    odd(ODD)
    shown, said = dom("#" + link)
    assert "CONSOLE" not in said, said
    assert "6 of 6 tasks" in shown
    opened = re.findall(r'<div id="detail"><h2>(.*?)</h2>', shown)
    assert [html.unescape(name) for name in opened] == ([LINKS[link]] if LINKS[link] else [])


def test_names_that_others_chose_are_shown_as_text(here):
    """A model's, a file's and a source's name, as well as a task's."""
    odd(ODD)
    name = "<b onmouseover=alert(1)>x"
    Path("evaluations/sft-cot").rename(f"evaluations/{name}-cot")
    Path(f"plots/{name}.csv").write_text(f"step,{name}\n1,2\n2,nan\n")
    tasks = read_jsonl(Path("data/tasks/toy.jsonl"))
    write_jsonl(
        Path("completions.jsonl"),
        [{"step": 1, "task_id": name, "completion": name, "status": name, name: 1.0, "advantage": 0.5}],
    )
    run([f"plots/{name}.csv"], completions="completions.jsonl")
    shown, said = dom("#toy/" + tasks[0]["task_id"])
    assert "CONSOLE" not in said, said
    assert "<b onmouseover" not in shown and "<img" not in shown
    assert html.unescape(shown).count(name) > 8


COMPLETIONS = [
    {"step": step, "task_id": f"Toy/{task}", "completion": f"answer {i} of {task} at {step}", "format": 0.1,
     "correctness": i % 2, "status": ("wrong_answer", "passed")[i % 2], "advantage": float("nan") if i == 3 else i - 1.5}
    for step in (1, 10) for task in range(3) for i in range(4)
]  # fmt: skip


def test_grpos_completions_are_paged_by_task(here):
    Path("completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in COMPLETIONS))
    run(completions="completions.jsonl", tasks="data/tasks/toy.jsonl")
    press = 'document.getElementById("next").click(); page(); document.getElementById("next").click();'
    shown = driven(press)
    assert "3 of 6 groups: step 1, Toy/2, 2 of 4 pass" in shown
    assert shown.count("card completion") == 4
    assert "answer 3 of 2 at 1" in shown and "answer 3 of 1 at 1" not in shown
    assert "def f2():" in shown and "correctness" in shown and "wrong answer" in shown


def test_without_completions_there_is_no_section_of_them(here):
    run()
    shown, _ = dom()
    assert re.search(r'<section id="completions" hidden="">', shown)
    assert "GRPO's completions</a>" not in shown


def test_gaps_break_the_line_of_a_curve(here):
    Path("plots/odd.csv").write_text("step,loss\n1,1\n2,2\n3,nan\n4,1e308\n5,-1e308\n6,inf\n7,3\n")
    run(["plots/odd.csv"])
    shown, said = dom()
    assert "CONSOLE" not in said, said
    [path] = re.findall(r'<path class="curve"[^>]* d="([^"]+)"', shown)
    assert path.count("M") == 3 and path.count("L") == 2
    assert "NaN" not in path and "Infinity" not in path
    assert "step 3 (nan), step 6 (inf)" in shown


@pytest.mark.parametrize("view", ["toy", "toy+"])
def test_grid_and_answers_are_of_the_view_that_is_chosen(here, view):
    """All answers pass the benchmark's own inputs, none the added ones."""
    shutil.rmtree("evaluations")
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks, 6, base_input=lambda i: [[1]], plus_input=lambda i: [[2]], tests=lambda i: [],
               reference=lambda i: f"def f{i}(x):\n    return x\n")  # fmt: skip
    evaluation(Path("evaluations/sft-cot"), tasks, lambda t, i: False, base=lambda t, i: True)
    run()
    choose = f'chosen.view = {json.dumps(view)}; chosen.task = "Toy/0"; show();'
    shown = driven(choose)
    cells = re.findall(r'<td class="rate"[^>]*>([^<]+)</td>', shown)
    assert set(cells) == {"100 % \u2713"} if view == "toy" else {"0 % \u2717"}
    assert ('class="badge passed"' in shown.partition('id="detail"')[2]) == (view == "toy")
