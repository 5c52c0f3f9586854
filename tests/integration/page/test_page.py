"""Tests of the page in a real browser, with a server and real workers; screenshots are below pytest's ``tmp_path``."""

from __future__ import annotations

import json
import subprocess

import pytest

from cdi.api.errors import NotFound
from tests.integration.page.conftest import MIB, TOKEN

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def row(page, name):
    return page.locator("#volumes > li").filter(has=page.get_by_role("heading", name=name, exact=True))


def choose(page, path):
    page.set_input_files("#file", str(path))
    page.locator("#facts dt", has_text="Virtual size").wait_for()


def same(disk, image, form):
    done = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", form, disk, image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class TestSigningIn:
    def test_a_wrong_token_is_told_and_a_right_one_lets_in(self, page, machine, tmp_path):
        page.goto(machine.url)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").filter(has_text="not the token").wait_for()
        page.screenshot(path=tmp_path / "login.png")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Volumes").wait_for()
        assert "Failed to load resource" in page.troubles[0]

    def test_the_link_signs_in_and_leaves_no_token_in_the_address(self, backend, machine):
        assert backend.url == machine.url

    def test_it_lasts_for_the_tab_until_signed_out(self, backend):
        backend.reload()
        backend.wait_for_selector("#desk:visible")
        backend.get_by_role("button", name="Sign out").click()
        backend.wait_for_selector("#login:visible")
        backend.reload()
        backend.wait_for_selector("#login:visible")
        assert backend.evaluate("sessionStorage.getItem('cdi-token')") is None


class TestUploading:
    def test_an_image_becomes_a_volume(self, backend, machine, images, tmp_path):
        choose(backend, images / "disk.qcow2")
        backend.screenshot(path=tmp_path / "plan.png")
        assert backend.locator("#facts").inner_text().split("\n") == [
            "Format", "qcow2", "Virtual size", "16 MiB", "Kind", "version 3",
        ]  # fmt: skip
        backend.get_by_label("Name of the volume").fill("debian")
        backend.get_by_role("button", name="Create and upload").click()
        row(backend, "debian").get_by_text("Succeeded").wait_for()
        backend.locator("#uploads").get_by_text("Sent", exact=True).wait_for()
        backend.screenshot(path=tmp_path / "done.png", full_page=True)
        same(machine.disk("debian"), images / "disk.qcow2", "qcow2")

    def test_all_of_it_by_keyboard(self, backend, machine, images):
        with backend.expect_file_chooser() as chosen:
            backend.get_by_role("button", name="Choose a file").focus()
            backend.keyboard.press("Enter")
        chosen.value.set_files(str(images / "disk.raw"))
        from playwright.sync_api import expect

        name = backend.get_by_label("Name of the volume")
        name.wait_for()
        expect(name).to_be_focused()
        backend.keyboard.type("by-hand")
        backend.keyboard.press("Tab")
        assert backend.evaluate("document.activeElement.id") == "size"
        backend.keyboard.press("Enter")
        row(backend, "by-hand").get_by_text("Succeeded").wait_for()
        assert machine.disk("by-hand").read_bytes() == (images / "disk.raw").read_bytes()

    def test_a_file_is_dropped_anywhere(self, backend):
        transfer = backend.evaluate_handle(
            "() => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(1048576)], 'zero.img')); return t; }"
        )
        backend.dispatch_event("#volumes-title", "dragenter", {"dataTransfer": transfer})
        assert "over" in backend.locator("#drop").get_attribute("class")
        backend.dispatch_event("#volumes-title", "drop", {"dataTransfer": transfer})
        backend.get_by_text("No partition table").wait_for()
        assert backend.get_by_label("Name of the volume").input_value() == "zero"

    def test_what_breaks_off_is_gone_on_with(self, backend, machine, images, tmp_path):
        cut = 6 * MIB
        requests = []

        def passing(route):
            request = route.request
            if request.method == "PATCH":
                requests.append(int(request.headers["upload-offset"]))
                if len(requests) == 1:
                    # The connection breaks: a part arrives, and the client does not learn how much.
                    headers = {**request.headers, "content-length": str(cut)}
                    backend.request.fetch(
                        request.url, method="PATCH", headers=headers, data=request.post_data_buffer[:cut]
                    )
                    return route.abort("connectionreset")
            return route.continue_()

        backend.route("**/v1beta1/tus/**", passing)
        choose(backend, images / "disk.raw")
        backend.get_by_label("Name of the volume").fill("broken-off")
        backend.get_by_role("button", name="Create and upload").click()
        backend.get_by_text("Retrying in").wait_for()
        backend.screenshot(path=tmp_path / "waiting.png")
        row(backend, "broken-off").get_by_text("Succeeded").wait_for()
        assert requests == [0, cut]
        assert machine.disk("broken-off").read_bytes() == (images / "disk.raw").read_bytes()

    def test_the_page_was_closed_and_the_same_file_goes_on(self, backend, machine, images):
        cut = 5 * MIB
        url = None
        closed = False

        def passing(route):
            nonlocal url
            request = route.request
            if request.method != "PATCH" or closed:
                return route.continue_()
            if url is None:
                url = request.url
                headers = {**request.headers, "content-length": str(cut)}
                backend.request.fetch(url, method="PATCH", headers=headers, data=request.post_data_buffer[:cut])
            return route.abort("connectionreset")

        backend.route("**/v1beta1/tus/**", passing)
        choose(backend, images / "disk.raw")
        backend.get_by_label("Name of the volume").fill("reopened")
        backend.get_by_role("button", name="Create and upload").click()
        backend.get_by_text("Retrying in").wait_for()
        backend.on("dialog", lambda dialog: dialog.accept())
        backend.reload()
        closed = True
        offsets = []
        backend.on(
            "request", lambda one: offsets.append(one.headers.get("upload-offset")) if one.method == "PATCH" else None
        )
        with backend.expect_file_chooser() as chosen:
            backend.get_by_role("button", name="Upload into reopened").click()
        chosen.value.set_files(str(images / "disk.raw"))
        backend.get_by_role("button", name="Upload", exact=True).click()
        row(backend, "reopened").get_by_text("Succeeded").wait_for()
        assert offsets == [str(cut)]
        assert machine.disk("reopened").read_bytes() == (images / "disk.raw").read_bytes()

    def upload(self, backend, images, name, answers):
        """Upload a disk, answering the first requests of each method instead of the server; return all requests."""
        requests = []

        def passing(route):
            request = route.request
            requests.append((request.method, len(request.post_data_buffer or b"")))
            waiting = answers.get(request.method)
            return waiting.pop(0)(route) if waiting else route.continue_()

        backend.route("**/v1beta1/tus/**", passing)
        choose(backend, images / "disk.raw")
        backend.get_by_label("Name of the volume").fill(name)
        backend.get_by_role("button", name="Create and upload").click()
        row(backend, name).get_by_text("Succeeded").wait_for()
        return requests

    @pytest.mark.parametrize("method", ["HEAD", "PATCH"])
    def test_a_token_that_expired_is_renewed_and_the_upload_continues(self, backend, machine, images, method):
        tokens = []
        backend.on("request", lambda one: tokens.append(one.url) if one.url.endswith("/token") else None)
        answers = {"PATCH": [lambda route: route.abort()], method: [lambda route: route.fulfill(status=401)]}
        requests = self.upload(backend, images, "renewed", answers)
        assert len(tokens) == 2
        assert [method for method, _ in requests].count("POST") == 1

    def test_a_server_that_restarts_does_not_make_the_upload_begin_anew(self, backend, machine, images):
        busy = [lambda route: route.fulfill(status=503, body="It is starting.")] * 2
        requests = self.upload(backend, images, "restarting", {"PATCH": [lambda route: route.abort()], "HEAD": busy})
        assert [method for method, _ in requests] == ["POST", "PATCH", "HEAD", "HEAD", "HEAD", "PATCH"]

    def test_an_upload_that_the_server_has_no_longer_is_begun_anew(self, backend, machine, images):
        def drop(route):
            request = route.request
            headers = {name: request.headers[name] for name in ("authorization", "tus-resumable")}
            assert backend.request.delete(request.url, headers=headers).status == 204
            route.abort()

        requests = self.upload(backend, images, "dropped", {"PATCH": [drop]})
        assert [method for method, _ in requests] == ["POST", "PATCH", "HEAD", "POST", "PATCH"]
        assert machine.disk("dropped").read_bytes() == (images / "disk.raw").read_bytes()

    def test_pieces_become_smaller_where_something_takes_less_at_a_time(self, backend, machine, images):
        refused = [lambda route: route.fulfill(status=413)] * 2
        requests = self.upload(backend, images, "pieces", {"PATCH": refused})
        assert [size for method, size in requests if method == "PATCH"] == [16 * MIB] * 2 + [4 * MIB] * 4

    def test_a_cancelled_upload_leaves_room_for_another(self, backend, machine, images):
        backend.route("**/v1beta1/tus/**", lambda r: r.abort() if r.request.method == "PATCH" else r.continue_())
        choose(backend, images / "disk.raw")
        backend.get_by_label("Name of the volume").fill("changed-mind")
        backend.get_by_role("button", name="Create and upload").click()
        backend.get_by_text("Retrying in").wait_for()
        with backend.expect_response(lambda answer: answer.request.method == "DELETE") as gone:
            backend.get_by_role("button", name="Cancel the upload into changed-mind").click()
        assert gone.value.status == 204
        backend.unroute("**/v1beta1/tus/**")
        backend.get_by_role("button", name="Upload into changed-mind", exact=True).wait_for()
        with backend.expect_file_chooser() as chosen:
            backend.get_by_role("button", name="Upload into changed-mind", exact=True).click()
        chosen.value.set_files(str(images / "disk.qcow2"))
        backend.get_by_role("button", name="Upload", exact=True).click()
        row(backend, "changed-mind").get_by_text("Succeeded").wait_for()

    def test_what_is_too_large_is_not_begun(self, backend, machine, images):
        choose(backend, images / "disk.qcow2")
        backend.get_by_label("Size").fill("8Mi")
        backend.get_by_text("The image needs 16Mi").wait_for()
        backend.get_by_role("button", name="Create and upload").click()
        assert backend.evaluate("document.activeElement.id") == "size"
        assert machine.embedded.list("dv") == []

    def test_a_refusal_of_the_server_is_shown_with_its_remedy(self, backend, machine, images):
        machine.make("small", size="8Mi")
        with backend.expect_file_chooser() as chosen:
            backend.get_by_role("button", name="Upload into small").click()
        chosen.value.set_files(str(images / "disk.raw.gz"))
        backend.locator("#facts dt", has_text="Virtual size").wait_for()
        backend.get_by_role("button", name="Upload", exact=True).click()
        backend.locator("#uploads .why.bad").wait_for()
        assert "Try:" in backend.locator("#uploads .why").inner_text()


class TestVolumes:
    def test_cloned_and_deleted(self, backend, machine, images, tmp_path):
        machine.make("golden")
        machine.embedded.upload("default", "golden", images / "disk.qcow2")
        row(backend, "golden").get_by_text("Succeeded").wait_for()
        backend.get_by_role("button", name="Clone golden").click()
        dialog = backend.get_by_role("dialog", name="Clone golden")
        assert dialog.get_by_label("Name of the copy").input_value() == "golden-copy"
        backend.screenshot(path=tmp_path / "clone.png")
        backend.keyboard.press("Enter")
        row(backend, "golden-copy").get_by_text("Succeeded").wait_for()
        assert machine.disk("golden-copy").read_bytes() == (images / "disk.raw").read_bytes()
        backend.get_by_role("button", name="Delete golden", exact=True).click()
        # Enter presses the focused button, which cancels.
        backend.keyboard.press("Enter")
        assert not backend.get_by_role("dialog").is_visible()
        backend.get_by_role("button", name="Delete golden", exact=True).click()
        backend.get_by_role("dialog").get_by_role("button", name="Delete").click()
        row(backend, "golden").wait_for(state="detached")
        with pytest.raises(NotFound):
            machine.embedded.get("dv", "default", "golden")
        assert row(backend, "golden-copy").is_visible()

    def test_another_namespace(self, backend, machine):
        machine.make("elsewhere", namespace="team")
        backend.reload()
        backend.get_by_role("combobox", name="Namespace").select_option("team")
        row(backend, "elsewhere").wait_for()
        backend.reload()
        row(backend, "elsewhere").wait_for()

    def test_hostile_texts_stay_texts(self, backend, machine, images):
        machine.make("victim", size="1Mi")
        machine.await_phase("victim", "UploadReady")
        # The supervisor would correct such a status at once, so it is inserted into the response.
        said = json.dumps(HOSTILE)[1:-1]

        def passing(route):
            answer = route.fetch()
            route.fulfill(response=answer, body=answer.text().replace("UploadReady", said).replace("waits for", said))

        backend.route("**/page/api/volumes/default", passing)
        row(backend, "victim").get_by_text("onerror").first.wait_for()
        row(backend, "victim").locator("summary").click()
        choose(backend, images / "<img src=x onerror=alert(1)>.raw")
        assert backend.locator("#file-name").inner_text() == "<img src=x onerror=alert(1)>.raw"
        assert backend.get_by_label("Name of the volume").input_value() == "img-src-x-onerror-alert-1"
        assert backend.title() == "Golden images"
        assert backend.locator("main img, main script").count() == 0

    def test_a_server_that_is_away_is_told_and_asked_again(self, backend, machine):
        backend.route("**/page/api/**", lambda route: route.abort())
        backend.get_by_text("cannot be reached").wait_for()
        backend.unroute("**/page/api/**")
        backend.locator("#volumes-error").wait_for(state="hidden")


class TestRules:
    def test_the_browser_keeps_them(self, context, machine):
        """An inline script, markup out of text and another server are blocked by the policy."""
        tab = context.new_page()
        said = []
        tab.on("console", lambda one: said.append(one.text))
        tab.goto(machine.url)
        tab.evaluate("document.body.append(Object.assign(document.createElement('style'), {textContent: 'p {}'}))")
        assert any("style-src" in text for text in said)
        with pytest.raises(Exception, match="TrustedHTML"):
            tab.evaluate("document.body.innerHTML = '<b>x</b>'")
        with pytest.raises(Exception, match="Failed to fetch"):
            tab.evaluate("fetch('http://127.0.0.2:9/')")

    def test_nothing_is_named_twice_and_everything_has_a_name(self, backend, machine):
        machine.make("named")
        row(backend, "named").wait_for()
        ids = backend.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids))
        nameless = backend.evaluate(
            """[...document.querySelectorAll('button, input:not([type=file]), select, progress, dialog')]
            .filter((one) => one.checkVisibility() && !one.textContent.trim() && !one.labels?.length
                && !one.getAttribute('aria-label') && !one.getAttribute('aria-labelledby')).map((one) => one.outerHTML)"""
        )
        assert nameless == []
        assert backend.evaluate("document.documentElement.lang") == "en"


LUMINANCE = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => { for (let at = one; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor); if ((colour[3] ?? 1) > 0) return colour; }
    return [255, 255, 255]; };
  const found = [];
  for (const one of document.querySelectorAll('h1, h2, h3, p, button, label, span, dt, dd, th, td, summary, input')) {
    if (!one.checkVisibility() || one.disabled || !(one.textContent.trim() || one.value)) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([one.tagName, one.textContent.slice(0, 40), ratio.toFixed(2)]);
  }
  return found;
}"""


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True, ids=["light", "dark"]
)
def test_everything_can_be_read(backend, machine, images, tmp_path):
    """WCAG 2.2, 1.4.3: the contrast must be 4.5 at least."""
    machine.make("waiting")
    machine.make("done")
    machine.embedded.upload("default", "done", images / "disk.qcow2")
    machine.make("refused", source={"http": {"url": "http://127.0.0.1:9/x"}})
    row(backend, "done").get_by_text("Succeeded").wait_for()
    row(backend, "waiting").get_by_text("UploadReady").wait_for()
    row(backend, "refused").locator("summary").click()
    choose(backend, images / "overlay.qcow2")
    backend.screenshot(path=tmp_path / "all.png", full_page=True)
    assert backend.evaluate(LUMINANCE) == []
    backend.set_viewport_size({"width": 360, "height": 740})
    backend.screenshot(path=tmp_path / "narrow.png", full_page=True)
    wide = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 360).map((one) => one.outerHTML.slice(0, 80))"
    assert backend.evaluate(f"document.documentElement.scrollWidth > 360 ? {wide} : []") == []
    assert "overlay" in backend.locator("#warning").inner_text()
