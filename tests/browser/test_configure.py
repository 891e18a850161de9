"""Configure in a browser: a table is uploaded, shown as it is read, what is wrong stands at its field, and the run starts."""

from playwright.sync_api import expect

from tests.browser.conftest import until
from tests.own_data import write
from tests.server import Server


def test_a_table_is_uploaded_looked_at_and_trained_and_a_knobs_error_stands_at_it(
    server: Server, tab, tmp_path
) -> None:
    (path,) = write("table", tmp_path)
    page = tab(f"{server.url}/")
    page.get_by_text("Configure").first.click()
    page.get_by_text("digits", exact=True).click()
    page.get_by_text("uploaded", exact=True).click()
    page.locator("input[type=file]").set_input_files(path)
    expect(page.locator(".moe-recognised")).to_contain_text(
        "150 rows in 3 classes: setosa 50, versicolor 50, virginica 50"
    )
    page.get_by_label("k", exact=True).fill("9")
    page.keyboard.press("Tab")
    expect(page.locator(".moe-fault")).to_have_text("k must be between 1 and num_experts=8, got 9")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    page.get_by_label("k", exact=True).fill("3")
    page.keyboard.press("Tab")
    expect(page.locator(".moe-takes")).to_contain_text("parameters")
    for typed, read, command in (("1e3", "1000", " --steps 1000"), ("0", "0", "")):  # at last without an end
        page.get_by_label("steps", exact=True).fill(typed)
        page.keyboard.press("Tab")
        expect(page.get_by_label("steps", exact=True)).to_have_value(read)
        until(lambda words=command: page.locator("[data-testid=stCode]").first.inner_text().count(words), page)
    until(lambda: "--steps" not in page.locator("[data-testid=stCode]").first.inner_text(), page)
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_function("document.querySelector('.moepanel-right')?.textContent.startsWith('step ')")
    off = page.get_by_label("off", exact=True).first
    off.evaluate("field => { field.closest('details').open = true; }")
    for words, fault in (("99", "off must name experts 1 to 8 of layers 1 to 1, got '99'"), ("4", "")):
        off.fill(words)
        off.press("Enter")
        until(lambda fault=fault: "".join(page.locator(".moeknob-fault").all_text_contents()) == fault, page)
    until(lambda: off.input_value() == "4", page)
