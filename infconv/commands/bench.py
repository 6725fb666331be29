"""`infconv bench`: artifacts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import Json, show

if TYPE_CHECKING:
    from infconv.bench import BenchRow


def bench(
    models: Annotated[
        list[str], typer.Argument(help="ONNX files, OpenVINO IRs, engines; the first is what others are beside.")
    ],
    inputs: Annotated[str | None, typer.Option(help=".npz of inputs; otherwise seeded synthetic ones.")] = None,
    dim: Annotated[list[str] | None, typer.Option("--dim", help="Size of a dynamic dimension: batch=8.")] = None,
    runs: Annotated[int, typer.Option(min=3, help="Inferences of each model.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Inferences before those that count.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each runtime.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    json: Json = False,
) -> None:
    """Measure latency, throughput and memory of MODELS side by side, in turn, each in a process of its own."""

    def command() -> None:
        from infconv import texts
        from infconv.bench import Settings
        from infconv.bench import bench as measure
        from infconv.convert._base import DimRange
        from infconv.given import told
        from infconv.nearby import fetched

        ranges = {name: DimRange(**sizes) for name, sizes in texts.dims(dim or []).items()}
        settings = Settings(runs=runs, warmup=warmup, threads=threads, seed=seed)
        with fetched(*models, *([inputs] if inputs else ())) as local:
            given = local.paths[len(models)] if inputs else None
            rows = measure(local.paths[: len(models)], inputs=given, dims=ranges, settings=settings)
            _print(told(rows, local.urls), json)

    show(command, json)


def _print(rows: Sequence[BenchRow], json: bool) -> None:
    from infconv import console
    from infconv.plain import plain

    if json:
        console.print_json({"models": [plain(row) for row in rows]})
        return
    columns = [
        "model",
        "runtime",
        "size",
        "load s",
        "latency ms",
        "p10 … p90",
        "per s",
        "memory MB",
        "time beside first",
    ]
    table = [
        [
            row.path,
            row.runtime,
            console.size(row.bytes),
            f"{row.load_seconds:.2f}",
            f"{row.latency_ms:.3f}",
            f"{row.latency_ms_p10:.3f} … {row.latency_ms_p90:.3f}",
            f"{row.throughput:.1f}",
            f"{row.memory_mb:.0f}",
            "-" if index == 0 else f"{row.ratio:.2f} ({row.ratio_low:.2f} … {row.ratio_high:.2f})",
        ]
        for index, row in enumerate(rows)
    ]
    console.print_table("", columns, table, right=("size", "load s", "latency ms", "per s", "memory MB"))
