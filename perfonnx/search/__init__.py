"""Choosing what to skip: how much layers mind, how fast they get, and the search for the best combination."""

from perfonnx.comparing.metrics import METRICS, Metric, Quality
from perfonnx.search.evaluate import Evaluator, Outcome, SerialExecutor, Task
from perfonnx.search.result import Progress, Target, Trial, Tuned
from perfonnx.search.sensitivity import Sensitivity, Space, render_sensitivity, sensitivity
from perfonnx.search.timing import Speed, Timer, TimingCache
from perfonnx.search.tune import SEARCHES, tune
from perfonnx.subject import SamplesLike

__all__ = [
    "METRICS",
    "SEARCHES",
    "Evaluator",
    "Metric",
    "Outcome",
    "Progress",
    "Quality",
    "SamplesLike",
    "Sensitivity",
    "SerialExecutor",
    "Space",
    "Speed",
    "Target",
    "Task",
    "Timer",
    "TimingCache",
    "Trial",
    "Tuned",
    "render_sensitivity",
    "sensitivity",
    "tune",
]
