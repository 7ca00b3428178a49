# SPDX-License-Identifier: Apache-2.0
"""The Python API: what `import bert4rec_jax` provides."""

import pathlib
import subprocess
import sys

import pytest

import bert4rec_jax
from bert4rec_jax.errors import UserError


@pytest.mark.parametrize("name", bert4rec_jax.__all__)
def test_every_public_name_exists_and_is_documented(name):
    assert len(getattr(bert4rec_jax, name).__doc__.split()) > 4


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="recomend"):
        print(bert4rec_jax.recomend)


def test_the_package_is_typed():
    package = pathlib.Path(bert4rec_jax.__file__).parent
    assert (package / "py.typed").exists()


def test_an_import_does_not_start_jax():
    script = (
        "import sys, bert4rec_jax\n"
        "bert4rec_jax.config.recommended()\n"
        "assert 'jax' not in sys.modules\n"
        "bert4rec_jax.Recommender\n"
        "assert 'jax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("call", [bert4rec_jax.train, bert4rec_jax.evaluate])
def test_a_wrong_field_is_rejected_before_anything_is_written(call, tmp_path):
    with pytest.raises(UserError, match=r"config\.model\.width"):
        call({"model": {"width": 0}}, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
