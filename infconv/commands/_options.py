"""The options that several commands have, by the same names and with the same help."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Fp16 = Annotated[bool, typer.Option("--fp16", help="Compute in float16 where it is safe.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where it is safe.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Compute in 8-bit integers; static with --calibration.")]
Int4 = Annotated[bool, typer.Option("--int4", help="Store the weights of products in 4 bits.")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="NAME:DIMS[:DTYPE], e.g. ids:batch,128:int64. Names are dynamic. Repeatable."),
]
Dim = Annotated[
    list[str] | None,
    typer.Option("--dim", help="Sizes of a dynamic dimension: batch=1..32, batch=1,8,32. Repeatable."),
]
Sample = Annotated[str | None, typer.Option(help=".npz of real inputs for verification.")]
Calibration = Annotated[
    str | None, typer.Option(help="Data for --int8: .npz, .jsonl, a folder of arrays or images, module:function.")
]
AddStep = Annotated[list[str] | None, typer.Option("-p", "--pass", help="Add a step, as a YAML item. Repeatable.")]
Skip = Annotated[list[str] | None, typer.Option(help="Leave a step out. Repeatable.")]
Pipeline = Annotated[str | None, typer.Option(help="Start from a pipeline file, or a shipped one.")]
Opset = Annotated[int | None, typer.Option(help="ONNX opset of the result.")]
Verify = Annotated[Literal["off", "end", "each"], typer.Option(help="When results are compared with the source's.")]
Atol = Annotated[float | None, typer.Option(help="Absolute tolerance.")]
Rtol = Annotated[float | None, typer.Option(help="Relative tolerance.")]
MinSqnr = Annotated[float | None, typer.Option(help="Least signal-to-noise ratio, in dB.")]
EdgeCases = Annotated[
    str | None, typer.Option("--edge-cases", help="More samples: zeros,ones,large,denormal,padding, or all.")
]
Metric = Annotated[str | None, typer.Option(help="module:function, a measure of quality on your own data.")]
ExporterOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="An exporter's option, e.g. compute_capability=sm89. Repeatable."),
]
Frontend = Annotated[str | None, typer.Option(help="Overrides the recognised frontend.")]
Weights = Annotated[str | None, typer.Option(help="State dict or safetensors for module:factory.")]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Allow a source that runs code when loaded.")]
Interpreter = Annotated[str | None, typer.Option("--python", help="The interpreter that has the source's framework.")]
Seed = Annotated[int, typer.Option(help="Seed of the synthetic inputs.")]
StepTimeout = Annotated[str | None, typer.Option(help="Time allowed for a step that runs on its own, e.g. 60s.")]
