"""The ranking as a picture: an SVG, which needs no library."""

from __future__ import annotations

from collections.abc import Sequence

from sfkit.layer_choice.ranking import Measure, Ranking

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 340, 56, 16, 44, 48
_COLORS = ("#2563eb", "#ea580c")


def chart(ranking: Ranking) -> str:
    """CKA and, where it is known, the depth probe's R² over the layers, with bands of 5 % to 95 % of the resamples."""
    series = [("CKA to " + ranking.teacher, [rank.cka for rank in ranking.layers])]
    probes = [rank.probe for rank in ranking.layers if rank.probe is not None]
    if probes:
        series.append(("depth probe, R²", probes))
    layers = [rank.student_layer for rank in ranking.layers]
    low = min(0.0, *(max(measure.low, -1.0) for _, measures in series for measure in measures))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="13">{ranking.policy}, {ranking.samples} samples</text>',
    ]
    for step in range(5):
        value = low + (1 - low) * step / 4
        y = _y(value, low)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for index, layer in enumerate(layers):
        x = _x(index, len(layers))
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{layer}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}" text-anchor="middle">student layer</text>')
    for number, (name, measures) in enumerate(series):
        parts += _curve(measures, low, _COLORS[number])
        parts.append(f'<text x="{_LEFT + 220 * number}" y="36" fill="{_COLORS[number]}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _curve(measures: Sequence[Measure], low: float, color: str) -> list[str]:
    count = len(measures)

    def points(values: Sequence[float]) -> list[str]:
        return [f"{_x(index, count):.1f},{_y(value, low):.1f}" for index, value in enumerate(values)]

    band = [*points([m.low for m in measures]), *reversed(points([m.high for m in measures]))]
    line = points([m.value for m in measures])
    return [
        f'<polygon points="{" ".join(band)}" fill="{color}" opacity="0.15"/>',
        f'<polyline points="{" ".join(line)}" fill="none" stroke="{color}" stroke-width="2"/>',
    ]


def _x(index: int, count: int) -> float:
    return _LEFT + (index + 0.5) / count * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float) -> float:
    share = (min(max(value, low), 1.0) - low) / (1 - low)
    return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)
