"""`infconv cache list` and `clean`: what earlier runs left to be used again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infconv.commands._base import CacheDir, Json, show

if TYPE_CHECKING:
    from infconv.cache import Cache

app = typer.Typer(
    name="cache", help="Results of earlier runs, to be used again.", no_args_is_help=True, rich_markup_mode=None
)


@app.command(name="list")
def list_(cache_dir: CacheDir = None, json: Json = False) -> None:
    """List what is in the cache on this machine: what it is, its size and its age."""

    def command() -> None:
        from infconv import console

        cache = _cache(cache_dir)
        entries = sorted(cache.local.entries(), key=lambda entry: -entry.used)
        rows: list[dict[str, Any]] = [
            {"key": e.key, "kind": e.kind, "about": e.about, "bytes": e.bytes, "unused_seconds": _age(e.used)}
            for e in entries
        ]
        total = sum(entry.bytes for entry in entries)
        if json:
            told = {"folder": str(cache.local.folder), "bytes": total, "limit": cache.limit, "entries": rows}
            console.print_json(told)
            return
        if rows:
            columns = ["key", "kind", "of", "size", "unused for"]
            lines = [
                [r["key"][:12], r["kind"], r["about"], console.size(r["bytes"]), _told(r["unused_seconds"])]
                for r in rows
            ]
            console.print_table("", columns, lines, right=("size", "unused for"))
        size = f"{console.size(total)} of {console.size(cache.limit)}"
        console.print_mapping({"folder": str(cache.local.folder), "entries": len(rows), "size": size})

    show(command, json)


@app.command()
def clean(
    older_than: Annotated[str | None, typer.Option(help="Only what was not used for so long, e.g. 7d, 12h.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Only as much as is beyond, e.g. 5GB; the oldest first.")] = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    """Remove what is in the cache on this machine, or a part of it. What a run uses at the moment stays."""

    def command() -> None:
        from infconv import console, texts

        seconds = texts.duration(older_than, "--older-than") if older_than else None
        partly = older_than is not None or max_size is not None
        most = texts.memory(max_size, "--max-size") if max_size else 1 << 62 if partly else 0
        count, size = _cache(cache_dir).local.trim(most, seconds)
        if json:
            console.print_json({"removed": count, "bytes": size})
        else:
            console.print_mapping({"removed": f"{count} entries, {console.size(size)}"})

    show(command, json)


def _cache(place: str | None) -> Cache:
    from infconv.cache import find_cache

    cache = find_cache(place or True)
    assert cache is not None
    return cache


def _age(used: float) -> int:
    return max(0, round(time.time() - used))


def _told(seconds: int) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
