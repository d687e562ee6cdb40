"""The page, in a real browser, through VeilLink itself."""

import datetime
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.tls import asking, authority
from veillink.model import Address
from veillink.net.proxy_protocol import encode

from .admin_client import AdminClient
from .conftest import Serve, Start
from .harness import HOST, Backend, VeilLink, echo, eventually, free_port, listens, read_exactly

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver (Debian)")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER or "")) as browser:
        yield browser


class Page:
    """The page of a VeilLink, seen through a rule of its own.

    Args:
        browser: shows it.
        veillink: forwards ``page`` to its own admin.
        admin: that one.
        url: of the page.
    """

    def __init__(self, browser: webdriver.Chrome, veillink: VeilLink, admin: AdminClient, url: str) -> None:
        self.browser = browser
        self.veillink = veillink
        self.admin = admin
        browser.get_log("browser")  # type: ignore[no-untyped-call]
        browser.get(url)
        self.eventually(lambda: self.rule("page"), "the first look")

    def eventually(self, condition: Callable[[], object], what: str, seconds: float = 5) -> None:
        """Wait until the page shows it."""
        eventually(condition, seconds, f"{what} in:\n{self.text()}")

    def text(self, selector: str = "body") -> str:
        """Return what a reader sees there."""
        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def rule(self, name: str) -> list[str] | None:
        """Return the texts of a rule's cells."""
        rows = (
            "return [...document.querySelectorAll('#rules tbody tr')].map(r => [...r.children].map(c => c.innerText))"
        )
        found: list[list[str]] = self.browser.execute_script(rows)
        return next((row for row in found if row[0] == name), None)

    def live(self) -> list[list[str]]:
        """Return the texts of the table of live connections, without those of the page itself."""
        return [row for row in self._rows("#live") if row[1] != "page"]

    def _rows(self, table: str) -> list[list[str]]:
        script = "return [...document.querySelectorAll(arguments[0])].map(r => [...r.children].map(c => c.innerText))"
        rows: list[list[str]] = self.browser.execute_script(script, f"{table} tbody tr")
        return rows

    def find(self, selector: str) -> WebElement:
        """Return an element."""
        return self.browser.find_element(By.CSS_SELECTOR, selector)


Open = Callable[[str], Page]


@pytest.fixture
def show(browser: webdriver.Chrome, start: Start) -> Open:
    def _show(rows: str) -> Page:
        admin, page = AdminClient(), free_port()
        own = f"{HOST}:{page},{HOST},{admin.port},name=page\n"
        return Page(browser, start(own + rows, admin.option), admin, f"http://{HOST}:{page}/")

    return _show


def size(count: int) -> str:
    return f"{count} B" if count < 1024 else f"{count / 1024:.1f} KiB"


def test_what_it_shows_is_what_the_state_says(show: Open, backend: Serve) -> None:
    port = backend(echo).port
    page = show(f"{HOST}:{{port}},{HOST},{port},name=web\n")
    with ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(page.veillink.connect())
            client.sendall(b"x" * 700)
            read_exactly(client, 700)
        page.eventually(lambda: (page.rule("web") or [])[3:4] == ["3"], "three live connections")
        page.eventually(lambda: size(2100) in (page.rule("web") or []), "the bytes")
        web, shown = page.admin.rule("web"), page.rule("web")
        assert shown is not None
        assert shown[1] == f"{web['listen']} up"
        assert shown[2] == f"{HOST}:{port} up · 3 live"
        assert shown[3:7] == ["3", "3", size(web["bytes_in"]), size(web["bytes_out"])]
        assert shown[8] == "none"
        listed = {(c["rule"], c["client"], c["target"]) for c in page.admin.json("/api/connections")}
        assert {tuple(row[1:4]) for row in page.live()} == {each for each in listed if each[0] == "web"}
    page.eventually(lambda: (page.rule("web") or [])[3:5] == ["0", "3"], "their end")
    assert page.browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_the_peer_of_a_client_and_who_is_not_let_in_are_shown(show: Open, backend: Serve) -> None:
    port = backend(echo).port
    page = show(f"{HOST}:{{port}},{HOST},{port},name=web,accept_proxy=any,deny=192.0.2.1,send_proxy=v1\n")
    with page.veillink.connect() as client, page.veillink.connect() as denied:
        client.sendall(encode(1, Address("198.51.100.7", 4711), Address(HOST, 80)))
        denied.sendall(encode(1, Address("192.0.2.1", 4711), Address(HOST, 80)))
        peer = "{}:{}".format(*client.getsockname())
        page.eventually(lambda: (page.rule("web") or [""])[-1] == "denied 1", "who was not let in")
        shown = page.rule("web")
        assert shown is not None
        assert shown[1].endswith(" up\naccept_proxy=any\ndeny=192.0.2.1")
        assert shown[2].endswith(" · 1 live · send_proxy=v1")
        page.find("#filter").send_keys(peer)
        page.eventually(lambda: [row[2] for row in page.live()] == [f"198.51.100.7:4711 via {peer}"], "its peer")


def test_tls_routes_and_certificates_are_shown(show: Open, backend: Serve, tmp_path: Path) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    issued = authority("ours").issue_cert("a.example", not_after=soon)
    (tmp_path / "web.pem").write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    port = backend(echo).port
    page = show(f"{HOST}:{{port}},{HOST},{port},name=web,tls=web.pem,sni=a.example\n")
    with page.veillink.connect() as sock, asking().wrap_socket(sock, server_hostname="a.example") as client:
        client.sendall(b"x")
        read_exactly(client, 1)
        page.eventually(lambda: [row[-1] for row in page.live()] == ["TLSv1.3 a.example"], "the version and the name")
        shown = page.rule("web")
        assert shown is not None
        assert f"web.pem · a.example · until {soon:%Y-%m-%d} · others may read its private key ends soon" in shown[1]
        assert shown[2].endswith(" · 1 live · sni=a.example")
        assert "web: web.pem ends soon" in page.text("#trouble")
        page.find("#filter").send_keys("tlsv1.3 A.EX")
        page.eventually(lambda: [row[1] for row in page.live()] == ["web"], "the one that has said it")
    assert page.browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_a_target_that_dies_is_down_in_words_within_three_seconds(show: Open, backend: Serve) -> None:
    alive = backend(echo).port
    dying = Backend(echo)
    page = show(
        f"{HOST}:{{port}},{HOST},{dying.port},name=web,health=tcp,health_interval=200ms\n{HOST}:{{port}},{HOST},{alive}\n"
    )
    page.eventually(lambda: f"{HOST}:{dying.port} up" in (page.rule("web") or ["", "", ""])[2], "both up")
    dying.close()
    page.eventually(lambda: f"web: target {HOST}:{dying.port} is DOWN" in page.text("#trouble"), "the news", 3)
    assert f"{HOST}:{dying.port} DOWN" in (page.rule("web") or ["", "", ""])[2]


def test_names_from_the_file_are_text_and_never_markup(show: Open, backend: Serve) -> None:
    name = "<script>document.title='taken'</script><b>"
    page = show(f"{HOST}:{{port}},{HOST},{backend(echo).port},name={name}\n")
    page.eventually(lambda: page.rule(name), "the name")
    assert page.browser.title == "VeilLink"
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#rules b, #rules script")


def test_the_problems_of_a_refused_file_are_shown_and_go(show: Open, backend: Serve) -> None:
    page = show(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n")
    good = page.veillink.config.read_text()
    page.veillink.config.write_text(good + "8080,127.0.0.1,70000\n")
    page.veillink.send(signal.SIGHUP)
    page.eventually(lambda: 'port "70000" is not between' in page.text("#trouble"), "the problem")
    assert "refused" in page.text("#trouble")
    page.veillink.config.write_text(good)
    page.veillink.send(signal.SIGHUP)
    page.eventually(lambda: not page.text("#trouble"), "its end")


def test_connections_can_be_filtered_and_sorted_by_keyboard(show: Open, backend: Serve) -> None:
    port = backend(echo).port
    page = show(f"{HOST}:{{port}},{HOST},{port},name=web\n")
    with ExitStack() as stack:
        clients = []
        for count in (5, 1, 9):
            clients.append(stack.enter_context(page.veillink.connect()))
            clients[-1].sendall(b"x" * count)
            read_exactly(clients[-1], count)
        page.eventually(lambda: len(page.live()) == 3, "all three")
        page.find("#live th:nth-child(6) button").send_keys(Keys.ENTER)
        page.eventually(lambda: [row[5] for row in page.live()] == ["1 B", "5 B", "9 B"], "the smallest first")
        assert page.find("#live th:nth-child(6)").get_attribute("aria-sort") == "ascending"
        assert page.browser.switch_to.active_element.text == "In"
        page.browser.switch_to.active_element.send_keys(Keys.ENTER)
        page.eventually(lambda: [row[5] for row in page.live()] == ["9 B", "5 B", "1 B"], "the largest first")
        mine = "{}:{}".format(*clients[0].getsockname())
        page.find("#filter").send_keys(mine)
        page.eventually(lambda: [row[2] for row in page.live()] == [mine], "one of them")


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen {host}:{port};
    location /veillink/ {{ proxy_pass http://{host}:{admin}/; proxy_set_header Host proxy.example; }}
  }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (Debian)")
def test_it_works_under_a_path_of_another_server(
    browser: webdriver.Chrome, start: Start, backend: Serve, tmp_path: Path
) -> None:
    admin, front = AdminClient(), free_port()
    conf = NGINX.format(folder=tmp_path, host=HOST, port=front, admin=admin.port)
    (tmp_path / "nginx.conf").write_text(conf)
    rows = f"{HOST}:{{port}},{HOST},{backend(echo).port},name=page\n"
    veillink = start(rows, admin.option, "--admin-host=proxy.example")
    nginx = subprocess.Popen(["nginx", "-c", tmp_path / "nginx.conf"])
    try:
        eventually(lambda: listens(front), 10, "nginx")
        page = Page(browser, veillink, admin, f"http://{HOST}:{front}/veillink/")
        assert page.find("footer a").get_attribute("href") == f"http://{HOST}:{front}/veillink/metrics"
        assert not page.text("#lost")
    finally:
        nginx.terminate()
        nginx.wait(10)


def test_it_says_when_it_has_lost_veillink_and_goes_on_when_it_is_back(show: Open, backend: Serve) -> None:
    page = show(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n")
    page.veillink.send(signal.SIGSTOP)
    try:
        page.eventually(lambda: "No answer" in page.text("#lost"), "the loss", 15)
    finally:
        page.veillink.send(signal.SIGCONT)
    page.eventually(lambda: not page.text("#lost"), "the return", 15)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(scheme: str, show: Open, backend: Serve) -> None:
    page = show(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    script = """
    const linear = (c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const light = (color) => { const v = color.match(/[\\d.]+/g).slice(0, 3).map(c => linear(c / 255));
      return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
    const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
    return [...document.querySelectorAll('h1, #about, dt, dd, th, td, .up')].map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x);
      return (a + .05) / (b + .05); });"""
    contrasts = page.browser.execute_script(script)
    assert len(contrasts) > 20
    assert min(contrasts) >= 4.5  # WCAG 2.2, 1.4.3


def test_it_fits_a_phone(show: Open, backend: Serve) -> None:
    page = show(f"{HOST}:{{port}},{HOST},{backend(echo).port},name=web\n")
    metrics = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.eventually(lambda: page.rule("web"), "the rule")
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
