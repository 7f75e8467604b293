#!/usr/bin/env bash
# The environment of a process after `import sklearn`, which lm-eval imports for its metrics.
#
# One would guess: an import leaves the environment as it was, so that a child process started later gets what the user's
# shell has.
#
# What happens: scikit-learn sets KMP_DUPLICATE_LIB_OK=True and KMP_INIT_AT_FORK=FALSE, and every child inherits both. The
# former switches off the check of Intel's and LLVM's OpenMP runtimes for a second copy of themselves, so that whether a
# child aborts with "OMP: Error #15" depends on what its parent has imported. A test that compares environments, or caches
# processes by them, sees a change from the first evaluation on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet scikit-learn==1.9.1
env -u KMP_DUPLICATE_LIB_OK -u KMP_INIT_AT_FORK "$work/venv/bin/python" - <<'PYTHON'
import os
import subprocess
import sys

import numpy
import scipy.stats

before = dict(os.environ)
import sklearn

changed = {name: value for name, value in sorted(os.environ.items()) if before.get(name) != value}
child = [sys.executable, "-c", "import os; print(os.environ.get('KMP_DUPLICATE_LIB_OK'))"]
told = subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip()
print(f"scikit-learn {sklearn.__version__} (numpy {numpy.__version__}, scipy {scipy.__version__}) sets {changed}")
print(f"a child process has KMP_DUPLICATE_LIB_OK={told}")
assert changed == {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}, "the behaviour has changed"
assert told == "True", "the behaviour has changed"
PYTHON
