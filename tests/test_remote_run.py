"""Commands on a store behind a URL, from two machines."""

import json

from tests.conftest import ARTIFACTS, invoke, run_chain


def test_another_machine_goes_on_from_what_one_has_put_there(data, models, tmp_path, monkeypatch):
    url = f"file://{tmp_path}/far"
    monkeypatch.setenv("REPLAYCAD_CACHE", str(tmp_path / "one"))
    run_chain(url, data, models, seed=0)
    monkeypatch.setenv("REPLAYCAD_CACHE", str(tmp_path / "two"))

    result = invoke(["eval", "--class", "disc,plate", "--data", data, "--store", url, "--json",
                     "--device", "cpu", *models.settings("eval")])  # fmt: skip

    outcome = json.loads(result.stdout)["outcomes"][0]
    assert outcome["was_made"] is False
    assert outcome["seconds"] > 0
    for name in ARTIFACTS:
        assert (tmp_path / "far" / f"{name}.safetensors").exists()
    assert (tmp_path / "far" / "scores" / "plate.json").exists()


def test_the_bytes_are_those_of_a_folder(chain, data, models, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLAYCAD_CACHE", str(tmp_path / "cache"))

    run_chain(f"file://{tmp_path}/far", data, models, seed=0)

    for name in ARTIFACTS:
        far = tmp_path / "far" / f"{name}.safetensors"
        assert far.read_bytes() == (chain / f"{name}.safetensors").read_bytes()


def test_a_url_that_nothing_opens_is_one_line(data):
    result = invoke(["mask", "--class", "disc", "--data", data, "--store", "nowhere://bucket"])

    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot open the store nowhere://bucket")
    assert "Traceback" not in result.stderr
