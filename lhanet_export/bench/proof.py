"""What a deployment proved, as a section of the report: each comparison with its verdict, and the engine's plan."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from lhanet_export.bench.tables import facts_list, table
from lhanet_export.bench.units import MEGABYTES, equal_labels, number, scientific

Json = Mapping[str, Any]


def proof_section(manifest: Json) -> str:
    """The comparisons and the engine of a manifest, as JSON values; memory as planned, which is not a measurement."""
    verification = manifest["verification"]
    compared = {what: found for what, found in verification.items() if isinstance(found, Mapping)}
    rows = [{"name": _title(what), **_worst(found)} for what, found in compared.items()]
    columns = {
        "Verdict": lambda row: "✓ passed" if row["passed"] else "✕ failed",
        "Volumes": lambda row: str(row["volumes"]),
        "Largest relative L2": lambda row: scientific(row["relative_l2"]),
        "Allowed": lambda row: scientific(row["allowed"]),
        "Fewest labels equal": lambda row: equal_labels(row["label_agreement"]),
        "Run by": lambda row: row["runner"],
    }
    said = "".join(
        f'<p class="note">{escape(_title(what))}: {escape(found)}.</p>\n'
        for what, found in verification.items()
        if isinstance(found, str)
    )
    return (
        "<section>\n<h2>Is it the network that was trained?</h2>\n"
        '<p class="note">Each is compared with the eager network; the worst of its volumes is shown.</p>\n'
        f"{table(rows, columns)}\n{said}"
        f"<h3>The engine</h3>\n{facts_list(_engine(manifest))}\n</section>"
    )


def _worst(found: Json) -> dict[str, Any]:
    cases = found["cases"]
    errors = [error for case in cases if (error := number(case["relative_l2"])) is not None]
    return {
        "passed": found["passed"],
        "volumes": len(cases),
        "relative_l2": max(errors, default=None),
        "allowed": found["tolerance"]["relative_l2"],
        "label_agreement": min(case["label_agreement"] for case in cases),
        "runner": found["runner"],
    }


def _engine(manifest: Json) -> dict[str, Any]:
    engine = manifest["engine"]
    weights, activations = (engine["device_memory"][key] for key in ("weights_bytes", "activation_bytes"))
    planned = "the backend does not say"
    if weights is not None and activations is not None:
        planned = (
            f"{MEGABYTES.text(weights + activations)} ({MEGABYTES.text(weights)} of weights, "
            f"{MEGABYTES.text(activations)} of activations)"
        )
    return {
        "built by": f"{engine['backend']} {engine['backend_version']}",
        "for compute capability": engine["compute_capabilities"],
        "precision": engine["precision"],
        "volumes": [" to ".join("x".join(map(str, one[key])) for key in ("min", "max")) for one in engine["profiles"]],
        "file_bytes": engine["bytes"],
        "memory planned by the builder, not measured": planned,
    }


def _title(what: str) -> str:
    return "the engine itself" if what == "engine" else f"{what.upper()} graph"
