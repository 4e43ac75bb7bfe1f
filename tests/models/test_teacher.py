"""Loading a teacher: its classes in the dataset's order, its key, and what is refused."""

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from kd.errors import UserError
from kd.models.teacher import Teacher, load_teacher
from tests.support import toys


def test_the_key_of_a_teacher_knows_its_processor_and_settings(teacher):
    model = AutoModelForImageClassification.from_pretrained(teacher)
    keys = [Teacher(model, toys.processor()).key()]
    other = toys.processor()
    other.resample = 0
    keys.append(Teacher(model, other).key())
    model.config.hidden_act = "gelu"
    keys.append(Teacher(model, toys.processor()).key())
    assert len(set(keys)) == 3


def test_a_teacher_answers_in_the_dataset_s_order(tmp_path, teacher):
    shuffled = [toys.CLASSES[i] for i in (2, 0, 1)]
    model = AutoModelForImageClassification.from_pretrained(teacher)
    direct = Teacher(model, toys.processor())
    reordered = load_teacher(str(teacher), shuffled)
    values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reordered(values).logits, direct(values).logits[:, [2, 0, 1]])
    assert reordered.key() != direct.key()


def test_a_teacher_of_more_classes_is_narrowed_to_the_mapped_ones_in_the_dataset_s_order(teacher):
    classes, label_map = ["bricks", "water", "sky"], "water=, sky=blue sky, bricks=red brick"
    narrowed = load_teacher(str(teacher), classes, label_map, [7, 5, 8])
    said = narrowed.warnings
    values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = load_teacher(str(teacher), None)(values).logits
    assert narrowed.columns == [2, None, 0] and narrowed.known.tolist() == [True, False, True]
    logits = narrowed(values).logits
    torch.testing.assert_close(logits[:, [0, 2]], whole[:, [2, 0]])
    assert (logits.softmax(1)[:, 1] == 0).all() and logits.isfinite().all()
    assert (
        "does not know 1 of 3 classes (water: label map). Their 5 of 20 training pictures are learned from the labels"
        in said[0]
    )


def test_a_backbone_without_a_trained_head_is_refused(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    ViTForImageClassification(config).vit.save_pretrained(tmp_path)
    toys.processor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"never trained.*Fine-tune it on these classes first"):
        load_teacher(str(tmp_path), ["a", "b"])


def test_a_folder_that_is_no_classifier_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_teacher(str(tmp_path), toys.CLASSES)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="bert model, which transformers cannot use for image classification"):
        load_teacher(str(tmp_path), toys.CLASSES)


def test_a_teacher_without_a_processor_says_so(tmp_path):
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        load_teacher(str(tmp_path), toys.CLASSES)
