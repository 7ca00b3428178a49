# SPDX-License-Identifier: Apache-2.0
"""Adds configs/ to the wheel; pyproject.toml contains everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Copies configs/ into the built package; an editable one reads them in the checkout."""

    def run(self) -> None:
        """Builds the package and copies the configs."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "bert4rec_jax", "configs")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in sorted(Path("configs").glob("*.py")):
                shutil.copy(file, folder)


setup(cmdclass={"build_py": WithConfigs})
