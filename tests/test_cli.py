"""The command line: what it prints, and one clear sentence with the right exit code for every bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import yaml

from infconv.passes import Pass

ROOT = Path(__file__).parent.parent


def test_help_is_fast_and_names_the_exit_codes() -> None:
    code = "import sys, atexit, infconv.cli\natexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))\n"
    code += "infconv.cli.main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "Exit codes" in done.stdout
    for heavy in ("'numpy'", "'onnx'", "'onnx_ir'", "'torch'", "'pydantic'", "'rich'", "'yaml'"):
        assert heavy not in done.stderr, f"--help imports {heavy}"


def test_convert_prints_a_table_without_a_terminal(infconv, mlp: Path) -> None:
    done = infconv("convert", mlp, "-o", "out.onnx")
    assert done.code == 0
    assert "out.onnx" in done.out
    assert "3 samples" in done.out
    assert done.err == ""
    assert "\x1b" not in done.out


def test_json_has_the_promised_document(infconv, mlp: Path) -> None:
    done = infconv("convert", mlp, "-o", "out.onnx", "--json")
    document = done.json
    assert (document["status"], document["exit_code"], document["error"]) == ("ok", 0, None)
    assert document["artifacts"][0]["path"] == "out.onnx"
    assert document["verification"]["out.onnx"]["passed"] is True
    assert {"name", "status", "changes", "seconds", "reason"} <= set(document["steps"][0])


def test_dry_run_prints_a_pipeline_that_run_accepts(infconv, mlp: Path, tmp_path: Path) -> None:
    done = infconv("convert", mlp, "-o", tmp_path / "out.onnx", "--fp16", "--dim", "batch=1..4", "--dry-run")
    assert yaml.safe_load(done.out)["targets"][0]["precision"] == "fp16"
    assert not (tmp_path / "out.onnx").exists()
    (tmp_path / "p.yaml").write_text(done.out)
    assert infconv("run", "p.yaml").code == 0
    assert (tmp_path / "out.onnx").exists()


def test_dry_run_keeps_the_limits_and_speaks_json(infconv, mlp: Path, tmp_path: Path) -> None:
    done = infconv("convert", mlp, "--timeout", "5m", "--memory-limit", "8GiB", "--dry-run", "--json")
    pipeline = done.json["pipeline"]
    assert (done.json["exit_code"], pipeline["timeout"], pipeline["memory_limit"]) == (0, 300, 8 << 30)
    assert pipeline["targets"][0]["output"] == str(tmp_path)


def test_a_file_has_limits_of_its_own(infconv, mlp: Path, tmp_path: Path) -> None:
    text = f"source: {{path: {mlp.name}}}\ntargets: [{{target: onnx, output: new/a.onnx}}]\ntimeout: 10ms\n"
    (tmp_path / "p.yaml").write_text(text)
    done = infconv("run", "p.yaml")
    assert done.code == 7
    assert "--timeout" in done.err
    assert not (tmp_path / "new").exists()
    assert infconv("run", "p.yaml", "--timeout", "5m").code == 0


PASS = """
from infconv.passes import Pass
class Nothing(Pass):
    "Does nothing."
    def run(self, model, context):
        return 0
"""


def test_modules_are_found_beside_the_pipeline_file(infconv, mlp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "beside.py").write_text(PASS)
    text = f"source: {{path: ../{mlp.name}}}\nadd: ['beside:Nothing']\ntargets: [{{target: onnx}}]\n"
    (folder / "p.yaml").write_text(text)
    done = infconv("run", "sub/p.yaml", "--json")
    assert "beside:Nothing" in {step["name"] for step in done.json["steps"]}
    assert (folder / "mlp.onnx").exists()


def test_a_factory_is_found_beside_the_pipeline_file(infconv, tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "net.py").write_text("import torch\ndef make(): return torch.nn.Linear(4, 2)\n")
    text = "source: {path: 'net:make', inputs: {input: [batch, 4]}}\ntargets: [{target: onnx}]\n"
    (folder / "p.yaml").write_text(text)
    assert infconv("run", "sub/p.yaml").code == 0
    assert (folder / "make.onnx").exists()


def test_flags_go_on_top_of_a_pipeline_file(infconv, mlp: Path, tmp_path: Path) -> None:
    text = "version: 1\nsource: {path: other.onnx}\nsteps: [basic]\nskip: [remove-unused]\nverify: {when: 'off'}\n"
    (tmp_path / "p.yaml").write_text(text + "targets: [{target: openvino, output: out/a.xml}]\n")
    done = infconv("convert", mlp, "--pipeline", "p.yaml", "--json")
    assert [a["path"] for a in done.json["artifacts"]] == ["out/a.xml"]
    assert done.json["artifacts"][0]["verification"]["passed"] is None
    assert "remove-unused" not in {s["name"] for s in done.json["steps"]}
    done = infconv("convert", mlp, "--pipeline", "p.yaml", "-t", "onnx", "-o", "b.onnx", "--json")
    assert [a["path"] for a in done.json["artifacts"]] == ["b.onnx"]


def test_without_output_the_source_is_kept(infconv, mlp: Path, tmp_path: Path) -> None:
    before = mlp.read_bytes()
    assert infconv("convert", mlp.name).code == 0
    assert mlp.read_bytes() == before
    assert (tmp_path / "mlp.optimized.onnx").exists()


BAD = {
    "source behind a link": (["link.onnx", "-o", "mlp.onnx"], 2, "is the source itself"),
    "future opset": (["future.onnx"], 4, "opset 99"),
    "random numbers": (["random.onnx"], 4, "--verify off"),
    "suffix of another target": (["mlp.onnx", "-t", "trt", "-o", "a.onnx"], 2, "Use a.engine"),
    "sample that is no archive": (["mlp.onnx", "--sample", "notes.txt"], 2, "numpy.savez"),
    "folder in the way of the manifest": (["mlp.onnx", "-o", "way.onnx"], 2, "in the way"),
    "no pass": (["mlp.onnx", "-p", "os:getcwd"], 2, "is not a pass"),
    "missing file": (["gone.onnx"], 3, "'gone.onnx' does not exist"),
    "unknown suffix": (["notes.txt"], 3, "'notes.txt' is not a model"),
    "empty folder": (["empty"], 3, "empty folder"),
    "truncated": (["cut.onnx"], 3, "cut.onnx"),
    "unknown target": (["mlp.onnx", "-t", "onxn"], 2, "Did you mean 'onnx'?"),
    "unknown pass": (["mlp.onnx", "-p", "fold-constant"], 2, "Did you mean 'fold-constants'?"),
    "unknown option of a pass": (["mlp.onnx", "-p", "fold-constants: {max_byte: 1}"], 2, "did you mean 'max_bytes'"),
    "unknown skip": (["mlp.onnx", "--skip", "remove-unusd"], 2, "Did you mean 'remove-unused'?"),
    "unknown frontend": (["mlp.onnx", "--frontend", "tourch"], 2, "Did you mean 'torch'?"),
    "unknown input": (["mlp.onnx", "--input", "xx:1,8"], 2, "no input 'xx'"),
    "wrong rank": (["mlp.onnx", "--input", "x:1,8,1"], 2, "has 2 dims"),
    "wrong size": (["mlp.onnx", "--input", "x:1,9"], 2, "fixed at 8"),
    "wrong type": (["mlp.onnx", "--input", "x:1,8:int64"], 2, "its type is float32"),
    "malformed input": (["mlp.onnx", "--input", "x"], 2, "NAME:DIMS"),
    "unknown dim": (["mlp.onnx", "--dim", "bacth=1..2"], 2, "Did you mean 'batch'?"),
    "malformed dim": (["mlp.onnx", "--dim", "batch"], 2, "NAME=SIZES"),
    "reversed dim": (["mlp.onnx", "--dim", "batch=8..2"], 2, "--dim 'batch=8..2': 1 <= min <= opt <= max"),
    "dim twice": (["mlp.onnx", "--dim", "batch=1", "--dim", "batch=2"], 2, "given twice"),
    "unknown type": (["mlp.onnx", "--input", "x:batch,8:flot"], 2, "Did you mean 'float32'?"),
    "impossible opset": (["mlp.onnx", "--opset", "99"], 2, "--opset 99 is not possible for target onnx.\nIt takes 7"),
    "opset that the target lacks": (["mlp.onnx", "-t", "trt", "--opset", "24"], 2, "It takes 7 to 23"),
    "opset that is no number": (["mlp.onnx", "--opset", "new"], 2, "'--opset': a number is needed"),
    "negative tolerance": (["mlp.onnx", "--rtol", "-1"], 2, "--rtol is -1; it must be at least 0"),
    "unknown moment": (["mlp.onnx", "--verify", "ech"], 2, "Did you mean 'each'?"),
    "unknown option": (["mlp.onnx", "--fp61"], 2, "--fp16"),
    "weights beside a model": (["mlp.onnx", "--weights", "w.pt"], 2, "--weights does not go with 'mlp.onnx'"),
    "useless options": (["mlp.onnx", "--python", "/x", "--trust-pickle"], 2, "--python and --trust-pickle do not go"),
    "Python code": (["net.py"], 3, "infconv convert net:FUNCTION"),
    "two precisions": (["mlp.onnx", "--fp16", "--bf16"], 2, "exclude each other"),
    "two targets, one file": (["mlp.onnx", "-t", "onnx", "-t", "ort", "-o", "x.onnx"], 2, "Name a folder"),
    "output is the source": (["mlp.onnx", "-o", "mlp.onnx"], 2, "is the source itself"),
    "output below a file": (["mlp.onnx", "-o", "notes.txt/x.onnx"], 2, "cannot be written"),
    "missing sample": (["mlp.onnx", "--sample", "gone.npz"], 2, "--sample 'gone.npz'"),
    "malformed time-out": (["mlp.onnx", "--timeout", "soon"], 2, "--timeout"),
    "malformed memory": (["mlp.onnx", "--memory-limit", "lots"], 2, "--memory-limit"),
    "exporter option": (["mlp.onnx", "-t", "trt", "--option", "compute_capability=sm88"], 2, "sm89"),
    "unknown exporter option": (["mlp.onnx", "-t", "trt", "--option", "compute=sm89"], 2, "compute_capability"),
    "custom operator": (["custom.onnx", "--verify", "off", "-t", "trt"], 4, "Frobnicate"),
    "too little time": (["mlp.onnx", "--timeout", "0.01s"], 7, "--timeout"),
}


@pytest.fixture
def bad_inputs(mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model")
    (tmp_path / "net.py").write_text("def make(): ...")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.onnx").symlink_to(mlp)
    (tmp_path / "way.onnx.infconv.json").mkdir()
    future = onnx.load(mlp)
    future.opset_import[0].version = 99
    onnx.save(future, tmp_path / "future.onnx")
    text = '<ir_version: 9, opset_import: ["" : 17]> m (float[2] x) => (float[2] y) { y = RandomNormalLike(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "random.onnx")
    (tmp_path / "cut.onnx").write_bytes(mlp.read_bytes()[:100])
    custom = onnx.load(mlp)
    custom.graph.node[2].op_type, custom.graph.node[2].domain = "Frobnicate", "my.domain"
    custom.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    onnx.save(custom, tmp_path / "custom.onnx")


@pytest.mark.usefixtures("bad_inputs")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_a_code(infconv, tmp_path: Path, case: str) -> None:
    arguments, code, words = BAD[case]
    before = sorted(p.name for p in tmp_path.iterdir())
    done = infconv("convert", *arguments)
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.usefixtures("bad_inputs")
def test_failures_are_json_too(infconv) -> None:
    done = infconv("convert", "gone.onnx", "--json")
    assert done.code == 3
    assert done.json["error"]["code"] == "source"
    assert done.json["error"]["hint"]
    done = infconv("convert", "mlp.onnx", "--no-such-option", "--json")
    assert done.code == 2
    assert done.json["exit_code"] == 2


@pytest.mark.parametrize("command", ["targets", "frontends", "passes", "doctor"])
def test_listings_print_tables_and_json(infconv, command: str) -> None:
    assert infconv(command).code == 0
    assert infconv(command, "--json").json


def test_one_pass_is_shown_with_its_options(infconv) -> None:
    done = infconv("passes", "fold-constants")
    assert "max_bytes" in done.out
    assert infconv("passes", "fold-constant").code == 2


def test_inspect_shows_the_model(infconv, mlp: Path) -> None:
    done = infconv("inspect", mlp)
    assert "MatMul" in done.out
    document = infconv("inspect", mlp, "--json", "-t", "onnx").json
    assert document["nodes"] == 4
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]
    assert document["refused"] == []


def test_inspect_names_what_is_no_onnx_and_the_way_to_it(infconv, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"program")
    (tmp_path / "a.engine").write_bytes(b"ptrt")
    done = infconv("inspect", "net.pt2")
    assert (done.code, "convert net.pt2 -o model.onnx" in done.err) == (2, True)
    done = infconv("inspect", "a.engine")
    assert (done.code, "is a TensorRT engine" in done.err) == (2, True)


def test_init_writes_a_pipeline_that_runs_and_overwrites_nothing(infconv, mlp: Path, tmp_path: Path) -> None:
    assert infconv("init", mlp.name, "-o", "sub/p.yaml").code == 0
    text = (tmp_path / "sub" / "p.yaml").read_text()
    assert "x: [batch, 8]   # float32" in text
    assert yaml.safe_load(text)["source"] == {"path": "../mlp.onnx", "dims": {"batch": {"min": 1, "opt": 8, "max": 32}}}
    assert infconv("run", "sub/p.yaml").code == 0
    assert (tmp_path / "sub" / "out" / "mlp.onnx").exists()
    done = infconv("init", mlp.name, "-o", "sub/p.yaml")
    assert (done.code, "--force" in done.err) == (2, True)
    assert infconv("init", "-o", "sub/p.yaml", "--force", "--json").json["pipeline"] == "sub/p.yaml"
    assert infconv("init", "gone.onnx", "-o", "q.yaml").code == 3
    assert not (tmp_path / "q.yaml").exists()


def test_init_says_what_a_factory_needs(infconv, tmp_path: Path) -> None:
    assert infconv("init", "my.module:make").code == 0
    source = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())["source"]
    assert source == {"path": "my.module:make", "inputs": {"x": ["batch", 3, 224, 224]}}


def test_diff_shows_what_changed(infconv, mlp: Path, tmp_path: Path) -> None:
    changed = onnx.load(mlp)
    changed.graph.node[2].op_type = "Sigmoid"
    changed.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(changed, tmp_path / "changed.onnx")
    assert "the same graph of 4 nodes" in infconv("diff", mlp, mlp).out
    done = infconv("diff", mlp, "changed.onnx")
    assert "Sigmoid → r" in done.out
    assert "float32[batch,4] → float32[n,4]" in done.out
    document = infconv("diff", mlp, "changed.onnx", "--json").json
    assert (document["equal"], document["nodes"]["removed"]) == (False, ["Relu → r"])
    assert infconv("diff", mlp, "gone.onnx").code == 3


def test_compare_exits_with_5_beyond_tolerance(infconv, mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    changed = onnx.load(mlp)
    changed.graph.node[2].op_type = "Sigmoid"
    onnx.save(changed, tmp_path / "changed.onnx")
    assert infconv("compare", mlp, mlp).code == 0
    assert infconv("compare", mlp, "changed.onnx").code == 5
    for wrong, words in (("gone.onnx", "does not exist"), ("e", "'e'")):
        done = infconv("compare", mlp, wrong)
        assert (done.code, words in done.err) == (3, True)
    done = infconv("compare", mlp, mlp, "--inputs", "gone.npz")
    assert (done.code, "--inputs 'gone.npz'" in done.err) == (2, True)
    assert infconv("compare", mlp, mlp, "--rtol", "-1").code == 2


class Sleeps(Pass):
    """A step that takes its time."""

    def run(self, model, context) -> int:
        time.sleep(60)
        return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(mlp: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "infconv.cli", "convert", str(mlp), "-o", str(folder / "a.onnx"), "-v"]
    command += ["-p", "tests.test_cli:Sleeps"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "Sleeps" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert not folder.exists() or not list(folder.iterdir())


def test_a_killed_child_leaves_nothing_behind(mlp: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infconv.cli", "convert", str(mlp), "-o", str(tmp_path / "out" / "a.onnx")]
    command += ["--json", "-p", "tests.test_cli:Dies"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert json.loads(done.stdout)["error"]["code"] == "resource"


class Dies(Pass):
    """A step that the system kills."""

    def run(self, model, context) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0
