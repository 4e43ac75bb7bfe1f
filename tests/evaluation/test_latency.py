"""FLOPs and latency."""

import time

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from kd.evaluation.latency import count_flops, latency_summary, timed_trials
from kd.models.student import load_student


def test_flops_see_into_attention_and_count_two_a_multiply_add():
    linear = load_student("mobilenet_v2_1.0", [str(i) for i in range(1000)], 224, seed=0).model
    assert count_flops(linear, (224, 224)) == pytest.approx(2 * 300e6, rel=0.05)  # 300 M multiply-adds in the paper
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64, image_size=128, patch_size=8
    )
    tokens = 16 * 16 + 1
    attention = 2 * 2 * tokens * tokens * 64  # Q K^T and its product with V
    dense = 2 * tokens * (4 * 64 * 64 + 2 * 64 * 64) + 2 * 256 * 3 * 64 * 64
    assert count_flops(ViTForImageClassification(config), (128, 128)) == pytest.approx(attention + dense, rel=0.01)


def test_latency_takes_turns_and_keeps_its_promises():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.002)) for name in ("a", "b")}
    times = timed_trials(calls, torch.device("cpu"), trials=30, seconds=0.0)
    assert order[-60:] == ["a", "b"] * 30 and len(times["a"]) == 30
    slow_and_fast = {"slow": lambda: time.sleep(0.01), "fast": lambda: time.sleep(0.001)}
    times = timed_trials(slow_and_fast, torch.device("cpu"), trials=10, seconds=0.1)
    assert len(times["slow"]) < 30 < 60 < len(times["fast"])  # not ten times as long for the slow one
    found = latency_summary(np.arange(1, 101, dtype=float), torch.device("cpu"))
    assert found["p50"] == 50.5 and found["n"] == 100 and found["batch"] == 1 and found["threads"] >= 1
