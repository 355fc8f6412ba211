"""The ML-BOM: a CycloneDX 1.6 document of a bundle, its files, what it was made of and what was measured. Pure.

The same evidence gives the same bytes: no time stands in it, and its serial number follows from the bundle's digest.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from compiler.report.card import told_decision
from wire.bundle import BundleManifest
from wire.document import dump_json
from wire.evidence import Evidence, Measurement
from wire.lineage import Dataset


def bom(evidence: Evidence, manifest: BundleManifest) -> bytes:
    """CycloneDX 1.6 as JSON: a `machine-learning-model` with its model card; data sets; tools as `formulation`."""
    return dump_json(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"urn:{evidence.subject}").urn,
            "version": 1,
            "metadata": {"component": _model(evidence, manifest)},
            "components": [_dataset(d) for d in evidence.datasets],
            "formulation": [{"bom-ref": "made-with", "components": [_tool(*t) for t in _tools(evidence)]}],
            "dependencies": [{"ref": evidence.target, "dependsOn": [_ref(d) for d in evidence.datasets]}],
        }
    )


def _model(evidence: Evidence, manifest: BundleManifest) -> dict[str, Any]:
    told = {
        "profile": manifest.profile,
        "runtime": evidence.runtime,
        "precision": evidence.precision,
        "recipe": evidence.recipe,
        "manifest": evidence.subject,
        "source": evidence.source,
        "seen-working": "false" if evidence.compile_only else "true",
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": evidence.target,
        "group": manifest.family,
        "name": manifest.name,
        "version": manifest.version,
        "hashes": [_hash(manifest.file("model").digest)],
        "components": [
            {"type": "file", "bom-ref": f"{evidence.target}/{f.path}", "name": f.path, "hashes": [_hash(f.digest)]}
            for f in manifest.files
        ],
        "properties": [{"name": f"shoal:{name}", "value": value} for name, value in told.items()],
        "modelCard": _card(evidence),
    }


def _card(evidence: Evidence) -> dict[str, Any]:
    return {
        "modelParameters": {
            "task": evidence.task,
            "modelArchitecture": evidence.architecture,
            "datasets": [{"ref": _ref(d)} for d in evidence.datasets],
        },
        "quantitativeAnalysis": {"performanceMetrics": [_metric(m) for m in evidence.measurements]},
        "considerations": {"performanceTradeoffs": [told_decision(evidence.decision)]},
    }


def _metric(m: Measurement) -> dict[str, Any]:
    """A figure; `slice` says how, on what and on how many samples it was taken."""
    taken = [m.kind, m.device, m.runtime, f"n={m.n}"]
    found: dict[str, Any] = {
        "type": f"{m.metric} ({m.unit})",
        "value": f"{m.value:.6g}",
        "slice": ", ".join(t for t in taken if t),
    }
    if m.low is not None and m.high is not None:
        found["confidenceInterval"] = {"lowerBound": f"{m.low:.6g}", "upperBound": f"{m.high:.6g}"}
    return found


def _dataset(dataset: Dataset) -> dict[str, Any]:
    licences = [] if dataset.licence == "unknown" else [{"expression": dataset.licence}]
    return {
        "type": "data",
        "bom-ref": _ref(dataset),
        "name": dataset.name,
        "hashes": [_hash(dataset.digest)],
        **({"licenses": licences} if licences else {}),
        "data": [{"type": "dataset", "name": dataset.name, "description": f"{dataset.rows} rows, for {dataset.use}"}],
    }


def _ref(dataset: Dataset) -> str:
    """Two uses of one file are two entries."""
    return f"{dataset.use}:{dataset.digest}"


def _tools(evidence: Evidence) -> list[tuple[str, str]]:
    return sorted((name, version) for name, version in evidence.tools.items() if version != "absent")


def _tool(name: str, version: str) -> Mapping[str, str]:
    return {"type": "library", "bom-ref": f"made-with:{name}", "name": name, "version": version}


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}
