"""Which class of the teacher is which of the dataset: what is guessed, what is told, what is refused."""

import json

import pytest

from kd.cli import main
from kd.config import DistillConfig, label_pairs
from kd.errors import UserError
from kd.models.class_map import match_classes
from tests.support import toys
from tests.support.command import flags

IMAGENET = ["n02123045 tabby, tabby cat", "n02018207 crane", "n03126707 crane", "n04254680 soccer ball", "running shoe"]


@pytest.mark.parametrize(
    ("theirs", "columns", "said"),
    [
        (["green leaf", "red brick", "blue sky"], [2, 0, 1], []),
        (["Blue_Sky", "GREEN-LEAF", "redbrick"], [0, 1, 2], []),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2], ["The teacher has no class names"]),
        (
            ["red brick", "x", "green leaf", "blue sky"],
            [3, 2, 0],
            ["knows 4 classes: its answers are narrowed to these 3"],
        ),
        (["Blue Skies", "red brick", "green leafs"], [0, 2, 1], ["blue sky = Blue Skies (singular and plural)"]),
        (["sky, blue sky", "red brick"], [0, None, 1], ["a synonym", "not know 1 of 3 classes (green leaf)"]),
    ],
)
def test_the_colours_are_matched_with_what_a_teacher_calls_them(theirs, columns, said):
    match = match_classes(theirs, toys.CLASSES)
    match.check()
    found = match.warnings()
    assert match.columns == columns and len(found) == len(said)
    assert all(words in text for words, text in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("name", "theirs", "how"),
    [
        ("tabby cats", 0, "singular and plural"),
        ("Tabby", 0, "a synonym"),
        ("crane", None, "could be n02018207 crane (1) or n03126707 crane (2)"),
        ("soccer_ball", 3, "a synonym"),
        ("shoe / running shoe", 4, "a synonym"),
        ("running shoes", 4, "singular and plural"),
        ("Running-Shoe", 4, "the same name"),
        ("dog", None, ""),
    ],
)
def test_a_name_is_guessed_by_its_synonyms_and_simple_plural_and_what_is_unsure_is_not(name, theirs, how):
    match = match_classes(IMAGENET, [name, "something else"])
    assert (match.columns[0], match.how[0]) == (theirs, how)


def test_each_of_the_teacher_s_classes_is_one_class_s_and_the_surest_has_it():
    assert match_classes(["cat", "dog"], ["cats", "cat", "dogs"]).columns == [None, 0, 1]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("cat=tabby, tabby cat, dog = beagle", {"cat": "tabby, tabby cat", "dog": "beagle"}),
        ("cat=, dog=1", {"cat": "", "dog": "1"}),
        ('{"a, b": "c=d"}', {"a, b": "c=d"}),
        ("", {}),
    ],
)
def test_a_label_map_is_pairs_or_json(text, pairs):
    assert label_pairs(text) == pairs


@pytest.mark.parametrize("text", ["cat", "=dog", "{cat}", '{"cat": 3}', "map.json"])
def test_what_is_no_label_map_is_refused_at_once(text):
    with pytest.raises(ValueError, match="expected pairs such as"):
        DistillConfig(label_map=text)


def test_what_is_told_wins_and_the_rest_is_guessed():
    classes = ["crane", "pet", "soccer ball", "dog"]
    match = match_classes(IMAGENET, classes, "crane=2, pet=tabby cat, soccer ball=")
    assert match.columns == [2, 0, None, None] and match.how == ["label map", "label map", "label map", ""]


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        ("bird=tabby", "'bird', which is no class of the dataset: pet, dog"),
        ("pet=bird", "'bird', which is no class of the teacher: n02123045"),
        ("pet=crane", "which 2 of the teacher's classes are called: say 1 or 2"),
        ("pet=tabby, dog=tabby cat", "to two classes"),
        ("pet=tabby, PET=", "twice"),
    ],
)
def test_a_label_map_that_names_what_is_not_there_says_what_is(label_map, words):
    with pytest.raises(UserError, match=words):
        match_classes(IMAGENET, ["pet", "dog"], label_map)


def test_fewer_than_two_classes_in_common_are_refused_with_both_lists_and_an_example():
    with pytest.raises(
        UserError, match=r"predicts 2 classes \(cat, dog\), the dataset has 3 \(blue sky, .*, and none is"
    ):
        match_classes(["cat", "dog"], toys.CLASSES).check()
    with pytest.raises(
        UserError, match=r"only red brick is.*Pick a teacher.*--label-map.*\"blue sky=cat, green leaf=dog\""
    ):
        match_classes(["cat", "dog", "red brick"], toys.CLASSES).check()


@pytest.mark.parametrize(
    ("theirs", "label_map", "columns"),
    [
        (["a", "A", "b"], "", [1, 0, 2]),
        (["A", "b", "x"], "", [0, None, 1]),
        (["x", "b", "y"], "A=x, a=y", [0, 2, 1]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], "", [0, 1, 2]),
        (["A ", "b", "c"], "", [None, None, 1]),  # whose it is cannot be told
        (["A ", "b", "c"], "a=", [0, None, 1]),
    ],
)
def test_classes_that_differ_in_capitals_only_are_different_ones(theirs, label_map, columns):
    assert match_classes(theirs, ["A", "a", "b"], label_map).columns == columns


def test_the_command_line_shows_the_table_without_training(colours, teacher, tmp_path, capsys):
    (tmp_path / "map.json").write_text(json.dumps({"green leaf": ""}))
    asked = flags({"teacher": teacher, "dataset": colours, "label-map": tmp_path / "map.json"})
    assert main.main(["labels", *asked, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {"class": "blue sky", "teacher": "blue sky", "found": "the same name", "pictures": 40}
    assert main.main(["labels", *asked]) == 0
    out, err = capsys.readouterr()
    assert "green leaf 40 - label map" in " ".join(out.split()) and "are learned from the labels alone" in err
    assert main.main(["labels", "--teacher", "sample", "--dataset", str(colours)]) == 1
    out, err = capsys.readouterr()
    assert "red brick 40 -" in " ".join(out.split()) and "none is in both" in err
    assert main.main(["labels", *asked[:4], "--label-map", "gone.json"]) == 2
