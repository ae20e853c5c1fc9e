"""The command line: one-line errors, exit codes, clean stdout, help without torch."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from replaycad.cli.console import TerminalReport
from replaycad.cli.doctor import wheel_mismatch
from replaycad.experiments.tables import format_bytes
from tests.conftest import invoke

ROOT = Path(__file__).parents[2]


def one_line_error(result) -> str:
    """The error line of a foreseen failure; nothing may be on stdout."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.rstrip().endswith(lines[0]), "the error is the last word"
    return lines[0]


def test_help_does_not_import_torch():
    code = (
        "import sys\n"
        "from replaycad.cli.commands import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout


def test_a_stage_ends_with_one_summary_and_the_next_command(run):
    result = run("mask", "--class", "disc")

    assert result.exit_code == 0, result.output
    assert "disc.safetensors" in result.stdout
    assert "next: replaycad compress --class disc --data " in result.stdout
    assert "is not in the table" in result.stderr, "notes go to stderr"


def test_the_next_command_can_be_pasted_into_a_shell(data, models, tmp_path, monkeypatch):
    folder = shutil.copytree(data, tmp_path / "Meine Bilder")
    (folder / "disc").rename(folder / "Größe 1 (neu)")
    monkeypatch.setenv("REPLAYCAD_STORE", str(tmp_path / "store"))

    named = ("--class", "Größe 1 (neu)", "--data", folder)
    result = invoke(["mask", *models.settings("mask"), *named])

    assert result.exit_code == 0, result.output
    line = next(row for row in result.stdout.splitlines() if row.startswith("next: "))
    assert shlex.split(line)[1:] == [
        "replaycad", "compress", "--class", "Größe 1 (neu)", "--data", str(folder),
    ]  # fmt: skip


def test_json_is_one_document_and_nothing_else(run):
    result = run("mask", "--class", "disc", "--json")

    (outcome,) = json.loads(result.stdout)["outcomes"]
    assert outcome["stage"] == "mask"
    assert outcome["was_made"] is True
    assert outcome["num_images"] == 6
    assert outcome["num_bytes"] == Path(outcome["file"]).stat().st_size
    assert outcome["peak_memory_bytes"] > 0


def test_quiet_says_nothing_on_stderr(run):
    assert run("mask", "--class", "disc", "--quiet").stderr == ""


@pytest.mark.parametrize("typed", [
    ["--class", "disc,plate"], ["--class", "disc", "--class", "plate"], ["--class", "all"],
])  # fmt: skip
def test_classes_are_comma_separated_repeated_or_all(run, typed):
    result = run("mask", *typed, "--dry-run", "--json")

    assert [one["name"] for one in json.loads(result.stdout)["outcomes"]] == ["disc", "plate"]


@pytest.mark.parametrize(
    ("typed", "names"),
    [("disc,v2", ["disc,v2"]), ("disc, v2,plate", ["disc,v2", "plate"]),
     ("plate,disc", ["plate", "disc"])],
)  # fmt: skip
def test_a_name_with_a_comma_can_be_typed(data, models, tmp_path, typed, names):
    mine = tmp_path / "own"
    shutil.copytree(data, mine)
    shutil.copytree(data / "disc", mine / "disc,v2")

    result = invoke(["mask", "--class", typed, "--data", mine, "--store", tmp_path / "store",
                     "--dry-run", "--json", *models.settings("mask")])  # fmt: skip

    assert [one["name"] for one in json.loads(result.stdout)["outcomes"]] == names


def test_data_and_store_come_from_the_environment(data, models, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLAYCAD_DATA", str(data))
    monkeypatch.setenv("REPLAYCAD_STORE", str(tmp_path / "own"))

    result = invoke(["mask", "--class", "disc", *models.settings("mask")])

    assert result.exit_code == 0, result.output
    assert (tmp_path / "own" / "masks" / "disc.safetensors").exists()


def test_missing_class_option_is_a_usage_error():
    assert invoke(["mask"]).exit_code == 2
    assert invoke(["nonsense"]).exit_code == 2
    assert invoke(["run", "--class", "a", "--seeds", "x"]).exit_code == 2


def test_unknown_class_names_its_neighbours(run, tmp_path):
    line = one_line_error(run("mask", "--class", "dics"))

    assert "disc" in line
    assert not (tmp_path / "store" / "masks").exists()


def test_empty_class_folder_says_where_images_go(run, tmp_path):
    (tmp_path / "data" / "hollow" / "train" / "good").mkdir(parents=True)

    line = one_line_error(run("mask", "--class", "hollow", data=tmp_path / "data"))

    assert "hollow" in line
    assert "train/good" in line


def test_missing_data_folder_says_how_to_name_it(run, tmp_path):
    assert "--data" in one_line_error(run("mask", "--class", "disc", data=tmp_path / "nowhere"))


def test_truncated_image_is_named(run, data, tmp_path):
    own = shutil.copytree(data, tmp_path / "own")
    image = own / "disc" / "train" / "good" / "002.png"
    image.write_bytes(image.read_bytes()[:60])

    result = run("compress", "--class", "disc", data=own)

    assert str(image) in one_line_error(result)
    assert not (tmp_path / "store" / "conditions").exists()


def test_a_defective_image_without_a_mask_is_told_and_costs_pixel_figures_alone(
    run, chain, data, tmp_path
):
    shutil.copytree(chain, tmp_path / "store")
    own = shutil.copytree(data, tmp_path / "own")
    shutil.rmtree(own / "disc" / "ground_truth")

    result = run("eval", "--class", "disc,plate", data=own)

    assert result.exit_code == 0
    assert "disc: 2 of 2 defective images have no anomaly mask" in result.stderr
    assert "pixel_ap is not defined for disc; the mean leaves them out" in result.stderr
    assert re.search(r"disc +[\d.]+ +- +- +- +-\n", result.stdout)


def test_replay_without_conditions_says_how_to_make_them(run):
    assert "replaycad compress --class disc" in one_line_error(run("replay", "--class", "disc"))


def test_eval_without_detector_says_how_to_train_one(run):
    assert "replaycad train" in one_line_error(run("eval", "--class", "disc"))


def test_unknown_weights_say_how_to_get_them(run, monkeypatch, tmp_path):
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    segmenter = one_line_error(run("mask", "--class", "disc", "--set", "segmenter=vit_b"))
    assert str(tmp_path / "weights" / "sam_vit_b_01ec64.pth") in segmenter
    encoder = one_line_error(run("train", "--class", "disc", "--set", "encoder=resnet34.bt_in1k"))
    assert "replaycad fetch --encoder resnet34.bt_in1k" in encoder
    backbone = run("compress", "--class", "disc", "--set", "backbone=nobody/nothing-here")
    assert "replaycad fetch --backbone nobody/nothing-here" in one_line_error(backbone)


@pytest.mark.parametrize(("typed", "expected"), [
    (["--set", "colour=red"], "it has: segmenter, rule, image_size"),
    (["--set", "image_size=big"], "whole number"),
    (["--set", "rule=magic"], "choose from: policy, auto, corners, ground, area, frame"),
    (["--set", "image_size"], "write it like --set"),
    (["--recipe", "cake"], "mini, paper, release, fast"),
    (["--device", "abacus"], "auto, cpu, cuda or mps"),
])  # fmt: skip
def test_wrong_settings_list_the_right_ones(data, tmp_path, typed, expected):
    place = ["--data", data, "--store", tmp_path / "store", "--segmenter", "none"]

    assert expected in one_line_error(invoke(["mask", "--class", "disc", *place, *typed]))


@pytest.mark.parametrize("name", ["../escape", ".hidden", "a/b"])
def test_names_cannot_leave_the_store(run, name, tmp_path):
    one_line_error(run("train", "--class", "disc", "--name", name))

    assert not (tmp_path / "escape.safetensors").exists()


def test_a_detector_cannot_go_on_from_itself(run):
    assert "another --name" in one_line_error(run("train", "--class", "disc", "--set", "init=disc"))


def test_run_prints_the_matrix_and_keeps_document_and_sheet(run, tmp_path):
    command = ("run", "--class", "disc,plate", "--strategy", "finetune,replay,joint")

    result = run(*command)

    assert result.exit_code == 0, result.output
    assert "joint: image AUROC after each step" in result.stdout
    results = tmp_path / "store" / "results"
    assert (results / "run.png").read_bytes().startswith(b"\x89PNG")
    page = (results / "run.html").stat()
    kept = json.loads((results / "run.json").read_text())
    again = run(*command, "--json")
    assert json.loads(again.stdout) == kept
    assert (results / "run.html").stat() == page, "it is not written again"
    assert list(kept["strategies"]) == ["finetune", "replay", "joint"], "in the order typed"
    replay = kept["strategies"]["replay"]
    assert replay["image_auroc"]["matrix"][0][1] is None
    assert kept["strategies"]["joint"]["image_auroc"]["joint_gap"] == 0
    assert kept["strategies"]["finetune"]["bytes_per_class"] == {"disc": 0, "plate": 0}
    assert replay["bytes_per_class"]["disc"] > 0
    assert replay["seconds"] > 0


def test_a_run_that_is_up_to_date_imports_no_torch(run, data, models, tmp_path):
    command = ("run", "--class", "disc", "--strategy", "finetune")
    assert run(*command).exit_code == 0
    typed = [*command, *models.settings("run"), "--store", tmp_path / "store", "--data", data,
             "--device", "cpu"]  # fmt: skip
    code = (
        "import sys\nfrom replaycad.cli.commands import app\ntry:\n    app(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'matplotlib', 'filelock'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, typed)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "run.html" in done.stdout


def test_a_run_needs_no_report_to_succeed(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "replaycad.report.build", raising=False)

    result = run("run", "--class", "disc", "--strategy", "finetune")

    assert result.exit_code == 0, result.output
    assert "wrote no report page: a report page needs the package jinja2" in " ".join(
        result.output.split()
    )
    assert not (tmp_path / "store" / "results" / "run.html").exists()


def test_replays_of_all_past_classes_fit_into_a_budget(run, chain, tmp_path):
    shutil.copytree(chain, tmp_path / "store")
    train = ("train", "--class", "plate", "--past", "disc", "--name", "few")

    result = run(*train, "--set", "replay_budget=4")

    assert result.exit_code == 0, result.output
    assert "few learns from 4 replays of disc, " in " ".join(result.stderr.split())


def test_a_comparison_leaves_out_what_does_not_fit_and_computes_no_cell_twice(run, tmp_path):
    command = (
        "run", "--class", "disc,plate", "--strategy", "finetune,exemplars,features", "--seeds", "2",
        "--detector", "invad,patchcore", "--budget", "100,8kB", "--orders", "2",
    )  # fmt: skip

    result = run(*command)

    assert result.exit_code == 0, result.output
    assert "left out: exemplars patchcore 100: compress: a budget of 100 bytes" in result.stdout
    kept = json.loads((tmp_path / "store" / "results" / "run.json").read_text())
    assert list(kept["strategies"]) == [
        "finetune invad", "finetune patchcore", "exemplars invad 8kB", "exemplars patchcore 8kB",
        "features patchcore",
    ]  # fmt: skip
    assert kept["strategies"]["exemplars invad 8kB"]["bytes_per_class"]["disc"] <= 8_000
    assert len(kept["strategies"]["finetune patchcore"]["runs"]) == 4
    table = (tmp_path / "store" / "results" / "run.csv").read_text()
    assert len(table.splitlines()) == 1 + 5 * 4 * 2
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "detectors").iterdir()}
    wider = run(*command[:-1], "1", "--strategy", "joint")
    assert wider.exit_code == 0, wider.output
    after = {p: p.stat().st_mtime_ns for p in before}
    assert after == before


def test_run_where_no_budget_is_enough_says_so(run):
    line = one_line_error(run("run", "--class", "disc", "--strategy", "auto", "--budget", "90"))

    assert "90 bytes is too small for any form" in line


@pytest.mark.parametrize(
    ("option", "text"), [("--seeds", "x"), ("--seeds", "0"), ("--seeds", ","), ("--budget", "many"),
                         ("--budget", "-5"), ("--orders", "0")]
)  # fmt: skip
def test_senseless_numbers_are_usage_errors(run, option, text):
    assert run("run", "--class", "disc", option, text).exit_code == 2


def test_run_with_an_unknown_strategy_makes_nothing(run, tmp_path):
    line = one_line_error(run("run", "--class", "disc", "--strategy", "magic"))

    assert "finetune, ewc, mas, features, ucad, ucad-prompt, " in line
    assert not (tmp_path / "store" / "masks").exists()


def test_eval_prints_figures_per_class_and_their_mean(run, chain, tmp_path):
    shutil.copytree(chain, tmp_path / "store")

    table = run("eval", "--class", "disc,plate").stdout
    document = json.loads(run("eval", "--class", "disc,plate", "--json").stdout)

    assert "image_auroc" in table
    assert "mean" in table
    metrics = document["outcomes"][0]["metrics"]
    assert set(metrics["classes"]) == {"disc", "plate"}
    assert 0 <= metrics["mean"]["pixel_ap"] <= 1
    assert (tmp_path / "store" / "scores" / "plate.json").exists()


def test_inspect_tells_and_verifies(chain, tmp_path):
    path = tmp_path / "disc.safetensors"
    shutil.copy(chain / "conditions" / "disc.safetensors", path)

    assert "semantic_embedding" in invoke(["inspect", path]).stdout
    document = json.loads(invoke(["inspect", path, "--verify", "--json"]).stdout)
    assert document["format"] == "conditions"
    assert list(document["verified"]) == [str(path)]

    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    one_line_error(invoke(["inspect", path, "--verify"]))


def test_inspect_refuses_what_is_no_artifact(tmp_path):
    (tmp_path / "note.txt").write_text("hello")

    one_line_error(invoke(["inspect", tmp_path / "note.txt"]))
    one_line_error(invoke(["inspect", tmp_path / "absent"]))


def test_doctor_names_versions_and_what_is_missing():
    document = json.loads(invoke(["doctor", "--json"]).stdout)

    assert document["packages"]["torch"]
    assert {entry["kind"] for entry in document["weights"]} == {"backbone", "segmenter", "encoder"}
    assert all(entry["is_present"] or entry["hint"] for entry in document["weights"])
    assert "package" in invoke(["doctor"]).stdout


def test_doctor_shows_one_command_for_whatever_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    lines = [line for line in invoke(["doctor"]).stdout.splitlines() if "replaycad fetch" in line]

    assert len(lines) == 1
    assert lines[0].endswith("replaycad fetch --recipe paper")


@pytest.mark.parametrize(("torch", "torchvision", "expected"), [
    ("2.11.0+cpu", "0.26.0", True),
    ("2.11.0+cpu", "0.26.0+cpu", False),
    ("2.11.0+cu130", "0.26.0+cu130", False),
    ("2.11.0", "0.26.0", False),
])  # fmt: skip
def test_doctor_sees_a_cpu_torch_beside_a_registry_torchvision(torch, torchvision, expected):
    assert wheel_mismatch(torch, torchvision) is expected


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (205_600, "205.6 kB"), (40_000_000, "40.0 MB"),
    (2 * 10**12, "2000.0 GB"),
])  # fmt: skip
def test_sizes_are_readable(count, text):
    assert format_bytes(count) == text


def test_no_bars_where_stderr_is_no_terminal(capsys):
    with TerminalReport() as report:
        report.step("search", 1, 10, loss=0.5)
        report.note("said once")

    captured = capsys.readouterr()
    assert captured.err == "said once\n"
    assert captured.out == ""
