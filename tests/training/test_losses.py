"""The losses against formulas written another way, in NumPy and float64, and their gradients against differences."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kd import distillation_loss
from kd.config import METHODS
from kd.errors import UserError
from kd.evaluation.dark_knowledge import standardised_logits
from kd.training.losses import Method, check_classes, dist_loss, dkd_loss, kd_loss, standardise


def logits(seed: int, shape=(6, 5), scale: float = 3.0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(scale).to(dtype)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def softmax(values: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(values / temperature)
    return powers / powers.sum(-1, keepdims=True)


def numpy_kd(student, teacher, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * np.mean(np.sum(p * np.log(p / q), -1))


def numpy_dkd(student, teacher, temperature, alpha=1.5, beta=6.0, labels=LABELS):
    terms = []
    for label, p, q in zip(labels, softmax(teacher, temperature), softmax(student, temperature), strict=True):
        pt, qt, p, q = p[label], q[label], np.delete(p, label), np.delete(q, label)
        tckd = pt * np.log(pt / qt) + (1 - pt) * np.log((1 - pt) / (1 - qt))
        nckd = np.sum(p / (1 - pt) * np.log(p / (1 - pt) / (q / (1 - qt))))
        terms.append(alpha * tckd + beta * nckd)
    return temperature**2 * np.mean(terms)


def numpy_dist(student, teacher, temperature, beta=0.7, gamma=1.9):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def numpy_standardised(values):
    return np.stack([(row - np.mean(row)) / np.std(row, ddof=1) for row in values])


FORMULAS = {"kd": numpy_kd, "dkd": numpy_dkd, "dist": numpy_dist}


def method(name: str, temperature: float = 3.0, weight: float = 1.0) -> Method:
    """With the weights of the formulas above, none of which is a default."""
    return Method(name, temperature, dkd_alpha=1.5, dkd_beta=6.0, dist_beta=0.7, dist_gamma=1.9, weight=weight)


every_method = pytest.mark.parametrize("name", METHODS)


def finite(*tensors: torch.Tensor) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in tensors)


@every_method
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_a_method_is_its_papers_formula_times_its_weight(name, temperature):
    student, teacher = logits(0), logits(1)
    prepare = numpy_standardised if name.endswith("+std") else np.asarray
    expected = FORMULAS[name.removesuffix("+std")](prepare(student.numpy()), prepare(teacher.numpy()), temperature)
    # 1e-6: the papers divide by the standard deviation plus 1e-7, the formula by the deviation
    tolerance = 1e-6 if name.endswith("+std") else 1e-10
    soft = method(name, temperature, weight=2.5)(student, teacher, LABELS)
    assert soft.shape == () and soft.item() == pytest.approx(2.5 * expected, rel=tolerance)


@every_method
def test_a_methods_gradient_is_that_of_finite_differences(name):
    soft, teacher = method(name), logits(1).requires_grad_()
    torch.autograd.gradcheck(lambda student: soft(student, teacher, LABELS), logits(0).requires_grad_())
    soft(logits(0).requires_grad_(), teacher, LABELS).backward()
    assert teacher.grad is None


@every_method
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name):
    student = logits(0, scale=9).requires_grad_()  # so sure that some classes are 1e-10 in every picture
    soft = method(name)(student, student.detach().clone(), LABELS)
    soft.backward()
    assert abs(soft.item()) < 1e-12 and student.grad.abs().max() < 1e-12


@every_method
def test_a_method_is_finite_for_extreme_and_for_constant_logits(name):
    extreme = torch.tensor([[1e4, -1e4, 0, 0], [-1e4, -1e4, -1e4, 1e4], [7.3, 7.3, 7.3, 7.3], [0, 0, 0, 0]])
    labels = torch.tensor([0, 0, 2, 3])
    for teacher in (extreme, -extreme, extreme.flip(0), torch.zeros(4, 4)):
        student = extreme.clone().requires_grad_()
        soft = method(name, temperature=1.0)(student, teacher, labels)
        soft.backward()
        assert finite(soft, student.grad)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_method_computes_half_types_in_float32(name, dtype):
    student, teacher = logits(0, scale=10, dtype=dtype), logits(1, scale=10, dtype=dtype)
    soft = method(name)(student, teacher, LABELS)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(
        soft.double(), method(name)(student.double(), teacher.double(), LABELS), rtol=1e-5, atol=0
    )


@every_method
def test_a_method_refuses_other_classes_in_words(name):
    with pytest.raises(ValueError, match="same classes"):
        method(name)(logits(0), logits(1, (6, 4)), LABELS)


@every_method
def test_the_loss_weighs_a_methods_value_and_shows_it_without_the_warm_up(name):
    arguments = logits(0), logits(1), LABELS
    loss = distillation_loss(*arguments, temperature=99.0, lambda_=0.25, method=method(name, 2.0), soft_weight=0.1)
    soft, hard = method(name, 2.0)(*arguments), F.cross_entropy(logits(0), LABELS)
    torch.testing.assert_close(loss, (0.75 * hard + 0.25 * 0.1 * soft, soft, hard))


@pytest.mark.parametrize("row", range(6))
def test_hintons_loss_is_tckd_and_what_the_teachers_doubt_leaves_of_nckd(row):
    # equation 7 of the DKD paper
    student, teacher, labels = logits(0)[row, None], logits(1)[row, None], LABELS[row, None]
    p = softmax(teacher.numpy(), 3.0)[0, labels.item()]
    torch.testing.assert_close(
        dkd_loss(student, teacher, labels, 3.0, weights=(1.0, 1 - p)), kd_loss(student, teacher, 3.0)
    )


def test_dkd_of_extreme_logits_is_what_one_works_out_by_hand():
    # The teacher gives all to class 1; the student gives the label, 0, all but e^-1e4 (1 + 1), and class 1 e^-1e4 / 2
    # of the rest: TCKD = 1e4 - log 2, NCKD = 1e4 + log 2.
    student, teacher = torch.tensor([[1e4, -1e4, 0, 0]]), torch.tensor([[-1e4, 1e4, 0, 0]])
    expected = (1e4 - np.log(2)) + 8 * (1e4 + np.log(2))
    assert dkd_loss(student, teacher, torch.tensor([0]), temperature=1.0).item() == pytest.approx(expected, rel=1e-6)


def test_dist_ignores_a_scale_and_a_shift_of_the_probabilities():
    teacher = logits(1)
    p = teacher.softmax(1)

    def blurred(share):  # a p + (1 - a) / C: a positive scale and a shift that keep the sum at 1
        return (share * p + (1 - share) / 5).log()

    each = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)[:, None]
    assert kd_loss(blurred(0.4), teacher, 1.0) > 0.1
    assert dist_loss(blurred(0.4), teacher).item() == pytest.approx(0, abs=1e-12)
    assert dist_loss(blurred(each), teacher, gamma=0.0).item() == pytest.approx(0, abs=1e-12)
    assert dist_loss(blurred(each), teacher, beta=0.0) > 1e-4  # over the batch the scale must be one for all
    assert dist_loss(2 * teacher, teacher) > 1e-2  # a scale of the logits is none of the probabilities


@pytest.mark.parametrize(("shape", "weights"), [((6, 2), {"beta": 0.0}), ((1, 5), {"gamma": 0.0})])
def test_dist_leaves_out_the_relation_that_has_no_meaning(shape, weights):
    # between two classes, and over a batch of one
    student = logits(0, shape).requires_grad_()
    loss = dist_loss(student, logits(1, shape))
    assert loss.item() > 0.01 and loss.item() == dist_loss(student, logits(1, shape), **weights).item()
    torch.autograd.gradcheck(lambda student: dist_loss(student, logits(1, shape)), student)


def test_dist_of_one_picture_of_two_classes_is_0():
    assert dist_loss(logits(0, (1, 2)), logits(1, (1, 2))).item() == 0


def test_standardised_logits_have_mean_0_and_deviation_1():
    values = standardise(logits(0) * 7 + 3).numpy()
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(1, ddof=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["kd+std", "dkd+std"])
def test_standardised_methods_ignore_a_scale_and_a_shift_of_either_ones_logits(name):
    scale = torch.linspace(0.5, 9.0, 6, dtype=torch.float64)[:, None]
    exact = method(name)(logits(0), logits(1), LABELS)
    torch.testing.assert_close(
        method(name)(logits(0) * scale + 5, logits(1) / scale - 2, LABELS), exact, rtol=1e-5, atol=0
    )


def test_two_classes_standardised_are_always_the_same_two_numbers():
    values = standardise(logits(0, (50, 2))).sort(1).values.numpy()
    np.testing.assert_allclose(values, np.tile([-(0.5**0.5), 0.5**0.5], (50, 1)), rtol=1e-5)


def test_dkd_of_two_classes_is_hintons_loss_whatever_beta():
    student, teacher, labels = logits(0, (6, 2)), logits(1, (6, 2)), LABELS % 2
    for beta in (0.0, 8.0):
        torch.testing.assert_close(dkd_loss(student, teacher, labels, 3.0, (1.0, beta)), kd_loss(student, teacher, 3.0))


@every_method
def test_three_classes_are_enough_for_every_method(name):
    assert check_classes(name, 3) == []


def test_of_two_classes_one_hears_what_is_lost():
    assert check_classes("kd", 2) == []
    assert "second term is always 0" in " ".join(check_classes("dkd", 2))
    assert "inter-class term is left out" in " ".join(check_classes("dist", 2))
    assert check_classes("dist", 2, "The teacher knows")[0].startswith("The teacher knows two classes, and dist")
    for name in ("kd+std", "dkd+std"):
        with pytest.raises(UserError, match=r"same two numbers.*Choose kd or dist"):
            check_classes(name, 2)


def test_the_page_standardises_as_the_loss_does():
    logits = torch.tensor([[3.0, -1.0, 0.5, 12.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    for row, expected in zip(logits, standardise(logits), strict=True):
        assert standardised_logits(row.numpy()) == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("use", [Method, lambda name: check_classes(name, 10)])
def test_an_unknown_method_is_refused_with_the_names_of_those_known(use):
    with pytest.raises(ValueError, match=r"'hinton'.*kd, dkd, dist, kd\+std, dkd\+std"):
        use("hinton")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_the_loss_is_the_sum_that_the_paper_writes(temperature, lambda_):
    student, teacher = logits(0), logits(1)
    soft = numpy_kd(student.numpy(), teacher.numpy(), temperature)
    hard = -np.mean(np.log(softmax(student.numpy(), 1.0)[np.arange(6), LABELS]))
    loss = distillation_loss(student, teacher, LABELS, temperature, lambda_)
    assert loss.soft.item() == pytest.approx(soft, rel=1e-12)
    assert loss.hard.item() == pytest.approx(hard, rel=1e-12)
    assert loss.total.item() == pytest.approx((1 - lambda_) * hard + lambda_ * soft, rel=1e-12)


def test_a_student_equal_to_its_teacher_has_no_soft_loss_and_no_gradient_from_it():
    student = logits(0).requires_grad_()
    loss = distillation_loss(student, student.detach().clone(), LABELS, 5.0, 1.0)
    loss.total.backward()
    assert abs(loss.soft.item()) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_lambda_0_is_cross_entropy():
    student = logits(0)
    loss = distillation_loss(student, logits(1), LABELS, 5.0, 0.0)
    torch.testing.assert_close(loss.total, F.cross_entropy(student, LABELS))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_a_teacher_the_loss_is_cross_entropy_whatever_lambda(reduction):
    student = logits(0).requires_grad_()
    loss = distillation_loss(student, None, LABELS, 5.0, 0.7, reduction)
    torch.testing.assert_close(loss.total, F.cross_entropy(student, LABELS, reduction=reduction))
    torch.testing.assert_close(loss.hard, loss.total)
    assert loss.soft.item() == 0 and loss.total.requires_grad


def test_the_soft_gradient_is_that_of_the_paper():
    # d/dz [T^2 KL] = T (softmax(z / T) - softmax(v / T)), section 2.1 of the paper
    student = logits(0).requires_grad_()
    distillation_loss(student, logits(1), LABELS, 4.0, 1.0, reduction="sum").total.backward()
    expected = 4.0 * (softmax(student.detach().numpy(), 4.0) - softmax(logits(1).numpy(), 4.0))
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_at_a_high_temperature_it_matches_logits():
    # section 2.1: for large T the gradient is (z - v) / N for logits of mean zero
    student = logits(0, scale=0.1)
    student = (student - student.mean(-1, keepdim=True)).requires_grad_()
    teacher = logits(1, scale=0.1)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    distillation_loss(student, teacher, LABELS, 1000.0, 1.0, reduction="sum").total.backward()
    np.testing.assert_allclose(student.grad.numpy(), (student.detach() - teacher).numpy() / 5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_lose_nothing_but_the_digits_of_their_input(dtype):
    student, teacher = logits(0, scale=30, dtype=dtype), logits(1, scale=30, dtype=dtype)
    loss = distillation_loss(student, teacher, LABELS, 5.0, 0.5)
    exact = distillation_loss(student.double(), teacher.double(), LABELS, 5.0, 0.5)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), exact.total, rtol=1e-6, atol=1e-6)


def test_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    loss = distillation_loss(student, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([1]), 1.0, 0.5)
    loss.total.backward()
    assert torch.isfinite(loss.total) and torch.isfinite(student.grad).all()


@every_method
def test_sum_is_mean_times_the_batch(name):
    arguments = logits(0), logits(1), LABELS, 2.0, 0.5
    mean = distillation_loss(*arguments, method=method(name))
    total = distillation_loss(*arguments, reduction="sum", method=method(name))
    torch.testing.assert_close(total, type(mean)(*(part * 6 for part in mean)))


def test_different_numbers_of_classes_are_refused_in_words():
    with pytest.raises(ValueError, match="same classes"):
        distillation_loss(logits(0), logits(1, (6, 4)), LABELS, 5.0, 0.5)


@every_method
def test_where_the_teacher_knows_some_classes_only_each_picture_has_the_loss_that_is_its_own(name):
    known, columns = torch.tensor([True, False, True, True, False]), [0, 2, 3]
    labels, student, teacher = torch.tensor([0, 1, 2, 3, 4, 0]), logits(0), logits(1)
    rows, prepare = [0, 2, 3, 5], numpy_standardised if name.endswith("+std") else np.asarray
    ours, theirs = (prepare(values.numpy()[np.ix_(rows, columns)]) for values in (student, teacher))
    places = {"labels": torch.tensor([0, 1, 2, 0])} if name.startswith("dkd") else {}
    soft = FORMULAS[name.removesuffix("+std")](ours, theirs, 3.0, **places) * len(rows) / 6
    right = -np.log(softmax(student.numpy(), 1.0)[np.arange(6), labels.numpy()])
    weights = np.array([0.3, 1.0, 0.3, 0.3, 1.0, 0.3])
    spoiled = torch.where(known, teacher, torch.tensor(-1e4, dtype=torch.float64))
    found = distillation_loss(student, spoiled, labels, 3.0, 0.7, method=method(name), soft_weight=0.5, known=known)
    assert found.soft.item() == pytest.approx(soft, rel=1e-6) and found.hard.item() == pytest.approx(right.mean())
    assert found.total.item() == pytest.approx(np.mean(weights * right) + 0.7 * 0.5 * soft, rel=1e-6)
    summed = distillation_loss(student, spoiled, labels, 3.0, 0.7, "sum", method=method(name), known=known)
    assert summed.soft.item() == pytest.approx(6 * soft, rel=1e-6)


@every_method
def test_a_batch_of_classes_that_the_teacher_does_not_know_learns_from_the_labels(name):
    known = torch.tensor([True, True, False, False, False])
    student = logits(0).requires_grad_()
    found = distillation_loss(student, logits(1), LABELS.clamp(2), 3.0, 1.0, method=method(name), known=known)
    assert found.soft == 0 and found.total == found.hard == F.cross_entropy(student, LABELS.clamp(2))


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
@pytest.mark.parametrize("missing", [[1, 4], [0, 1, 2, 3, 4, 5]])
def test_images_without_a_label_have_the_soft_loss_alone(name, missing):
    student, teacher, labels = logits(1), logits(2), LABELS.clone()
    labels[missing] = -1
    kept = [n for n in range(6) if n not in missing]
    chosen = torch.where(labels < 0, teacher.argmax(1), labels)
    soft = FORMULAS[name](student.numpy(), teacher.numpy(), 3.0, **({"labels": chosen} if name == "dkd" else {}))
    each = -np.log(softmax(student.numpy(), 1.0))[kept, LABELS[kept]]
    loss = distillation_loss(student, teacher, labels, 3.0, 0.7, method=method(name))
    assert loss.soft.item() == pytest.approx(soft) and loss.hard.item() == pytest.approx(each.mean() if kept else 0)
    assert loss.total.item() == pytest.approx(0.7 * soft + 0.3 * each.sum() / 6)
    alone = distillation_loss(student, None, labels, 3.0, 0.0)
    assert alone.total.item() == pytest.approx(each.sum() / 6)
    known = torch.ones(5, dtype=torch.bool)
    assert distillation_loss(student, teacher, labels, 3.0, 0.7, method=method(name), known=known).total.item() == (
        pytest.approx(loss.total.item())
    )
