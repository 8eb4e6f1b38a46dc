"""`imctl size` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tools import gencapacity

ROOT = Path(__file__).resolve().parents[2]
IMCTL = Path(sys.executable).with_name("imctl")


def imctl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IMCTL, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_page_shows_what_the_code_prints_today() -> None:
    text = gencapacity.PAGE.read_text()
    assert text.count("<!-- imctl size") == 2
    assert gencapacity.page(text) == text
    assert gencapacity.SCHEMA.read_text() == gencapacity.schema()


def test_json_follows_the_published_schema_and_yaml_says_the_same() -> None:
    import yaml

    schema = json.loads((ROOT / "docs" / "size.schema.json").read_text())
    result = imctl("size", "--file", "docs/capacity.yaml", "-o", "json")
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert document["load"][1] == {
        "name": "peak",
        "label": "Messages at peak",
        "value": 18e6,
        "unit": "msg/s",
        "formula": "as given",
        "assumed": [],
    }
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document | {"roles": 3})
    again = imctl("size", "--file", "docs/capacity.yaml", "-o", "yaml").stdout
    assert yaml.safe_load(again) == document


@pytest.mark.parametrize(
    "arguments", [(), ("--explain",), ("--figures",), ("--daily-users", "100B", "--idcs", "50")]
)
def test_it_fits_80_columns(arguments: tuple[str, ...]) -> None:
    result = imctl("size", *arguments)
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("daily_users: 2M\nidcs: 5\nfigures: {fold_us: 100}\n")
    result = imctl("size", "--file", file, "--idcs", "4", "--set", "rest_share=0", "-o", "json")
    document = json.loads(result.stdout)
    inputs = document["inputs"]
    assert (inputs["daily_users"], inputs["idcs"], inputs["devices"]) == (2e6, 4, 1.3)
    figures = {each["name"]: each for each in document["figures"]}
    assert (figures["fold_us"]["value"], figures["rest_share"]["value"]) == (100, 0)
    assert figures["rest_share"]["source"] == "--set"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--daily-users", "abc"), "--daily-users: expected a number such as 18M, 1e9 or 2.5"),
        (("--daily-users", "0"), "--daily-users: expected at least 1, got '0'"),
        (("--idcs", "2.5"), "--idcs: expected a whole number, got '2.5'"),
        (("--headroom", "nan"), "--headroom: expected a number"),
        (("--survivors", "9"), "--survivors: expected at most the 3 IDCs, got 9"),
        (("--group", "2:1"), "--group: expected MEMBERS=SHARE such as 100=0.05, got '2:1'"),
        (("--group", "2=0.4"), "--group: expected shares that add up to 1, got 0.4"),
        (("--set", "fold_us"), "--set: expected NAME=VALUE such as fold_us=200, got 'fold_us'"),
        (("--file", "none.yaml"), "none.yaml: expected a YAML file, got No such file"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(arguments: tuple[str, ...], said: str) -> None:
    result = imctl("size", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("daily_user: 3\n", "unknown input daily_user; did you mean daily_users?"),
        ("groups: []\n", "groups: expected at least 1 of them, got []"),
        ("groups: [{members: 2, shares: 1}]\n", "groups.0.share: expected a value, got none"),
        ("groups: [{members: 2, share: 0.5}]\n", "groups: expected shares that add up to 1"),
        ("a: [\n", "expected YAML, got an error:"),
        ("", "expected a mapping of inputs to values, got an empty file"),
        ("- 3\n", "expected a mapping of inputs to values, got a list"),
        ("figures: 3\n", "figures: expected a mapping of names to values"),
        ("figures: {fold: 3}\n", "figures: expected the name of a figure, got 'fold'"),
        ("3: 4\n", "unknown input 3; expected one of daily_users"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(text)
    result = imctl("size", "--file", file)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {file}")
    assert said in line
