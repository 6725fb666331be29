"""`infconv verify-manifest`: whether an artifact's files are still those that were verified."""

from __future__ import annotations

from typing import Annotated

import typer

from infconv.commands._base import Json, Quiet, guarded
from infconv.commands._run import Sbom


def verify_manifest(
    artifacts: Annotated[list[str], typer.Argument(metavar="ARTIFACT...", help="Artifacts, or their manifests.")],
    sbom: Sbom = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the digests of artifacts against their manifests; exit 5 when a file is changed or missing."""

    def command() -> int:
        from infconv import console
        from infconv.errors import VerificationError
        from infconv.manifest import check_files, manifest_of
        from infconv.plain import plain
        from infconv.result import Result
        from infconv.sbom import write_sbom

        manifests = [manifest_of(artifact) for artifact in artifacts]
        checks = [check for manifest in manifests for check in check_files(manifest)]
        wrong = [check for check in checks if check.status != "ok"]
        told = ", ".join(f"'{check.path}' is {check.status}" for check in wrong)
        error = VerificationError(f"Not what was verified: {told}.", "Convert again.") if wrong else None
        if sbom and not wrong:
            write_sbom(sbom, [str(manifest) for manifest in manifests])
        if json:
            console.print_json(Result(error=error).as_json() | {"files": [plain(check) for check in checks]})
        elif not quiet:
            console.print_table("", ["file", "status"], [[check.path, check.status] for check in checks])
        if error and not json:
            console.print_error(error)
        return error.exit_code if error else 0

    raise typer.Exit(guarded(command, json))
