"""How fast a run was, how fast it could have been, and what had been predicted, in words."""

from collections.abc import Callable, Mapping
from typing import Any

from batchdet.results.units import format_bytes, format_duration
from batchdet.text import counted


def speed_rows(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put ``roofline`` and ``prediction`` of ``stats.json`` into rows; none where they are not.

    A run that was too short to be judged has its rate and its start-up only.
    """
    rows = []
    found = stats.get("roofline")
    judged = found is None or found.get("judged", found["steady"])
    if found and judged:
        attained, ceiling = found["attained_images_per_s"], found["ceiling_images_per_s"]
        share = f", {found['share']:.0%} of the ceiling of {ceiling:,.1f}" if found["share"] is not None else ""
        rows.append(("Roofline", f"{attained:,.1f} images/s{share}"))
        rows.append(("Bottleneck", f"{found['bottleneck']}: {found['why']}"))
        rates = found["rates_images_per_s"]
        each = (f"{name.replace('_', ' ')} {rate:,.0f}" for name, rate in rates.items() if rate is not None)
        rows.append(("Each alone", f"{', '.join(each)} images/s"))
    elif found:
        rows.append(("Rate", f"{found['attained_images_per_s']:,.1f} images/s, too short a run to judge"))
    if start_up := stats.get("run", {}).get("start_up"):
        rows.append(("Start-up", _start_up(stats["run"]["start_up_s"], start_up)))
    if judged and (both := stats.get("prediction")) is not None and both["within"] is not None:
        predicted, actual = both["predicted"], both["actual"]
        for key, name, show in _shown(predicted):
            outside = "" if both["within"][key] else ", outside the interval"
            text = f"{name:<11} {show(actual[key]):>9}, predicted {_interval(predicted[key], show)}{outside}"
            rows.append(("" if rows[-1:] and rows[-1][0] in ("", "Came") else "Came", text))
    return rows


def _start_up(whole_s: float, parts_s: Mapping[str, float]) -> str:
    """Say what went by before the first image was labelled."""
    plan_s, ray_s, probe_s, actors_s, load_s = (
        parts_s[f"{step}_s"] for step in ("plan", "ray", "probe", "actors", "load")
    )
    return (
        f"{format_duration(whole_s)} until the first image: plan {plan_s:.1f} s, start of Ray {ray_s:.1f} s, then "
        f"probe {probe_s:.1f} s, then actors {actors_s:.1f} s, of which to load the model {load_s:.1f} s"
    )


def prediction_rows(predicted: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put a prediction (see :class:`batchdet.prediction.Prediction`) into rows of a heading and a text."""
    who = "one actor" if predicted["actors"] is None else counted(predicted["actors"], "actor")
    shown = [f"{name:<11} {_interval(predicted[key], show)}" for key, name, show in _shown(predicted)]
    start_up = format_duration(predicted["start_up_s"])
    return [
        *zip(("predicted", *[""] * len(shown)), shown, strict=False),
        ("", f"for {who}, with {start_up} of start-up; intervals of {predicted['interval']:.0%}"),
        ("", f"judged by {predicted['why']}"),
    ]


def summary(predicted: Mapping[str, Any]) -> str:
    """Put a prediction into one sentence."""
    parts = (f"{name} {_interval(predicted[key], show)}" for key, name, show in _shown(predicted))
    return f"{', '.join(parts)}; judged by {predicted['why']}"


def _shown(predicted: Mapping[str, Any]) -> list[tuple[str, str, Callable[[float], str]]]:
    hours = "GPU-hours" if predicted["hours_of"] == "gpu" else "core-hours"
    return [
        ("images", "images", lambda n: f"{n:,.0f}"),
        ("time_s", "time", format_duration),
        ("images_per_s", "rate", lambda n: f"{n:,.1f}/s"),
        ("hours", hours, lambda n: f"{n:,.4g}"),
        ("output_bytes", "output", lambda n: format_bytes(round(n))),
    ]


def _interval(estimate: Mapping[str, float], show: Callable[[float], str]) -> str:
    likely, low, high = (show(estimate[end]) for end in ("likely", "low", "high"))
    return likely if low == high else f"{likely} ({low} to {high})"
