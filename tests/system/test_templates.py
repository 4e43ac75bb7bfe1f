"""Templates escape what is put into them, and want every name."""

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from kd.system.templates import Templates


@pytest.fixture
def templates(tmp_path):
    (tmp_path / "line.html").write_text('<p title="{{ name }}">{{ name }}</p>')
    return Templates(tmp_path)


def test_a_value_is_text_unless_it_is_markup(templates):
    assert templates.render("line", name='"<b>') == '<p title="&#34;&lt;b&gt;">&#34;&lt;b&gt;</p>'
    assert templates.render("line", name=Markup("<b>")) == '<p title="<b>"><b></p>'


def test_a_name_that_is_not_given_is_an_error(templates):
    with pytest.raises(UndefinedError, match="name"):
        templates.render("line")
