"""Calibration data: readers, the check against the model, and sketches that equal the in-memory computation."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infconv.errors import UsageError
from infconv.quantize._calibration_options import ImageOptions, TextOptions
from infconv.quantize._collect import Wanted, collect
from infconv.quantize._lint import checked, remarks
from infconv.quantize._readers import Batch, Data, Input, batch_size, open_data
from infconv.quantize._search import evaluation_batches
from infconv.quantize._sketch import BINS, Record, Sketch, merged
from tests.helpers import parse

RNG = np.random.default_rng(0)
IMAGE = Input("x", np.dtype("float32"), ("n", 3, 8, 8))


def sketch_of(*parts: np.ndarray) -> Sketch:
    sketch = Sketch()
    for part in parts:
        sketch.add(part)
    return sketch


def same(a: Sketch, b: Sketch) -> None:
    assert (a.count, a.odd, a.low, a.high, a.exponent) == (b.count, b.odd, b.low, b.high, b.exponent)
    np.testing.assert_array_equal(a.bins, b.bins)
    np.testing.assert_allclose([a.total, a.squares], [b.total, b.squares], rtol=1e-5)


# --- sketches ------------------------------------------------------------------------------------------------------


def test_a_sketch_in_batches_equals_the_one_of_all_values_at_once() -> None:
    parts = [RNG.normal(size=500).astype("f4") * scale for scale in (1e-3, 1, 0.1, 300, 2)]  # the range grows
    together = sketch_of(np.concatenate(parts))
    same(sketch_of(*parts), together)
    same(sketch_of(*reversed(parts)), together)


def test_the_histogram_is_that_of_numpy() -> None:
    values = np.concatenate([RNG.normal(size=5000), [-4.0, 0.0, 4.0 - 1e-6, 3.5]]).astype("f4")
    values = np.clip(values, -4, np.nextafter(np.float32(4), np.float32(0)))
    sketch = sketch_of(values)
    edges = np.linspace(-(2.0**sketch.exponent), 2.0**sketch.exponent, BINS + 1)
    np.testing.assert_array_equal(sketch.bins, np.histogram(values.astype("f8"), edges)[0])
    assert (sketch.low, sketch.high, sketch.count) == (values.min(), values.max(), values.size)
    assert sketch.mean == pytest.approx(values.astype("f8").mean())
    assert sketch.variance == pytest.approx(values.astype("f8").var())


def test_merged_shards_equal_one_process() -> None:
    values = [RNG.normal(size=(4, 6)).astype("f4") * s for s in (1, 50, 1e-4)]
    whole, shards = Record(), [{"t": Record()} for _ in values]
    for shard, part in zip(shards, values, strict=True):
        whole.add(part, axis=1)
        shard["t"].add(part, axis=1)
    together = merged(iter(shards))["t"]
    same(together.sketch, whole.sketch)
    assert together.channels is not None
    np.testing.assert_allclose(together.channels.mean, np.concatenate(values).mean(0, dtype="f8"), rtol=1e-5)
    np.testing.assert_array_equal(together.channels.absmax, np.abs(np.concatenate(values)).max(0))


def test_nan_and_infinity_are_counted_apart() -> None:
    sketch = sketch_of(np.array([1, np.nan, -2, np.inf], "f4"), np.array([np.nan], "f4"))
    assert (sketch.count, sketch.odd, sketch.low, sketch.high) == (2, 3, -2, 1)


def test_zeros_alone_make_no_range() -> None:
    sketch = sketch_of(np.zeros(10, "f4"))
    assert (sketch.count, sketch.absmax) == (10, 0.0)
    sketch.add(np.full(2, 5, "f4"))
    assert sketch.exponent == 3
    assert sketch.bins.sum() == 12


# --- collecting ----------------------------------------------------------------------------------------------------

MODEL = """m (float[n, 4] x) => (float[n, 4] y)
           { a = Relu(x)  b = Add(a, x)  c = Mul(b, b)  y = Sub(c, a) }"""


def test_collecting_equals_the_values_in_memory_in_one_group_or_several() -> None:
    data = RNG.normal(size=(20, 4)).astype("f4")
    batches = [{"x": data[i : i + 3]} for i in range(0, 20, 3)]
    a = np.maximum(data, 0)
    expected = {"x": data, "a": a, "b": a + data, "c": (a + data) ** 2, "y": (a + data) ** 2 - a}
    for group_bytes in (1 << 20, 1):
        wanted = [Wanted(name, axis=1) for name in expected]
        records = collect(parse(MODEL), wanted, lambda: batches, group_bytes)
        for name, values in expected.items():
            same(records[name].sketch, sketch_of(values))
            channels = records[name].channels
            assert channels is not None
            np.testing.assert_array_equal(channels.high, values.max(0))


def test_no_samples_are_an_error() -> None:
    with pytest.raises(UsageError, match="no samples"):
        collect(parse(MODEL), [Wanted("a")], list)


def test_fewer_samples_are_judged_where_each_has_many_values() -> None:
    batches = [{"x": np.zeros((2, 4), "f4")} for _ in range(20)]
    assert len(evaluation_batches(parse(MODEL), [Wanted("a")], lambda: batches)) == 8
    large = parse("m (float[n, 4000000] x) => (float[n, 4000000] y) { a = Relu(x)  b = Relu(a)  y = Relu(b) }")
    empty = [{"x": np.broadcast_to(np.float32(0), (1, 4_000_000))}] * 20
    assert len(evaluation_batches(large, [Wanted("a"), Wanted("b")], lambda: empty)) == 4


def test_a_batch_that_is_too_large_is_run_in_parts() -> None:
    data = RNG.normal(size=(16, 4)).astype("f4")
    records = collect(parse(MODEL), [Wanted("a"), Wanted("c")], lambda: [{"x": data}], group_bytes=64)
    same(records["a"].sketch, sketch_of(np.maximum(data, 0)))


# --- readers -------------------------------------------------------------------------------------------------------


def rows(data: Data, name: str = "x") -> np.ndarray:
    return np.concatenate([batch[name] for batch in data.batches()])


def test_npz_is_read_in_batches_and_up_to_the_samples_asked_for(tmp_path: Path) -> None:
    values = RNG.normal(size=(20, 3, 8, 8)).astype("f4")
    np.savez(tmp_path / "c.npz", x=values)
    data = open_data(str(tmp_path / "c.npz"), [IMAGE])
    assert [batch_size(batch) for batch in data.batches()] == [8, 8, 4]
    np.testing.assert_array_equal(rows(data), values)
    np.testing.assert_array_equal(rows(open_data(data.path, [IMAGE], samples=10)), values[:10])
    np.savez_compressed(tmp_path / "f.npz", x=np.asfortranarray(values))
    np.testing.assert_array_equal(rows(open_data(str(tmp_path / "f.npz"), [IMAGE])), values)


def test_an_input_of_a_fixed_size_beside_a_dynamic_batch(tmp_path: Path) -> None:
    """Its first dimension is not the batch; where arrays are cut by rows, it cannot be among them."""
    inputs = [Input("x", np.dtype("float32"), ("n", 3)), Input("scale", np.dtype("float32"), (1, 3))]
    scale = np.ones((1, 3), np.float32)
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "c" / "0.npz", x=np.ones((2, 3), np.float32), scale=scale)
    (batch,) = open_data(str(tmp_path / "c"), inputs).batches()
    assert {name: array.shape for name, array in batch.items()} == {"x": (2, 3), "scale": (1, 3)}
    np.savez(tmp_path / "c.npz", x=np.ones((40, 3), np.float32), scale=scale)
    with pytest.raises(UsageError, match="the arrays have different numbers of samples"):
        list(open_data(str(tmp_path / "c.npz"), inputs).batches())


def test_a_fixed_batch_is_kept_and_the_rest_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros((11, 3, 8, 8), "f4"))
    fixed = Input("x", np.dtype("float32"), (4, 3, 8, 8))
    assert [batch_size(b) for b in open_data(str(tmp_path / "c.npz"), [fixed]).batches()] == [4, 4]


def test_folders_of_arrays(tmp_path: Path) -> None:
    values = RNG.normal(size=(3, 3, 8, 8)).astype("f4")
    for i, value in enumerate(values):
        np.save(tmp_path / f"{i}.npy", value)
    np.testing.assert_array_equal(rows(open_data(str(tmp_path), [IMAGE])), values)
    two = [Input("ids", np.dtype("int64"), ("n", "s")), Input("mask", np.dtype("int64"), ("n", "s"))]
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", ids=np.arange(5)[None], mask=np.ones((1, 5), int))
    assert {k: v.shape for k, v in next(open_data(str(tmp_path / "npz"), two).batches()).items()} == {
        "ids": (1, 5),
        "mask": (1, 5),
    }


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_calibration.py").write_text(
        "import numpy as np\ndef images():\n    for i in range(5):\n        yield np.full((1, 3, 8, 8), i, 'f4')\n"
    )
    monkeypatch.chdir(tmp_path)
    data = open_data("my_calibration:images", [IMAGE], samples=3)
    assert [float(b["x"][0, 0, 0, 0]) for b in data.batches()] == [0, 1, 2]
    with pytest.raises(UsageError, match="cannot be imported"):
        list(open_data("my_calibration:nothing", [IMAGE]).batches())
    sys.modules.pop("my_calibration")


def test_images_are_resized_cropped_and_normalised(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is optional")
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, 8:16] = (255, 128, 0)
    image.fromarray(pixels).save(tmp_path / "a.png")
    options = ImageOptions(resize=(8, 12), crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    (batch,) = open_data(str(tmp_path), [IMAGE], image=options).batches()
    assert batch["x"].shape == (1, 3, 8, 8)
    np.testing.assert_allclose(batch["x"][0, :, 4, 4], [1, 0.0039, -1], atol=0.05)
    nhwc = Input("x", np.dtype("uint8"), ("n", 8, 8, 3))
    (raw,) = open_data(str(tmp_path), [nhwc], image=options).batches()
    assert raw["x"].shape == (1, 8, 8, 3)
    assert raw["x"].max() == 255


def test_lines_of_token_ids_and_of_text(tmp_path: Path) -> None:
    ids = Input("input_ids", np.dtype("int64"), ("n", "s"))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"input_ids": [1, 2, n]}) for n in (3, 4)))
    assert rows(open_data(str(tmp_path / "t.jsonl"), [ids]), "input_ids").tolist() == [[1, 2, 3], [1, 2, 4]]
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is optional")
    words = tokenizers.models.WordLevel({"a": 5, "b": 6, "?": 0}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tok.json"))
    (tmp_path / "t.jsonl").write_text('{"text": "a b a"}\n')
    fixed = [
        Input("input_ids", np.dtype("int64"), ("n", 4)),
        Input("attention_mask", np.dtype("int64"), ("n", 4)),
    ]
    text = TextOptions(tokenizer=str(tmp_path / "tok.json"))
    (batch,) = open_data(str(tmp_path / "t.jsonl"), fixed, text=text).batches()
    assert {k: v.tolist() for k, v in batch.items()} == {"input_ids": [[5, 6, 5, 0]], "attention_mask": [[1, 1, 1, 0]]}


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("no")
    with pytest.raises(UsageError, match="not a .npz"):
        open_data(str(tmp_path / "c.txt"), [IMAGE])
    (tmp_path / "c.npz").write_text("no")
    with pytest.raises(UsageError, match="not a .npz file of plain arrays"):
        list(open_data(str(tmp_path / "c.npz"), [IMAGE]).batches())


# --- odd uses ------------------------------------------------------------------------------------------------------

TWO = [Input("ids", np.dtype("int64"), ("n", "s")), Input("mask", np.dtype("int64"), ("n", "s"))]


def read(path: Path | str, inputs: list[Input] | None = None, **options: Any) -> list[Batch]:
    return list(open_data(str(path), inputs or [IMAGE], **options).batches())


def test_a_single_npy_file_feeds_the_only_input(tmp_path: Path) -> None:
    values = RNG.normal(size=(11, 3, 8, 8)).astype("f4")
    np.save(tmp_path / "c.npy", values)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in read(tmp_path / "c.npy")]), values)
    with pytest.raises(UsageError, match="feeds one input"):
        read(tmp_path / "c.npy", TWO)
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UsageError, match="no file of plain arrays|not a .npy file"):
        read(tmp_path / "c.npy")


def test_a_batch_larger_than_the_models_is_divided(tmp_path: Path) -> None:
    fixed = Input("x", np.dtype("float32"), (2, 3))
    np.savez(tmp_path / "a.npz", x=np.arange(15, dtype="f4").reshape(5, 3))
    found = read(tmp_path, [fixed])
    assert [batch["x"][0, 0] for batch in found] == [0, 6]
    assert len(read(tmp_path, [fixed], samples=2)) == 1


def test_files_that_are_no_arrays_and_hidden_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), "f4"))
    (tmp_path / "._a.npy").write_bytes(b"Mac OS X")
    assert len(read(tmp_path)) == 1
    (tmp_path / "b.npy").write_bytes(b"")
    with pytest.raises(UsageError, match=r"b\.npy' is no file of plain arrays"):
        read(tmp_path)
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UsageError, match="no file of plain arrays"):
        read(tmp_path)


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", x=RNG.normal(size=(30, 3, 8, 8)))
    data = bytearray((tmp_path / "c.npz").read_bytes())
    data[1000:1100] = bytes(100)
    (tmp_path / "c.npz").write_bytes(data)
    with pytest.raises(UsageError, match="not a .npz file of plain arrays"):
        read(tmp_path / "c.npz")


def test_arrays_of_different_lengths_and_scalars_are_told(tmp_path: Path) -> None:
    for mask in (np.ones((3, 5), int), np.int64(1)):
        np.savez(tmp_path / "c.npz", ids=np.ones((4, 5), int), mask=mask)
        with pytest.raises(UsageError) as caught:
            read(tmp_path / "c.npz", TWO)
        assert "a batch in each" in str(caught.value)


MODULE = """
import numpy as np
def once(kept=iter([np.zeros((1, 3, 8, 8), "f4")])):
    return kept
def broken():
    yield {"x": np.zeros((1, 3, 8, 8), "f4")}
    raise RuntimeError("no disk")
def pair():
    yield (np.zeros((1, 3, 8, 8), "f4"), 7)
def text():
    yield {"x": {"a": 1}}
def nothing():
    return None
values = [1, 2]
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "failed: RuntimeError: no disk"),
        ("pair", "yields a tuple, which is no array"),
        ("text", "yields a dict, which is no array"),
        ("nothing", "failed: TypeError"),
        ("values", "is no function"),
    ],
)
def test_what_goes_wrong_in_a_users_function_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / "odd_calibration.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("odd_calibration", None)
    with pytest.raises(UsageError, match=words):
        read(f"odd_calibration:{name}")


def test_a_generator_that_is_used_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_calibration.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("odd_calibration", None)
    data = open_data("odd_calibration:once", [IMAGE])
    assert len(list(data.batches())) == 1
    with pytest.raises(UsageError, match="only once"):
        list(data.batches())


def picture(path: Path, shade: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is optional")
    path.parent.mkdir(exist_ok=True)
    image.new(mode, size, shade).save(path)


def test_a_folder_for_each_class_is_read_in_turn(tmp_path: Path) -> None:
    for name, shade in (("cat/1.png", 0), ("cat/2.png", 0), ("dog/1.png", 255)):
        picture(tmp_path / name, shade)
    raw = ImageOptions(mean=(0.0,), std=(1.0,))
    shades = [float(batch["x"][i, 0, 0, 0]) for batch in read(tmp_path, image=raw) for i in range(3)]
    assert shades == pytest.approx([0, 1, 0])


def test_other_kinds_of_images(tmp_path: Path) -> None:
    raw = ImageOptions(mean=(0.0,), std=(1.0,))
    for mode, shade in (("L", 128), ("I;16", 128 * 256), ("P", 0), ("RGBA", 0), ("CMYK", 0), ("1", 1)):
        picture(tmp_path / mode.replace(";", "") / f"a.{'tif' if mode == 'CMYK' else 'png'}", shade, mode)
        (batch,) = read(tmp_path / mode.replace(";", ""), image=raw)
        assert batch["x"].shape == (1, 3, 8, 8)
        if shade > 1:
            assert batch["x"].max() == pytest.approx(128 / 255, abs=1e-3)


def test_images_that_do_not_fit_the_options_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "a.png", 3)
    for options, words in (
        (ImageOptions(resize=8, crop=9), "crop .* is larger"),
        (ImageOptions(mean=(0.5, 0.5)), "mean has 2 values"),
        (ImageOptions(std=(1.0, 0.0, 1.0)), "std has a 0"),
    ):
        with pytest.raises(UsageError, match=words):
            read(tmp_path / "a", image=options)
    (tmp_path / "a" / "b.jpg").write_bytes(b"<html>")
    with pytest.raises(UsageError, match=r"b\.jpg' cannot be read"):
        read(tmp_path / "a")
    with pytest.raises(UsageError, match="2 dimensions"):
        read(tmp_path / "a", [TWO[0]])


def tokenizer(path: Path) -> TextOptions:
    """Save a tokenizer that ends each text, pads to 12 and whose padding is not 0."""
    library = pytest.importorskip("tokenizers", reason="tokenizers is optional")
    words = library.models.WordLevel({"?": 0, "a": 5, "b": 6, "<pad>": 1, "<end>": 2}, unk_token="?")
    made = library.Tokenizer(words)
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.post_processor = library.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    made.enable_padding(pad_id=1, pad_token="<pad>", length=12)
    made.save(str(path))
    return TextOptions(tokenizer=str(path), length=3)


def test_padding_and_cutting_are_the_tokenizers_own(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a b"}\n{"text": "a"}\n{"text": "a b a b a"}\n', encoding="utf-8-sig")
    options = tokenizer(tmp_path / "tokenizer.json")
    inputs = [Input(n, np.dtype("int64"), ("n", 4)) for n in ("input_ids", "attention_mask", "position_ids")]
    (batch,) = read(tmp_path / "t.jsonl", inputs, text=options)
    assert batch["input_ids"].tolist() == [[5, 6, 2, 1], [5, 2, 1, 1], [5, 6, 5, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 3
    free = [Input("tokens", np.dtype("int64"), ("n", "s"))]
    assert [b["tokens"].tolist() for b in read(tmp_path / "t.jsonl", free, text=options)] == [
        [[5, 6, 2]],
        [[5, 2]],
        [[5, 6, 2]],
    ]


def test_text_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    ids = Input("input_ids", np.dtype("int64"), ("n", "s"))
    options = tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UsageError, match="nothing is known for input 'pixels'"):
        read(tmp_path / "t.jsonl", [ids, Input("pixels", np.dtype("float32"), ("n", "s"))], text=options)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "t.jsonl", [ids], text=TextOptions(tokenizer=str(tmp_path / "none.json")))
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(UsageError, match="not UTF-8"):
        read(tmp_path / "t.jsonl", [ids], text=options)
    (tmp_path / "t.jsonl").write_text('{"input_ids": [1.5, 2]}')
    with pytest.raises(UsageError, match="float64, the model wants int64"):
        list(checked(open_data(str(tmp_path / "t.jsonl"), [ids]), [ids], [], real=False))


# --- the check -----------------------------------------------------------------------------------------------------


def in_memory(array: np.ndarray, name: str = "x") -> Data:
    def read() -> Iterator[dict[str, np.ndarray]]:
        yield {name: array}

    return Data("memory", read)


GOOD = RNG.normal(size=(4, 3, 8, 8)).astype("f4")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (in_memory(GOOD.transpose(0, 2, 3, 1)), "NHWC data for an NCHW model"),
        (in_memory(GOOD, "y"), "'y', which is no input"),
        (in_memory((GOOD * 50).astype("uint8")), "looks raw"),
        (in_memory(np.abs(GOOD) * 80), "--sample has"),
        (in_memory(GOOD[:, :, :4]), r"the model wants \['n', 3, 8, 8\]"),
        (in_memory(np.where(GOOD > 1, np.nan, GOOD)), "NaN"),
        (in_memory(GOOD[0]), "must count samples"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(data: Data, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(checked(data, [IMAGE], [{"x": GOOD}], real=True))
    assert re.search(words, str(caught.value))


def test_what_is_odd_is_told() -> None:
    assert remarks(in_memory(GOOD), [IMAGE], synthetic=True) == ["Calibration has only 4 samples: use 32 or more."]
    raw = np.abs(np.tile(GOOD, (10, 1, 1, 1))) * 80
    assert "normalises its input itself" in remarks(in_memory(raw), [IMAGE], synthetic=True)[0]
