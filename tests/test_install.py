"""A wheel, built from what is tracked, unpacked elsewhere and used from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from entityclip.config import REPOSITORY

SHOWN = """
import entityclip
from entityclip.config import IN_CHECKOUT, load_profile
from entityclip.datasets.manifest import load_manifest
from entityclip.results import find_rows
assert not IN_CHECKOUT
print(entityclip.__file__)
print(len(load_manifest().datasets) > 3, len(find_rows(load_profile("demo"), "retrieval")) > 99)
print(load_profile("smoke").runs)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that a wheel's files are in."""
    source, home = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    kept = ("runs", "build", ".*", "*.egg-info", "__pycache__", "tests", "notebooks", "*.png")
    shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(*kept), dirs_exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-q", "-w", "dist"], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("entityclip-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    return home


@pytest.fixture
def run(installed, tmp_path):
    """Run Python from an empty folder with that package; the finished process."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    environment.pop("ENTITYCLIP_RUNS", None)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_a_wheel_has_profiles_manifest_and_rows_and_runs_below_the_current_folder(
    run, installed, tmp_path
):
    done = run("-c", SHOWN)
    assert done.returncode == 0, done.stderr
    package, counts, runs = done.stdout.splitlines()
    assert package == str(installed / "entityclip" / "__init__.py")
    assert counts == "True True"
    assert runs == str(tmp_path / "runs" / "smoke")
    assert list(tmp_path.iterdir()) == []  # nothing is made by looking


def test_a_wheel_ships_what_the_repository_has_and_no_code_for_building(installed):
    def below(folder, pattern):
        return {path.relative_to(folder): path.read_bytes() for path in folder.glob(pattern)}

    for pattern in ("data_manifest.yaml", "figures/paper_reported.csv", "figures/rows/**/*.jsonl"):
        shipped = below(installed / "entityclip" / "shipped", pattern)
        assert shipped == below(REPOSITORY, pattern)
        assert shipped
    for pattern in ("profiles/*.yaml", "backbones/*.json", "explanations/*.jsonl", "py.typed"):
        assert below(installed / "entityclip", pattern) == below(REPOSITORY / "entityclip", pattern)
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"entityclip"}
    (info,) = installed.glob("*.dist-info")
    assert "entityclip = entityclip.__main__:main" in (info / "entry_points.txt").read_text()


def test_a_wheel_says_what_takes_a_checkout(run, tmp_path):
    reproduce = run("-m", "entityclip", "reproduce")
    assert reproduce.returncode == 2
    assert reproduce.stderr.splitlines() == [
        "error: the notebooks are no part of an installed package: get the repository and run "
        "`make reproduce` there (`entityclip figures` redraws what needs no notebook)"
    ]
    ship = run("-m", "entityclip", "sweep", "--tables", "main", "--ship")
    assert ship.returncode == 2
    assert "--ship is for a checkout" in ship.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_redraws_figures_below_the_current_folder(run, tmp_path):
    done = run("-m", "entityclip", "figures", "retrieval")
    assert done.returncode == 0, done.stderr
    drawn = tmp_path / "runs" / "demo" / "figures"
    for kind in ("md", "csv", "tex"):
        assert (drawn / f"retrieval.{kind}").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_what_a_checkout_holds_comes_from_it():
    from entityclip import config
    from entityclip.datasets.manifest import MANIFEST

    assert config.IN_CHECKOUT
    assert MANIFEST == REPOSITORY / "data_manifest.yaml"
    assert config.PROFILES.parent == REPOSITORY / "entityclip"
