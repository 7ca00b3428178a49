#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the wheel, installs it into an empty environment, and runs a short quickstart outside the checkout.
#   PYTHON=python3.12 tests/packaging/try_wheel.sh OUT
# Other options of pip, such as a local index, come from its environment variables.
set -euo pipefail
python=${PYTHON:-python3}
checkout=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# Build from a copy, to leave no files in the checkout.
mkdir "$place/source"
(cd "$checkout" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar cf - --ignore-failed-read) | tar xf - -C "$place/source"
"$python" -m venv "$place/env"
"$place/env/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$out" "$place/source"
version=$("$place/env/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
pins=$checkout/constraints-$version.txt
[ -f "$pins" ] || pins=$checkout/constraints.txt
wheel=$(ls -t "$out"/bert4rec_jax-*.whl | head -n 1)
"$place/env/bin/python" -m pip install --quiet -c "$pins" "$wheel"

cd "$place"
export BERT4REC_DATA=$place/data PATH=$place/env/bin:$PATH
bert4rec-train --help > help.txt
grep -q -- --workdir help.txt
small="--config.train.steps=20 --config.optimizer.warmup_steps=5 --config.train.eval_every=10 --config.train.checkpoint_every=10 --config.train.log_every=5"
bert4rec-train --config quickstart --workdir runs/quickstart $small | tail -n 12
bert4rec-recommend --workdir runs/quickstart --history "Toy Story" --history "Lion King, The" --k 3
bert4rec-export --workdir runs/quickstart --format stablehlo --out exported
test -s exported/model.stablehlo -a -s exported/items.csv
if bert4rec-train --config configs/quickstart.py --workdir runs/none 2>error.txt; then exit 1; fi
grep -q "go by their names: .*quickstart" error.txt
python -c 'import bert4rec_jax, os; assert os.path.abspath("env") in bert4rec_jax.__file__; print("Python", "'"$version"'", "bert4rec_jax", bert4rec_jax.__version__, "JAX", __import__("jax").__version__)'
