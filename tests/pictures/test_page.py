"""The report page: escaped, complete, and in need of nothing else."""

from base64 import b64encode

import pytest

from shrinkage.pictures import page as html

PNG = b"\x89PNG not really"


def page(text: str) -> html.Page:
    return html.Page(
        title=text,
        paragraphs=[text],
        findings=[text],
        tables=[html.Table([text], [[text, text]])],
        terms=[(text, text)],
        pictures=[html.Picture(text, text, PNG)],
        choice=html.Table([text], [[text]]),
        choice_rule=text,
        command=text,
        versions=text,
    )


@pytest.mark.parametrize("hostile", ["<b>", "<script>alert(1)</script>", '"><img src=x onerror=1>', "{{ 7 * 7 }}"])
def test_all_text_is_escaped(hostile: str) -> None:
    rendered = html.render(page(hostile))
    plain = html.render(page("name"))
    if "<" in hostile:
        assert hostile not in rendered
    assert "49" not in rendered.replace(b64encode(PNG).decode(), "")
    assert rendered.count("<") == plain.count("<")
    assert rendered.count('"') == plain.count('"')


def test_every_text_is_shown() -> None:
    given = html.Page(
        title="the title",
        paragraphs=["one paragraph", "another paragraph"],
        findings=["one finding", "another finding"],
        tables=[html.Table(["two\nlines", "head"], [["first", "1.5"], ["second", "2.5"]])],
        terms=[("a term", "its explanation")],
        pictures=[html.Picture("a.png", "a caption", PNG), html.Picture("b.png", "b caption", b"other")],
        choice=html.Table(["tried"], [["this"], ["that"]]),
        choice_rule="the rule",
        command="the command",
        versions="the versions",
    )
    shown = html.render(given)
    texts = [*given.paragraphs, *given.findings, *given.tables[0].header, *given.terms[0], *given.choice.header]
    texts += [cell for row in (*given.tables[0].rows, *given.choice.rows) for cell in row]
    texts += [picture.caption for picture in given.pictures] + [picture.base64 for picture in given.pictures]
    texts += [given.title, given.choice_rule, given.command, given.versions]
    assert [text for text in texts if text not in shown] == []


def test_pictures_are_inside_and_nothing_is_fetched() -> None:
    rendered = html.render(page("name"))
    assert f"data:image/png;base64,{b64encode(PNG).decode()}" in rendered
    assert "://" not in rendered
    assert rendered.count("<script>") == rendered.count("<script") == 1  # the one that sorts tables
    assert "<link" not in rendered
