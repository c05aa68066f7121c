"""A release's card: all that the manifest says, and nothing that could be taken for markup."""

from html.parser import HTMLParser

from fedge.release.card import card

from .build import FEDERATION, manifest


def test_card_says_what_the_manifest_says() -> None:
    made = manifest(extra={"note": "by hand"})
    text = card(made)
    for said in (
        "# Release 3: watch", FEDERATION, made.model.sha256, "release 2", "0.9000", "0.9500", "accuracy",
        "[5, 2]", "ax, ay", "rest, walk, run", "20000", "by hand", "2023-11-14", "24 rounds",
    ):  # fmt: skip
        assert said in text
    assert "{" not in text


def test_card_leaves_out_what_there_is_not() -> None:
    text = card(manifest(version=1, parent=None, scores={}, sizes={}))
    assert "| made from | none |" in text
    assert "## Scores" not in text
    assert "## Sizes" not in text


def test_card_of_a_number_and_of_an_anomaly_score() -> None:
    one = manifest().self_test
    single = type(one)(one.windows, tuple((row[0],) for row in one.scores), one.tolerance)
    assert "It tells a number." in card(manifest(classes=(), self_test=single))
    text = card(manifest(classes=("normal", "anomalous"), self_test=single, threshold=0.25))
    assert "| anomalous above | 0.25 |" in text


def test_names_are_no_markup() -> None:
    """Classes and channels are whatever a federation calls them."""
    bad = ("<script>x</script>", "a | b", "**bold**")
    text = card(manifest(classes=bad, extra={"<b>": "`code` [link](http://x)\n# head"}))

    class Tags(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
            self.found.append(tag)

    parser = Tags()
    parser.feed(text)
    assert parser.found == []
    rows = [line for line in text.splitlines() if line.startswith("| classes")]
    assert rows[0].count("|") == 3
    assert "**bold**" not in text
    assert "\n# head" not in text


def test_times_beyond_the_calendar_are_shown_as_numbers() -> None:
    assert "s after 1970" in card(manifest(expires=(1 << 53) - 1))
