"""Commands that only read rows and draw do not wait for what only models and web addresses need."""

import subprocess
import sys

import pytest

import entityclip.datasets
import entityclip.explanations
from entityclip import left_out


def loaded_by(statement):
    command = f"{statement}\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_the_redrawing_command_imports_no_statistics_either():
    loaded = loaded_by("import entityclip.reproduce.figures")
    assert {"seaborn", "entityclip.reproduce.figures"} <= loaded
    assert not {"scipy.stats", "scipy.cluster", "ipywidgets", "papermill"} & loaded


def test_running_notebooks_compiles_no_grammar():
    loaded = loaded_by("import entityclip.reproduce.chain")
    assert {"nbformat", "jsonschema"} <= loaded
    assert "rfc3987_syntax" not in loaded


def test_what_is_left_out_is_missing_for_a_while_unless_imported_already():
    sys.modules.pop("this", None)
    with left_out("subprocess", "this"):
        import subprocess as again

        with pytest.raises(ImportError):
            import this  # noqa: F401
    assert "this" not in sys.modules
    assert again is subprocess is sys.modules["subprocess"]


@pytest.mark.parametrize("package", [entityclip, entityclip.datasets, entityclip.explanations])
def test_a_package_lists_and_loads_all_of_its_public_names(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no .* 'nothing'"):
        package.nothing  # noqa: B018
