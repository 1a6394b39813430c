"""What pyproject.toml cannot say: a wheel brings the manifest and the rows of the top level along.

They lie in its ``entityclip/shipped/`` as they do here, where each has its one place. An editable
installation reads them here.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SHIPPED = ("data_manifest.yaml", "figures/paper_reported.csv", "figures/rows/**/*.jsonl")


class BuildWithShippedFiles(build_py):
    """setuptools' own, and the files that are shipped."""

    def run(self) -> None:
        """Copy them beside what setuptools has copied."""
        super().run()
        if not self.editable_mode:
            for source in (path for pattern in SHIPPED for path in sorted(HERE.glob(pattern))):
                target = Path(self.build_lib, "entityclip", "shipped", source.relative_to(HERE))
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": BuildWithShippedFiles})
