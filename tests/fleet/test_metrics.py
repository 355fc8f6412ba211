"""`GET /metrics`: what Prometheus reads is well formed, true, and all that the dashboard asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fleet_process import FleetProcess, Publisher
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fleet.exposition import family
from fleet.gateway.metrics import Metrics
from fleet.gateway.records import Record

DASHBOARD = Path(__file__).parents[2] / "docs/operate/grafana.json"
WORDS = {"by", "rate", "sum", "max", "min", "clamp_min", "histogram_quantile", "le", "increase", "time", "or", "vector"}
LABELS = {"status", "state", "severity", "channel", "of", "route", "outcome", "upstream", "kind", "rule", "action"}


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False)), unique_by=lambda pair: pair[0], max_size=5))
def test_any_label_and_number_is_read_again_as_it_was(pairs: list[tuple[str, float]]) -> None:
    text = "".join(family("x", "About.", "gauge", [((("l", label),), value) for label, value in pairs]))
    # Its lines end at a line feed only, as the format says; Python's other line breaks are characters of a label.
    found = [s for f in text_string_to_metric_families(text) for s in f.samples]
    assert {(s.labels["l"], s.value) for s in found} == set(pairs)


def scraped(fleet: FleetProcess) -> dict[str, Any]:
    status, body = fleet.request("GET", "/metrics", headers={"Authorization": f"Bearer {fleet.token}"})
    assert status == 200
    families = list(text_string_to_metric_families(body.decode()))
    names = [f.name for f in families]
    assert len(names) == len(set(names)), "a metric stands twice"
    assert all(f.documentation and f.type in ("gauge", "counter", "histogram") for f in families)
    return {s.name + json.dumps(s.labels, sort_keys=True): s.value for f in families for s in f.samples}


def test_the_metrics_are_the_state_of_the_fleet(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> None:
    assert fleet.request("GET", "/metrics")[0] == 401
    before = scraped(fleet)
    device = new_device("measured")
    device.connect()
    device.until_status("online")
    device.send(device.batch(1, 2))
    device.next_ack()
    after = scraped(fleet)
    moved = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert moved['shoal_devices{"status": "online"}'] == 1
    assert moved["shoal_telemetry_records_total{}"] == 2
    assert moved["shoal_mqtt_messages_total{}"] >= 2
    assert (after["shoal_mqtt_up{}"], after["shoal_broker_up{}"]) == (1, 1)
    assert after["shoal_database_bytes{}"] > 10_000
    assert 0 < after['shoal_expiry_seconds{"of": "metadata root"}'] < 31 * 86_400
    assert after['shoal_expiry_seconds{"of": "server"}'] > 86_400
    assert after["shoal_device_certificate_expiry_seconds{}"] > 86_400
    assert 0 <= after["shoal_ingest_lag_seconds{}"] < 30
    status = fleet.api("GET", "/api/v1/status")["devices"]
    assert {key: after[f'shoal_devices{{"status": "{key}"}}'] for key in status} == status


def test_who_may_not_read_the_gateway_gets_no_figure_of_it(fleet: FleetProcess) -> None:
    def families(role: str) -> set[str]:
        new = {"name": f"scrapes-as-{role}", "roles": [role], "groups": [], "days": 1, "program": True}
        token = fleet.api("POST", "/api/v1/tokens", new)["token"]
        status, body = fleet.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        assert status == 200
        return {f.name for f in text_string_to_metric_families(body.decode())}

    viewer, operator = families("viewer"), families("operator")
    assert "shoal_devices" in viewer
    assert viewer < operator
    assert {name for name in operator if "gateway" in name} == operator - viewer


def test_every_metric_of_the_dashboard_is_one_of_ours(fleet: FleetProcess, publisher: Publisher) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())}
    assert len(asked) > 15
    body = fleet.request("GET", "/metrics", headers={"Authorization": f"Bearer {fleet.token}"})[1].decode()
    # A metric without a value has its heading; those of the gateway come with its first request.
    gateway = Metrics()
    gateway.count(Record(at="", who="", tenant="", groups="", path="", route="r", upstream="u"), {})
    named = set(re.findall(r"^# TYPE (\S+) ", body + gateway.text({}, {}, 0, 0), re.MULTILINE))
    for name in {n for expr in asked for n in re.findall(r"\bshoal_\w+", expr)}:
        assert re.sub(r"_(bucket|count|sum)$", "", name) in named or name in named, f"{name} is no metric of ours"
    for expr in asked:
        bare = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\[[^\]]*\]", "", expr)
        others = {w for w in re.findall(r"[a-z_]\w*", bare) if not w.startswith("shoal_")}
        assert others <= WORDS | LABELS, f"{expr}: {others - WORDS - LABELS}"


def test_the_dashboard_has_a_place_for_every_panel() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    boxes = [p["gridPos"] for p in dashboard["panels"]]
    assert len({p["id"] for p in dashboard["panels"]}) == len(boxes)
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(cells) == len(set(cells)), "two panels overlap"
    assert max(x for x, _ in cells) < 24
