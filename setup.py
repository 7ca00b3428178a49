# SPDX-License-Identifier: Apache-2.0
"""Puts configs/ into the wheel; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Copies configs/ to bert4rec_jax/configs of a built package; an editable one finds them where they are."""

    def run(self):
        """Builds."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "bert4rec_jax", "configs")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in sorted(Path("configs").glob("*.py")):
                shutil.copy(file, folder)


setup(cmdclass={"build_py": WithConfigs})
